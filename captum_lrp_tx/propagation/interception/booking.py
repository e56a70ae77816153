"""What a ledger notes of a call: names of constants, and what they add to its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.uniform_attention import UniformAttention
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.interception.calls import bind, depends, tensors_in
from captum_lrp_tx.propagation.judging.coverage import conserving, made_since
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.propagation.state.scope import next_sequence_number

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


#: Arguments of fused attention.
SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def keep_names(mode: Interception, originals: Any, constants: Any) -> None:
    """Let constants made of named parameters go by the parameters' names."""
    ledger = mode.scope.ledger
    assert ledger is not None
    for before, after in zip(tensors_in(originals), tensors_in(constants), strict=True):
        if before is not after:
            ledger.inherit(after, before)


#: Statements that write into their left-hand side.
_STATEMENTS = frozenset("__setitem__ __iadd__ __isub__ __imul__ __idiv__ __itruediv__".split())


class Pending:
    """A call before it runs, to book what its constants add to the result afterwards.

    Operations that conserve relevance (:func:`~.judging.coverage.conserving` says which) are
    linear or positively homogeneous in all their operands.  Of the former ``f(0, constants)`` is
    what the constants add, of the latter they get what the operands that depend on the inputs
    leave over.

    A softmax that a rule expands to first order (Achtibat et al., ICML 2024, eq. 7 to 11) is p =
    p_0 + J s around the scores s at hand; the constant p_0 keeps relevance, as a bias does.

    Args:
        mode, func, args, kwargs: The call, parameters already detached.
        name (str): Its name, which tells whether it writes into its first argument.
    """

    def __init__(
        self,
        mode: Interception,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str,
    ) -> None:
        self.func, self.args, self.kwargs, self.name = func, args, kwargs, name
        self.start, self.noted = next_sequence_number(), mode.scope.noted
        #: What is written to, as a whole: the model may go on with another part of it.
        self.base: Tensor | None = None
        target = args[0] if args else None
        in_place = name in _STATEMENTS or (name[-1:] == "_" != name[-2:-1])
        if not in_place and not kwargs.get("inplace"):
            return
        if not isinstance(target, Tensor) or target.layout is not torch.strided:
            return
        self.target, self.base = target, target if target._base is None else target._base
        with torch.no_grad():
            self.before = torch.empty_strided(
                self.base.size(), self.base.stride(), dtype=self.base.dtype,
                device=self.base.device,
            )  # fmt: skip
            self.before.copy_(torch.zeros_like(self.base) if depends(self.base) else self.base)
            self.args = (target.clone().requires_grad_(target.requires_grad), *args[1:])

    def book(self, mode: Interception, result: Any) -> None:
        """Book what the constants of the call take, unless a rule acted or has booked it."""
        has_rule = mode.scope.noted != self.noted
        expanded = _expanded(mode, self.func, self.args, self.kwargs, self.name, has_rule)
        if expanded is not None and depends(result):
            module = mode.scope.module
            kept = f"{module or 'softmax'}: constant of the softmax"
            assert mode.scope.ledger is not None
            mode.scope.ledger.absorb_rest(result, *expanded, kept, module)
            return
        if mode.scope.last_booked > self.start or has_rule:
            return
        if "dropout" in self.name:
            return  # the next mask is drawn anew
        outputs = tensors_in(result) if self.base is None else [self.base]
        nodes: set[Node] = set()
        for output in outputs:
            if depends(output):
                nodes |= made_since(output.grad_fn, self.start)
        kind = conserving(nodes) if nodes else None
        operands = tensors_in((self.args, self.kwargs))
        sources = [t for t in operands if not t.requires_grad]
        if kind == "linear":
            for output, constant in zip(outputs, self._without_inputs(), strict=True):
                if depends(output) and bool(constant.any()):
                    mode.absorb(output, constant, *sources)
        elif (
            kind == "homogeneous"
            and len(outputs) == 1
            and (self.base is None or result is self.base)
        ):
            ledger = mode.scope.ledger
            assert ledger is not None
            values = [t for t in operands if t.requires_grad]
            if sources or _has_number((self.args, self.kwargs)):
                name = ledger.name_of(*sources)
                ledger.absorb_rest(outputs[0], self._run, values, name, mode.scope.module)

    def _without_inputs(self) -> list[Tensor]:
        """``f(0, constants)``."""
        with torch.no_grad():
            args, kwargs = _replaced((self.args, self.kwargs), torch.zeros_like)
            if self.base is None:
                return tensors_in(self.func(*args, **kwargs))
            offset = self.target.storage_offset() - self.base.storage_offset()
            written = self.before.as_strided(self.target.size(), self.target.stride(), offset)
            self.func(written, *args[1:], **kwargs)
            return [self.before]

    def _run(self, operands: list[Tensor]) -> Tensor:
        """The call once more, on other operands that depend on the inputs."""
        remaining = iter(operands)
        args, kwargs = _replaced((self.args, self.kwargs), lambda _: next(remaining))
        result: Tensor = self.func(*args, **kwargs)
        return result


