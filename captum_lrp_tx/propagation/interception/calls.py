"""One call of torch: what was called, with which arguments, and which of them carry a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


@dataclass(slots=True, eq=False)
class Call:
    """One call of torch, as a handler gets it; handlers leave it as it is.

    Attributes:
        func (callable): The function.
        args (tuple): Its arguments; parameters are constants.
        kwargs (dict): The same by keyword.
        name (str): Of the function, which says what it does.
        original (Call, optional): The call as the model made it, if constants have taken the place
            of parameters.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    original: Call | None = None

    def run(self) -> Any:
        """What torch does: the result under the plain gradient."""
        return self.func(*self.args, **self.kwargs)

    @property
    def parts(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Function and arguments, as an operation takes them."""
        return self.func, self.args, self.kwargs

    def bind(self, names: tuple[str, ...]) -> list[Any]:
        """Arguments in the order of these names; ``None`` for those that were not passed."""
        return bind(names, self.args[: len(names)], self.kwargs)

    def replaced(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, func: Any = None
    ) -> Call:
        """The same call with other arguments, or of another function that does the same.

        Args:
            args (tuple): The arguments.
            kwargs (dict, optional): By keyword; none unless given.
            func (callable, optional): The function; the same unless given.
        """
        func, name = (self.func, self.name) if func is None else (func, func.__name__)
        return Call(func, args, {} if kwargs is None else kwargs, name, self.original or self)

    @property
    def is_inplace(self) -> bool:
        """Whether the call is a method that writes into its tensor, such as ``mul_``."""
        return self.name.endswith("_") and not self.name.endswith("__")

    def passed(self, position: int) -> Any:
        """A positional argument as the model passed it, ``None`` if there is none."""
        args = (self.original or self).args
        return args[position] if position < len(args) else None


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


def of_torch(call: Call) -> Call:
    """The call of the function or method of torch behind ``torch.ops.aten.linear.default``, say.

    Args:
        call (Call): Of an overload or a packet of overloads, whose keyword arguments call the first
            argument ``self``.

    Returns:
        Call: as it was, but for its name, if there is no such function.
    """
    packet = getattr(call.func, "overloadpacket", call.func)
    overload = getattr(call.func, "_overloadname", "default")
    name: str = packet.__name__
    homes: list[Any] = [torch, torch._C._nn]
    if call.args and name.endswith("_") and not name.endswith("__"):
        homes.append(Tensor)  # ``add_`` is a method only
    home = next((m for m in homes if hasattr(m, name)), None)
    qualified: str = packet._qualified_op_name
    if home is not None and not qualified.startswith("aten::"):  # of the same name only
        return Call(call.func, call.args, call.kwargs, qualified, call.original or call)
    is_same = qualified.startswith("aten::") and "out" not in overload
    if home is None or not is_same or "dtype" in overload:
        return Call(call.func, call.args, call.kwargs, call.func.__name__, call.original or call)
    kwargs = {"input" if k == "self" else k: v for k, v in call.kwargs.items()}
    return Call(getattr(home, name), call.args, kwargs, name, call.original or call)


#: Functions of torch that take their operands by position as well as by keyword.
_OF_TWO = frozenset(
    """add sub subtract rsub mul multiply div divide true_divide matmul mm bmm mv dot vdot inner
    maximum minimum fmax fmin""".split()
)
#: What they call their first and their second operand.
_FIRST, _SECOND = ("input", "self"), ("other", "mat2", "vec", "tensor")
#: What they take beside these.
_BESIDE = frozenset("alpha rounding_mode out".split())


def operands_first(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the operands of a sum or product by position: ``matmul(p, other=v)``."""
    packet = getattr(func, "overloadpacket", func)
    is_torchs = getattr(packet, "_qualified_op_name", "aten::").startswith("aten::")
    if not is_torchs or getattr(packet, "__name__", "").strip("_") not in _OF_TWO:
        return args, kwargs  # operators of others may take operands by keyword only
    operands = [k for k in (*_FIRST, *_SECOND) if k in kwargs]
    names = (_FIRST, _SECOND)[len(args) :]
    fits = len(operands) == len(names) and all(map(tuple.__contains__, names, operands))
    if not fits or kwargs.keys() - _BESIDE - set(operands):
        return args, kwargs
    rest = {k: v for k, v in kwargs.items() if k in _BESIDE}
    return (*args, *(kwargs[k] for k in operands)), rest


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


Handler = Callable[["Context", Call], Any]
