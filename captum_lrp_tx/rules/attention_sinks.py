"""Attention sinks: keys that have taken most of the attention of a head so far.

Language models park the attention of heads that have nothing to say on one token, mostly the first,
whose values add nearly the same vector whatever the text (Xiao et al., "Efficient Streaming
Language Models with Attention Sinks", ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.pattern_product import (
    BLOCK_ENTRIES,
    additive,
    heads_of,
    rows_of_pattern,
)
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct
from captum_lrp_tx.propagation.recognition.contracted import contraction_of

#: What a mask adds to the score of a key that is not to be seen is below this.
_HIDDEN = -1e4


def taken_from_sinks(patterns: Iterable[Tensor], values: Tensor, share: float) -> Tensor | None:
    """What the queries of causal attention take from their sinks, linear in the values.

    A key is a sink of a query if it has ``share`` or more of the attention of the head in the mean
    over this query and those before it. The first sees itself only, has no choice and is not
    counted, nor is padding.

    Args:
        patterns (iterable of Tensor): The pattern ``(..., heads, queries, keys)``, whole or in
            blocks of rows from the first to the last.
        values (Tensor): ``(..., heads, keys, channels)``; one head may be for all.
        share (float): Of the attention of a head.

    Returns:
        Tensor or None: ``(..., heads, queries, channels)``; ``None`` if no query has a sink.
    """
    parts: list[Tensor] = []
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    row, is_any = 0, False
    for pattern in patterns:
        seen = pattern > 0  # padding on the left looks at nothing, or at what is behind it
        has_choice = seen.tril(row - 1).any(-1) & ~seen.triu(row + 1).any(-1)
        counted = has_choice.to(pattern.dtype).unsqueeze(-1)
        sums = (pattern * counted).cumsum(-2) + total
        counts = counted.cumsum(-2) + count
        is_sink = sums >= share * counts.clamp(min=1.0)
        keys = is_sink.flatten(0, -2).any(0).nonzero().squeeze(-1)
        weights = (pattern * is_sink)[..., keys].to(values.dtype)
        parts.append(weights @ values.index_select(-2, keys))
        total, count = sums[..., -1:, :], counts[..., -1:, :]
        row, is_any = row + pattern.shape[-2], is_any or len(keys) > 0
    return torch.cat(parts, -2) if is_any else None


@torch.no_grad()
def patterns_of_call(operation: FusedAttention) -> Iterator[Tensor]:
    """The pattern of fused attention in blocks of rows, heads spelled out.

    Args:
        operation (FusedAttention): Without dropout, of as many queries as keys.

    Yields:
        Tensor: ``(..., heads, rows of the block, keys)``.
    """
    query, mask = operation.query.detach(), operation.mask
    keys = heads_of(query, operation.key.detach()).transpose(-2, -1)
    scale = query.shape[-1] ** -0.5 if operation.scale is None else operation.scale
    per_row = max(query[..., 0, 0].numel() * keys.shape[-1], 1)
    numbers = torch.arange(query.shape[-2], device=query.device)
    for part in torch.split(numbers, max(BLOCK_ENTRIES // per_row, 1)):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        section = mask if mask is None or mask.shape[-2] == 1 else mask.detach()[..., rows, :]
        yield rows_of_pattern(query[..., rows, :], keys, section, operation.is_causal, scale, part)


def pattern_of_product(operation: PatternProduct) -> tuple[int, int] | None:
    """Positions of pattern and values in a matrix product of one softmax with values.

    Args:
        operation (PatternProduct): Any.

    Returns:
        tuple of int, or None: ``None`` if the product is no such, or its heads share values.
    """
    if len(operation.patterns) != 1 or operation.rescales or operation.shares is not None:
        return None
    how = contraction_of(operation.func, operation.args)
    (weights,) = operation.patterns
    if how is None or len(how.operands) != 2 or weights not in how.operands:
        return None
    (place,) = how.operands.keys() - {weights}
    pattern, values = operation.args[weights], operation.args[place]
    # pattern (..., queries, keys), values (..., keys, channels)
    is_plain = (
        how.summed(weights) == [-1] and how.summed(place) == [-2]
        and how.own(weights) == [(-2, -2)]
    )  # fmt: skip
    is_batched = how.operands[weights][:-2] == how.operands[place][:-2] != ""
    if not (is_plain and is_batched and pattern.shape[:-2] == values.shape[:-2]):
        return None
    sums = pattern.detach()[..., -1, :].sum(-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return None  # no softmax's, or one that leaves something for nobody
    return weights, place


@torch.no_grad()
def is_causal_call(operation: FusedAttention) -> bool:
    """Whether the queries are those of a whole text, and see the keys up to their own only."""
    rows, columns = operation.query.shape[-2], operation.key.shape[-2]
    if rows != columns or operation.is_causal or operation.mask is None:
        return rows == columns > 1 and operation.is_causal
    mask = operation.mask
    if mask.shape[-2:] != (rows, columns):
        return False
    return is_causal_pattern(additive(mask, torch.float32) > _HIDDEN)


@torch.no_grad()
def is_causal_pattern(seen: Tensor) -> bool:
    """The same of what is seen: positive, or true, in ``(..., queries, keys)``.

    Padding, which the last query does not see, may look anywhere.
    """
    rows, columns = seen.shape[-2:]
    if rows != columns or rows < 2:
        return False
    later = (seen > 0).triu(1) & (seen[..., -1, :] > 0).unsqueeze(-1)
    return not bool(later.any())
