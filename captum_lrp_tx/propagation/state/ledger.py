"""The ledger: how much relevance each additive constant takes, by name.

Biases, class tokens, position tables and other constants beside the input receive a share of the
relevance that no input feature carries.  With a ledger, ``output = input relevance + absorbed``
can be checked to float precision and each absorber is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Absorbed:
    """Relevance (in units of the explained output, summed over the batch) taken by a constant.

    ``number`` is autograd's of the node whose result has the constant in it.
    """

    name: str
    module: str
    relevance: float = 0.0
    number: int = -1


class Ledger:
    """Books absorbed relevance during a backward pass.

    Args:
        named (iterable of (str, Tensor)): Parameters and buffers of the model, to name constants.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        # tensors are kept alive, so that an id cannot be taken by another tensor meanwhile
        self._names: dict[int, tuple[Tensor, str]] = {}
        self.entries: list[Absorbed] = []
        for name, tensor in named:
            self._names.setdefault(id(tensor), (tensor, name))

    def name_of(self, *tensors: Any) -> str | None:
        """Name of the first of these tensors that is, or was computed from, a named one."""
        for tensor in tensors:
            known = self._names.get(id(tensor))
            if known is not None:
                return known[1]
        return None

    def inherit(self, result: Any, *sources: Any) -> None:
        """Let ``result`` (computed from constants only) carry the name of its source."""
        name = self.name_of(*sources)
        if name is not None and isinstance(result, Tensor):
            self._names.setdefault(id(result), (result, name))

    def absorb(self, output: Tensor, constant: Tensor, name: str | None, module: str) -> None:
        """Book ``sum(constant * gradient at output)`` once the backward pass gets there."""
        if not output.requires_grad:
            return
        entry = self._entry(output, name, module)
        value = constant.detach()

        def book(grad: Tensor | None) -> None:
            if grad is not None:  # an undefined gradient is zero
                entry.relevance += relevance_sum(value, grad)

        output.register_hook(book)  # type: ignore[no-untyped-call]

    def absorb_rest(
        self,
        output: Tensor,
        run: Callable[[list[Tensor]], Tensor],
        inputs: list[Tensor],
        name: str | None,
        module: str,
    ) -> None:
        """Book what the gradient of a call leaves of the relevance of its output.

        Args:
            output (Tensor): Result of the call.
            run (callable): The call, from its operands that depend on the explained inputs.
            inputs (list of Tensor): These operands.
            name (str, optional): Of the constant that takes the rest.
            module (str): The module that made the call.
        """
        entry = self._entry(output, name, module)
        values = [x.detach().clone() for x in inputs]

        def book(grad: Tensor | None) -> None:
            if grad is None:
                return
            with torch.enable_grad():
                leaves = [value.requires_grad_() for value in values]
                again = run([leaf.clone() for leaf in leaves])  # it may write into them
                passed = torch.autograd.grad(again, leaves, grad, allow_unused=True)
            entry.relevance += relevance_sum(again, grad) - sum(
                relevance_sum(x, g) for x, g in zip(leaves, passed, strict=True) if g is not None
            )

        output.register_hook(book)  # type: ignore[no-untyped-call]

    def _entry(self, output: Tensor, name: str | None, module: str) -> Absorbed:
        node = output.grad_fn
        entry = Absorbed(
            name or (f"{module}: constant" if module else "constant"), module,
            number=-1 if node is None else int(node._sequence_nr()),
        )  # fmt: skip
        self.entries.append(entry)
        return entry

    def hand_over(self, module: str, other: str) -> Callable[[float], None]:
        """Book relevance that one module's constants spread over the inputs of another.

        Args:
            module (str): Has the constants, and loses the relevance.
            other (str): Gets it, beside what arrives at its outputs.
        """
        name = f"{module}: spread over the inputs of {other or 'the model'}"
        lost, got = Absorbed(name, module), Absorbed(name, other)
        self.entries += [lost, got]

        def book(relevance: float) -> None:
            lost.relevance += relevance
            got.relevance -= relevance

        return book

    def by_name(self) -> dict[str, float]:
        """Absorbed relevance summed by name, largest magnitude first, zeros left out."""
        return summed_by_name((entry.name, entry.relevance) for entry in self.entries)

    def inside(self, module: str) -> float:
        """Relevance absorbed by constants used inside a module, its submodules included."""
        return sum(entry.relevance for entry in self.entries if encloses(module, entry.module))


def summed_by_name(items: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums by name, largest magnitude first, zeros left out."""
    totals: dict[str, float] = {}
    for name, value in items:
        totals[name] = totals.get(name, 0.0) + value
    kept = {name: value for name, value in totals.items() if value != 0.0}
    return dict(sorted(kept.items(), key=lambda item: -abs(item[1])))


def encloses(outer: str, inner: str) -> bool:
    """Whether the module named ``inner`` is, or lies in, the module named ``outer``."""
    return not outer or inner == outer or inner.startswith(outer + ".")


def relevance_sum(value: Tensor, grad: Tensor) -> float:
    """``sum(value * grad)`` in double precision; a zero gradient is zero even at infinity."""
    if value.is_complex() or grad.is_complex():  # real and imaginary parts are two numbers
        value, grad = (torch.view_as_real(t.detach().to(torch.complex128)) for t in (value, grad))
    value, grad = value.detach().to_dense(), grad.to_dense()  # those of sparse matrices
    product = value.double() * grad.double()
    # -inf of an attention mask meets a zero gradient
    return float(torch.where(grad == 0, torch.zeros_like(product), product).sum())
