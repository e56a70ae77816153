"""Relevance that is spread over the inputs of a layer, or handed to other vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_lrp_tx.propagation.autograd.copies import kept, passed_on
from captum_lrp_tx.propagation.autograd.functions import RuleFunction, safe_ratio
from captum_lrp_tx.propagation.autograd.pattern_product import LOW_PRECISION


class SpreadBias(RuleFunction):
    """``z + b``; the relevance of ``b`` goes to the inputs ``x`` of the layer, as their squares.

    The smallest change (in the l2 norm) of the gradient at ``x`` after which ``sum(x g_x)``
    equals ``sum(y g)``.  ``distribute`` and ``by_row`` are those of a
    :class:`~captum_lrp_tx.propagation.operations.LinearMap`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        bias: Tensor,
        distribute: Callable[[Tensor, Tensor], Tensor],
        by_row: bool = False,
    ) -> Tensor:
        ctx.save_for_backward(kept(x), bias)
        ctx.distribute, ctx.by_row = distribute, by_row
        return passed_on(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        x, bias = ctx.saved_tensors
        relevance = relevance_of_bias(grad[0], bias, ctx.by_row)
        return grad[0], ctx.distribute(x, relevance), None, None, None


def spread_last(x: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of each vector to its entries, in proportion to their squares."""
    wide = x.float() if x.dtype in LOW_PRECISION else x  # squares exceed the range of float16
    total = relevance.to(wide.dtype).sum(-1, keepdim=True)
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide * safe_ratio(total, size.square())).to(x.dtype)


class HandedOver(RuleFunction):
    """``y``, whose relevance goes to the vectors of ``x``, in each as their squares.

    ``shares(relevance)`` makes of that of the vectors of ``y``, ``(..., 1)``, that of ``x``.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, shares: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(y, kept(x))
        ctx.shares = shares
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        y, x = ctx.saved_tensors
        wide = torch.promote_types(y.dtype, torch.float32)
        relevance = (y.to(wide) * grad[0].to(wide)).sum(-1, keepdim=True)
        return None, spread_last(x, ctx.shares(relevance)), None


def relevance_of_bias(grad: Tensor, bias: Tensor, by_row: bool) -> Tensor:
    """Relevance of a bias at every output; of a row of them the sum, where that is asked for."""
    if by_row and bias.dim() == 1 and grad.dim() > 1 and grad.dtype not in LOW_PRECISION:
        return (grad @ bias).unsqueeze(-1)
    return grad * bias
