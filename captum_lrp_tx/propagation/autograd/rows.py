"""Rows of a gradient that are all zero, and backward passes that leave them out.

Under a pooled or last position the top layers receive gradients in one row of each example only.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows of which at most this share is not zero are worth being picked one by one.
_FEW = 0.25


def rows_with_entries(x: Tensor) -> Tensor | None:
    """Indices of the rows (dimension -2) that are not all zero, if they are few; else ``None``.

    A look at the first channel settles the usual case.  Not asked on other devices than the CPU,
    which would have to wait for the answer, nor of several packed gradients.

    Args:
        x (Tensor): shape ``(..., rows, channels)``.

    Returns:
        Tensor or None: integers, shape ``(rows with entries,)``.
    """
    if x.device.type != "cpu" or x.shape[-2] < 8 or is_packed(x):
        return None
    few = int(_FEW * x.shape[-2])
    if int(torch.count_nonzero(x[..., 0])) > few * (x[..., 0].numel() // x.shape[-2]):
        return None  # too many even if every example had the same rows
    present = _any_in_row(x)
    return None if int(present.sum()) > few else present.nonzero().squeeze(-1)


def is_packed(grad: Tensor) -> bool:
    """Whether a backward pass got the gradients of several targets as one batched tensor."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(grad))


def _any_in_row(x: Tensor) -> Tensor:
    others = [d for d in range(x.dim()) if d != x.dim() - 2]
    # true of NaN as well; vector_norm takes ten times as long on a CPU
    return x.abs().amax(others) != 0


def product_of_rows(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight`` without the work for rows of ``grad`` that are all zero.

    Args:
        grad (Tensor): shape ``(..., outputs)``.
        weight (Tensor): shape ``(outputs, inputs)``.

    Returns:
        Tensor: shape ``(..., inputs)``.
    """
    flat = grad.reshape(-1, grad.shape[-1])
    rows = rows_with_entries(flat)
    if rows is None:
        return grad @ weight
    result = flat.new_zeros(flat.shape[0], weight.shape[-1])
    result[rows] = flat[rows] @ weight
    return result.view(*grad.shape[:-1], -1)
