"""Deep-Taylor decomposition of attention models: the rules of Chefer et al., CVPR 2021.

Relevance starts as one at the explained logit.  Linear maps follow the z+ rule without bias, norms,
activations and the softmax hand relevance on place by place, each factor of a matrix product gets
half, and a residual sum splits relevance between its two branches by the size of what each of them
would get.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import NormalizedSum, PassThrough
from captum_lrp_tx.propagation.operations import (
    Activation,
    FusedAttention,
    FusedNorm,
    Kind,
    NormalizerProduct,
    PatternProduct,
    PropagationRule,
    Residual,
)
from captum_lrp_tx.rules.gating import UniformRule
from captum_lrp_tx.rules.linear import ZPlusRule
from captum_lrp_tx.rules.normalization import LNRule
from captum_lrp_tx.rules.rule import PassRule, Rule
from captum_lrp_tx.rules.spelled_attention import spelled_out


class SeenAttention:
    """What a pass has come by.

    Attributes:
        is_past (bool): Its first attention: what is added before are embeddings.
        is_square (bool): Residual streams with as many examples as tokens.
    """

    def __init__(self) -> None:
        self.is_past = self.is_square = False


@dataclass(frozen=True)
class PlaceRule(Rule):
    """An activation or a softmax hands relevance on place by place.

    Source: Chefer et al., CVPR 2021, published code.
    """

    kinds = frozenset({Kind.SOFTMAX, Kind.ACTIVATION})

    def propagate(self, operation: Activation) -> Tensor:
        return PassThrough.call(operation.input, operation.value, operation.name)


@dataclass(frozen=True)
class PassNormRule(Rule):
    """A norm hands relevance on place by place; of a hand-written norm the divisor is constant.

    Source: Chefer et al., CVPR 2021, published code.
    """

    kinds = frozenset({Kind.NORM})

    def propagate(self, operation: FusedNorm | NormalizerProduct) -> Tensor:
        if isinstance(operation, NormalizerProduct):
            return LNRule().propagate(operation)
        return PassRule().propagate(operation)


@dataclass(frozen=True)
class HalfAttentionRule(Rule):
    """Half of the relevance to the pattern, on through the softmax, half to the values.

    Source: Chefer et al., CVPR 2021, eq. 8 and 9 (equal to halving for a product of two factors).
    """

    kinds = frozenset({Kind.ATTENTION})
    seen: SeenAttention = field(default_factory=SeenAttention, repr=False, compare=False)

    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        return self.recorded(operation, lambda pattern: pattern)

    def recorded(
        self, operation: PatternProduct | FusedAttention, record: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The same, with a function that sees each pattern and returns what the graph goes on with.

        Args:
            operation (PatternProduct or FusedAttention): The attention.
            record (callable): From a pattern ``(..., queries, keys)`` to the same.
        """
        self.seen.is_past = True  # from now on sums are residual connections
        return spelled_out(operation, 0.5, True, record)


@dataclass(frozen=True)
class ResidualRule(Rule):
    r"""A residual sum shares relevance between its branches by the size of their parts.

    .. math:: \bar R^u_j = R^u_j \frac{|\sum R^u|}{|\sum R^u| + |\sum R^v|}
              \frac{\sum R}{\sum R^u}

    The sums run over one example (the published code sums over the batch).  Only tensors with one
    row for each example are residual streams; sums of embeddings before the first attention and of
    attention scores stay plain.

    Args:
        batch (int): Number of examples.
        sequence_first (bool): Whether streams of as many examples as tokens are
            ``(tokens, batch, dim)``.

    Source: Chefer et al., CVPR 2021, eq. 8 and 9.
    """

    batch: int
    sequence_first: bool = False
    kinds = frozenset({Kind.RESIDUAL})
    seen: SeenAttention = field(default_factory=SeenAttention, repr=False, compare=False)

    def propagate(self, operation: Residual) -> Tensor:
        output: Tensor = operation.value()
        dim = self._batch_dim(output.shape) if self.seen.is_past else None
        if dim is None:
            return operation.plain()
        return NormalizedSum.call(operation.first, operation.second, output, dim)

    def _batch_dim(self, shape: torch.Size) -> int | None:
        order = (1, 0) if self.sequence_first else (0, 1)
        self.seen.is_square |= len(shape) == 3 and shape[0] == shape[1] == self.batch > 1
        if len(shape) not in (2, 3):
            return None
        for dim in order if len(shape) == 3 else (0,):
            if shape[dim] == self.batch:
                return dim
        return None


@dataclass(frozen=True)
class SquareStreams(Rule):
    """The plain gradient, which is kept at residual streams with as many examples as tokens.

    Args:
        batch (int): Number of examples.
        gradients (dict of int to Tensor): There, by the number of the sum.
    """

    batch: int
    gradients: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    kinds = frozenset({Kind.RESIDUAL})

    def propagate(self, operation: Residual) -> Tensor:
        output = operation.plain()
        if output.dim() != 3 or not output.shape[0] == output.shape[1] == self.batch:
            return output
        alias, number = output.view_as(output), len(self.gradients)  # the model may go on in place
        self.gradients[number] = torch.zeros_like(output)
        keep = functools.partial(self.gradients.__setitem__, number)
        alias.register_hook(keep)  # type: ignore[no-untyped-call]
        return alias


def deep_taylor(
    batch: int, seen: SeenAttention, sequence_first: bool = False
) -> dict[Kind, tuple[float, PropagationRule | None]]:
    """The rules of one pass on ``batch`` examples, as the engine's base table.

    Args:
        batch (int): Number of examples.
        seen (SeenAttention): Is told what the pass comes by.
        sequence_first (bool): Whether hidden states are ``(tokens, batch, dim)``; asked only where
            there are as many of both.
    """
    rules: dict[Kind, Rule] = {
        Kind.LINEAR: ZPlusRule(bias="ignore"),
        Kind.NORM: PassNormRule(),
        Kind.ACTIVATION: PlaceRule(),
        Kind.PRODUCT: UniformRule(),
        Kind.SOFTMAX: PlaceRule(),
        Kind.ATTENTION: HalfAttentionRule(seen),
        Kind.RESIDUAL: ResidualRule(batch, sequence_first, seen),
    }
    return {kind: (float("inf"), rule) for kind, rule in rules.items()}
