"""LRP rules for linear maps: linear and convolution layers, batch norm, products with constants.

With ``z = apply(x, w)`` each rule is a choice of modified weights and inputs whose plain gradient
carries the relevance, so one line says what a rule is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from captum_lrp_tx.errors import RuleError, UnsupportedModelError
from captum_lrp_tx.propagation.autograd.functions import (
    Combine,
    Flatten,
    SignedPart,
    Stabilize,
    Substitute,
    safe_ratio,
)
from captum_lrp_tx.propagation.autograd.handing_over import SpreadBias
from captum_lrp_tx.propagation.autograd.signed import Signed, Silent, Way
from captum_lrp_tx.propagation.operations import Kind, LinearMap
from captum_lrp_tx.rules.rule import Bias, Rule, check_bias, check_number

#: Signed sums that are so much smaller than the sum of magnitudes cannot be told from it and the
#: plain sum: rounding errors grow by the inverse.
_CANCELS = {torch.float64: 1e-6, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class LinearRule(Rule):
    """Base of rules for linear maps; a rule of your own implements :meth:`ways`.

    Args:
        epsilon: Stabiliser of the denominators, in units of the pre-activation.
        bias: What happens to the relevance of the bias: ``"absorb"`` keeps it in the bias (it
            shows in the convergence delta), ``"distribute"`` spreads it over the layer's inputs in
            proportion to their squares, ``"ignore"`` computes the denominators without the bias.
            ``None`` follows the attribution class (``"absorb"``).

    Example::

        >>> @dataclass(frozen=True)
        ... class SquaredWeightRule(LinearRule):
        ...     def ways(self, operation, output):
        ...         return [(operation.apply(operation.input, operation.weight**2), None, 1.0)]
    """

    epsilon: float = field(default=1e-9, kw_only=True)
    bias: Bias | None = field(default=None, kw_only=True)
    kinds = frozenset({Kind.LINEAR})

    def __post_init__(self) -> None:
        check_bias(self.bias)
        check_number("epsilon", self.epsilon)

    @abstractmethod
    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        """The modified pre-activations that carry relevance; shares should sum to one."""

    def propagate(self, operation: LinearMap) -> Tensor:
        output = operation.value()
        routes = [
            Substitute.call(output, self._biased(operation, z, bias), share, self.epsilon)
            for z, bias, share in self.ways(operation, output)
        ]
        return routes[0] if len(routes) == 1 else Combine.call(output, *routes)

    def _biased(self, operation: LinearMap, z: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None or self.bias == "ignore":
            return z
        biased = z + bias
        return self._accounted(operation, biased, bias)

    def _accounted(self, operation: LinearMap, biased: Tensor, bias: Tensor) -> Tensor:
        """``biased``, the relevance of the bias in it spread over the inputs, or booked."""
        if self.bias != "distribute":
            operation.absorb(biased, bias)
            return biased
        operation.absorb(biased, lambda: operation.stranded(bias))
        return SpreadBias.call(
            biased, operation.input, bias, operation.distribute, operation.by_row
        )


@dataclass(frozen=True)
class EpsilonRule(LinearRule):
    r"""Epsilon rule: :math:`R_i = \sum_j x_i w_{ij} R_j / (z_j + \epsilon\,\mathrm{sign} z_j)`.

    Source: Bach et al., PLoS ONE 2015.
    """

    epsilon: float = 1e-9

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        return [(operation.apply(operation.input, operation.weight), operation.bias, 1.0)]

    def propagate(self, operation: LinearMap) -> Tensor:
        if operation.bias is not None and self.bias == "ignore":
            return super().propagate(operation)
        # the stock operation and its own backward pass: nothing to substitute
        output = operation.plain()
        if operation.bias is not None and self.bias == "distribute":
            output = self._accounted(operation, output, operation.bias)
        elif operation.bias is not None:
            operation.absorb(_behind_view(output), operation.bias)
        return Stabilize.call(output, self.epsilon) if self.epsilon else output


def _behind_view(output: Tensor) -> Tensor:
    """The product that a linear map's output of more than two dimensions is a view of.

    When a model writes into a view (``x.add_(positions)``), torch forgets the hooks of the view.
    """
    base: Tensor | None = output._base
    if base is None or base.numel() != output.numel() or base.shape[-1:] != output.shape[-1:]:
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


@dataclass(frozen=True)
class ZeroRule(EpsilonRule):
    """LRP-0: the epsilon rule without epsilon, i.e. plain gradient x input of a linear map.

    Source: Bach et al., PLoS ONE 2015.
    """

    epsilon: float = 0.0


@dataclass(frozen=True)
class GammaRule(LinearRule):
    r"""Gamma rule: weights :math:`w + \gamma w^+`, for layers whose inputs are not negative.

    The bias is left as it is, as in Captum's rule of this name.

    Args:
        gamma: How much positive weights are favoured; 0 is LRP-0.

    Source: Montavon et al., 2019, "Layer-Wise Relevance Propagation: An Overview".
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma)

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        weight = operation.weight + self.gamma * operation.weight.clamp(min=0)
        return [(operation.apply(operation.input, weight), operation.bias, 1.0)]


