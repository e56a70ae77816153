"""Copies of what a model may change while it runs: key-value caches and the like."""

from __future__ import annotations

import copy
import enum
import inspect
from collections import deque
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

_DEPTH = 6
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)
_CONTAINERS = (list, tuple, dict, set, deque, bytearray)


def fresh(value: Any) -> Any:
    """A copy of an argument that a model may write to; others as they are.

    Models write to caches that are handed in: they append keys and values, or update states in
    place. Every explained pass gets a copy, so that the caller's cache stays as it was, be it empty
    or filled, and a second pass sees the same one. Graphs of the copied tensors are left behind:
    what a cache holds is a constant.

    Copied are containers, and objects with attributes. Handed on are tensors, modules with
    parameters, functions and whatever else can be called (tokenizers), also inside of containers
    that are copied, and what cannot be copied.

    Example::

        >>> given = [torch.ones(2)]
        >>> fresh(given)[0] is given[0]
        False
    """
    if not _is_written_to(value):
        return value
    found: list[Tensor] = []
    kept: list[Any] = []
    _collect(value, found, kept, set(), _DEPTH)
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in found if not t.is_leaf}
    memo.update((id(item), item) for item in kept)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # something in it cannot be copied, a lock for instance
        return value


def _is_written_to(value: Any) -> bool:
    """Whether a model may write to an argument: to what is in it, or to its attributes."""
    if isinstance(value, nn.Module):  # caches of earlier versions of transformers are modules, too
        return next(value.parameters(), None) is None
    if isinstance(value, (Tensor, *_PLAIN, enum.Enum)) or callable(value):
        return False
    if isinstance(value, (*_CONTAINERS, SimpleNamespace)):
        return True
    # an object without any attributes is a mark, which is told by what it is
    return bool(getattr(value, "__dict__", None))


def collect(value: Any) -> list[Tensor]:
    """Every tensor that an argument holds in containers and objects, but for models."""
    found: list[Tensor] = []
    _collect(value, found, [], set(), _DEPTH)
    return found


def _collect(value: Any, found: list[Tensor], kept: list[Any], seen: set[int], depth: int) -> None:
    """Fills ``found`` with tensors, and ``kept`` with what is handed on and not looked into."""
    if isinstance(value, Tensor):
        found.append(value)
        return
    if isinstance(value, nn.Module) and next(value.parameters(), None) is not None:
        kept.append(value)
        return
    if depth == 0 or id(value) in seen or isinstance(value, _PLAIN):
        return
    seen.add(id(value))
    before = len(found)
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        items = list(value)
    else:
        items = list(getattr(value, "__dict__", {}).values())
    for item in items:
        _collect(item, found, kept, seen, depth - 1)
    if len(found) == before and _is_tool(value):
        kept.append(value)


def _is_tool(value: Any) -> bool:
    """An object of a class with a ``__call__`` of Python, such as a tokenizer; no module."""
    call = inspect.getattr_static(type(value), "__call__", None)
    return isinstance(call, FunctionType) and not isinstance(value, nn.Module)
