"""Does the relevance of a sentence sum to its logit?  The conservation figure of the paper.

    python -m experiments.ali2022.run --experiment conservation --shared ../shared

Relevance is taken at the output of the embedding block, as in the published code of Ali et al.
2022, for the predicted class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from captum_lrp_tx import metrics
from captum_lrp_tx.evaluation import Examples
from experiments.ali2022.bias import correlation, interval

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Sums:
    """Of every example of a model.

    Attributes:
        logits (array): Of the predicted class, ``(examples,)``.
        relevance (mapping): Sum of relevance at the embeddings by the name of the rules.
        absorbed (mapping): What biases and other named constants behind them absorb.
    """

    logits: Array
    relevance: Mapping[str, Array]
    absorbed: Mapping[str, Array]


def sums(model: Any, examples: Examples, count: int) -> Sums:
    """Logit of the predicted class, sum of relevance and of what constants absorb.

    Args:
        model (nn.Module): A classifier.
        examples (Examples): Texts.
        count (int): How many of them, from the first.

    """
    found = metrics.conservation(model, examples.inputs(range(count)), absorbed=True)
    return Sums(
        found.output.numpy(),
        {name: levels["embeddings"].numpy() for name, levels in found.sums.items()},
        {name: absorbed.numpy() for name, absorbed in found.absorbed.items()},
    )


def relative_error(values: Array, logits: Array, axis: int = -1) -> Any:
    """Mean of |sum - logit| over mean of |logit|."""
    return np.abs(values - logits).mean(axis=axis) / np.abs(logits).mean(axis=axis)


def table(panels: Mapping[str, Sums]) -> str:
    """Correlation and relative error of the sums, without and with absorbed relevance.

    Args:
        panels (mapping): By the name of the model.
    """
    lines = [
        "| model | rules | correlation with the logit | mean error / mean logit | with what named "
        "constants absorb |",
        "|---|---|---|---|---|",
    ]
    for title, found in panels.items():
        for name, values in found.relevance.items():
            r = interval((values, found.logits), correlation, paired=True)
            errors = [
                _short(interval((shown, found.logits), relative_error, paired=True))
                for shown in (values, values + found.absorbed[name])
            ]
            lines.append(f"| {title} | {name} | {_short(r)} | {' | '.join(errors)} |")
    return "\n".join(lines)


def _short(found: tuple[float, ...]) -> str:
    estimate, low, high = found
    if abs(estimate) < 1e-3:
        return f"{estimate:.0e}"
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
