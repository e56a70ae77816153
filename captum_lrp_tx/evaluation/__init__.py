"""Faithfulness of many methods on a data set, as in the tables of the papers.

Example::

    >>> from captum_lrp_tx.evaluation import TextExamples, evaluate
    >>> from captum_lrp_tx.metrics.masking import MaskTokens
    >>> from captum_lrp_tx.models import sentiment
    >>> model, tokenizer = sentiment()
    >>> examples = TextExamples(["a charming film", "a dull mess"], tokenizer, [1, 0])
    >>> masker = MaskTokens.from_tokenizer(tokenizer)
    >>> evaluation = evaluate(model, examples, "paper", masker=masker)  # doctest: +SKIP
    >>> print(evaluation.markdown(reference="LRP(AH+LN)"))  # doctest: +SKIP
"""

from captum_lrp_tx.evaluation.examples import Examples, ImageExamples, ImageFiles, TextExamples
from captum_lrp_tx.evaluation.measures import MEASURES, Measure
from captum_lrp_tx.evaluation.result import Evaluation, MethodResult
from captum_lrp_tx.evaluation.run import evaluate
from captum_lrp_tx.evaluation.tuning import Trial, Tuned, linear_layers, tune

__all__ = [
    "MEASURES",
    "Evaluation",
    "Examples",
    "ImageExamples",
    "ImageFiles",
    "Measure",
    "MethodResult",
    "TextExamples",
    "Trial",
    "Tuned",
    "evaluate",
    "linear_layers",
    "tune",
]
