"""Which axis of a tensor counts examples, heads, tokens and features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct


def row_layout(shape: torch.Size, batch: int) -> Callable[[Tensor], Tensor]:
    """What brings a residual stream into the shape ``(batch, tokens, features)``.

    Args:
        shape (torch.Size): Of the stream; its last dimension holds the features. Tokens may come
            before examples, unless there are as many of both.
        batch (int): Number of examples.
    """
    if len(shape) == 1:  # one example without its dimension
        return lambda x: x[None, None]
    if len(shape) == 3 and shape[0] != batch and shape[1] == batch:
        return lambda x: x.transpose(0, 1)
    if len(shape) == 2 and shape[0] != batch and shape[0] % batch == 0:
        return lambda x: x.reshape(batch, -1, x.shape[-1])
    if len(shape) == 2:
        return lambda x: x.unsqueeze(1)
    return lambda x: x.flatten(1, -2)


def head_layout(
    operation: FusedAttention | PatternProduct, result: Tensor, batch: int
) -> Callable[[Tensor], Tensor] | None:
    """What brings a result of attention into the shape ``(batch, heads, tokens, channels)``.

    Args:
        operation (FusedAttention or PatternProduct): The attention.
        result (Tensor): Its result.
        batch (int): Number of examples.

    Returns:
        callable or None: ``None`` where heads cannot be told (attention written entry by entry).
        Windows of one example stand behind each other along the tokens.
    """
    order = list(range(result.dim()))
    if isinstance(operation, PatternProduct):
        found = _axes(operation)
        if found is None:
            return None
        order = found or order
    if not 2 <= len(order) <= 5:
        return None

    def shaped(x: Tensor) -> Tensor:
        x = x.permute(order)
        if x.dim() == 2:
            return x[None, None]
        if x.dim() == 3:
            rows = batch if len(x) % batch == 0 else 1
            return x.reshape(rows, -1, *x.shape[1:])
        if x.dim() == 5:  # windows or groups in an axis of their own
            return x.transpose(1, 2).flatten(2, 3)
        if len(x) != batch and len(x) % batch == 0:
            return x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)
        return x

    return shaped


def _axes(operation: PatternProduct) -> list[int] | None:
    """Order of the axes of a product; empty if it is as it should be, ``None`` if unknown."""
    equation = operation.args[0]
    if not isinstance(equation, str):
        matrix = {"matmul", "bmm", "__matmul__", "baddbmm", "mm"}
        name = getattr(operation.func, "__name__", "")
        is_first = len(operation.patterns) == 1 and operation.patterns[0] == min(operation.operands)
        return [] if name in matrix and is_first else None
    terms, _, after = equation.replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    if not after or "." in equation or "," in second or len(operation.patterns) != 1:
        return None
    own, other = (first, second) if operation.patterns[0] == 1 else (second, first)
    rows = [c for c in after if c in own and c not in other]
    channels = [c for c in after if c in other and c not in own]
    shared = [c for c in after if c in own and c in other]
    if len(rows) != 1 or len(channels) != 1 or len(shared) > 2:
        return None
    return [after.index(c) for c in (*shared, *rows, *channels)]
