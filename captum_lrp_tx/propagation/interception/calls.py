"""Arguments of torch calls: which are tensors, and which of them depend on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors_in(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item)]
    return []


OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def of_torch(func: Any, kwargs: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """The function of torch behind ``torch.ops.aten.linear.default`` and its like.

    Args:
        func (OpOverload or OpOverloadPacket): What was called.
        kwargs (dict): The keyword arguments, which call the first argument ``self``.

    Returns:
        tuple: function, name and keyword arguments; as they were if there is no such function.
    """
    packet = getattr(func, "overloadpacket", func)
    overload = getattr(func, "_overloadname", "default")
    name: str = packet.__name__
    home = next((m for m in (torch, torch._C._nn) if hasattr(m, name)), None)
    is_same = packet._qualified_op_name.startswith("aten::") and "out" not in overload
    if home is None or not is_same or "dtype" in overload:
        return func, func.__name__, kwargs
    return (
        getattr(home, name),
        name,
        {"input" if k == "self" else k: v for k, v in kwargs.items()},
    )


def depends(x: Any) -> bool:
    """Whether a value is a tensor that depends on the explained inputs."""
    return isinstance(x, Tensor) and x.requires_grad


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments by position, wherever they were passed; ``None`` for those that were not."""
    values = [*args, *(None,) * (len(names) - len(args))]
    if kwargs:
        for i, name in enumerate(names):
            if name in kwargs:
                values[i] = kwargs[name]
    return values


def by_name(handler: Handler, names: str) -> dict[str, Handler]:
    """Table entries of a handler for several names of calls."""
    return dict.fromkeys(names.split(), handler)


Handler = Callable[["Interception", Any, tuple[Any, ...], dict[str, Any]], Any]