@dataclass(frozen=True)
class SignedLinearRule(LinearRule):
    """Base of rules that tell contributions by their sign, see :mod:`~.autograd.signed`.

    :meth:`ways` says what the rule is, :meth:`factors` what it comes to with fewer products.  A
    subclass with ways of its own goes by them.
    """

    @abstractmethod
    def factors(
        self, operation: LinearMap, output: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """See :class:`~captum_lrp_tx.propagation.autograd.signed.SignedRule`."""

    def propagate(self, operation: LinearMap) -> Tensor:
        if operation.input.is_complex() or operation.weight.is_complex():
            raise UnsupportedModelError(
                f"{type(self).__name__} tells contributions by their signs, which complex numbers "
                "do not have; give the module EpsilonRule() in a Composite, or choose a preset "
                "without gamma."
            )
        if _origin(self, "ways") is not _origin(self, "factors"):
            return super().propagate(operation)
        output = operation.plain()
        books: Tensor | None = None
        if operation.bias is not None and self.bias in (None, "absorb"):
            books = Silent.call(operation.input)
            operation.absorb(books, books.new_ones(()))
            books = books if books._backward_hooks else None  # there is no ledger
        result = Signed.call(output, operation.input, books, operation, self)
        if operation.bias is not None and self.bias == "distribute":
            bias = operation.bias
            operation.absorb(result, lambda: operation.stranded(bias))
        return result


def _origin(rule: LinearRule, name: str) -> type:
    """The class that a method of a rule was written in."""
    return next(c for c in type(rule).__mro__ if name in vars(c))


@dataclass(frozen=True)
class GeneralizedGammaRule(SignedLinearRule):
    r"""Gamma rule for inputs and outputs of both signs.

    Contributions :math:`x_i w_{ij}` of the sign of the output :math:`z_j` are favoured by
    :math:`1 + \gamma`, so the denominator is never smaller than :math:`|z_j|`; so is the bias.

    Args:
        gamma: How much agreeing contributions are favoured; 0 is LRP-0.

    Source: Andeol et al., 2021, "Learning Domain Invariant Representations by Joint Wasserstein
    Distance Minimization", appendix; used by Ali et al. 2022 on Q, K, V and output projections.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma)

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        x, w, b, gamma = operation.input, operation.weight, operation.bias, self.gamma
        z = operation.apply(x, w)
        positive, negative = _signed_contributions(operation)
        return [
            (z + gamma * positive, _shifted(b, gamma, True), (output > 0).to(output.dtype)),
            (z + gamma * negative, _shifted(b, gamma, False), (output <= 0).to(output.dtype)),
        ]

    def factors(
        self, operation: LinearMap, output: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, Tensor]:
        half, size = self.gamma / 2, output.to(magnitudes.dtype).abs()
        if operation.bias is not None and self.bias == "ignore":
            # the sign that decides is that of the output with its bias
            z = operation.apply(operation.input, operation.weight).to(size.dtype)
            side = (output > 0).to(size.dtype) * self.gamma - half
            ratio = safe_ratio(
                output.to(size.dtype), z * (1 + half) + side * magnitudes, self.epsilon
            )
            return (1 + half) * ratio, side * ratio
        if operation.bias is not None:
            magnitudes += operation.bias.abs()
        # all terms have the sign of the output, and no denominator is smaller than it
        tiny = torch.finfo(size.dtype).tiny
        denominator = magnitudes.mul_(half).add_(size, alpha=1 + half)
        ratio = size.div_(denominator.add_(max(self.epsilon, tiny)))
        agreeing = torch.copysign(ratio, output.to(ratio.dtype)).mul_(half)
        return ratio.mul_(1 + half), agreeing


@dataclass(frozen=True)
class AlphaBetaRule(SignedLinearRule):
    r"""Alpha-beta rule: positive contributions weighted by alpha, negative ones by -beta.

    Args:
        alpha, beta: Must satisfy ``alpha - beta == 1`` to conserve relevance.

    Source: Bach et al., PLoS ONE 2015.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha)
        # beta of another sign gets the message below
        check_number("beta", abs(self.beta) if isinstance(self.beta, Real) else self.beta)
        if abs(self.alpha - self.beta - 1) > 1e-6 or self.beta < 0:
            raise RuleError(
                f"AlphaBetaRule needs alpha - beta = 1 and beta >= 0, got alpha={self.alpha}, "
                f"beta={self.beta}."
            )

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        positive, negative = _signed_contributions(operation)
        b = operation.bias
        ways: list[Way] = [(positive, None if b is None else b.clamp(min=0), self.alpha)]
        if self.beta:
            ways.append((negative, None if b is None else b.clamp(max=0), -self.beta))
        return ways

    def factors(
        self, operation: LinearMap, output: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        y, b = output.to(magnitudes.dtype), operation.bias
        z = y if b is None else y - b
        counted = b.to(y.dtype) if b is not None and self.bias != "ignore" else y.new_zeros(())
        bound = magnitudes if b is None else magnitudes + b.abs()
        bound = bound * _CANCELS[output.dtype]
        positive = (magnitudes + z) / 2 + counted.clamp(min=0)
        if bool((positive < bound).any()):
            return None
        first = self.alpha / 2 * safe_ratio(y, positive, self.epsilon)
        if not self.beta:
            return first, first
        negative = (z - magnitudes) / 2 + counted.clamp(max=0)
        if bool((-negative < bound).any()):
            return None
        second = -self.beta / 2 * safe_ratio(y, negative, self.epsilon)
        return first + second, first - second


@dataclass(frozen=True)
class ZPlusRule(AlphaBetaRule):
    """z+ rule: positive contributions only (alpha 1, beta 0), for inputs of both signs.

    Source: Montavon et al., Pattern Recognition 2017 (deep Taylor decomposition).
    """

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class PositiveWeightRule(LinearRule):
    """Positive weights only, inputs as they are: what Captum calls ``Alpha1_Beta0_Rule``.

    Equal to :class:`ZPlusRule` for inputs that are not negative, but for the bias, which stays.
    """

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        weight = operation.weight.clamp(min=0)
        return [(operation.apply(operation.input, weight), operation.bias, 1.0)]


@dataclass(frozen=True)
class FlatRule(LinearRule):
    """Flat rule: every connected input gets the same share, whatever its value or weight.

    Source: Lapuschkin et al., Nature Communications 2019.
    """

    gives_to_zero_inputs = True

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        ones = Flatten.call(operation.input)
        return [(operation.apply(ones, torch.ones_like(operation.weight)), None, 1.0)]


@dataclass(frozen=True)
class WSquareRule(LinearRule):
    r"""w\ :sup:`2` rule: each input gets relevance by the square of its weight, whatever its value.

    For first layers whose inputs have no bounds. zennit: ``WSquare``.

    Source: Montavon et al., Pattern Recognition 2017, sec. 4.1.
    """

    gives_to_zero_inputs = True

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        return [(operation.apply(Flatten.call(operation.input), operation.weight**2), None, 1.0)]


@dataclass(frozen=True)
class ZBoxRule(LinearRule):
    r"""z\ :sup:`B` rule for first layers with bounded inputs, such as pixels.

    Contributions are :math:`x_i w_{ij} - l\, w_{ij}^+ - h\, w_{ij}^-` for inputs between :math:`l`
    and :math:`h`, so that all of them are positive; biases take nothing. zennit: ``ZBox``.

    Args:
        low, high: Smallest and largest value that an input can have.

    Raises:
        RuleError: ``low`` is not below ``high``.

    Source: Montavon et al., Pattern Recognition 2017, sec. 4.2.
    """

    low: float = -1.0
    high: float = 1.0
    gives_to_zero_inputs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):  # of either sign
            value = getattr(self, name)
            check_number(name, abs(value) if isinstance(value, Real) else value)
        if self.low >= self.high:
            raise RuleError(f"ZBoxRule needs low < high, got {self.low} and {self.high}.")

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        apply, w, ones = operation.apply, operation.weight, Flatten.call(operation.input)
        z = apply(operation.input, w)
        z = z - apply(self.low * ones, w.clamp(min=0)) - apply(self.high * ones, w.clamp(max=0))
        return [(z, None, 1.0)]


def _signed_contributions(operation: LinearMap) -> tuple[Tensor, Tensor]:
    """Sums of the positive and of the negative contributions ``x_i w_ij``."""
    x, w = operation.input, operation.weight
    x_positive, x_negative = SignedPart.call(x, True), SignedPart.call(x, False)
    w_positive, w_negative = w.clamp(min=0), w.clamp(max=0)
    apply = operation.apply
    return (
        apply(x_positive, w_positive) + apply(x_negative, w_negative),
        apply(x_positive, w_negative) + apply(x_negative, w_positive),
    )


def _shifted(bias: Tensor | None, gamma: float, positive: bool) -> Tensor | None:
    if bias is None:
        return None
    return bias + gamma * (bias.clamp(min=0) if positive else bias.clamp(max=0))
