"""What a ledger notes of a call: names of constants, and what they add to its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.uniform_attention import UniformAttention
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.interception.calls import Call, depends, tensors_in
from captum_lrp_tx.propagation.judging.coverage import conserving, made_since
from captum_lrp_tx.propagation.operations import Kind, entries_of
from captum_lrp_tx.propagation.state.scope import next_sequence_number

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


#: Arguments of fused attention.
SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def keep_names(context: Context, call: Call) -> None:
    """Let constants made of named parameters go by the parameters' names."""
    ledger, made = context.scope.ledger, call.original
    assert ledger is not None
    if made is None:
        return
    originals, constants = tensors_in((made.args, made.kwargs)), tensors_in(call.parts[1:])
    for before, after in zip(originals, constants, strict=True):
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
        context (Context): Of the pass.
        call (Call): The call; its name tells whether it writes into its first argument.
    """

    def __init__(self, context: Context, call: Call) -> None:
        self.call = call
        self.start, self.noted = next_sequence_number(), context.scope.noted
        #: What is written to, as a whole: the model may go on with another part of it.
        self.base: Tensor | None = None
        args, name = call.args, call.name
        target = args[0] if args else None
        in_place = call.is_inplace or name in _STATEMENTS
        if not in_place and not call.kwargs.get("inplace"):
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
            copied = target.clone().requires_grad_(target.requires_grad)
            self.call = call.replaced((copied, *args[1:]), call.kwargs)

    def book(self, context: Context, result: Any) -> None:
        """Book what the constants of the call take, unless a rule acted or has booked it."""
        has_rule = context.scope.noted != self.noted
        expanded = _expanded(context, self.call, has_rule)
        if expanded is not None and depends(result):
            module = context.scope.module
            kept = f"{module or 'softmax'}: constant of the softmax"
            assert context.scope.ledger is not None
            context.scope.ledger.absorb_rest(result, *expanded, kept, module)
            return
        if context.scope.last_booked > self.start or has_rule:
            return
        if "dropout" in self.call.name:
            return  # the next mask is drawn anew
        outputs = tensors_in(result) if self.base is None else [self.base]
        nodes: set[Node] = set()
        for output in outputs:
            if depends(output):
                nodes |= made_since(output.grad_fn, self.start)
        kind = conserving(nodes) if nodes else None
        operands = tensors_in(self.call.parts[1:])
        sources = [t for t in operands if not t.requires_grad]
        if kind == "linear":
            for output, constant in zip(outputs, self._without_inputs(), strict=True):
                if depends(output) and bool(entries_of(constant).any()):
                    context.absorb(output, constant, *sources)
        elif (
            kind == "homogeneous"
            and len(outputs) == 1
            and (self.base is None or result is self.base)
        ):
            ledger = context.scope.ledger
            assert ledger is not None
            values = [t for t in operands if t.requires_grad]
            if sources or _has_number(self.call.parts[1:]):
                name = ledger.name_of(*sources)
                ledger.absorb_rest(outputs[0], self._run, values, name, context.scope.module)

    def _without_inputs(self) -> list[Tensor]:
        """``f(0, constants)``."""
        with torch.no_grad():
            call = _on_others(self.call, torch.zeros_like)
            if self.base is None:
                return tensors_in(call.run())
            offset = self.target.storage_offset() - self.base.storage_offset()
            written = self.before.as_strided(self.target.size(), self.target.stride(), offset)
            call.replaced((written, *call.args[1:]), call.kwargs).run()
            return [self.before]

    def _run(self, operands: list[Tensor]) -> Tensor:
        """The call once more, on other operands that depend on the inputs."""
        remaining = iter(operands)
        result: Tensor = _on_others(self.call, lambda _: next(remaining)).run()
        return result


def _expanded(
    context: Context, call: Call, has_rule: bool
) -> tuple[Callable[[list[Tensor]], Tensor], list[Tensor]] | None:
    """A softmax that a rule passes by a first-order expansion, to be run again from its operands.

    Args:
        context (Context): Of the pass.
        call (Call): The call, as :class:`Pending` has it.
        has_rule (bool): Whether a rule acted on it.

    Returns:
        tuple or None: The call under its rule, and its operands that depend on the inputs; ``None``
        for other calls, and where another run would draw anew what it drops.
    """
    rule = context.scope.rule(Kind.ATTENTION)
    if rule is None or not rule.covers_softmax:
        return None
    func, args, kwargs = call.parts
    if call.name == "softmax" and not has_rule:
        given = [args[0] if args else kwargs["input"]]
        rest = {key: value for key, value in kwargs.items() if key != "input"}

        def run(values: list[Tensor]) -> Tensor:
            again: Tensor = func(*values, *args[1:], **rest)
            return again

    elif call.name == "scaled_dot_product_attention" and has_rule:
        *given, dropout_p, is_causal = call.bind(SDPA)
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


def booked(context: Context, call: Call, result: Any) -> Any:
    """The result of a call that is affine in what no rule handles, its constants booked."""
    if context.scope.ledger is None or not depends(result):
        return result
    with torch.no_grad():  # f(0, constants) is what the constants add
        constant = _on_others(call, torch.zeros_like).run()
    if bool(entries_of(constant).any()):
        sources = [t for t in tensors_in(call.parts[1:]) if not t.requires_grad]
        context.absorb(result, constant, *sources)
    return result


def _on_others(call: Call, new: Callable[[Tensor], Tensor]) -> Call:
    """The call with other tensors in place of those that depend on the inputs."""
    return call.replaced(*_replaced(call.parts[1:], new))


def _replaced(value: Any, new: Callable[[Tensor], Tensor]) -> Any:
    """The same for nested arguments."""
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
