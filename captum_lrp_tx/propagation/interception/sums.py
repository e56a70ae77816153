"""Sums: residual connections, embeddings that the batch shares, initial states of scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrp_tx.propagation import recurrence
from captum_lrp_tx.propagation.interception.biases import SUMS, added_constant
from captum_lrp_tx.propagation.interception.calls import Handler, by_name, depends
from captum_lrp_tx.propagation.operations import (
    Kind,
    Residual,
)
from captum_lrp_tx.propagation.recognition import homogeneity

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def _addition(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == 2 and isinstance(args[1], (int, float)) and not kwargs:
        result = func(*args)
        homogeneity.note_shift(result, args[1])
        return result
    initial = None if kwargs else _initial_state(mode, args)
    if initial is not None:
        # out of place first: the constant is booked as it is before an in-place sum
        constant = args[initial].detach()
        result = torch.add(args[1 - initial], constant)
        mode.absorb(result, constant.clone() if _is_inplace(func) else constant)
        return args[0].copy_(result) if _is_inplace(func) else result
    biased = added_constant(mode, func, args, kwargs)
    if biased is not None:
        return biased
    if mode.scope.rule(Kind.RESIDUAL) is not None:
        return _residual(mode, func, args, kwargs)
    return func(*args, **kwargs)


def _difference(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    biased = added_constant(mode, func, args, kwargs)
    return func(*args, **kwargs) if biased is None else biased


def _initial_state(mode: Interception, args: tuple[Any, ...]) -> int | None:
    """The first step of a scan adds ``decay * initial state``, a constant under the rule."""
    if not mode.has_steps or mode.scope.rule(Kind.SCAN) is None or len(args) != 2:
        return None
    if not (depends(args[0]) and depends(args[1])):
        return None
    roles = [recurrence.role(a) for a in args]
    return roles.index("decay") if set(roles) == {"decay", "state"} else None


def _residual(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = mode.scope.rule(Kind.RESIDUAL)
    if (
        rule is None or kwargs or len(args) != 2 or not (depends(args[0]) and depends(args[1]))
        or args[0].shape != args[1].shape
    ):  # fmt: skip
        return func(*args, **kwargs)
    plain = torch.add if _is_inplace(func) else func
    operation = Residual(plain, args, {}, first=args[0], second=args[1])
    result = rule.propagate(operation)
    return args[0].copy_(result) if _is_inplace(func) else result


def _is_inplace(func: Any) -> bool:
    return func.__name__ in ("add_", "__iadd__")


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(SUMS, _difference),
    **by_name(_addition, "add add_ __add__ __radd__ __iadd__"),
}
