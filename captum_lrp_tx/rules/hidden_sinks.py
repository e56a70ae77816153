"""Causal attention in parts, of which nobody can tell the sinks: loops, blocks, caches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.pattern_product import additive
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct
from captum_lrp_tx.propagation.state.scope import current
from captum_lrp_tx.rules.attention_sinks import HIDDEN, axes_of, sums_to_one


@torch.no_grad()
def note_if_hidden(operation: PatternProduct | FusedAttention, result: Tensor) -> None:
    """Let the pass know, for a warning, of a part of causal attention that relevance reaches.

    Args:
        operation (PatternProduct or FusedAttention): In which no sinks were looked for.
        result (Tensor): What it has made.
    """
    scope = current()
    if scope is None or not result.requires_grad or result.numel() == 0:
        return
    module, keys = scope.module, 0
    if isinstance(operation, FusedAttention):
        is_hidden, keys = _is_part_of_call(operation)
    else:
        if operation.rescales or operation.shares is not None:
            return
        is_hidden, keys = _is_part_of_product(operation)
    if not is_hidden and not keys:
        return

    def reached(grad: Tensor | None) -> None:
        if grad is None:
            return
        seen = scope.keys_of_queries.setdefault(module, set())
        seen |= {keys} - {0, 1}  # of one key there is no choice
        scope.hides_sinks |= is_hidden or len(seen) > 1

    result.register_hook(reached)  # type: ignore[no-untyped-call]


def _is_part_of_call(operation: FusedAttention) -> tuple[bool, int]:
    """Whether a part of a causal pattern shows; and how far one query sees, if it is of one."""
    rows, columns = operation.query.shape[-2], operation.key.shape[-2]
    if operation.dropout_p or rows == columns:
        return False, 0  # the explanation is random, and says so; or the attention is whole
    seen = None if operation.mask is None else additive(operation.mask, torch.float32) > HIDDEN
    if rows == 1:
        return False, columns if seen is None else _last_seen(seen)
    if seen is None or seen.shape[-2:] != (rows, columns):
        return operation.is_causal, 0
    return _is_staircase(seen), 0


def _is_part_of_product(operation: PatternProduct) -> tuple[bool, int]:
    """The same of a product that is not laid out to tell sinks."""
    args, how, shift = axes_of(operation)
    for i in (place + shift for place in operation.patterns):
        pattern = args[i].detach().to_dense()
        seen = pattern > 0
        is_plain = how is not None and len(how.operands) == 2 and args[i].layout == torch.strided
        if how is None or not is_plain or len(set(how.operands[i])) < seen.dim():
            if any(_is_staircase(part > 0) for part in _ways_to_look(pattern) if sums_to_one(part)):
                return True, 0
            continue
        theirs = set().union(*(labels for j, labels in how.operands.items() if j != i))
        mine = list(enumerate(how.operands[i]))
        keys = [axis for axis, label in mine if label in theirs and label not in how.result]
        own = [axis for axis, label in mine if label not in theirs and seen.shape[axis] > 1]
        among = keys or [axis for axis, label in mine if label in theirs]
        for query, key in itertools.product(own, among):
            part = seen.movedim((query, key), (-2, -1))
            if part.shape[-2] != part.shape[-1] and _is_staircase(part):
                return True, 0
        if keys and not own:  # one query
            return False, _last_seen(seen.movedim(keys[0], -1))
        if not keys and any(_starts_late(seen.movedim(query, -1)) for query in own):
            return True, 0  # one key
    return False, 0


def _ways_to_look(pattern: Tensor) -> Iterator[Tensor]:
    long = [axis for axis in range(pattern.dim()) if pattern.shape[axis] > 1]
    for query, key in itertools.permutations(long, 2):
        yield pattern.movedim((query, key), (-2, -1))


def _last_seen(seen: Tensor) -> int:
    """How many keys there are up to the last that is seen."""
    places = torch.arange(1, seen.shape[-1] + 1, device=seen.device)
    return int((seen * places).max())


def _is_staircase(seen: Tensor) -> bool:
    """Whether each of several queries sees one key more than the one before it, somewhere."""
    rows, columns = seen.shape[-2:]
    if rows < 2 or columns < 2:
        return False
    if rows > columns and rows % columns == 0:  # queries share their axis with heads
        shapes = ((columns, -1, columns), (-1, columns, columns))
        first, second = (seen.reshape(*seen.shape[:-2], *shape) for shape in shapes)
        return _is_staircase(first.transpose(-3, -2)) or _is_staircase(second)
    places = torch.arange(1, columns + 1, device=seen.device)
    last = (seen * places).amax(-1)
    return bool((last.diff(dim=-1) == 1).all(-1).any())


def _starts_late(seen: Tensor) -> bool:
    """Whether a key is unseen at first and seen from some query on."""
    return bool((~seen[..., 0] & seen[..., -1] & (seen.int().diff(dim=-1) >= 0).all(-1)).any())
