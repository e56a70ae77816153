"""Modules that run although the search behind the forward function did not find them.

A function may reach a module through what no search looks into: a registry, a weak reference, the
result of another function. Rules work through hooks on modules that are known before the pass.
The parameters of an unknown module show up in calls of torch all the same, and the stack says then
which modules are running. Nothing is registered anywhere, so other threads do not notice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType

from torch import Tensor, nn

_CALL = nn.Module._wrapped_call_impl.__code__


class Strangers:
    """Reports modules with parameters that are not among those known.

    Args:
        modules (sequence of (str, Module)): The known ones.
        meet (callable): Called with each other one, the innermost first; may raise.
    """

    def __init__(
        self, modules: Sequence[tuple[str, nn.Module]], meet: Callable[[nn.Module], None]
    ) -> None:
        self._modules = {id(module) for _, module in modules}
        self._seen = {id(p) for _, module in modules for p in module._parameters.values()}
        self._meet = meet
        self._held: list[object] = []  # so that no other object takes over an id

    def look(self, tensor: Tensor) -> None:
        """Called with every tensor of a class of its own that goes into a call of torch."""
        if id(tensor) in self._seen or not isinstance(tensor, nn.Parameter):
            return
        self._seen.add(id(tensor))
        self._held.append(tensor)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL:
                module = frame.f_locals["self"]
                if id(module) not in self._modules:
                    self._modules.add(id(module))
                    self._held.append(module)
                    self._meet(module)
            frame = frame.f_back


def running(modules: Sequence[tuple[str, nn.Module]]) -> str:
    """The name of the innermost of these modules that the stack is in; empty outside of all."""
    names = {id(module): name for name, module in modules}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL and id(frame.f_locals["self"]) in names:
            return names[id(frame.f_locals["self"])]
        frame = frame.f_back
    return ""
