"""A page to look through many predictions and their explanations by several methods.

Example::

    >>> from captum_lrp_tx.models import digit_samples, digits
    >>> from captum_lrp_tx import report
    >>> images, labels = digit_samples()
    >>> made = report(digits(), images, labels=labels, path="digits.html")  # doctest: +SKIP
"""

from captum_lrp_tx.reporting.results import Example, Explanations, Report
from captum_lrp_tx.reporting.run import report

__all__ = ["Example", "Explanations", "Report", "report"]
