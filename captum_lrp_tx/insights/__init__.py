"""The methods of this package in Captum Insights, and pages that show them at once.

:func:`register` puts the attribution classes into the list of methods of Captum Insights, each
with its arguments; :func:`unregister` takes them out again. :func:`text_page` and
:func:`image_page` make a page for a model and its examples, :func:`serve` shows pages in the
browser. From the command line: ``python -m captum_lrp_tx insights``.

Captum 0.8 is the last version with Insights; the extra ``insights`` brings it and what its server
needs: ``pip install "captum<0.9" "numpy<2" flask flask-compress``. This module can be imported
without; its functions then say what is missing. ``captum_lrp_tx.report`` writes a page that needs
no Insights.

Example::

    >>> from captum_lrp_tx import insights
    >>> insights.register()  # doctest: +SKIP
    >>> AttributionVisualizer(models, classes, features, data).serve()  # doctest: +SKIP
"""

from captum_lrp_tx.insights.pages import EmbeddedTokens, image_page, text_page
from captum_lrp_tx.insights.registration import Registration, register, unregister
from captum_lrp_tx.insights.server import PageServer, serve

__all__ = [
    "EmbeddedTokens",
    "PageServer",
    "Registration",
    "image_page",
    "register",
    "serve",
    "text_page",
    "unregister",
]
