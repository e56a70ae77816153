"""Gradients of several numbers of one forward pass, their backward passes packed into batches.

The graph of the forward pass is kept and walked once for each pack: ``torch.autograd.grad`` with
``is_grads_batched`` puts a dimension in front of every gradient, so what a backward pass computes
from the forward pass alone (attention patterns, ratios of rules) is computed once for all, and
short inputs make larger matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_lrp_tx.propagation.backward.seeds import gradients_of, is_narrow
from captum_lrp_tx.propagation.state.scope import Scope

Gradients = list["Tensor | None"]

#: Targets of a pack, and entries of its widest gradient, where the user gives no number: where
#: larger packs no longer gained (benchmarks/many_targets.md), so as not to spend memory on them.
_PACK_TARGETS, _PACK_ENTRIES = 8, 1 << 23


def pack_size(output: Tensor, leaves: Sequence[Tensor], targets: int) -> int:
    """How many targets go into one backward pass by default.

    Args:
        output (Tensor): What all targets were selected from.
        leaves (sequence of Tensor): What is differentiated by.
        targets (int): How many there are.

    Example::

        >>> pack_size(torch.zeros(1, 2), [torch.zeros(1, 4096, 4096)], 5)
        1
    """
    widest = max(output.numel(), sum(leaf.numel() for leaf in leaves), 1)
    return max(1, min(targets, _PACK_TARGETS, _PACK_ENTRIES // widest))


def gradients(
    output: Tensor,
    selected: Sequence[Tensor],
    leaves: Sequence[Tensor],
    per_pass: int,
    scope: Scope,
) -> Iterator[Gradients]:
    """The gradients of each sum of ``selected`` by the leaves, in order.

    Must be called, and gone through, with gradients enabled. One target at a time is what
    ``torch.autograd.grad`` gives, to the last bit. So are operations that cannot be packed: they
    are found by trying.

    Args:
        output (Tensor): The model's output, from which all of ``selected`` were computed.
        selected (sequence of Tensor): Values to differentiate; each is summed.
        leaves (sequence of Tensor): What to differentiate by.
        per_pass (int): How many of them share a backward pass; one in float16, whose backward
            passes may have to be run again from a smaller seed.
        scope (Scope): Of the forward pass.

    Yields:
        list of Tensor or None: One gradient for each leaf; ``None`` where the output does not
        depend on it.
    """
    start, packs = 0, per_pass > 1 and not is_narrow((output, *leaves))
    while start < len(selected):
        stop = min(start + per_pass, len(selected)) if packs else start + 1
        if stop > start + 1:
            done = _packed(output, selected[start:stop], leaves)
            packs = done is not None
            if done is not None:
                yield from done
                start = stop
                continue
        keep = start + 1 < len(selected)
        yield gradients_of(selected[start], leaves, scope, retain_graph=keep)
        start += 1


def _packed(
    output: Tensor, selected: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Gradients] | None:
    """Gradients of all values by one backward pass, or ``None`` if an operation does not allow it.

    The way from the output to the values is walked one by one: it is short, and a batch of
    selections would multiply the size of the output by the square of their number.
    """
    if not output.requires_grad:
        return None
    arriving = []
    for value in selected:
        (grad,) = torch.autograd.grad(
            value.sum(), output, allow_unused=True, retain_graph=True, materialize_grads=True
        )
        arriving.append(grad)
    try:
        found = torch.autograd.grad(
            output, leaves, torch.stack(arriving), allow_unused=True, retain_graph=True,
            is_grads_batched=True,
        )  # fmt: skip
    except (RuntimeError, NotImplementedError):  # or there is no memory for all of them at once
        return None
    return [[None if g is None else g[i] for g in found] for i in range(len(selected))]
