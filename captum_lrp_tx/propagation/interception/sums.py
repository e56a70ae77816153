"""Sums: residual connections, embeddings that the batch shares, initial states of scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrp_tx.propagation.interception.biases import SUMS, added_constant
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.interception.writing import overwritten
from captum_lrp_tx.propagation.operations import Kind, Residual
from captum_lrp_tx.propagation.recognition import degrees, recurrence

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def _addition(context: Context, call: Call) -> Any:
    args = call.args
    if len(args) == 2 and isinstance(args[1], (int, float)) and not call.kwargs:
        biased = added_constant(context, call)  # of a linear map, as a tensor is
        result = call.run() if biased is None else biased
        degrees.note_shift(result, args[1])
        return result
    initial = None if call.kwargs else _initial_state(context, args)
    if initial is not None:
        # out of place first: the constant is booked as it is before an in-place sum
        constant = args[initial].detach()
        result = torch.add(args[1 - initial], constant)
        context.absorb(result, constant.clone() if _is_inplace(call) else constant)
        return overwritten(args[0], result) if _is_inplace(call) else result
    biased = added_constant(context, call)
    if biased is not None:
        return biased
    if context.scope.rule(Kind.RESIDUAL) is not None:
        return _residual(context, call)
    return call.run()


def _difference(context: Context, call: Call) -> Any:
    biased = added_constant(context, call)
    return call.run() if biased is None else biased


def _initial_state(context: Context, args: tuple[Any, ...]) -> int | None:
    """The first step of a scan adds ``decay * initial state``, a constant under the rule."""
    if not context.has_steps or context.scope.rule(Kind.SCAN) is None or len(args) != 2:
        return None
    if not (depends(args[0]) and depends(args[1])):
        return None
    roles = [recurrence.role(a) for a in args]
    return roles.index("decay") if set(roles) == {"decay", "state"} else None


def _residual(context: Context, call: Call) -> Any:
    rule, args = context.scope.rule(Kind.RESIDUAL), call.args
    if (
        rule is None or call.kwargs or len(args) != 2 or not (depends(args[0]) and depends(args[1]))
        or args[0].shape != args[1].shape
    ):  # fmt: skip
        return call.run()
    if not _is_inplace(call):
        return rule.propagate(Residual(call.func, args, {}, first=args[0], second=args[1]))
    first = args[0].clone()  # which the rule may look at later
    result = rule.propagate(Residual(torch.add, (first, args[1]), {}, first=first, second=args[1]))
    return overwritten(args[0], result)


def _is_inplace(call: Call) -> bool:
    return call.name in ("add_", "__iadd__")


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(SUMS, _difference),
    **by_name(_addition, "add add_ __add__ __radd__ __iadd__"),
}
