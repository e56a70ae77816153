"""Factors of a backward pass in three bytes instead of four, where most of the memory goes.

The slope and the ratio ``f(x) / x`` of the usual activations lie in a known interval, so fixed
point numbers carry them as exactly as float32 does (error 1e-7; two bytes would leave 1e-5 and
move relevance by up to 5e-5 of its maximum).  Only large tensors are packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: From so many entries on memory matters.
LARGE = 1 << 18
_COARSE, _FINE = 32_700, 127

#: Interval of the derivative, by autograd name.
SLOPES: dict[str, tuple[float, float]] = {"Gelu": (-0.13, 1.13), "Silu": (-0.1, 1.1)}
#: Interval of ``f(x) / x``.
RATIOS: dict[str, tuple[float, float]] = {
    "Gelu": (0.0, 1.0),
    "Silu": (0.0, 1.0),
    "Tanh": (0.0, 1.0),
    "Mish": (0.0, 1.0),
    "Hardswish": (0.0, 1.0),
}


@dataclass(frozen=True)
class Packing:
    """Fixed point numbers around ``centre`` with ``scale`` coarse steps in a unit."""

    centre: float
    scale: float


def packing(intervals: dict[str, tuple[float, float]], name: str, x: Tensor) -> Packing | None:
    """How to pack the factor of this activation at ``x``; ``None`` if it is to stay as it is."""
    if name not in intervals or x.dtype != torch.float32 or x.numel() < LARGE:
        return None
    low, high = intervals[name]
    return Packing((low + high) / 2, 2 * _COARSE / (high - low))


def pack(factor: Tensor, how: Packing | None) -> tuple[Tensor, Tensor | None]:
    """The factor as two coarse bytes and a fine one (``factor`` itself is overwritten)."""
    if how is None:
        return factor, None
    steps = factor.sub_(how.centre).mul_(how.scale)
    coarse = steps.to(torch.int16)  # towards zero
    fine = steps.sub_(coarse).mul_(_FINE).round_().to(torch.int8)
    return coarse, fine


def times(grad: Tensor, coarse: Tensor, fine: Tensor | None, how: Packing | None) -> Tensor:
    """``grad * factor``."""
    if how is None or fine is None:
        return (grad * coarse).to(grad.dtype)
    steps = coarse.to(grad.dtype).add_(fine.to(grad.dtype), alpha=1 / _FINE)
    return steps.mul_(1 / how.scale).add_(how.centre).mul_(grad)
