"""Embedding lookups, in any spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def _holds_parameter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a lookup is in a learned table; tables of sines and cosines are no evidence."""
    return "weight" in kwargs or any(isinstance(a, nn.Parameter) for a in args)


def _embedding(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not mode.inputs.has_ids:
        return func(*args, **kwargs)
    learned = _holds_parameter(mode.as_called, kwargs)
    result = func(*args, **kwargs)
    first, second = bind(("input", "weight"), args[:2], kwargs)
    # torch.embedding(weight, indices), F.embedding(indices, weight)
    indices, weight = (second, first) if first.is_floating_point() else (first, second)
    return mode.inputs.lookup(indices, result, mode.name_of(weight), mode.scope.module, learned)


def _getitem(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    learned = _holds_parameter(mode.as_called, {})
    result = func(*args, **kwargs)
    if mode.inputs.has_ids and len(args) == 2 and args[0].dim() == 2:
        index = args[1][0] if isinstance(args[1], tuple) and len(args[1]) == 1 else args[1]
        if isinstance(index, Tensor) and not index.is_floating_point() and index.dim() > 0:
            return mode.inputs.lookup(
                index, result, mode.name_of(args[0]), mode.scope.module, learned
            )
    return result


def _index_select(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    learned = _holds_parameter(mode.as_called, {})
    result = func(*args, **kwargs)
    source, dim, index = bind(("input", "dim", "index"), args, kwargs)
    if mode.inputs.has_ids and dim == 0 and source.dim() == 2:
        return mode.inputs.lookup(index, result, mode.name_of(source), mode.scope.module, learned)
    return result


HANDLERS: dict[str, Handler] = {
    **by_name(_embedding, "embedding"),
    **by_name(_getitem, "__getitem__"),
    **by_name(_index_select, "index_select"),
}
