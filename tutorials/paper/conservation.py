"""Does the relevance of a sentence sum to its logit?  The conservation figure of the paper.

    python -m tutorials.paper.run --experiment conservation --shared ../shared

Relevance is taken at the output of the embedding block, as in the published code of Ali et al.
2022, for the predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_lrp_tx.evaluation import Examples
from tutorials.paper.bias import correlation, interval
from tutorials.paper.methods import AtEmbeddings

Array = np.ndarray[Any, np.dtype[np.float64]]

#: Arguments of ``AtEmbeddings``, by the name in the figure.
RULES: dict[str, dict[str, Any]] = {
    "GI": {"rules": "gi"},
    "LRP(AH)": {"rules": "ah"},
    "LRP(LN)": {"rules": "ln"},
    "LRP(AH+LN)": {"rules": "ah+ln"},
    "LRP": {"rules": "lrp"},
    "LRP, biases distributed": {"rules": "lrp", "bias": "distribute"},
}


def sums(model: Any, examples: Examples, count: int) -> tuple[Array, dict[str, Array]]:
    """Logit of the predicted class and sum of relevance of every example.

    Args:
        model (nn.Module): A classifier with ``base_model.embeddings``.
        examples (Examples): Texts.
        count (int): How many of them, from the first.

    Returns:
        tuple: Logits ``(examples,)``, and the sums of relevance by each of ``RULES``.
    """
    lengths: dict[int, list[int]] = {}
    for row, length in enumerate(examples.lengths()[:count]):
        lengths.setdefault(length, []).append(row)
    logits = np.zeros(count)
    found = {name: np.zeros(count) for name in RULES}
    explainers = {name: AtEmbeddings(model, **options) for name, options in RULES.items()}
    for rows in lengths.values():
        batch = examples.inputs(rows)
        assert not isinstance(batch, Tensor)
        with torch.no_grad():
            output = model(**batch)
            best = getattr(output, "logits", output).max(1)
        logits[rows] = best.values.double().numpy()
        for name, explainer in explainers.items():
            relevance = explainer.attribute(batch, target=best.indices)
            found[name][rows] = relevance.double().sum(1).numpy()
    return logits, found


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
