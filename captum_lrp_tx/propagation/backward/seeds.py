"""The backward pass, with its seed scaled down where half precision would overflow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lrp_tx.propagation.state.scope import Scope

#: Seeds of the backward pass in float16, tried in turn.
_SEEDS = (1.0, 2.0**-8, 2.0**-16)


def is_narrow(tensors: Sequence[Tensor]) -> bool:
    """Whether gradients may leave the range of a dtype although activations do not."""
    return any(t.dtype == torch.float16 for t in tensors)


def gradients_of(
    target: Tensor, leaves: Sequence[Tensor], scope: Scope, retain_graph: bool = False
) -> list[Tensor | None]:
    """Modified gradients of ``target.sum()`` at the leaves; None where nothing arrives.

    Relevance is linear in the seed of the backward pass. A model in float16 has finite activations
    but may have gradients beyond 65504 (small inputs, large weights): then the pass is run again
    from a smaller seed, and the gradients are scaled back in float32.
    """
    if not is_narrow((target, *leaves)):
        return list(
            torch.autograd.grad(target.sum(), leaves, allow_unused=True, retain_graph=retain_graph)
        )
    total = target.float().sum()
    grads: list[Tensor | None] = []
    for seed in _SEEDS:
        forget(scope)
        grads = list(
            torch.autograd.grad(
                total, leaves, total.new_tensor(seed), allow_unused=True, retain_graph=True
            )
        )
        if all(g is None or bool(torch.isfinite(g).all()) for g in grads):
            break
    if seed != 1.0:
        grads = [None if g is None else g.float() / seed for g in grads]
        _rescale(scope, 1.0 / seed)
    return grads


def forget(scope: Scope) -> None:
    """Nothing was booked yet: the pass starts over."""
    _rescale(scope, 0.0)


def _rescale(scope: Scope, factor: float) -> None:
    for entry in scope.ledger.entries if scope.ledger is not None else ():
        entry.relevance = entry.relevance * factor if factor else 0.0
    for boundary in scope.boundaries:
        boundary.at_output = boundary.at_output * factor if factor else 0.0
        boundary.at_input = boundary.at_input * factor if factor else 0.0
