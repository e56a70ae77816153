"""Hooks that go away together, whenever an interruption comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

#: Where a module keeps its hooks, and what it notes about them under the same number.
_REGISTRIES = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


class _Open(threading.local):
    def __init__(self) -> None:
        self.hooks: list[Hooks] = []


_OPEN = _Open()


class Hooks:
    """Forward hooks on modules, taken off at the end of a ``with`` block.

    A hook is noted before it is registered and found again by what it is, not by the handle that
    ``register_forward_hook`` returns: Ctrl-C may come before the handle has been stored anywhere.
    :meth:`remove` may be interrupted and called again, which is what :class:`guard` does.

    Args:
        also (callable, optional): What else :meth:`remove` has to undo; may be called twice if
            it is interrupted.

    Example::

        >>> with Hooks() as hooks:
        ...     hooks.after(model.layer, lambda module, args, output: print(output.shape))
        ...     model(x)
    """

    def __init__(self, also: Callable[[], None] | None = None) -> None:
        self._also = also
        self._noted: list[tuple[nn.Module, str, Callable[..., Any]]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Put a forward pre-hook on a module.

        A hook is called in every thread that runs the module, and has to do nothing in others than
        its own. There it may miss ``kwargs`` although it asks for them: torch looks up who gets
        them after it has listed the hooks, and a hook may be taken off in between.

        Args:
            module (Module): What gets the hook.
            hook (callable): The hook.
            **options: Of ``register_forward_pre_hook``.
        """
        self._noted.append((module, "_forward_pre_hooks", hook))
        module.register_forward_pre_hook(hook, **options)

    def after(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Put a forward hook on a module.

        Args:
            module (Module): What gets the hook.
            hook (callable): The hook.
            **options: Of ``register_forward_hook``.
        """
        self._noted.append((module, "_forward_hooks", hook))
        module.register_forward_hook(hook, **options)

    def remove(self) -> None:
        """Take off all of them; does nothing the second time."""
        if self._also is not None:
            self._also()
        for module, place, hook in self._noted:
            registry = getattr(module, place)
            # a list first: other threads may put on and take off theirs meanwhile
            for number in [n for n, noted in list(registry.items()) if noted is hook]:
                for name in (*_REGISTRIES[place], place):
                    getattr(module, name).pop(number, None)
        self._noted.clear()
        self._also = None  # often a method of what holds this object: a cycle otherwise

    def __enter__(self) -> Hooks:
        _OPEN.hooks.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        self.remove()
        if self in _OPEN.hooks:
            _OPEN.hooks.remove(self)


class guard:
    """Takes off what the ``with`` blocks of :class:`Hooks` inside it could not.

    Python may raise ``KeyboardInterrupt`` on the first line of an ``__exit__``.  The block around
    it is then left by an exception, so one interruption cannot spoil both.

    Example::

        >>> with guard(), Hooks() as hooks:
        ...     hooks.before(model.layer, hook)
        ...     model(x)
    """

    def __enter__(self) -> None:
        self._depth = len(_OPEN.hooks)

    def __exit__(self, *exc: Any) -> None:
        for hooks in _OPEN.hooks[self._depth :]:
            hooks.remove()
        del _OPEN.hooks[self._depth :]
