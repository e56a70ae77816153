r"""What of a model's output is explained: Captum's target kinds, and those that are no index.

Unless told otherwise every class explains the logit that an index names.  The classes here go
where an index goes, as ``target=``, and can be put into each other:

========================================= ====================================================
``Contrast(a, b)``                        why ``a`` rather than ``b``: logit a minus logit b
``LogProbability(a)``                     ``log_softmax`` of a, as Captum's ``LLMAttribution``
``LogOdds(a)``                            a against all others together
``Sum(a, b, ...)``                        several outputs at once, with weights where wanted
``Span(ids, start, stop)``                an answer of several tokens, or a piece of it
``[Contrast(1, 0), Contrast(2, 0), ...]`` one target for each example
========================================= ====================================================

Relevance is linear in the target: that of ``Contrast(a, b)`` is the relevance of ``a`` minus that
of ``b``.  (The methods that take positive parts of attention maps are not linear.)
"""

from captum_lrp_tx.attr.targets.indices import (
    Contrast,
    LogProbability,
    Sum,
    Target,
    TargetOutput,
    TargetType,
    holds_target,
    indices_of,
    select_target,
)
from captum_lrp_tx.attr.targets.token_spans import LogOdds, Span

__all__ = [
    "Contrast",
    "LogOdds",
    "LogProbability",
    "Span",
    "Sum",
    "Target",
    "TargetOutput",
    "TargetType",
    "holds_target",
    "indices_of",
    "select_target",
]
