"""Arguments of torch calls: which are tensors, and which of them depend on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
