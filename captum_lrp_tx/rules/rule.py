"""What a rule is, and the two rules that fit any operation: plain gradient and pass."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from torch import Tensor

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.autograd.functions import PassThrough
from captum_lrp_tx.propagation.operations import (
    Activation,
    FusedNorm,
    Kind,
    LinearMap,
    Operation,
    PropagationRule,
)

#: What happens to the relevance of biases; see :class:`~captum_lrp_tx.ConservativeLRP`.
Bias = Literal["absorb", "distribute", "ignore"]
RuleT = TypeVar("RuleT", bound="Rule")


@dataclass(frozen=True)
class Rule(PropagationRule):
    """How relevance moves through one kind of operation.

    Subclasses are frozen dataclasses: their fields are the rule's parameters, two rules with equal
    parameters are equal, and ``repr`` is what the audit prints.  A rule of your own subclasses
    :class:`~captum_lrp_tx.rules.LinearRule` (to modify weights) or this class.

    Attributes:
        kinds (frozenset of Kind): Operations that the rule can govern.
        gives_to_zero_inputs (bool): Whether inputs of value zero may receive relevance; no unless
            a rule says so.
    """

    kinds: ClassVar[frozenset[Kind]]

    @abstractmethod
    def propagate(self, operation: Any) -> Tensor:
        """Result of the operation, unchanged in value, whose backward pass is this rule.

        Args:
            operation (Operation): One of the classes in ``propagation.operations`` that belongs to
                ``kinds``. Relevance of a tensor ``y`` with arriving gradient ``g`` is ``y * g``.

        Returns:
            Tensor: bit-identical to ``operation.plain()``.
        """

    def with_bias(self: RuleT, bias: Bias) -> RuleT:
        """The same rule with this bias handling, unless it has one of its own or needs none."""
        names = {f.name for f in fields(self)}
        if "bias" in names and cast(Any, self).bias is None:
            return cast(RuleT, replace(cast(Any, self), bias=bias))
        return self

    def absorbing(self: RuleT) -> RuleT:
        """The same rule without relevance that is handed to other places than it comes from.

        For estimates from differences of inputs, of which it is no part.
        """
        return self


def check_bias(bias: Any) -> None:
    """Raise :class:`RuleError` unless ``bias`` is a known way to treat biases (or ``None``)."""
    if bias is not None and bias not in get_args(Bias):
        raise RuleError(f"bias must be one of {get_args(Bias)}, not {bias!r}.")


def check_number(name: str, value: Any) -> None:
    """Raise :class:`RuleError` unless a parameter is a finite number that is not negative."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and 0 <= float(value) < math.inf):
        raise RuleError(f"{name} must be a number >= 0, not {value!r}.")


@dataclass(frozen=True)
class GradientRule(Rule):
    """Plain gradient x input, to switch rules off for some modules.

    Example::

        >>> Composite({"pooler": GradientRule()}, base="lrp")
    """

    kinds = frozenset(Kind) - {Kind.SOFTMAX, Kind.RESIDUAL}
    is_plain_gradient = True

    def propagate(self, operation: Operation) -> Tensor:
        output = operation.plain()
        if isinstance(operation, (LinearMap, FusedNorm)) and operation.bias is not None:
            operation.absorb(output, operation.bias)
        return output


@dataclass(frozen=True)
class PassRule(Rule):
    """Relevance of an output goes to the input at the same place.

    Captum calls this ``IdentityRule``, zennit ``Pass``.

    For modules whose inputs and outputs have one shape: a square linear layer, a norm.  Inputs of
    value zero cannot carry relevance in a modified gradient: what would go there is lost.

    Raises:
        RuleError: in the forward pass, if the shapes differ.
    """

    kinds = frozenset({Kind.LINEAR, Kind.NORM, Kind.ACTIVATION})

    def propagate(self, operation: Operation) -> Tensor:
        if not isinstance(operation, (LinearMap, FusedNorm, Activation)):
            return operation.plain()
        value = operation.value()
        if value.shape != operation.input.shape:
            raise RuleError(
                f"PassRule needs outputs of the shape of the inputs, got "
                f"{tuple(operation.input.shape)} -> {tuple(value.shape)}. Give this layer another "
                "rule, e.g. EpsilonRule()."
            )
        return PassThrough.call(operation.input, value.clone, "Pass")
