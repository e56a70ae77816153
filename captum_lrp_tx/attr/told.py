"""What has been checked and said already: once for each function, rule set and way it ran."""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import captum
import torch
from torch import nn

#: Models whose every call runs differently are checked every time; this bounds what is kept.
_MOST = 4096
#: Warnings point at the first line outside these folders: the user's call.
_INNER = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep
    for file in (os.path.dirname(__file__), captum.__file__, torch.__file__)
)


class Subject:
    """Who is explained: a forward function and the model behind it.

    Functions made anew for every call (``lambda x: model(x).softmax(1)`` in a loop) are the same
    subject: they share their code and their model.

    Args:
        forward (callable): The forward function.
        modules (sequence of (str, Module)): The modules found behind it.
    """

    def __init__(self, forward: Callable[..., Any], modules: Sequence[tuple[str, nn.Module]]):
        code = _code_of(forward)
        #: What keeps the notes alive: the model, or the code of a function without one.
        self.owner: Any = modules[0][1] if modules else code
        self.code = code


class _Told:
    """What is known about a subject, weakly by its model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: weakref.WeakKeyDictionary[Any, set[Hashable]] = weakref.WeakKeyDictionary()

    def knows(self, subject: Subject, what: Hashable) -> bool:
        """Whether this has been noted."""
        with self._lock:
            return (subject.code, what) in self._told.get(subject.owner, ())

    def first_time(self, subject: Subject, what: Hashable) -> bool:
        """Note it; False if it has been noted before."""
        with self._lock:
            told = self._told.setdefault(subject.owner, set())
            key = (subject.code, what)
            if key in told:
                return False
            if len(told) >= _MOST:
                told.clear()
            told.add(key)
            return True


TOLD = _Told()


def tell_once(subject: Subject, what: Hashable, message: str, category: type[Warning]) -> None:
    """Warn about a function and rule set once per process.

    Args:
        subject (Subject): Who the warning is about.
        what (hashable): What tells this warning from others about the same subject.
        message (str): The text.
        category (type): The class of the warning.
    """
    if not TOLD.first_time(subject, what):
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _code_of(forward: Any) -> Any:
    """What is the same for functions made by one line of code: the code, else the class."""
    while isinstance(forward, functools.partial):
        forward = forward.func
    if isinstance(forward, nn.Module):
        forward = forward.forward
    return getattr(forward, "__code__", type(forward))  # a method lends its function's
