"""Does the relevance of a sentence sum to its logit?  The conservation figure of the paper.

    python -m tutorials.paper.run --experiment conservation --shared ../shared

Relevance is taken at the output of the embedding block, as in the published code of Ali et al.
2022, for the predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from captum_lrp_tx import metrics
from captum_lrp_tx.evaluation import Examples
from tutorials.paper.bias import correlation, interval

Array = np.ndarray[Any, np.dtype[np.float64]]


def sums(model: Any, examples: Examples, count: int) -> tuple[Array, dict[str, Array]]:
    """Logit of the predicted class and sum of relevance of every example.

    Args:
        model (nn.Module): A classifier.
        examples (Examples): Texts.
        count (int): How many of them, from the first.

    Returns:
        tuple: Logits ``(examples,)``, and the sums of relevance at the embeddings by the name of
        the rules.
    """
    found = metrics.conservation(model, examples.inputs(range(count)))
    at = {name: levels["embeddings"].numpy() for name, levels in found.sums.items()}
    return found.output.numpy(), at


def relative_error(values: Array, logits: Array, axis: int = -1) -> Any:
    """Mean of |sum - logit| over mean of |logit|."""
    return np.abs(values - logits).mean(axis=axis) / np.abs(logits).mean(axis=axis)


def table(panels: dict[str, tuple[Array, dict[str, Array]]]) -> str:
    """Correlation and relative error of the sums.

    Args:
        panels (dict): Logits and sums of relevance by method, by the name of the model.
    """
    lines = [
        "| model | rules | correlation with the logit | mean error / mean logit |",
        "|---|---|---|---|",
    ]
    for title, (logits, found) in panels.items():
        for name, values in found.items():
            r = interval((values, logits), correlation, paired=True)
            error = interval((values, logits), relative_error, paired=True)
            lines.append(f"| {title} | {name} | {_short(r)} | {_short(error)} |")
    return "\n".join(lines)


def _short(found: tuple[float, ...]) -> str:
    estimate, low, high = found
    if abs(estimate) < 1e-3:
        return f"{estimate:.0e}"
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
