"""Attention with its pattern in the graph, also where the model calls a fused kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import Combine, PassThrough, ScaleGradient
from captum_lrp_tx.propagation.autograd.pattern_product import heads_of
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct


def spelled_out(
    operation: PatternProduct | FusedAttention,
    share: float,
    softmax_passes: bool,
    record: Callable[[Tensor], Tensor] = lambda pattern: pattern,
) -> Tensor:
    """Pattern times values with the pattern in the graph; the value is the model's own.

    Args:
        operation (PatternProduct or FusedAttention): The attention.
        share (float): Of the gradient that each factor of the two products gets.
        softmax_passes (bool): Relevance goes through the softmax of fused attention entry by
            entry, instead of by its gradient.
        record (callable): Gets each pattern as ``(..., queries, keys)`` and returns what the graph
            goes on with.
    """
    if isinstance(operation, PatternProduct):
        replaced: dict[int, Tensor] = {}
        for i in operation.operands:
            operand = operation.args[i]
            if i in operation.patterns:
                order = _order(operation, i)
                operand = record(operand.permute(order)).permute(
                    [order.index(d) for d in range(len(order))]
                )
            replaced[i] = operand if share == 1.0 else ScaleGradient.call(operand, share)
        return operation.with_operands(replaced)
    pattern = record(explicit_pattern(operation, share, softmax_passes))
    if operation.dropout_p:
        pattern = torch.nn.functional.dropout(pattern, operation.dropout_p)
    value = heads_of(pattern, operation.value_)
    if share != 1.0:
        pattern, value = ScaleGradient.call(pattern, share), ScaleGradient.call(value, share)
    output = pattern.to(value.dtype) @ value
    return output if operation.dropout_p else Combine.call(operation.value(), output)


def explicit_pattern(
    operation: FusedAttention, share: float = 1.0, softmax_passes: bool = False
) -> Tensor:
    """The pattern of fused attention, ``(..., queries, keys)``; rows without keys are zero."""
    query, mask = operation.query, operation.mask
    key = heads_of(query, operation.key)
    scale = query.shape[-1] ** -0.5 if operation.scale is None else operation.scale
    if query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()
    if share != 1.0:
        query, key = (ScaleGradient.call(t, share) if t.requires_grad else t for t in (query, key))
    scores = query @ key.transpose(-2, -1) * scale
    if operation.is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        else:
            scores = scores + mask
    dead = scores.detach().amax(-1, keepdim=True) == float("-inf")
    scores = scores.masked_fill(dead, 0.0)
    if softmax_passes and scores.requires_grad:
        constant = scores.detach()
        pattern = PassThrough.call(scores, lambda: constant.softmax(-1), "Softmax")
    else:
        pattern = scores.softmax(-1)
    return pattern.masked_fill(dead, 0.0)


def _order(operation: PatternProduct, position: int) -> list[int]:
    """Dimensions of a pattern operand in the order (batch, heads, queries, keys)."""
    pattern = operation.args[position]
    dims = list(range(pattern.dim()))
    equation = operation.args[0]
    if isinstance(equation, str):
        terms, _, result = equation.replace(" ", "").partition("->")
        subscripts = terms.split(",")
        own = subscripts[position - 1]
        if "..." in own or not result or len(subscripts) != 2:
            return dims
        other = subscripts[2 - position]
        keys = [c for c in own if c not in result]
        queries = [c for c in own if c in result and c not in other]
        if len(keys) != 1 or len(queries) != 1:
            return dims
        rest = [c for c in own if c not in (keys[0], queries[0])]
        rest.sort(key=result.index)
        return [own.index(c) for c in (*rest, queries[0], keys[0])]
    others = [i for i in operation.operands if i != position]
    is_first = not others or position < others[0]
    if not others:
        tensors = [i for i, a in enumerate(operation.args) if isinstance(a, Tensor)]
        is_first = position == tensors[0]
    return dims if is_first else [*dims[:-2], dims[-1], dims[-2]]
