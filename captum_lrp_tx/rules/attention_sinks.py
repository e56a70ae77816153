"""Attention sinks: keys that take most of the attention of a head.

Language models park the attention of heads that have nothing to say on one token, mostly the first,
whose values add nearly the same vector whatever the text (Xiao et al., "Efficient Streaming
Language Models with Attention Sinks", ICLR 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.pattern_product import (
    additive,
    heads_of,
    transposed_pattern_product,
)
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct
from captum_lrp_tx.propagation.recognition.contracted import contraction_of

#: What a mask adds to the score of a key that is not to be seen is below this.
_HIDDEN = -1e4


@torch.no_grad()
def sinks_of_call(operation: FusedAttention, share: float) -> Tensor:
    """Which keys of fused attention are sinks of which heads.

    Args:
        operation (FusedAttention): Without dropout.
        share (float): Part of the attention of a head that makes a key its sink.

    Returns:
        Tensor: Boolean, shape ``(..., heads, keys, 1)``.
    """
    query, mask = operation.query.detach(), operation.mask
    key = heads_of(query, operation.key.detach())
    scale = query.shape[-1] ** -0.5 if operation.scale is None else operation.scale
    last = query[..., -1:, :].float() * scale @ key.float().transpose(-2, -1)
    if mask is not None:
        last = last + additive(mask, torch.float32)[..., -1:, :]
    counted = _counted(last.softmax(-1), query.shape[-2], is_causal_call(operation))
    rows = counted.expand(*query.shape[:-1]).unsqueeze(-1)
    taken = transposed_pattern_product(
        query, key.expand(*query.shape[:-2], -1, -1), rows.to(query.dtype), mask,
        operation.is_causal, operation.scale, None,
    )  # fmt: skip
    return taken >= share


@torch.no_grad()
def sinks_of_product(operation: PatternProduct, share: float) -> tuple[int, Tensor] | None:
    """The same for a matrix product of one pattern with values.

    Returns:
        tuple or None: Position of the values, and a boolean tensor ``(..., keys, 1)`` that
        broadcasts against them; ``None`` if the product is no such, or its heads share values.
    """
    if len(operation.patterns) != 1 or operation.rescales or operation.shares is not None:
        return None
    how = contraction_of(operation.func, operation.args)
    (weights,) = operation.patterns
    if how is None or len(how.operands) != 2 or weights not in how.operands:
        return None
    (place,) = how.operands.keys() - {weights}
    pattern, values = operation.args[weights].detach(), operation.args[place]
    # pattern (..., queries, keys), values (..., keys, channels)
    is_plain = (
        how.summed(weights) == [-1] and how.summed(place) == [-2]
        and how.own(weights) == [(-2, -2)]
    )  # fmt: skip
    is_batched = how.operands[weights][:-2] == how.operands[place][:-2] != ""
    if not (is_plain and is_batched and pattern.shape[:-2] == values.shape[:-2]):
        return None
    sums = pattern[..., -1, :].sum(-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return None  # no softmax's, or one that leaves something for nobody
    counted = _counted(pattern[..., -1:, :], pattern.shape[-2], _is_causal_pattern(pattern))
    taken = counted.to(pattern.dtype).unsqueeze(-2) @ pattern
    return place, taken.transpose(-2, -1) >= share


@torch.no_grad()
def is_causal_call(operation: FusedAttention) -> bool:
    """Whether every query sees the keys up to its own only.

    One query against a cache tells nothing: no.
    """
    rows, columns = operation.query.shape[-2], operation.key.shape[-2]
    if rows < 2:
        return False
    if operation.is_causal or operation.mask is None:
        return operation.is_causal
    mask = operation.mask
    if mask.shape[-2:] != (rows, columns):
        return False
    return _sees_no_later(additive(mask, torch.float32) > _HIDDEN)


@torch.no_grad()
def is_causal_product(operation: PatternProduct) -> bool:
    """The same for a matrix product of one pattern ``(..., queries, keys)`` with values."""
    return len(operation.patterns) == 1 and _is_causal_pattern(
        operation.args[operation.patterns[0]].detach()
    )


def _is_causal_pattern(pattern: Tensor) -> bool:
    return pattern.shape[-2] > 1 and _sees_no_later(pattern > 0)


def _sees_no_later(sees: Tensor) -> bool:
    """Whether no query ``(..., queries, keys)`` sees a later key; padding may look anywhere."""
    rows, columns = sees.shape[-2:]
    later = sees.triu(1 + columns - rows)
    if rows == columns:
        later = later & sees[..., -1, :].unsqueeze(-1)
    return not bool(later.any())


def _counted(last: Tensor, rows: int, is_causal: bool) -> Tensor:
    """Weight of each query in a mean over them.

    Padding, which nobody attends to, has none, nor has the first query of causal attention, which
    sees itself only and has no choice.

    Args:
        last (Tensor): Pattern of the last query, ``(..., 1, keys)``.
        rows (int): How many queries there are.
        is_causal (bool): Whether queries see the keys up to their own only.
    """
    if rows != last.shape[-1]:  # a cache, or another text
        return last.new_full((*last.shape[:-2], rows), 1.0 / rows)
    is_text = (last[..., 0, :] > 0).to(last.dtype)
    if is_causal:
        is_text = is_text * (is_text.cumsum(-1) > 1)
    return is_text / is_text.sum(-1, keepdim=True).clamp(min=1.0)
