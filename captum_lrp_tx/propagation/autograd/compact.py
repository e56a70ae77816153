"""Factors of a backward pass in three bytes instead of four, where most of the memory goes.

The slope and the ratio ``f(x) / x`` of the usual activations lie between -1/2 and 3/2.  Moved to
the interval from 2 to 4, where all float32 numbers share their first byte, they are as good without
that byte (error 1.2e-7; two bytes would leave 1e-5 and move relevance by up to 5e-5 of its
maximum).  Only large tensors are packed.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.rows import is_packed

#: From so many entries on memory matters.
LARGE = 1 << 18
#: Autograd names of activations with such derivatives.
SLOPES = frozenset({"Gelu", "Silu"})
#: And of those with such ``f(x) / x``.
RATIOS = frozenset({"Gelu", "Silu", "Tanh", "Mish", "Hardswish"})
#: What moves them from 2 to 4, and the bits of 2.
_MOVE, _TWO = 2.5, 0x40000000


def packs(names: frozenset[str], name: str, x: Tensor) -> bool:
    """Whether to pack the factor of this activation at ``x``."""
    known = name in names and x.dtype == torch.float32
    return known and x.numel() >= LARGE and sys.byteorder == "little"


def pack(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The two low bytes of the factor and the one above (``factor`` itself is overwritten)."""
    bits = factor.add_(_MOVE).view(torch.int32)
    low = bits.to(torch.int16)
    return low, bits.bitwise_right_shift_(16).to(torch.uint8)


def times(grad: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``grad * factor``."""
    bits = torch.full(low.shape, _TWO, dtype=torch.int32, device=low.device)
    bits.view(torch.int16)[..., ::2].copy_(low)
    bits.view(torch.uint8)[..., 2::4].copy_(high)
    factor = bits.view(torch.float32).sub_(_MOVE)
    if is_packed(grad) or grad.dtype != torch.float32:
        return (grad * factor).to(grad.dtype)
    return factor.mul_(grad)
