"""Copies of what a model may change while it runs: key-value caches and the like."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

_DEPTH = 6
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)


def fresh(value: Any) -> Any:
    """A copy of an argument that holds tensors in containers or objects; others as they are.

    Models write to caches that are handed in: they append keys and values, or update states in
    place. Every explained pass gets a copy, so that the caller's cache stays as it was and a second
    pass sees the same one. Graphs of the copied tensors are left behind: what a cache holds is a
    constant.

    Example::

        >>> given = [torch.ones(2)]
        >>> fresh(given)[0] is given[0]
        False
    """
    if isinstance(value, nn.Module):
        if next(value.parameters(), None) is not None:
            return value  # a model; caches of earlier versions of transformers are modules, too
    elif isinstance(value, (Tensor, *_PLAIN)) or callable(value):
        return value
    tensors = collect(value)
    if not tensors:
        return value
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in tensors if not t.is_leaf}
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, copy.Error):  # something in it cannot be copied, a lock for instance
        return value


def collect(value: Any) -> list[Tensor]:
    """Every tensor that an argument holds in containers and objects, but for models."""
    found: list[Tensor] = []
    _collect(value, found, set(), _DEPTH)
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int], depth: int) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    is_model = isinstance(value, nn.Module) and next(value.parameters(), None) is not None
    if depth == 0 or id(value) in seen or is_model or isinstance(value, _PLAIN):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        items = list(value)
    else:
        items = list(getattr(value, "__dict__", {}).values())
    for item in items:
        _collect(item, found, seen, depth - 1)
