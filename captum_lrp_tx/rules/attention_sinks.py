"""Attention sinks: keys that have taken most of the attention of a head so far.

Language models park the attention of heads that have nothing to say on one token, mostly the first,
whose values add nearly the same vector whatever the text (Xiao et al., "Efficient Streaming
Language Models with Attention Sinks", ICLR 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import safe_ratio
from captum_lrp_tx.propagation.autograd.pattern_product import (
    BLOCK_ENTRIES,
    additive,
    heads_of,
    rows_of_pattern,
)
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct
from captum_lrp_tx.propagation.recognition.contracted import (
    Contraction,
    contraction_of,
    equation_of,
)

#: What a mask adds to the score of a key that is not to be seen is below this.
HIDDEN = -1e4
_ENTRYWISE = frozenset("mul multiply __mul__ __rmul__".split())


@dataclass(frozen=True)
class Sinks:
    """What queries see of the keys that are a sink of some query, and of all others.

    Attributes:
        keys (Tensor): Which of the keys these are, shape ``(sinks,)``.
        weights (Tensor): ``(..., heads, queries, sinks)``: of the pattern, zero where a key is no
            sink of a query.
        rest (Tensor): The same, zero where it is one.
        others (Tensor): ``(..., heads, queries, 1)``: attention of all keys that are no sink of it.
    """

    keys: Tensor
    weights: Tensor
    rest: Tensor
    others: Tensor

    def taken(self, values: Tensor, by_key: bool = False) -> Tensor:
        """What queries take from their sinks, linear in the values.

        Args:
            values (Tensor): ``(..., heads, keys, channels)``; one head may be for all.
            by_key (bool): Whether what is taken from each sink stays apart.

        Returns:
            Tensor: ``(..., heads, queries, channels)``; by key the last is of sinks and channels.
        """
        weights, of_sinks = self.weights.to(values.dtype), values.index_select(-2, self.keys)
        if by_key:
            return (weights.unsqueeze(-1) * of_sinks.unsqueeze(-3)).flatten(-2)
        return weights @ of_sinks

    def handed_on(self, relevance: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Relevance of queries to the keys that they look at beside sinks, as their attention.

        Args:
            relevance (Tensor): ``(..., heads, queries, 1)``; zero where a query has no sink.
            through (callable): The transposed pattern times such a tensor.

        Returns:
            Tensor: ``(..., heads, keys, 1)``, with the sum of ``relevance``.
        """
        shares = safe_ratio(relevance, self.others.to(relevance.dtype))
        of_all = through(shares)
        numbers = torch.arange(of_all.shape[-2], device=self.keys.device)
        places = (numbers.unsqueeze(-1) == self.keys).to(shares.dtype)
        of_sinks = places @ (self.rest.to(shares.dtype).transpose(-2, -1) @ shares)
        return torch.where(places.any(-1, keepdim=True), of_sinks, of_all.to(shares.dtype))


@torch.no_grad()
def sinks_of(
    patterns: Callable[[], Iterable[Tensor]], share: float, only_beside_others: bool = False
) -> Sinks | None:
    """The sinks of causal attention.

    A key is a sink of a query if it has ``share`` or more of the attention of the head in the mean
    over this query and those before it. The first sees itself only, has no choice and is not
    counted, nor is padding.

    Args:
        patterns (callable): Gives the pattern ``(..., heads, queries, keys)``, whole or in blocks
            of rows from the first to the last; called twice.
        share (float): Of the attention of a head.
        only_beside_others (bool): Whether queries that look at nothing else have no sink.

    Returns:
        Sinks or None: ``None`` if no query has a sink.
    """
    counted, is_any = [], torch.tensor(False)
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    row = 0
    for pattern in patterns():
        seen = pattern > 0  # padding on the left looks at nothing, or at what is behind it
        has_choice = seen.tril(row - 1).any(-1) & ~seen.triu(row + 1).any(-1)
        counted.append(has_choice.to(pattern.dtype).unsqueeze(-1))
        sums = (pattern * counted[-1]).cumsum(-2) + total
        counts = counted[-1].cumsum(-2) + count
        is_sink = sums >= share * counts.clamp(min=1.0)
        is_any = is_any.to(pattern.device) | is_sink.flatten(0, -2).any(0)
        total, count = sums[..., -1:, :], counts[..., -1:, :]
        row += pattern.shape[-2]
    keys = is_any.nonzero().squeeze(-1)
    if not len(keys):
        return None
    # few columns from here on
    blocks = [
        (pattern[..., keys], pattern.index_fill(-1, keys, 0.0).sum(-1, keepdim=True))
        for pattern in patterns()
    ]
    columns, others = (torch.cat(parts, -2) for parts in zip(*blocks, strict=True))
    is_counted = torch.cat(counted, -2)
    counts = is_counted.cumsum(-2).clamp(min=1.0)
    is_sink = (columns * is_counted).cumsum(-2) >= share * counts
    others = others + columns.masked_fill(is_sink, 0.0).sum(-1, keepdim=True)
    if only_beside_others:
        is_sink = is_sink & (others >= torch.finfo(others.dtype).tiny)
    return Sinks(keys, columns * is_sink, columns.masked_fill(is_sink, 0.0), others)


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


