"""All methods of the papers' tables side by side on one prediction.

Example::

    >>> from captum_lrp_tx.compare import compare
    >>> from captum_lrp_tx.models import sentiment
    >>> model, tokenizer = sentiment()
    >>> inputs = tokenizer("a charming film", return_tensors="pt")
    >>> tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    >>> comparison = compare(model, inputs, tokens=tokens, methods=["GI", "LRP(AH+LN)", "LRP"])
    >>> comparison.png("methods.png")  # doctest: +SKIP
"""

from captum_lrp_tx.compare.captum_methods import (
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
)
from captum_lrp_tx.compare.comparison import Comparison, Row
from captum_lrp_tx.compare.registry import METHODS, Method, find_method, unavailable_methods
from captum_lrp_tx.compare.run import compare

__all__ = [
    "METHODS",
    "Comparison",
    "Method",
    "Row",
    "TokenGradientShap",
    "TokenIntegratedGradients",
    "TokenSaliency",
    "compare",
    "find_method",
    "unavailable_methods",
]
