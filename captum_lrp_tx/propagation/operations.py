"""What the engine hands to rules: one class for each kind of operation that a rule can govern."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

#: Takes an output and the constant in it, or a function that computes the constant if asked.
AbsorbFn = Callable[[Tensor, "Tensor | Callable[[], Tensor]"], None]


class Kind(str, Enum):
    """Kinds of operation; a composite assigns at most one rule to each kind in each module."""

    LINEAR = "linear"  # linear, convolution, batch norm in eval mode, x @ constant
    ATTENTION = "attention"  # softmax pattern times values, fused attention
    NORM = "norm"  # layer norm, RMS norm, group norm, x / std(x) in any spelling
    ACTIVATION = "activation"  # element-wise non-linear function of one tensor
    PRODUCT = "product"  # product or quotient of two input-dependent tensors
    SCAN = "scan"  # product inside a state space model: signal times coefficients
    # only deep-Taylor decomposition has rules for these
    SOFTMAX = "softmax"  # the softmax itself, whatever it is for
    RESIDUAL = "residual"  # sum of two input-dependent tensors of one shape


def _no_ledger(output: Tensor, constant: Tensor | Callable[[], Tensor]) -> None:
    return None


@dataclass
class Operation:
    """One torch call of the forward pass whose input-dependent arguments carry a graph.

    ``func(*args, **kwargs)`` is the call as the model made it, parameters already detached.
    ``absorb(output, constant)`` books the relevance that the additive constant takes out of
    ``output`` (nothing happens unless the pass keeps a ledger).
    """

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    absorb: AbsorbFn = field(default=_no_ledger, repr=False)

    @property
    def books(self) -> bool:
        """Whether the pass keeps a ledger."""
        return self.absorb is not _no_ledger

    def plain(self) -> Tensor:
        """The operation as the model wrote it: plain gradient."""
        return self.func(*self.args, **self.kwargs)

    def value(self) -> Tensor:
        """The result of the operation without a graph."""
        with torch.no_grad():
            return self.plain()

    def with_operands(self, replaced: Mapping[int, Tensor]) -> Tensor:
        """The same call with some positional tensors replaced."""
        args = [replaced.get(i, a) for i, a in enumerate(self.args)]
        return self.func(*args, **self.kwargs)


def connections(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """One for every weight, zero where a sparse matrix has none."""
    if weight.layout == torch.strided:
        return torch.ones_like(weight, dtype=dtype)
    return weight.to(dtype).abs().sign()


def _by_place(matrix: Tensor) -> Tensor:
    """A sparse matrix as places and values, every place once."""
    result: Tensor = matrix.detach().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    return result


def entries_of(tensor: Tensor) -> Tensor:
    """The numbers that a tensor holds, of a sparse one those that are not left out."""
    if tensor.layout == torch.strided:
        return tensor
    return _by_place(tensor).values()


def summed(tensor: Tensor, axis: int) -> Tensor:
    """The sums along an axis, of a sparse matrix without what it leaves out."""
    if tensor.layout == torch.strided:
        return tensor.sum(axis)
    return torch.sparse.sum(_by_place(tensor), axis).to_dense()


@dataclass
class LinearMap(Operation):
    """``apply(input, weight, bias)``: linear in ``input`` and in ``weight``, plus ``bias``.

    ``bias`` is already in a shape that broadcasts against the output.  ``distribute(x, r)`` gives
    the gradient at ``x`` that carries the relevance ``r`` (output-shaped) in proportion to the
    squares of the inputs that each output place sees.  ``by_row`` says that every vector along the
    last dimension of the input is mapped by itself, to one along the last dimension of the output.
    ``fold(w, factor)`` gives the weights of the map whose outputs are multiplied by the factor,
    ``None`` if no weights do that.
    """

    input: Tensor = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)
    apply: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    distribute: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    by_row: bool = field(kw_only=True, default=False)
    #: The dimension of the output that a bias runs along; None: what the weights do tells.
    channel: int | None = field(kw_only=True, default=None)
    #: For every axis of the output the axis of the input that it was, None if the weights made it.
    sources: tuple[int | None, ...] | None = field(kw_only=True, default=None)
    fold: Callable[[Tensor, Tensor], Tensor | None] | None = field(kw_only=True, default=None)
    #: As ``apply`` with weights of one, where constant factors are no part of the weights.
    energy: Callable[[Tensor, Tensor], Tensor] | None = field(kw_only=True, default=None)
    #: What :meth:`plain` returned last.
    made: Tensor | None = field(init=False, default=None)

    def plain(self) -> Tensor:
        result = super().plain()
        if torch.is_grad_enabled():
            self.made = result
        return result

    @torch.no_grad()
    def stranded(self, bias: Tensor) -> Tensor:
        """``bias`` at the output places that see nothing but zeros, where it cannot be spread."""
        dtype = torch.promote_types(self.input.dtype, torch.float32)
        ones = connections(self.weight, dtype)
        energy = (self.energy or self.apply)(self.input.detach().to(dtype).square(), ones)
        return bias * (energy.abs() < torch.finfo(dtype).tiny)


@dataclass
class PatternProduct(Operation):
    """A product in which the operands at ``patterns`` weigh the others: attention.

    ``rescales`` marks the element-wise product or quotient that makes weights sum to one.
    ``shares`` are those of operands in linear attention, whose pattern is never formed: as if it
    were; without them all operands are alike.
    """

    patterns: tuple[int, ...] = field(kw_only=True)
    operands: tuple[int, ...] = field(kw_only=True)
    rescales: bool = field(kw_only=True, default=False)
    shares: Mapping[int, float] | None = field(kw_only=True, default=None)


@dataclass
class FusedAttention(Operation):
    """``F.scaled_dot_product_attention``."""

    query: Tensor = field(kw_only=True)
    key: Tensor = field(kw_only=True)
    value_: Tensor = field(kw_only=True)
    mask: Tensor | None = field(kw_only=True)
    dropout_p: float = field(kw_only=True)
    is_causal: bool = field(kw_only=True)
    scale: float | None = field(kw_only=True)
    rest: dict[str, Any] = field(kw_only=True)


@dataclass
class FusedNorm(Operation):
    """Layer, RMS or group norm as one call: normalised over ``dims`` of ``input.view(shape)``.

    ``run()`` gives the result of the stock kernel and ``1 / divisor`` without a graph.
    """

    input: Tensor = field(kw_only=True)
    weight: Tensor | None = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)
    shape: tuple[int, ...] = field(kw_only=True)
    dims: tuple[int, ...] = field(kw_only=True)
    center: bool = field(kw_only=True)
    run: Callable[[], tuple[Tensor, Tensor]] = field(kw_only=True, repr=False)


@dataclass
class NormalizerProduct(Operation):
    """A product or quotient in which the operand at ``normalizer`` is a root of a statistic."""

    normalizer: int = field(kw_only=True)


@dataclass
class Activation(Operation):
    """``func`` applied to every entry of ``input``; ``name`` is that of its autograd node."""

    input: Tensor = field(kw_only=True)
    name: str = field(kw_only=True)


@dataclass
class Product(Operation):
    """Two input-dependent operands at positions ``first`` and ``second`` multiplied in any way.

    ``elementwise`` tells ``a * b`` from a matrix product, ``quotient`` marks ``a / b``; ``gate`` is
    the position of what chooses among the entries of the other in a matrix product (a router).
    """

    first: int = field(kw_only=True)
    second: int = field(kw_only=True)
    elementwise: bool = field(kw_only=True)
    quotient: bool = field(kw_only=True, default=False)
    gate: int | None = field(kw_only=True, default=None)


@dataclass
class ScanProduct(Operation):
    """A product of a state space model: the operands at ``coefficients`` scale the signal."""

    coefficients: tuple[int, ...] = field(kw_only=True)


@dataclass
class Residual(Operation):
    """``first + second``: two input-dependent tensors of one shape."""

    first: Tensor = field(kw_only=True)
    second: Tensor = field(kw_only=True)


@dataclass
class FusedGate(Operation):
    """``F.glu``."""

    input: Tensor = field(kw_only=True)
    dim: int = field(kw_only=True)


class PropagationRule(ABC):
    """What the engine asks of a rule."""

    @property
    def is_plain_gradient(self) -> bool:
        """Whether the rule is the plain gradient, chosen on purpose."""
        return False

    @property
    def gives_to_zero_inputs(self) -> bool:
        """Whether inputs of value zero may receive relevance."""
        return False

    @property
    def covers_softmax(self) -> bool:
        """Of a rule for attention: relevance goes on through the softmax."""
        return False

    @property
    def holds_gates(self) -> bool:
        """Of a rule for products: one factor is a constant."""
        return False

    @abstractmethod
    def propagate(self, operation: Any) -> Tensor:
        """The result of the operation, carrying the graph of the rule."""


#: Rule for each kind with its priority (lower wins); ``None`` is the plain gradient.
RuleTable = Mapping[Kind, tuple[float, PropagationRule | None]]
