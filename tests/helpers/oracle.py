"""Independent oracle for conservative relevance propagation (AH-rule and LN-rule).

The method shares nothing with the package under test. A function is traced to a graph of aten
operations on concrete inputs. The graph is run once to *record* the attention patterns and the
normalisers, then a second time with those recorded values put in as *constants*. Plain autograd on
the second run gives gradient x input, which is the relevance:

* ``ah``: the output of every attention softmax is a constant. A softmax is an attention softmax
  if its output reaches, through reshaping, casts, dropout, masking, renormalisation and linear maps
  with constants (heads that talk to each other), a matrix product whose other factor is no weight.
  Gates, routers and output softmaxes stay as they are.
  Linear attention ``f(q) (f(k)^T v)`` never forms its pattern ``f(q) f(k)^T``; there the factors
  ``f(q)`` and ``f(k)`` are constants (:func:`oracle_roles.weights_of`).
  A softmax that weighs entry by entry what is then summed along its axis is one, too, as are
  activations divided by their own sum (:mod:`oracle_entrywise`).
* ``ln``: the normaliser of every norm is a constant; the subtraction of the mean stays linear.
  Covered: ``native_layer_norm``, ``native_group_norm``, ``_fused_rms_norm``, and hand-written
  norms (``rsqrt``, ``sqrt``, ``std``, ``x ** 0.5``, ``x ** -0.5``, vector norms) whose value comes
  from a mean, sum or variance and divides or multiplies something that depends on the inputs.
* ``lrp``: both, and constants for activations, gates and products; see :mod:`oracle_lrp`.

For token ids the leaves are the outputs of the embedding lookups indexed by token positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

import oracle_entrywise
from oracle_graph import (
    FUSED_NORM,
    SOFTMAX,
    OracleError,
    OracleTrace,
    Rules,
    dependents_of,
    name_of,
    recorded_graph,
)
from oracle_lookups import added_to, by_id, owners_of
from oracle_replay import cast, replayed
from oracle_roles import (
    delta_rule_weights,
    feeds_product,
    is_normaliser,
    is_sink,
    origins_of,
    weights_of,
)

Select = Callable[[Tensor], Tensor]

RULES: tuple[Rules, ...] = ("gi", "ah", "ln", "ah+ln")

_OPAQUE_PREFIXES = (
    "aten::_scaled_dot_product_",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
)


def oracle_relevance(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    rules: Rules,
    select: Select,
    *,
    double: bool = False,
    notes: set[str] | None = None,
    trace: OracleTrace | None = None,
) -> tuple[Tensor, ...]:
    """Relevance of every float input under ``rules``.

    Args:
        function: ``function(*inputs)`` gives the output tensor, batch first.
        inputs: Float tensors, for instance pixels or embeddings; each gets a relevance.
        rules: ``"gi"`` (plain gradient x input), ``"ah"``, ``"ln"``, ``"ah+ln"`` or ``"lrp"``.
        select: Picks the explained outputs, for instance ``lambda out: out[:, 1]``. The result is
            summed over all its elements before the backward pass.
        double: Run the traced graph in float64, the model's own casts included. The trace itself
            is still made in the model's dtype.
        notes: Conventions that ``"lrp"`` needed are added here.
        trace: What :func:`trace_function` made of the function at these inputs; made here if not
            given.

    Returns:
        One tensor of relevance for each input, in the shape of that input.
    """
    trace = trace or trace_function(function, inputs)
    values = tuple(_leaf(x, double) for x in inputs)
    output = replayed(
        trace, values, trace.frozen(rules), double=double, full=rules == "lrp", notes=notes
    )
    grads = torch.autograd.grad(select(output).sum(), values, allow_unused=True)
    return tuple(_times(grad, x) for grad, x in zip(grads, values, strict=True))


def oracle_token_relevance(
    function: Callable[[Tensor], Tensor],
    ids: Tensor,
    rules: Rules,
    select: Select,
    *,
    double: bool = False,
    trace: OracleTrace | None = None,
) -> Tensor:
    """Relevance of every token: the sum over everything that is looked up at its position.

    Args:
        function: ``function(ids)`` gives the output tensor, batch first; it closes over the
            attention mask and the like.
        ids: Integer token ids (batch, tokens).
        rules: As in :func:`oracle_relevance`.
        select: As in :func:`oracle_relevance`; its result must keep the batch as first dimension
            where a lookup is shared by the batch and the batch is larger than one.
        double: As in :func:`oracle_relevance`.
        trace: As in :func:`oracle_relevance`.

    Returns:
        Relevance (batch, tokens).
    """
    parts = oracle_lookup_relevance(function, ids, rules, select, double=double, trace=trace)
    return torch.stack(parts).sum(0)


def oracle_lookup_relevance(
    function: Callable[[Tensor], Tensor],
    ids: Tensor,
    rules: Rules,
    select: Select,
    *,
    double: bool = False,
    notes: set[str] | None = None,
    trace: OracleTrace | None = None,
) -> tuple[Tensor, ...]:
    """As :func:`oracle_token_relevance`, but one (batch, tokens) part for each lookup, in the
    order in which the model makes the lookups (for BERT: word, segment, position)."""
    trace = trace or trace_function(function, (ids,))
    if not trace.lookups:
        raise OracleError("no embedding lookup indexed by token positions was found")
    batch = ids.shape[0]
    leaves: dict[fx.Node, Tensor] = {}
    full = rules == "lrp"
    output = replayed(
        trace, (ids,), trace.frozen(rules), double=double, leaves=leaves, full=full, notes=notes
    )
    order = [leaves[node] for node in trace.lookups]
    target = select(output)
    shared = [_is_shared(leaf, batch) for leaf in order]
    if any(shared) and (target.ndim == 0 or target.shape[0] != batch):
        raise OracleError("a lookup is shared by the batch: select must keep the batch dimension")
    whole = torch.autograd.grad(target.sum(), order, allow_unused=True, retain_graph=True)
    parts: list[Tensor] = []
    for index, leaf in enumerate(order):
        owners = trace.owners[trace.lookups[index]]
        if not shared[index]:
            parts.append(by_id(_times(whole[index], leaf).sum(-1), owners, ids))
            continue
        rows = []
        for row in target:  # one backward pass for each example: samples do not mix
            (grad,) = torch.autograd.grad(row.sum(), leaf, allow_unused=True, retain_graph=True)
            rows.append(_times(grad, leaf).sum(-1).reshape(-1))
        parts.append(by_id(torch.stack(rows), owners, ids))
    return tuple(parts)


def embedding_inputs(function: Callable[[Tensor], Tensor], ids: Tensor) -> tuple[Tensor, ...]:
    """The leaves of a token model: every embedding lookup indexed by token positions, expanded to
    (batch, tokens, dim), in the order in which the model makes them."""
    trace = trace_function(function, (ids,))
    leaves: dict[fx.Node, Tensor] = {}
    replayed(trace, (ids,), set(), leaves=leaves)
    batch, tokens = ids.shape
    found = []
    for node in trace.lookups:
        leaf = leaves[node].detach()
        leaf = leaf if leaf.ndim == 3 else leaf.unsqueeze(0)
        found.append(leaf.expand(batch, tokens, leaf.shape[-1]).clone())
    return tuple(found)


def replay_output(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    rules: Rules = "gi",
    *,
    double: bool = False,
    trace: OracleTrace | None = None,
) -> Tensor:
    """Output of the second forward: must equal ``function(*inputs)`` under all rules."""
    trace = trace or trace_function(function, inputs)
    values = tuple(cast(x, double) for x in inputs)
    return replayed(trace, values, trace.frozen(rules), double=double).detach()


def trace_function(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> OracleTrace:
    """Trace ``function`` at ``inputs`` and find patterns, normalisers and lookups."""
    root, graph, traced_output = recorded_graph(function, inputs)
    opaque = [
        name
        for node in graph.nodes
        if (name := name_of(node)).startswith(_OPAQUE_PREFIXES)
        and name != "aten::_scaled_dot_product_attention_math"
    ]
    if opaque:
        raise OracleError(f"the trace holds fused attention: {sorted(set(opaque))}")
    trace = OracleTrace(root, graph, traced_output)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    leaves = {n for n, x in zip(placeholders, inputs, strict=True) if x.is_floating_point()}
    if not leaves:
        if len(inputs) != 1 or inputs[0].ndim != 2:
            raise OracleError("integer inputs: expected one tensor of ids (batch, tokens)")
        trace.lookups, trace.owners = _lookups(trace, inputs[0])
        leaves = set(trace.lookups)
    depends = trace.depends = dependents_of(graph.nodes, leaves)
    for node in graph.nodes:
        if node not in depends:
            continue
        name = name_of(node)
        if name in SOFTMAX:
            is_pattern = oracle_entrywise.attends(node, depends) or (
                feeds_product(node, depends) and not oracle_entrywise.is_routed(node, depends)
            )
            (trace.patterns if is_pattern else trace.other_softmaxes).append(node)
        elif name in FUSED_NORM or is_normaliser(node, depends):
            trace.normalisers.append(node)
        elif is_sink(node, depends):
            trace.patterns.append(node)
        elif name.startswith("aten::div") and oracle_entrywise.is_own_sum(node):
            if feeds_product(node, depends) and not oracle_entrywise.is_routed(
                node, depends, chosen=True
            ):
                trace.patterns.append(node)
        elif name.startswith("aten::grid_sampler") and node.args[1] in depends:
            trace.patterns.append(node.args[1])
    trace.weights = {**weights_of(trace, depends), **delta_rule_weights(trace.graph.nodes, depends)}
    return trace


def _lookups(trace: OracleTrace, ids: Tensor) -> tuple[list[fx.Node], dict[fx.Node, Tensor]]:
    """Lookups that belong to ids, in the order of the model, and the ids of their rows."""
    embeddings = [n for n in trace.graph.nodes if name_of(n) == "aten::embedding"]
    owners = owners_of(trace.root, trace.graph, embeddings, ids)
    others = [n for n in embeddings if n not in owners]
    depends = dependents_of(trace.graph.nodes, set(embeddings))
    owners |= added_to(trace.graph, owners, others, lambda node: origins_of(node, depends, {}))
    return [n for n in embeddings if n in owners], owners


def _leaf(x: Tensor, double: bool) -> Tensor:
    return cast(x.detach(), double).clone().requires_grad_()


def _times(grad: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if grad is None else (grad * x).detach()


def _is_shared(leaf: Tensor, batch: int) -> bool:
    return batch > 1 and (leaf.ndim == 2 or leaf.shape[0] == 1)