@dataclass(frozen=True)
class LaidOut:
    """A product of a causal pattern with values, in the order of axes that sinks are told in.

    Attributes:
        pattern (Tensor): ``(..., queries, keys)``, without a graph.
        values (Tensor): ``(..., keys, channels)``; one head may be for all.
        by_key (bool): Whether the product is one entry by entry, which is summed later.
        to_result (callable): From ``(..., queries, channels)``, with the keys between the two if
            the product has them, to the axes of the product.
    """

    pattern: Tensor
    values: Tensor
    by_key: bool
    to_result: Callable[[Tensor], Tensor]

    def restored(self, taken: Tensor, sinks: Tensor) -> Tensor:
        """What is taken from ``sinks``, as :meth:`Sinks.taken` has it, as a part of the product."""
        if not self.by_key:
            return self.to_result(taken)
        entries = taken.reshape(*taken.shape[:-1], len(sinks), -1)
        keys, channels = self.values.shape[-2], entries.shape[-1]
        nothing = entries.new_zeros(*entries.shape[:-2], keys, channels)
        return self.to_result(nothing.index_copy(-2, sinks, entries))


def laid_out(operation: PatternProduct) -> LaidOut | None:
    """A matrix product, einsum or product by entries of one causal softmax with values.

    The axis of the queries is the one along which the pattern is causal.

    Args:
        operation (PatternProduct): Any.

    Returns:
        LaidOut or None: ``None`` if the product is no such.
    """
    if len(operation.patterns) != 1 or operation.rescales or operation.shares is not None:
        return None
    args, how, shift = axes_of(operation)
    weights = operation.patterns[0] + shift
    if how is None or len(how.operands) != 2 or weights not in how.operands:
        return None
    (place,) = how.operands.keys() - {weights}
    mine, theirs = how.operands[weights], how.operands[place]
    summed = (set(mine) | set(theirs)) - set(how.result)
    if len(set(mine)) < len(mine) or len(set(theirs)) < len(theirs):
        return None  # a diagonal
    if any(args[i].layout != torch.strided for i in how.operands):
        return None  # sparse
    common = set(mine) & set(theirs)
    if len(summed) > 1 or not summed <= common:
        return None
    own = [c for c in mine if c not in theirs]
    channels = [c for c in how.result if c not in mine]
    for key, query in itertools.product(sorted(summed or common), own):
        both = [c for c in how.result if c in common and c != key]
        heads = [c for c in own if c != query]
        order = [*both, *heads, query, key]
        pattern = args[weights].detach().permute([mine.index(c) for c in order])
        if is_causal_pattern(pattern) and sums_to_one(pattern):
            break
    else:
        return None
    values = args[place].permute([theirs.index(c) for c in [*both, key, *channels]])
    sizes = values.shape[len(both) + 1 :]
    values = values.flatten(len(both) + 1) if channels else values.unsqueeze(-1)
    values = values[(slice(None),) * len(both) + (None,) * len(heads)]
    made = [*both, *heads, query, *([] if summed else [key]), *channels]
    back = [made.index(c) for c in how.result]

    def to_result(taken: Tensor) -> Tensor:
        spread = taken.reshape(*taken.shape[:-1], *sizes) if channels else taken.squeeze(-1)
        return spread.permute(back)

    return LaidOut(pattern, values, not summed, to_result)


def axes_of(operation: PatternProduct) -> tuple[Sequence[Any], Contraction | None, int]:
    """How the axes of a product meet; a product by entries as an einsum.

    Args:
        operation (PatternProduct): Any.

    Returns:
        tuple: the arguments, their axes (``None`` if the call does not tell), and how much further
        the operands stand in these arguments than in those of the operation.
    """
    args, how = operation.args, contraction_of(operation.func, operation.args)
    if how is None and len(args) == 2 and getattr(operation.func, "__name__", "") in _ENTRYWISE:
        written = equation_of(*args)
        if written is not None:
            return written, contraction_of(torch.einsum, written), 1
    return args, how, 0


@torch.no_grad()
def sums_to_one(pattern: Tensor) -> bool:
    """Whether the last query gives all its attention: not so without a softmax, or with a sink."""
    sums = pattern[..., -1, :].sum(-1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


@torch.no_grad()
def is_causal_call(operation: FusedAttention) -> bool:
    """Whether the queries are those of a whole text, and see the keys up to their own only."""
    rows, columns = operation.query.shape[-2], operation.key.shape[-2]
    if rows != columns or operation.is_causal or operation.mask is None:
        return rows == columns > 1 and operation.is_causal
    mask = operation.mask
    if mask.shape[-2:] != (rows, columns):
        return False
    return is_causal_pattern(additive(mask, torch.float32) > HIDDEN)


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
