"""How near two results must be: entry by entry, or beside the largest entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def close(
    actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None, **more: Any
) -> None:
    """Every entry is near: up to 1e-9 in float64, else 1e-5, unless told otherwise.

    The absolute tolerance is the relative one unless given; ``more`` goes to ``assert_close``.
    """
    if rtol is None:
        first = expected[0] if isinstance(expected, (tuple, list)) else expected
        rtol = 1e-9 if isinstance(first, Tensor) and first.dtype == torch.float64 else 1e-5
    atol = rtol if atol is None else atol
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, **more)


def close_to_largest(actual: Any, expected: Tensor, tolerance: float = 1e-5) -> None:
    """No error is larger than a share of the largest entry, which is not zero."""
    actual, largest = torch.as_tensor(actual), expected.abs().max()
    assert actual.shape == expected.shape
    assert largest > 1e-4
    assert (actual - expected).abs().max() <= tolerance * largest
