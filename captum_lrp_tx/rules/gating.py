"""Rules for products of two tensors that both depend on the input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import (
    Combine,
    GatedLinearUnit,
    PassThrough,
    ScaleGradient,
)
from captum_lrp_tx.propagation.graph import gate_strength
from captum_lrp_tx.propagation.operations import FusedGate, Kind, Product
from captum_lrp_tx.rules.rule import Rule


@dataclass(frozen=True)
class UniformRule(Rule):
    """A product gives half of its relevance to each factor; a quotient all to its numerator.

    Source: Achtibat et al., ICML 2024, eq. 13.
    """

    kinds = frozenset({Kind.PRODUCT})

    def propagate(self, operation: Product | FusedGate) -> Tensor:
        if isinstance(operation, FusedGate):
            signal, control = operation.input.chunk(2, operation.dim)
            gate = PassThrough.call(control, control.detach().sigmoid, "Sigmoid")
            half = ScaleGradient.call(signal, 0.5) * ScaleGradient.call(gate, 0.5)
            return Combine.call(operation.value(), half)
        first, second = operation.args[operation.first], operation.args[operation.second]
        if operation.quotient:
            return operation.with_operands({operation.second: second.detach()})
        halves = {
            operation.first: ScaleGradient.call(first, 0.5),
            operation.second: ScaleGradient.call(second, 0.5),
        }
        return operation.with_operands(halves)


@dataclass(frozen=True)
class GateRule(UniformRule):
    """A gate is a constant: all relevance of ``signal * gate`` goes to the signal.

    The gate is the factor that comes from a softmax, sigmoid, tanh or, failing those, from an
    activation (the ``silu(gate)`` of a gated MLP, the router of a mixture of experts, the
    ``sigmoid(1.7 x)`` of a hand-written GELU, whose rule thereby is the identity rule).  A divisor
    is a constant too.  Where neither factor (or both alike) is a gate, the product shares
    uniformly.

    Source: Arras et al. 2017; Ali et al. 2022.
    """

    holds_gates = True

    def propagate(self, operation: Product | FusedGate) -> Tensor:
        if isinstance(operation, FusedGate):
            return GatedLinearUnit.call(operation.input, operation.dim)
        if operation.gate is not None:
            return self._held(operation, operation.gate)
        if not operation.elementwise or operation.quotient:
            return super().propagate(operation)
        first, second = operation.args[operation.first], operation.args[operation.second]
        strengths = gate_strength(first), gate_strength(second)
        if first is second or strengths[0] == strengths[1]:
            return super().propagate(operation)
        gate = operation.first if strengths[0] > strengths[1] else operation.second
        return self._held(operation, gate)

    @staticmethod
    def _held(operation: Product, gate: int) -> Tensor:
        constant = {gate: operation.args[gate].detach()}
        return operation.with_operands(constant)
