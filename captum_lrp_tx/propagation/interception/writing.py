"""Functions that write into a part of a tensor, of which autograd keeps one node without a name."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lrp_tx.propagation.graph import OVERWRITTEN, mark_node
from captum_lrp_tx.propagation.interception.calls import Call, tensors_in

#: Linear, drawn at random, or changing the shape alone: what autograd keeps is enough.
_PLAIN = frozenset(
    """add_ sub_ copy_ fill_ zero_ masked_fill_ index_fill_ index_copy_ index_add_ index_put_
    scatter_ scatter_add_ masked_scatter_ put_ neg_ random_ uniform_ normal_ bernoulli_
    exponential_ geometric_ log_normal_ cauchy_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_
    swapdims_ resize_ resize_as_ as_strided_ set_ requires_grad_ detach_ rename_""".split()
)


def hides(call: Call) -> bool:
    """Whether a call writes into a view, so that the autograd graph does not say what it did."""
    args = call.args
    if not call.is_inplace or call.name in _PLAIN or not args:
        return False
    target = args[0]
    is_view = isinstance(target, Tensor) and target._base is not None
    return is_view and any(t.requires_grad for t in tensors_in(args))


def beside(call: Call) -> Tensor:
    """The call on a copy of its target in the same layout, and the result copied into the target.

    Returns:
        Tensor: the target.
    """
    target: Tensor = call.args[0]
    copied = torch.empty_strided(
        target.size(), target.stride(), dtype=target.dtype, device=target.device
    ).copy_(target)
    call.replaced((copied, *call.args[1:]), call.kwargs).run()
    return overwritten(target, copied)


def overwritten(target: Tensor, result: Tensor) -> Tensor:
    """Copy a result into a tensor; of a view of a whole tensor nothing else is left then.

    Returns:
        Tensor: the target.
    """
    target.copy_(result)
    base = target._base
    if base is not None and base.numel() == target.numel() and torch.is_grad_enabled():
        mark_node(base, OVERWRITTEN)
    return target
