"""What Captum asks of every attribution class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from captum.attr._utils.attribution import Attribution


class CaptumMethod(Attribution):
    """What all attribution classes here share: a readable name, and that they answer at once."""

    #: What :meth:`get_name` says; Captum's way, the words in the name of the class, unless given.
    _title: ClassVar[str] = ""

    #: Whether ``attribute`` can return the convergence delta.
    _gives_delta: ClassVar[bool] = False

    def __init__(self, model: Callable[..., Any]) -> None:
        Attribution.__init__(self, model)

    @classmethod
    def get_name(cls) -> str:
        """Readable name, as Captum Insights shows it."""
        return cls._title or str(super().get_name())

    def has_convergence_delta(self) -> bool:
        """Whether :meth:`attribute` can return the convergence delta."""
        return self._gives_delta

    def attribute_future(self) -> NoReturn:
        """Not implemented, as for Captum's own gradient methods.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")
