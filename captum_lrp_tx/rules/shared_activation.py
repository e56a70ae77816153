"""Products with gates that choose, and with activations that take part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_lrp_tx.propagation.graph import gate_strength, is_activation, node_name, parents
from captum_lrp_tx.propagation.operations import FusedGate, Product
from captum_lrp_tx.rules.gating import GateRule, UniformRule

#: The gate strength of activations that are not bounded.
_UNBOUNDED = 1
_EXPONENTIALS = frozenset({"Exp", "Exp2", "Pow"})


@dataclass(frozen=True)
class SharedActivationRule(GateRule):
    """As :class:`GateRule`, but a product with an activation that has no bounds is shared.

    A sigmoid, tanh, softmax or exponential says how much of a signal passes, and is a constant
    (LSTMs, GRUs, mixtures of experts, ``F.glu``). The ``silu(gate)`` of a gated MLP, as of a Llama,
    is as much a signal as the ``up`` that it multiplies: each gets half of the relevance, which is
    what :class:`UniformRule` does. On a language model this names the known reason more often
    (``experiments/language_models``). Where a model has no gated MLP both rules are one.

    Source: Arras et al. 2017 for gates; Achtibat et al., ICML 2024, eq. 13 for halves.

    Example::

        >>> from captum_lrp_tx import Composite
        >>> Composite({"": SharedActivationRule()}, base="lrp")
    """

    def propagate(self, operation: Product | FusedGate) -> Tensor:
        if isinstance(operation, Product) and operation.gate is None:
            factors = operation.args[operation.first], operation.args[operation.second]
            strengths = [gate_strength(factor) for factor in factors]
            gates = [f for f, s in zip(factors, strengths, strict=True) if s == _UNBOUNDED]
            if max(strengths) == _UNBOUNDED and not any(_is_exponential(gate) for gate in gates):
                return UniformRule.propagate(self, operation)
        return super().propagate(operation)


def _is_exponential(gate: Tensor) -> bool:
    """Whether an exponential made it, as the weights of a router that are given by their logs."""
    node = gate.grad_fn
    while node is not None and not is_activation(node):
        node = next(iter(parents(node)), None)
    return node is not None and node_name(node) in _EXPONENTIALS
