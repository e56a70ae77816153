"""``EdgeRelevance``: relevance from part to part along the residual stream."""

from __future__ import annotations

from typing import Any, Literal

import torch
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs, Strict, TargetType
from captum_lrp_tx.attr.parts.flow import Flow, Written
from captum_lrp_tx.attr.parts.part_graph import PartGraph, PartNode
from captum_lrp_tx.attr.parts.watched_lrp import Look, PartMethod, WatchedLRP
from captum_lrp_tx.attr.parts.watching import Watcher
from captum_lrp_tx.errors import NonFiniteError, UncoveredOperationError, UnreachedInputError
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope

#: Share of the output that ``strict=True`` lets be unexplained: rounding of single precision.
_ROUNDING = 1e-3


class EdgeRelevance(PartMethod):
    r"""
    Relevance from part to part: what each head, each MLP and the output reads of every other part.

    Heads, MLPs and embeddings write to the residual stream, and so do the biases behind them.  What
    a reader :math:`r` makes of the stream is linear under conserving rules, with a gradient
    :math:`g^{(r)}` that counts the ways from the stream through this reader only.  A part with
    output :math:`a_w` then gives it

    .. math:: R_{w \to r} = \sum_c a_{w,c}\; g^{(r)}_c

    What is read of a part is as much as it reads: relevance flows through all nodes.  Constants
    are nodes that read nothing, with the names of what is in them; what went there without a name
    is their ``unexplained`` share, zero where the rules conserve.

    One forward pass is needed.  The graph is walked once from the output to the inputs, the inside
    of every branch once for each of its heads, and the last linear map of attention (and norms, if
    they stand on the stream) once for each reader above.

    Source: Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery", BlackboxNLP
    2024, for edges from gradients; the rules as in :class:`~captum_lrp_tx.ConservativeLRP`.

    Args:
        model, rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.

    Raises:
        RuleError: unknown preset.

    Example::

        >>> from captum_lrp_tx import EdgeRelevance
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> found = EdgeRelevance(model).attribute(inputs, target=1)
        >>> circuit = found.circuit(0.5)
        >>> circuit.nodes[-1].name
        'output'
    """

    _title = "Edge Relevance"

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        strict: Strict = False,
    ) -> PartGraph:
        """
        Relevance of all edges.

        Args:
            inputs, target, additional_forward_args: See
                :meth:`ConservativeLRP.attribute <captum_lrp_tx.ConservativeLRP.attribute>`.
            strict (bool or "papers"): As there; also refuses where relevance is left unexplained.

        Returns:
            PartGraph: Nodes and edges.

        Raises:
            UncoveredOperationError: ``strict``, and more than 0.001 of the output is unexplained.
            UnsupportedModelError: the model has no residual stream.
            RuleError: rules that share the relevance of residual sums (deep Taylor).
            InputError: examples of a batch that cannot be told apart inside the model.
            NonFiniteError: an edge is NaN or infinite.
            Exception: As :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.

        Example::

            >>> found = EdgeRelevance(llama).attribute(ids, target=(-1, token))
            >>> found.table().nlargest(5, "relevance")
        """
        watched = self._watched()
        found = part_graph(watched, inputs, target, additional_forward_args, strict)
        size = float(found.output.abs().sum())
        if strict and found.unexplained > _ROUNDING * size:
            worst = max(found.nodes, key=lambda node: abs(node.unexplained))
            raise UncoveredOperationError(
                f"{found.unexplained:.2e} of an output of {size:.2e} is unexplained under "
                f"{self.composite!r}, most of it as {worst.name} ({worst.unexplained:+.2e}): the "
                "rules do not conserve there. Choose a preset that does, such as 'lrp', or pass "
                "strict=False to see it in the graph.",
                (worst.name,),
            )
        return found


def part_graph(
    watched: WatchedLRP,
    inputs: AttributionInputs,
    target: TargetType,
    additional_forward_args: Any,
    strict: Strict,
    corrupted: Written | None = None,
    check: Look | None = None,
) -> PartGraph:
    """Run a pass and walk its graph.

    Args:
        watched (WatchedLRP): The model and its rules.
        inputs, target, additional_forward_args, strict: As ``attribute`` has them.
        corrupted (Written, optional): Edges are effects of patching with these values.
        check (callable, optional): Gets what ``look`` of a run gets before the graph is walked.

    Returns:
        PartGraph: Nodes and edges.

    Raises:
        NonFiniteError: an edge is NaN or infinite.
        UnreachedInputError: nothing that is explained leads to the output.
        Exception: As ``attribute``.
    """
    walks: list[Flow] = []

    def look(watcher: Watcher, scope: Scope, targets: list[Tensor], leaves: list[Tensor]) -> None:
        if check is not None:
            check(watcher, scope, targets, leaves)
        if targets[0].grad_fn is None:
            raise UnreachedInputError(
                "The output does not depend on the inputs, or the rules hold all that it depends "
                "on constant; there are no edges."
            )
        if watcher.sums:  # else the run refuses the model
            walks.append(Flow(watcher, scope, targets[0], leaves, corrupted))

    result, prepared, _, _ = watched.run(
        inputs, target, additional_forward_args, strict, look=look, backward=False
    )
    nodes, edges = walks[-1].edge_matrix()
    _name_inputs([node for node in nodes if node.kind == "input"], prepared)
    if not bool(torch.isfinite(edges).all()):
        raise NonFiniteError(
            "The relevance of some edge is NaN or infinite although the output is finite. Run the "
            "model in float32, raise epsilon, or choose other rules."
        )
    measure: Literal["relevance", "effect"] = "relevance" if corrupted is None else "effect"
    return PartGraph(nodes, edges, result.output, measure)


def _name_inputs(inputs: list[PartNode], prepared: Inputs) -> None:
    """Rows of several tables go by the names of these."""
    tables = [lookup.name for leaf in prepared.leaves for lookup in leaf.lookups]
    if len(tables) != len(inputs):
        return
    last = [table.rsplit(".", 1)[-1] for table in tables]
    for node, table, name in zip(inputs, tables, last, strict=True):
        node.module = table
        if len(set(last)) == len(last) > 1:
            node.name = name
