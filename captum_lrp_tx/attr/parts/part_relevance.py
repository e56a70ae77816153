"""``PartRelevance``: relevance that goes through each head, MLP, neuron or direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    Strict,
    TargetType,
    TensorOrTuple,
    formatted,
)
from captum_lrp_tx.attr.parts.showing import PartsResult
from captum_lrp_tx.attr.parts.watched_lrp import PartMethod
from captum_lrp_tx.attr.parts.watching import Branch, BranchKind, Seen
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the output of a layer, such as the decoder rows of a sparse autoencoder.

    Args:
        layer (nn.Module): Its output (the first tensor of a tuple) has the directions in its last
            dimension.
        rows (Tensor): One direction a row, shape ``(directions, features)``.
        codes (callable, optional): How much of each direction is in the output: from ``(...,
            features)`` to ``(..., directions)``, the encoder of the autoencoder. By least squares
            unless given.

    Raises:
        InputError: ``rows`` is no floating-point matrix.

    Example::

        >>> Directions(model.layers[3], sae.W_dec, sae.encode)
    """

    layer: nn.Module
    rows: Tensor
    codes: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Checks the rows."""
        if not isinstance(self.rows, Tensor) or self.rows.dim() != 2:
            raise InputError("rows must be a matrix with one direction in each row.")
        if not self.rows.is_floating_point():
            raise InputError(f"rows must be of a floating-point dtype, not {self.rows.dtype}.")

    def code(self, x: Tensor) -> Tensor:
        """How much of each direction is in ``x``, shape ``(..., directions)``."""
        if self.codes is None:
            inverse: Tensor = torch.linalg.pinv(self.rows.detach().to(x))
            return x @ inverse
        with torch.no_grad():
            found: Tensor = self.codes(x).to(x)
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """Relevance of one branch of the residual stream, and what passes it by.

    Attributes:
        layer (int): Counted in the order of the forward pass.
        module (str): The module that makes the branch.
        kind (str): ``"attention"``, or ``"mlp"`` for every branch without.
        relevance (Tensor): Of what the branch adds, shape ``(batch, tokens)``.
        stream (Tensor): Of what it is added to, shape ``(batch, tokens)``, with what a branch
            beside adds in the same sum. Both together are all that arrives here.
        heads (Tensor, optional): Shape ``(batch, heads, tokens)``; a head counts where it writes.
        neurons (Tensor, optional): Shape ``(batch, tokens, neurons)``.
    """

    layer: int
    module: str
    kind: BranchKind
    relevance: Tensor
    stream: Tensor
    heads: Tensor | None = None
    neurons: Tensor | None = None

    @property
    def arriving(self) -> Tensor:
        """All relevance that arrives where the branch is added, shape ``(batch, tokens)``."""
        return self.relevance + self.stream

    def units(self) -> Iterator[tuple[str, int | None, Tensor]]:
        """What adds up to the arriving relevance: kind, number and relevance ``(batch, tokens)``.

        Heads or neurons (or the branch as a whole), then ``"constants"``, which is what biases
        behind them absorb, then ``"stream"``.
        """
        inner: Tensor | None = None
        if self.heads is not None:
            yield from (("head", i, self.heads[:, i]) for i in range(self.heads.shape[1]))
            inner = self.heads.sum(1)
        elif self.neurons is not None:
            yield from (("neuron", i, self.neurons[..., i]) for i in range(self.neurons.shape[-1]))
            inner = self.neurons.sum(-1)
        if inner is None:
            yield self.kind, None, self.relevance
        elif inner.shape == self.relevance.shape:
            yield "constants", None, self.relevance - inner
        yield "stream", None, self.stream


@dataclass(frozen=True, eq=False)
class PartRelevances(PartsResult):
    """Result of :meth:`PartRelevance.attribute`.

    The rows of one module in :meth:`table` add up to what arrives there: heads or neurons (or the
    branch), what constants absorb, and the stream that passes by.

    Attributes:
        parts (list of Part): In the order of the forward pass.
        attributions (Tensor or tuple of Tensor): Relevance of the inputs, from the same pass.
        output (Tensor): The explained output, shape ``(batch,)``.
        directions (list of Tensor): For each of the given :class:`Directions` the relevance of
            every direction and, last, of the rest, ``(batch, tokens, directions + 1)``.
    """

    parts: list[Part]
    attributions: TensorOrTuple
    output: Tensor
    directions: list[Tensor] = field(default_factory=list)
    shown: ClassVar[str] = "relevance"


class PartRelevance(PartMethod):
    r"""
    Relevance that goes through each attention head and MLP, by layer and token, in one pass.

    A head, an MLP or a neuron with output :math:`a` and modified gradient :math:`g` there carries
    the relevance :math:`\sum_c a_c\, g_c`.  Heads and MLPs add to the residual stream: what arrives
    behind a branch is what the branch adds and what passes by,

    .. math:: R^{l} = \sum_h R^{l}_h + R^{l}_\text{constants} + R^{l}_\text{stream}

    Source: the relevance of hidden units is that of Bach et al., PLoS ONE 2015; heads as units in
    Voita et al., ACL 2019; Achtibat et al., ICML 2024, for neurons.

    Args:
        model, rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.
        neurons (bool): Also give the neurons of every MLP: what its last linear map reads, unless
            that is the residual stream itself.
        directions (sequence of Directions): Also give directions in the outputs of layers.

    Raises:
        RuleError: unknown preset.

    Example::

        >>> from captum_lrp_tx import PartRelevance
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> found = PartRelevance(model).attribute(inputs, target=1)
        >>> len(found.parts), found.parts[0].heads.shape  # (batch, heads, tokens)
        (6, torch.Size([1, 12, 7]))
    """

    _title = "Part Relevance"

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        neurons: bool = False,
        directions: Sequence[Directions] = (),
        bias: Bias = "absorb",
        epsilon: float | None = None,
    ) -> None:
        PartMethod.__init__(self, model, rules, bias=bias, epsilon=epsilon)
        self.neurons = neurons
        self.directions = list(directions)

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        strict: Strict = False,
    ) -> PartRelevances:
        """
        Relevance of all parts, by one forward and one backward pass.

        Args:
            inputs, target, additional_forward_args, strict: See
                :meth:`ConservativeLRP.attribute <captum_lrp_tx.ConservativeLRP.attribute>`.

        Returns:
            PartRelevances: Parts in the order of the forward pass, with the relevance of the
            inputs.

        Raises:
            UnsupportedModelError: the model has no residual stream.
            RuleError: rules that share the relevance of residual sums (deep Taylor).
            InputError: a layer with directions ran several times, or not at all.
            Exception: As :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.

        Example::

            >>> found = PartRelevance(llama).attribute(ids, target=(-1, token))
            >>> found.table().query("kind == 'head'").nlargest(5, "relevance")
        """
        layers = [given.layer for given in self.directions]
        result, prepared, watcher, seen = self._watched().run(
            inputs, target, additional_forward_args, strict, layers
        )
        return PartRelevances(
            [_part(branch) for branch in watcher.branches],
            formatted(result.relevances, prepared.is_tuple),
            result.output,
            [_along(given, at) for given, at in zip(self.directions, seen, strict=True)],
        )


def _part(branch: Branch) -> Part:
    gradient = branch.written.gradient
    stream = torch.zeros_like(branch.stream) if gradient is None else branch.stream * gradient
    heads, neurons = branch.heads, branch.neurons
    passing = sum((other.relevance().sum(-1) for other in branch.beside), stream.sum(-1))
    return Part(
        branch.layer, branch.module, branch.kind,
        branch.written.relevance().sum(-1), passing,
        None if heads is None else heads.relevance().sum(-1),
        None if neurons is None else neurons.relevance(),
    )  # fmt: skip


def _along(given: Directions, at: Seen) -> Tensor:
    gradient = torch.zeros_like(at.value) if at.gradient is None else at.gradient
    rows = given.rows.detach().to(at.value)
    if rows.shape[1] != at.value.shape[-1]:
        raise InputError(
            f"The directions have {rows.shape[1]} features, the output of the layer "
            f"{type(given.layer).__name__} has {at.value.shape[-1]}."
        )
    found = given.code(at.value) * (gradient @ rows.T)
    rest = at.relevance().sum(-1, keepdim=True) - found.sum(-1, keepdim=True)
    return torch.cat([found, rest], -1)