def book_affine(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    result: Any,
) -> None:
    """``f(0, constants)`` is what the constants add to the result of an affine call."""
    if not depends(result):
        return
    with torch.no_grad():
        zero_args, zero_kwargs = _replaced((args, kwargs), torch.zeros_like)
        constant = func(*zero_args, **zero_kwargs)
    if bool(constant.any()):
        sources = [t for t in tensors_in((args, kwargs)) if not t.requires_grad]
        mode.absorb(result, constant, *sources)


def _expanded(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    has_rule: bool,
) -> tuple[Callable[[list[Tensor]], Tensor], list[Tensor]] | None:
    """A softmax that a rule passes by a first-order expansion, to be run again from its operands.

    Args:
        mode (Interception): Of the pass.
        func, args, kwargs, name: The call, as :class:`Pending` has it.
        has_rule (bool): Whether a rule acted on it.

    Returns:
        tuple or None: The call under its rule, and its operands that depend on the inputs; ``None``
        for other calls, and where another run would draw anew what it drops.
    """
    if not getattr(mode.scope.rule(Kind.ATTENTION), "covers_softmax", False):
        return None
    if name == "softmax" and not has_rule:
        given = [args[0] if args else kwargs["input"]]
        rest = {key: value for key, value in kwargs.items() if key != "input"}

        def run(values: list[Tensor]) -> Tensor:
            again: Tensor = func(*values, *args[1:], **rest)
            return again

    elif name == "scaled_dot_product_attention" and has_rule:
        *given, dropout_p, is_causal = bind(SDPA, args, kwargs)
        rest = {key: value for key, value in kwargs.items() if key not in SDPA}
        scale = rest.pop("scale", None)
        if dropout_p:
            return None

        def run(values: list[Tensor]) -> Tensor:
            remaining = iter(values)
            filled = [next(remaining) if depends(t) else t for t in given]
            return UniformAttention.call(*filled, bool(is_causal), scale, rest)

    else:
        return None
    return run, [t for t in given if depends(t)]


def booked(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """The result of a call that is affine in what no rule handles, its constants booked."""
    if mode.scope.ledger is not None:
        book_affine(mode, func, args, kwargs, func.__name__, result)
    return result


def _replaced(value: Any, new: Callable[[Tensor], Tensor]) -> Any:
    """Nested arguments with other tensors in place of those that depend on the inputs."""
    if isinstance(value, Tensor):
        return new(value) if value.requires_grad else value
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, new) for item in value)
    if type(value) is dict:
        return {key: _replaced(item, new) for key, item in value.items()}
    return value


def _has_number(value: Any) -> bool:
    """Whether there is a number other than the integers that name dimensions and sizes."""
    if isinstance(value, (list, tuple)):
        return any(_has_number(item) for item in value)
    if isinstance(value, dict):
        return any(_has_number(item) for item in value.values())
    return isinstance(value, float)
