"""Tensors in what modules take and return: tuples in tuples, dictionaries, packed sequences."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed, in order.

    Goes into tuples (named ones and ``PackedSequence`` as well), lists, dictionaries (in place, so
    that Hugging Face's ``ModelOutput`` keeps its class and its attributes) and dataclasses.

    Args:
        value: A tensor, or a structure that holds some.
        change (callable): From a tensor to what takes its place.

    Returns:
        The new structure; what holds no tensor stays the same object.

    Example::

        >>> mapped((torch.ones(1), {"state": torch.ones(1)}), lambda t: 2 * t)
        (tensor([2.]), {'state': tensor([2.])})
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is list:
        return [mapped(item, change) for item in value]
    if isinstance(value, dict):
        for key, item in list(value.items()):
            new = mapped(item, change)
            if new is not item:
                value[key] = new
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for name in [field.name for field in dataclasses.fields(value)]:
            # frozen ones, too
            object.__setattr__(twin, name, mapped(getattr(value, name), change))
        return twin
    return value
