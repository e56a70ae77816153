"""Scores of relevance against known reasons and measured effects, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.language_models.items import Item

#: Scores of an item, in the order of the tables.
SCORES = ("hit", "MRR", "share", "start", "Pearson", "Spearman")


def scores(
    item: Item, relevance: Sequence[float], effects: Sequence[float] | None
) -> dict[str, float]:
    """How well relevance fits an item.

    Args:
        item (Item): With its reasons.
        relevance (sequence of float): Of the tokens of the prompt, of the start token before them
            if the model was given one.
        effects (sequence of float, optional): Measured, of the tokens of the prompt.

    Returns:
        dict: ``hit`` (whether a reason is the most relevant token), ``MRR`` (one over the best rank
        of a reason), ``share`` (of positive relevance that is on reasons), ``start`` (share of the
        start token in the sum of magnitudes), correlations with effects. The start token takes no
        part in any but its own.
    """
    values = np.asarray(relevance, dtype=np.float64)
    found: dict[str, float] = {}
    if len(values) == len(item.ids):
        found["start"] = float(abs(values[0]) / max(np.abs(values).sum(), 1e-300))
        values = values[1:]
    reasons = [place - 1 for place in item.reasons]
    best = values[reasons].max()
    # a tie with another token counts against the method
    rank = int((np.delete(values, reasons) >= best).sum()) + 1
    found["hit"], found["MRR"] = float(rank == 1), 1.0 / rank
    positive = np.clip(values, 0.0, None)
    found["share"] = float(positive[reasons].sum() / max(positive.sum(), 1e-300))
    if effects is not None and len(values) > 2:
        measured = np.asarray(effects, dtype=np.float64)
        found["Pearson"] = correlation(values, measured)
        found["Spearman"] = correlation(ranks(values), ranks(measured))
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 if either does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: np.ndarray = (ends - (counts + 1) / 2)[inverse]
    return found


def by_task(
    items: Sequence[Item], every: Sequence[Mapping[str, float] | None], score: str
) -> dict[str, np.ndarray]:
    """The values of one score by task, of the items that have it."""
    found: dict[str, list[float]] = {}
    for item, values in zip(items, every, strict=True):
        if values is not None and score in values:
            found.setdefault(item.task, []).append(values[score])
    return {task: np.asarray(values) for task, values in found.items()}


def mean_over_tasks(
    values: Mapping[str, np.ndarray], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the tasks' means with its 95 % bootstrap interval; items are drawn within tasks.

    Args:
        values (mapping): By task one number for each item.
        resamples (int): Bootstrap samples.
        seed (int): The same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for array in values.values():
        drawn = generator.integers(0, len(array), (resamples, len(array)))
        means += array[drawn].mean(1) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([array.mean() for array in values.values()])), float(low), float(high)
