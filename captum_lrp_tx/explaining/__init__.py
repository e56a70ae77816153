"""From a model and an input to an explanation in one call.

Example::

    >>> import captum_lrp_tx as lrp
    >>> from captum_lrp_tx.models import sentiment
    >>> explanation = lrp.explain(*sentiment(), "a charming and funny film")
    >>> explanation.save("film.html")  # doctest: +SKIP
"""

from captum_lrp_tx.explaining.explanation import Explanation, Explanations
from captum_lrp_tx.explaining.run import case_of, explain
from captum_lrp_tx.explaining.segments import Segment
from captum_lrp_tx.explaining.words import Tokens, Word

__all__ = ["Explanation", "Explanations", "Segment", "Tokens", "Word", "case_of", "explain"]
