"""``RelevancePatching``: what patching each head, MLP or neuron would do, in two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs, Strict, TargetType
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.parts.edge_relevance import part_graph
from captum_lrp_tx.attr.parts.flow import Written
from captum_lrp_tx.attr.parts.part_graph import PartGraph
from captum_lrp_tx.attr.parts.showing import PartsResult
from captum_lrp_tx.attr.parts.watched_lrp import PartMethod
from captum_lrp_tx.attr.parts.watching import Branch, BranchKind, Seen, Watcher
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.rules.composite import Composite


@dataclass(frozen=True, eq=False)
class PartEffect:
    """Effect of patching one branch of the residual stream.

    Attributes:
        layer (int): Counted in the order of the forward pass.
        module (str): The module that makes the branch.
        kind (str): ``"attention"``, or ``"mlp"`` for every branch without.
        effect (Tensor): Of all that the branch adds, shape ``(batch, tokens)``.
        heads (Tensor, optional): Shape ``(batch, heads, tokens)``; a head counts where it writes.
        neurons (Tensor, optional): Shape ``(batch, tokens, neurons)``.
    """

    layer: int
    module: str
    kind: BranchKind
    effect: Tensor
    heads: Tensor | None = None
    neurons: Tensor | None = None

    def units(self) -> Iterator[tuple[str, int | None, Tensor]]:
        """Kind, number and effect ``(batch, tokens)`` of heads or neurons, or of the branch."""
        if self.heads is not None:
            yield from (("head", i, self.heads[:, i]) for i in range(self.heads.shape[1]))
        elif self.neurons is not None:
            yield from (("neuron", i, self.neurons[..., i]) for i in range(self.neurons.shape[-1]))
        else:
            yield self.kind, None, self.effect


@dataclass(frozen=True, eq=False)
class PatchingEffects(PartsResult):
    """Result of :meth:`RelevancePatching.attribute`.

    Attributes:
        parts (list of PartEffect): In the order of the forward pass.
        output (Tensor): The explained output for the inputs, shape ``(batch,)``.
        corrupted_output (Tensor): For the corrupted inputs, shape ``(batch,)``.
    """

    parts: list[PartEffect]
    output: Tensor
    corrupted_output: Tensor
    shown: ClassVar[str] = "effect"


class RelevancePatching(PartMethod):
    r"""
    Estimated effect of patching each attention head and MLP (relevance patching, RelP).

    Activation patching gives a part the output :math:`a'` that it has for corrupted inputs and
    measures by how much the explained output falls: one run for each part.  This estimates all of
    these effects at once from the modified gradient :math:`g` at the part,

    .. math:: E = \sum_c (a_c - a'_c)\, g_c

    with one forward and backward pass for the inputs, and one forward pass for the corrupted ones.
    It is exact where the modified gradient is all that the rest of the model does with the part:
    above the last nonlinearity, for example.  Under preset ``"gi"`` it is attribution patching.

    Source: Jafari et al., "RelP: Faithful and Efficient Circuit Discovery in Language Models via
    Relevance Patching", arXiv 2508.21258; attribution patching: Nanda 2023; Syed et al.,
    "Attribution Patching Outperforms Automated Circuit Discovery", BlackboxNLP 2024.

    Args:
        model, rules, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.
        neurons (bool): Also give the neurons of every MLP: what its last linear map reads, unless
            that is the residual stream itself.

    Raises:
        RuleError: unknown preset.

    Example::

        >>> from captum_lrp_tx import RelevancePatching
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> corrupted = tokenizer("a boring and funny film", return_tensors="pt")
        >>> found = RelevancePatching(model).attribute(inputs, corrupted, target=1)
        >>> len(found.parts), found.parts[0].heads.shape  # (batch, heads, tokens)
        (6, torch.Size([1, 12, 7]))
    """

    _title = "Relevance Patching"

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        neurons: bool = False,
        epsilon: float | None = None,
    ) -> None:
        # what biases or sinks hand to others belongs to no difference of activations
        own = Composite(base=rules).absorbing()
        PartMethod.__init__(self, model, own, bias="absorb", epsilon=epsilon)
        self.neurons = neurons

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        corrupted: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        corrupted_forward_args: Any = None,
        *,
        strict: Strict = False,
    ) -> PatchingEffects:
        """
        Estimated effects of all parts.

        Args:
            inputs, target, strict: See
                :meth:`ConservativeLRP.attribute <captum_lrp_tx.ConservativeLRP.attribute>`.
            corrupted: As the inputs, token by token: what the parts are patched from.
            additional_forward_args (any): Passed to the model after the inputs.
            corrupted_forward_args (any): The same for the corrupted inputs, where it differs.

        Returns:
            PatchingEffects: Parts in the order of the forward pass.  An effect is positive if
            patching the part is expected to lower the explained output.

        Raises:
            InputError: inputs and corrupted inputs differ in shape, or take other ways through the
                model, so that no part stands opposite each part.
            UnsupportedModelError: the model has no residual stream.
            RuleError: rules that share the relevance of residual sums (deep Taylor).
            Exception: As :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.

        Example::

            >>> found = RelevancePatching(llama).attribute(ids, others, target=(-1, token))
            >>> found.table().nlargest(5, "effect")
        """
        if corrupted_forward_args is None:
            corrupted_forward_args = additional_forward_args
        watched = self._watched()
        other, prepared, below, _ = watched.run(
            corrupted, target, corrupted_forward_args, False, backward=False
        )
        shapes = _shapes(prepared)
        result, prepared, watcher, _ = watched.run(inputs, target, additional_forward_args, strict)
        _check_opposite(_shapes(prepared), shapes, watcher.branches, below.branches)
        parts = [_effect(*pair) for pair in zip(watcher.branches, below.branches, strict=True)]
        return PatchingEffects(parts, result.output, other.output)

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_edges(
        self,
        inputs: AttributionInputs,
        corrupted: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        corrupted_forward_args: Any = None,
        *,
        strict: Strict = False,
    ) -> PartGraph:
        r"""
        Estimated effects of patching what one part reads of another.

        Only the reader gets the corrupted output of the writer; all other readers get the clean
        one. With the gradient :math:`g^{(r)}` that counts the ways through the reader,
        :math:`E_{w \to r} = \sum_c (a_{w,c} - a'_{w,c})\, g^{(r)}_c`, for all edges at once.  The
        edges from a part add up to the effect of patching the part.

        Args:
            inputs, corrupted, target, additional_forward_args, corrupted_forward_args, strict: As
                :meth:`attribute` has them.

        Returns:
            PartGraph: Its edges are effects, its ``measure`` is ``"effect"``. Constants have none.

        Raises:
            Exception: As :meth:`attribute` and :meth:`EdgeRelevance.attribute
                <captum_lrp_tx.EdgeRelevance.attribute>`.

        Example::

            >>> found = RelevancePatching(llama).attribute_edges(ids, others, target=(-1, token))
            >>> found.circuit(edges=50).figure()
        """
        if corrupted_forward_args is None:
            corrupted_forward_args = additional_forward_args
        watched, leaves = self._watched(), list[Tensor]()

        def keep(_: Any, __: Any, ___: Any, found: list[Tensor]) -> None:
            leaves.extend(leaf.detach() for leaf in found)

        _, prepared, below, _ = watched.run(
            corrupted, target, corrupted_forward_args, False, backward=False, look=keep
        )
        shapes = _shapes(prepared)

        def check(watcher: Watcher, *_: Any) -> None:
            _check_opposite(_shapes(inputs_of(inputs)), shapes, watcher.branches, below.branches)

        return part_graph(
            watched, inputs, target, additional_forward_args, strict,
            Written(below.branches, leaves), check,
        )  # fmt: skip


def _shapes(prepared: Inputs) -> list[tuple[int, ...]]:
    return [tuple(leaf.original.shape) for leaf in prepared.leaves]


def _check_opposite(
    own: list[tuple[int, ...]],
    shapes: list[tuple[int, ...]],
    branches: list[Branch],
    others: list[Branch],
) -> None:
    """Complain unless each part of a pass has one of the other pass opposite.

    Raises:
        InputError: it does not.
    """
    if own != shapes:
        raise InputError(
            f"The inputs have shapes {own}, the corrupted inputs {shapes}; both need the same "
            "tokens place by place. Replace tokens, do not add or leave out any."
        )
    if [_outline(b) for b in branches] != [_outline(b) for b in others]:
        raise InputError(
            "Inputs and corrupted inputs take different ways through the model (other branches "
            "ran, or with other shapes), so no part stands opposite each part."
        )


def _outline(branch: Branch) -> tuple[Any, ...]:
    seen = (branch.written, branch.heads, branch.neurons)
    return (branch.module, branch.kind, *(None if s is None else s.value.shape for s in seen))


def _effect(branch: Branch, other: Branch) -> PartEffect:
    heads, neurons = branch.heads, branch.neurons
    return PartEffect(
        branch.layer, branch.module, branch.kind,
        _products(branch.written, other.written).sum(-1),
        None if heads is None or other.heads is None else _products(heads, other.heads).sum(-1),
        None if neurons is None or other.neurons is None else _products(neurons, other.neurons),
    )  # fmt: skip


def _products(seen: Seen, other: Seen) -> Tensor:
    """Difference times gradient; zero where none has arrived."""
    return Seen(seen.value - other.value, seen.gradient).relevance()
