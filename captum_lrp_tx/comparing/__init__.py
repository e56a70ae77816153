"""All methods of the papers' tables side by side on one prediction.

Example::

    >>> from captum_lrp_tx import compare
    >>> from captum_lrp_tx.models import sentiment
    >>> model, tokenizer = sentiment()
    >>> inputs = tokenizer("a charming film", return_tensors="pt")
    >>> tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    >>> comparison = compare(model, inputs, tokens=tokens, methods=["GI", "LRP(AH+LN)", "LRP"])
    >>> comparison.png("methods.png")  # doctest: +SKIP
"""

from captum_lrp_tx.comparing.comparison import Comparison, Row
from captum_lrp_tx.comparing.run import compare

__all__ = ["Comparison", "Row", "compare"]
