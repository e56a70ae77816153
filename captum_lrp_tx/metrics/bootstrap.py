"""How sure a mean over examples is, and a difference between two methods on the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.visualization.text import decimals_for

Array = np.ndarray[Any, np.dtype[np.float64]]
_ENTRIES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate (float): Mean over the examples.
        low (float): Lower end.
        high (float): Upper end.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return self._told("")

    def _told(self, sign: str) -> str:
        shown = f"{sign}.{places_for(max(abs(self.low), abs(self.high)))}f"
        return f"{self.estimate:{shown}} [{self.low:{shown}}, {self.high:{shown}}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of means with its confidence interval.

    Attributes:
        p (float): Two-sided: how often a difference as large comes up in bootstrap samples when
            there is none.
    """

    p: float

    def __str__(self) -> str:
        return f"{self._told('+')} p={self.p:.2g}"


def places_for(scale: float) -> int:
    """Digits after the point of a table: three, or as many as show two of what is smaller.

    Example::

        >>> places_for(0.9), places_for(0.004), places_for(0.0004)
        (3, 3, 5)
    """
    return decimals_for(scale) if 0 < scale < 1e-3 else 3


def bootstrap_interval(
    values: Any, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean over examples.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Args:
        values (Tensor or array): One number for each example, ``(examples,)``.
        confidence (float): Of the interval.
        resamples (int): How many bootstrap samples.
        seed (int): The same seed gives the same interval.

    Raises:
        InputError: No examples, or values that are not finite.

    Example::

        >>> interval = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
        >>> interval.estimate, interval.low < 2.5 < interval.high
        (2.5, True)
    """
    array = _array(values)
    means = _means(array, resamples, seed)
    low, high = _ends(means, confidence)
    return Interval(float(array.mean()), low, high)


def paired_bootstrap(
    first: Any, second: Any, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Difference of the means of two methods on the same examples.

    The examples are drawn, each with its results by both methods. The p-value is the share of
    samples in which the difference, moved so that its mean is zero, is as large as the observed
    one (with one added to both counts, so that it is never zero).

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 16.

    Args:
        first (Tensor or array): One number for each example, e.g. ``curve.area``.
        second (Tensor or array): Of the other method, in the same order.
        confidence, resamples, seed: See :func:`bootstrap_interval`.

    Returns:
        Difference: Mean of ``first`` minus mean of ``second``.

    Raises:
        InputError: Not the same number of examples, none, or values that are not finite.

    Example::

        >>> difference = paired_bootstrap([1.0, 2.0, 3.0], [0.5, 1.6, 2.4])
        >>> difference.estimate, difference.p < 0.05
        (0.5, True)
    """
    one, other = _array(first), _array(second)
    if one.shape != other.shape:
        raise InputError(f"{len(one)} and {len(other)} examples cannot be compared in pairs")
    differences = one - other
    means = _means(differences, resamples, seed)
    low, high = _ends(means, confidence)
    observed = float(differences.mean())
    # a rounding error must not decide whether a shifted mean counts as large
    slack = 1e-12 * (abs(observed) + float(np.abs(differences).max()))
    extreme = int((np.abs(means - observed) >= abs(observed) - slack).sum())
    return Difference(observed, low, high, (extreme + 1) / (resamples + 1))


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        if values.is_complex() or values.is_meta:
            raise InputError(f"real numbers are needed, not {values.dtype} on {values.device}")
        values = values.detach().cpu().double().numpy()
    try:
        array: Array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"one number for each example is needed, not {type(values).__name__}"
        ) from error
    if array.ndim != 1 or not len(array):
        raise InputError(f"one number for each example is needed, not the shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("there are values that are not finite; leave these examples out")
    return array


def _means(values: Array, resamples: int, seed: int) -> Array:
    """Means of bootstrap samples, a bounded number of entries at a time."""
    if not isinstance(resamples, Integral) or resamples < 1:
        raise InputError(f"resamples must be a positive whole number, not {resamples!r}")
    generator = np.random.default_rng(seed)
    count = len(values)
    portion = max(_ENTRIES_AT_ONCE // count, 1)
    found = [
        values[generator.integers(0, count, (min(portion, resamples - start), count))].mean(1)
        for start in range(0, resamples, portion)
    ]
    return np.concatenate(found)


def _ends(means: Array, confidence: float) -> tuple[float, float]:
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, not {confidence!r}")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
