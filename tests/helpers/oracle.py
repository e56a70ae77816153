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
  ``f(q)`` and ``f(k)`` are constants (:func:`_weights`).
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

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import oracle_entrywise
import oracle_lrp
from oracle_lookups import added_to, by_id, owners_of

Rules = Literal["gi", "ah", "ln", "ah+ln", "lrp"]
Select = Callable[[Tensor], Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

RULES: tuple[Rules, ...] = ("gi", "ah", "ln", "ah+ln")

# Operations by overload packet name, for instance "aten::bmm".
_SOFTMAX = {"aten::_softmax", "aten::_safe_softmax", "aten::softmax"}
_PRODUCT = {"aten::bmm", "aten::mm", "aten::matmul", "aten::baddbmm", "aten::addmm"}
_RESHAPE = {
    "aten::view",
    "aten::_unsafe_view",
    "aten::reshape",
    "aten::_reshape_alias",
    "aten::expand",
    "aten::permute",
    "aten::transpose",
    "aten::t",
    "aten::unsqueeze",
    "aten::squeeze",
    "aten::clone",
    "aten::contiguous",
    "aten::alias",
    "aten::lift_fresh_copy",
    "aten::_to_copy",
    "aten::to",
    "prims::convert_element_type",
}
_VIEW = _RESHAPE | {"aten::slice", "aten::select", "aten::as_strided", "aten::diagonal"}
_TRANSPARENT = _RESHAPE | {
    "aten::dropout",
    "aten::native_dropout",
    "aten::masked_fill",
    "aten::masked_fill_",
    "aten::where",
    "aten::nan_to_num",
    "aten::slice",
    "aten::select",
    "aten::split",
    "aten::split_with_sizes",
    "aten::unbind",
}
_TRANSPARENT |= {"aten::constant_pad_nd", "aten::as_strided", "aten::unfold"}
_TRANSPARENT_BY_CONSTANT = {
    "aten::mul",
    "aten::mul_",
    "aten::div",
    "aten::div_",
}
_SUM = {"aten::add", "aten::add_", "aten::sub", "aten::sub_"}
_REDUCTION = {
    "aten::mean",
    "aten::sum",
    "aten::var",
    "aten::var_mean",
    "aten::std",
    "aten::std_mean",
    "aten::linalg_vector_norm",
    "aten::norm",
}
_SELF_REDUCING_ROOT = {"aten::std", "aten::std_mean", "aten::linalg_vector_norm", "aten::norm"}
_ROOT = {"aten::rsqrt", "aten::rsqrt_", "aten::sqrt", "aten::sqrt_"}
_POWER = {"aten::pow", "aten::pow_"}
_EPSILON = {
    "aten::add",
    "aten::add_",
    "aten::sub",
    "aten::clamp",
    "aten::clamp_",
    "aten::clamp_min",
    "aten::clamp_min_",
    "aten::maximum",
    "aten::mul",
    "aten::div",
    "aten::mul_",
    "aten::div_",
}
_LIKE = {f"aten::{n}" for n in ("ones_like", "zeros_like", "empty_like", "full_like", "new_zeros",
         "new_ones", "new_full", "new_empty", "rand_like", "randn_like")}  # fmt: skip
_SCALING = {"aten::mul", "aten::mul_", "aten::div", "aten::div_"}
LINEAR_ATTENTION = "attention without a softmax: the factors that weigh the values are constant"
_LINEAR_MAP = _PRODUCT | {"aten::linear", "aten::convolution", "aten::einsum"}
#: Element-wise functions that make the feature maps of linear attention.
_FEATURE_MAP = {
    f"aten::{name}"
    for name in "relu relu_ sigmoid exp gelu silu silu_ elu elu_ softplus hardsigmoid".split()
}
_BATCH_NORM = {"aten::native_batch_norm", "aten::cudnn_batch_norm"}
_EVAL_BATCH_NORM = "aten::_native_batch_norm_legit_no_training"
_FUSED_NORM = {"aten::native_layer_norm", "aten::native_group_norm", "aten::_fused_rms_norm"}
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_RANDOM = torch.Tag.nondeterministic_seeded
_OPAQUE_PREFIXES = (
    "aten::_scaled_dot_product_",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
)


class OracleError(RuntimeError):
    """The oracle cannot judge this function: its trace is opaque or has no leaves."""


@dataclass
class OracleTrace:
    """A traced function and what the rules hold constant in it."""

    root: nn.Module
    graph: fx.Graph
    output: Tensor
    patterns: list[fx.Node] = field(default_factory=list)
    normalisers: list[fx.Node] = field(default_factory=list)
    lookups: list[fx.Node] = field(default_factory=list)
    #: Which id each row of a lookup belongs to, by its flat place; -1 for none.
    owners: dict[fx.Node, Tensor] = field(default_factory=dict)
    other_softmaxes: list[fx.Node] = field(default_factory=list)
    #: Products and quotients of attention without a softmax, and which factor weighs the other.
    weights: dict[fx.Node, fx.Node] = field(default_factory=dict)
    depends: set[fx.Node] = field(default_factory=set)

    def frozen(self, rules: Rules) -> set[fx.Node]:
        """The nodes that ``rules`` hold constant, and the products whose weights they do."""
        parts = {"ah", "ln"} if rules == "lrp" else set(rules.split("+"))
        nodes: set[fx.Node] = set()
        if "ah" in parts:
            nodes.update(self.patterns)
            nodes.update(self.weights)
        if "ln" in parts:
            nodes.update(self.normalisers)
        return nodes


# --------------------------------------------------------------------------- public functions


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
    output = _replay(
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
    output = _replay(
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
    _replay(trace, (ids,), set(), leaves=leaves)
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
    values = tuple(_cast(x, double) for x in inputs)
    return _replay(trace, values, trace.frozen(rules), double=double).detach()


def as_double(model: ModuleT) -> ModuleT:
    """A float64 copy of ``model``. Casts to float32 that the model itself makes remain in it."""
    return copy.deepcopy(model).double()


def trace_function(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> OracleTrace:
    """Trace ``function`` at ``inputs`` and find patterns, normalisers and lookups."""
    root, graph, traced_output = _record(function, inputs)
    opaque = [
        name
        for node in graph.nodes
        if (name := _name(node)).startswith(_OPAQUE_PREFIXES)
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
    depends = trace.depends = _dependents(graph.nodes, leaves)
    for node in graph.nodes:
        if node not in depends:
            continue
        name = _name(node)
        if name in _SOFTMAX:
            is_pattern = oracle_entrywise.attends(node, depends) or (
                _feeds_product(node, depends) and not oracle_entrywise.is_routed(node, depends)
            )
            (trace.patterns if is_pattern else trace.other_softmaxes).append(node)
        elif name in _FUSED_NORM or _is_normaliser(node, depends):
            trace.normalisers.append(node)
        elif _is_sink(node, depends):
            trace.patterns.append(node)
        elif name.startswith("aten::div") and oracle_entrywise.is_own_sum(node):
            if _feeds_product(node, depends) and not oracle_entrywise.is_routed(
                node, depends, chosen=True
            ):
                trace.patterns.append(node)
        elif name.startswith("aten::grid_sampler") and node.args[1] in depends:
            trace.patterns.append(node.args[1])
    trace.weights = {**_weights(trace, depends), **_delta_rule(trace.graph.nodes, depends)}
    return trace


# --------------------------------------------------------------------------- recording a graph


class _Recorder(TorchDispatchMode):
    """Write every aten operation into an fx graph. The operations really run, so control flow
    may depend on data; tensors that no recorded operation made become constants."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Tensor] = []  # identities must stay unique while recording
        for index, x in enumerate(inputs):
            self._bind(x, self.graph.placeholder(f"input_{index}"))

    def _bind(self, x: Tensor, node: fx.Node) -> None:
        self.nodes[id(x)] = node
        self.alive.append(x)
        node.meta["float"] = x.is_floating_point() or x.is_complex()
        node.meta["shape"] = tuple(x.shape)
        node.meta["rows"] = x.shape[:-1].numel()

    def node_of(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in self.nodes:
            name = f"constant_{len(self.alive)}"
            # A copy, since an in-place operation may follow; not of the weights.
            if isinstance(x, nn.Parameter):
                self.root.register_parameter(name, nn.Parameter(x.detach(), requires_grad=False))
            else:
                self.root.register_buffer(name, x.detach().clone())
            self._bind(x, self.graph.create_node("get_attr", name))
        return self.nodes[id(x)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _RANDOM in func.tags and not any(
            id(x) in self.nodes for x in tree_leaves((args, kwargs))
        ):
            return func(*args, **kwargs)  # a constant: does not depend on anything recorded
        node_args = tree_map(self.node_of, tuple(args))
        node_kwargs = tree_map(self.node_of, dict(kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._bind(result, self.graph.call_function(func, node_args, node_kwargs))
        elif isinstance(result, (tuple, list)):
            node = self.graph.call_function(func, node_args, node_kwargs)
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._bind(part, self.graph.call_function(operator.getitem, (node, index)))
        return result


def _record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, fx.Graph, Tensor]:
    arguments = tuple(x.detach().clone() for x in inputs)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation for a whole layer
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Recorder(arguments) as recorder:
            output = function(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not isinstance(output, Tensor):
        raise OracleError(f"the function must return a tensor, not {type(output).__name__}")
    if id(output) not in recorder.nodes:
        raise OracleError("the output does not come from any recorded operation")
    recorder.graph.output(recorder.nodes[id(output)])
    return recorder.root, recorder.graph, output.clone()


# --------------------------------------------------------------------------- reading the graph


def _name(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else _schema_name(node.target)


def _schema_name(target: Any) -> str:
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def _dependents(nodes: Iterable[fx.Node], leaves: set[fx.Node]) -> set[fx.Node]:
    depends, size = set(leaves), 0
    while len(depends) != size:  # again when an in-place operation has tainted earlier nodes
        size = len(depends)
        for node in nodes:
            if not any(argument in depends for argument in node.all_input_nodes):
                continue
            if not node.meta.get("float", True) or _name(node) in _LIKE:
                continue  # indices, masks and constants of the same shape
            depends.add(node)
            written: Any = node
            while _writes(written) or (written is not node and _name(written) in _VIEW):
                written = written.args[0]
                depends.add(written)
    return depends


def _writes(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_")


def _lookups(trace: OracleTrace, ids: Tensor) -> tuple[list[fx.Node], dict[fx.Node, Tensor]]:
    """Lookups that belong to ids, in the order of the model, and the ids of their rows."""
    embeddings = [n for n in trace.graph.nodes if _name(n) == "aten::embedding"]
    owners = owners_of(trace.root, trace.graph, embeddings, ids)
    others = [n for n in embeddings if n not in owners]
    depends = _dependents(trace.graph.nodes, set(embeddings))
    owners |= added_to(trace.graph, owners, others, lambda node: _origins(node, depends, {}))
    return [n for n in embeddings if n in owners], owners


def _operands(node: fx.Node, depends: set[fx.Node]) -> list[fx.Node]:
    return [argument for argument in node.all_input_nodes if argument in depends]


def _feeds_product(softmax: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the softmax output reaches a product with values that are no weight."""
    seen: set[fx.Node] = set()
    todo = [softmax]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            name = _name(user)
            if name in _PRODUCT:
                factors = list(user.args[-2:])
                others = [factor for factor in factors if factor is not node]
                if not any(_is_weight(factor) for factor in others):
                    return True
            if name in _LINEAR_MAP:
                if _operands(user, depends) == [node]:
                    todo.append(user)
                continue
            if name in ("aten::div", "aten::div_") and user.args[0] is node:
                todo.append(user)  # renormalised by its own sums
                continue
            if name in _SUM:  # of patterns (differential attention), or of a pattern and constants
                if all(_is_softmaxes(o, depends) for o in _operands(user, depends)):
                    todo.append(user)
                continue
            by_constant = name in _TRANSPARENT_BY_CONSTANT and _operands(user, depends) == [node]
            if by_constant or name in _TRANSPARENT or name in ("getitem", "aten::cat"):
                todo.append(user)
    return False


def _is_softmaxes(node: fx.Node, depends: set[fx.Node]) -> bool:
    return all(_name(origin) in _SOFTMAX for origin in _origins(node, depends, {}))


def _is_sink(node: fx.Node, depends: set[fx.Node]) -> bool:
    """``sigmoid(logsumexp(scores) - sink)``: what a softmax with one more entry leaves."""
    if _name(node) != "aten::sigmoid":
        return False
    while True:
        operands = _operands(node, depends)
        if len(operands) != 1:
            return False
        node = operands[0]
        if _name(node) == "aten::logsumexp":
            return True
        if _name(node) not in _RESHAPE and _name(node) not in _EPSILON:
            return False


def _is_weight(node: Any) -> bool:
    """Whether a factor is a parameter, perhaps reshaped: no values of an attention head."""
    while isinstance(node, fx.Node):
        if node.op == "get_attr":
            return True
        if _name(node) not in _RESHAPE:
            return False
        node = node.args[0]
    return True


def _weights(trace: OracleTrace, depends: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Factors that weigh the other factor of a product although no softmax made them.

    Take ``out = f(q) (f(k)^T v)`` apart. In the inner product ``f(k)`` alone is a feature map, and
    ``v``, which is no product of its own, is what it weighs. The outer product has a weighted sum
    of values for one factor; the other factor, whatever it is, weighs that sum. What divides such
    a sum is part of its weights. Activated scores ``f(q k^T)`` weigh whatever they multiply.
    """
    found = _Attention(trace, depends)
    for node in trace.graph.nodes:
        if node in depends and _name(node) in _PRODUCT | _SCALING:
            found.judge(node)
    return found.weights


_SOLVE = "aten::linalg_solve_triangular"
_PARTS = {"getitem", "aten::split", "aten::split_with_sizes", "aten::unbind"}


def _delta_rule(nodes: Iterable[fx.Node], depends: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Factors that weigh values in the gated delta rule.

    ``solve(scores, values)`` is linear in the values, and so is whatever multiplies its result, or
    sums made of it, before the next weight matrix. Keys, by having made the scores, are no values.
    """
    weights: dict[fx.Node, fx.Node] = {}
    keys: set[fx.Node] = set()
    sums: set[fx.Node] = set()
    for node in nodes:
        if node not in depends:
            continue
        name, operands = _name(node), _operands(node, depends)
        if name == _SOLVE and len(operands) == 2:
            scores = [n for n in _behind(operands[0], depends) if _name(n) in _PRODUCT]
            keys.update(
                k for s in scores for o in _operands(s, depends) for k in _behind(o, depends)
            )
            if not any(
                _name(n) not in _PRODUCT and n in keys for n in _behind(operands[1], depends)
            ):
                weights[node] = operands[0]
                sums.add(node)
        elif name in _PRODUCT and len(operands) == 2:
            if (operands[0] in sums) != (operands[1] in sums):
                weights[node] = operands[0] if operands[1] in sums else operands[1]
                sums.add(node)
        elif (
            name in ("aten::mul", "aten::mul_")
            and len(operands) == 2
            and (any(o in sums for o in operands) and any(_is_decay(o) for o in operands))
        ):
            weights[node] = next(o for o in operands if _is_decay(o))
            sums.add(node)
        elif any(o in sums for o in operands) and (
            name in _TRANSPARENT | _SCALING | {"aten::add", "aten::sub", "aten::cat", "getitem"}
        ):
            sums.add(node)
        if name == "aten::copy_" and node in sums:
            written: Any = node.args[0]  # a slice of the result
            while isinstance(written, fx.Node) and written not in sums:
                sums.add(written)
                written = written.args[0] if _name(written) in _VIEW else None
    return weights


def _is_decay(node: fx.Node) -> bool:
    while _name(node) in _TRANSPARENT and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return _name(node) == "aten::exp"


def _behind(node: fx.Node, depends: set[fx.Node]) -> set[fx.Node]:
    """The nodes that a tensor was moved and scaled through, down to what made its entries."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        name = _name(current)
        if current in found or name in _PARTS:
            continue
        if name not in _TRANSPARENT | _SCALING | {"aten::constant_pad_nd"}:
            if name in _PRODUCT:
                found.add(current)
            continue
        found.add(current)
        operands = _operands(current, depends)
        strengths = [oracle_lrp.gate_strength(o, depends) for o in operands]
        todo.extend(o for o, s in zip(operands, strengths, strict=True) if s == min(strengths))
    return found


class _Attention:
    """The products seen so far, by what they are for."""

    def __init__(self, trace: OracleTrace, depends: set[fx.Node]) -> None:
        self.depends, self.softmaxes = depends, set(trace.patterns)
        self.weights: dict[fx.Node, fx.Node] = {}
        self.sums: set[fx.Node] = set()  # products that sum values
        self.scores: set[fx.Node] = set()  # products of two tensors neither of which is a weight
        self.patterns: set[fx.Node] = set()  # those of them that multiply two feature maps

    def judge(self, node: fx.Node) -> None:
        factors = list(node.args[-2:] if _name(node) in _PRODUCT else node.args[:2])
        if not all(factor in self.depends for factor in factors):
            return
        origins = [_origins(factor, self.depends, self.weights) for factor in factors]
        summed = [bool(o) and o <= self.sums for o in origins]
        if _name(node) in _SCALING:
            inverse = [_name(node).startswith("aten::div")] * 2
            if not inverse[0]:
                inverse = [all(_name(n) == "aten::reciprocal" for n in o) for o in origins]
            if summed[0] and inverse[1]:
                self.weights[node] = factors[1]
            elif summed[1] and inverse[0] and not _name(node).startswith("aten::div"):
                self.weights[node] = factors[0]
            return
        softmaxes = [bool(o) and o <= self.softmaxes for o in origins]
        if any(softmaxes):
            if not all(softmaxes):
                self.sums.add(node)
            return
        features = [bool(o) and all(_name(n) in _FEATURE_MAP for n in o) for o in origins]
        activated = [f and self._of_scores(o) for f, o in zip(features, origins, strict=True)]
        patterns = [bool(o) and o <= self.patterns for o in origins]
        if patterns == [False, True]:  # q @ (f(k)^T f(v)): the rows that q reads are the keys'
            for inner in origins[1]:
                self.weights[inner] = inner.args[-2]
                self.patterns.discard(inner)
            self.weights[node] = factors[0]
            self.sums.add(node)
            return
        for signs in (patterns, summed[::-1], activated, features):
            if signs[0] != signs[1]:
                side = signs.index(True)
                if signs is features and origins[1 - side] & self.scores:
                    break
                self.weights[node] = factors[side]
                self.sums.add(node)
                return
        self.scores.add(node)
        if all(features):
            self.patterns.add(node)

    def _of_scores(self, activations: set[fx.Node]) -> bool:
        behind = [_origins(n.all_input_nodes[0], self.depends, self.weights) for n in activations]
        return all(bool(o) and o <= self.scores for o in behind)


def _origins(node: fx.Node, depends: set[fx.Node], weights: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes from which a factor was made by moving, masking, scaling and joining entries,
    and, from a softmax, by linear maps with constants."""
    found: set[fx.Node] = set()
    todo, seen = [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        name, operands = _name(current), _operands(current, depends)
        if name in _SCALING and current in weights:
            operands = [o for o in operands if o is not weights[current]]
        elif name in ("aten::div", "aten::div_"):
            if oracle_entrywise.is_own_sum(current):
                found.add(current)
                continue
            operands = [o for o in operands if o is current.args[0]]
        passes = name in _TRANSPARENT or name in ("getitem", "aten::cat", "aten::constant_pad_nd")
        passes = passes or name in _SUM
        passes = passes or (name in _TRANSPARENT_BY_CONSTANT and len(operands) == 1)
        if passes and operands:
            todo.extend(operands)
        elif name in _LINEAR_MAP and len(operands) == 1:
            behind = _origins(operands[0], depends, weights)
            mixed = bool(behind) and all(_name(n) in _SOFTMAX for n in behind)
            found |= behind if mixed else {current}
        else:
            found.add(current)
    return found


def _is_root(node: fx.Node) -> bool:
    name = _name(node)
    if name in _ROOT or name in _SELF_REDUCING_ROOT:
        return True
    return name in _POWER and len(node.args) == 2 and node.args[1] in (0.5, -0.5)


def _is_normaliser(node: fx.Node, depends: set[fx.Node]) -> bool:
    if not _is_root(node):
        return False
    if _name(node) not in _SELF_REDUCING_ROOT and not _comes_from_reduction(node, depends):
        return False
    return _scales_dependent(node, depends)


def _comes_from_reduction(root: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the value under the root is a reduction, up to epsilons, casts and reshaping."""
    node = root
    while True:
        operands = _operands(node, depends)
        if len(operands) != 1:
            return False
        node = operands[0]
        name = _name(node)
        if name in _REDUCTION:
            return True
        if name not in _RESHAPE and name not in _EPSILON and name != "getitem":
            return False


def _scales_dependent(root: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the value divides or multiplies something else that depends on the inputs."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            name = _name(user)
            if name in _SCALING and len(_operands(user, depends)) > 1:
                return True
            by_constant = name in _EPSILON and _operands(user, depends) == [node]
            if by_constant or name in _RESHAPE or name in ("getitem", "aten::reciprocal"):
                todo.append(user)
    return False


# --------------------------------------------------------------------------- running the graph


class _Run(fx.Interpreter):
    """Run the graph; keep the values of ``record``, put ``constants`` in their place."""

    def __init__(
        self,
        trace: OracleTrace,
        *,
        record: set[fx.Node],
        constants: dict[fx.Node, Any],
        leaves: dict[fx.Node, Tensor] | None,
        double: bool,
        full: bool = False,
        notes: set[str] | None = None,
        weights: dict[fx.Node, fx.Node] | None = None,
    ) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.notes: set[str] = set() if notes is None else notes
        self.full, self.depends, self.weights = full, trace.depends, weights or {}
        self.lookups = set(trace.lookups)
        self.record, self.constants = record, constants
        self.leaves, self.double = leaves, double
        self.recorded: dict[fx.Node, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, Tensor):
            return value
        value = _cast(value, self.double)
        return value if isinstance(value, nn.Parameter) else value.clone()

    def run_node(self, n: fx.Node) -> Any:
        if n in self.constants:
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            return _frozen(_name(n), arguments, keywords, self.constants[n])
        if n in self.record and _name(n) in _FUSED_NORM:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.recorded[n] = _fused_norm_scale(_name(n), arguments)
        weight = self.weights.get(n)
        if weight is not None:
            weighing = self.env[weight]
            self.env[weight] = weighing.detach()
            self.notes.add(LINEAR_ATTENTION)
        result = NotImplemented
        if self.full and n in self.depends and n.op == "call_function":
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            result = oracle_lrp.propagate(n, arguments, keywords, self.depends, self.notes)
        if result is NotImplemented:
            result = super().run_node(n)
        if weight is not None:
            self.env[weight] = weighing
        if n in self.record and n not in self.recorded:
            # A copy: an in-place operation may follow.
            self.recorded[n] = tree_map_only(Tensor, lambda value: value.detach().clone(), result)
        if n in self.lookups and self.leaves is not None:
            leaf = self.leaves[n] = result.detach().clone().requires_grad_()
            result = leaf.clone()  # the model may go on in place
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.double:
            args, kwargs = tree_map_only(
                torch.dtype,
                lambda dtype: torch.float64 if dtype.is_floating_point else dtype,
                (args, kwargs),
            )
            if isinstance(target, torch._ops.OpOverload) and target._schema.name == (
                "aten::_softmax"
            ):
                args = (*args[:2], False)  # no half_to_float: all floats are float64 already
        name = _schema_name(target)
        if name == _EVAL_BATCH_NORM or (name in _BATCH_NORM and not args[5]):
            # torch's own gradient is wrong for some arriving gradients that are not contiguous
            x, weight, bias, mean, variance = args[:5]
            shape = (1, -1, *(1,) * (x.ndim - 2))
            y = (x - mean.reshape(shape)) * (variance + args[-1]).rsqrt().reshape(shape)
            weight = None if weight is None else weight.reshape(shape)
            return _affine(y, weight, None if bias is None else bias.reshape(shape)), None, None
        if target in _VIEWS:
            # The strides of constants and of norms computed in parts may differ from the trace.
            shape = args[1]
            try:
                return args[0].view(shape)
            except RuntimeError:
                return args[0].reshape(shape)
        return super().call_function(target, args, kwargs)


def _replay(
    trace: OracleTrace,
    inputs: tuple[Tensor, ...],
    frozen: set[fx.Node],
    *,
    double: bool = False,
    leaves: dict[fx.Node, Tensor] | None = None,
    full: bool = False,
    notes: set[str] | None = None,
) -> Tensor:
    # In-place operations of the model act on these copies, never on the caller's tensors.
    weights = {product: trace.weights[product] for product in frozen & trace.weights.keys()}
    first = _Run(trace, record=frozen - weights.keys(), constants={}, leaves=None, double=double)
    with torch.no_grad():
        first.run(*(x.detach().clone() for x in inputs))
    second = _Run(
        trace,
        record=set(),
        constants=first.recorded,
        leaves=leaves,
        double=double,
        full=full,
        notes=notes,
        weights=weights,
    )
    with torch.enable_grad():
        output = second.run(*(x.clone() if x.is_floating_point() else x for x in inputs))
    scale = trace.output.abs().max().clamp_min(1e-6)
    if not (output.detach() - trace.output).abs().max() <= 1e-3 * scale:
        raise OracleError("the second forward differs from the first: is there randomness in it?")
    return output


def _fused_norm_scale(name: str, args: tuple[Any, ...]) -> Tensor:
    """Reciprocal standard deviation (or root mean square) of a fused norm, shaped to broadcast."""
    x: Tensor = args[0]
    if name == "aten::native_layer_norm":
        dims = tuple(range(-len(args[1]), 0))
        return (x.var(dims, unbiased=False, keepdim=True) + args[4]).rsqrt()
    if name == "aten::_fused_rms_norm":
        dims = tuple(range(-len(args[1]), 0))
        eps = args[3] if len(args) > 3 and args[3] is not None else torch.finfo(x.dtype).eps
        return ((x * x).mean(dims, keepdim=True) + eps).rsqrt()
    batch, channels, groups, eps = args[3], args[4], args[6], args[7]
    grouped = x.reshape(batch, groups, -1)
    scale = (grouped.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    scale = scale.expand(batch, groups, channels // groups).reshape(batch, channels)
    return scale.reshape(batch, channels, *([1] * (x.ndim - 2)))


def _frozen(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], constant: Any) -> Any:
    """Value of a node that is held constant, or of a fused norm with a constant normaliser."""
    if name not in _FUSED_NORM:
        return tree_map_only(Tensor, lambda value: value.clone(), constant)
    x: Tensor = args[0]
    if name == "aten::native_layer_norm":
        dims = tuple(range(-len(args[1]), 0))
        return _affine((x - x.mean(dims, keepdim=True)) * constant, args[2], args[3]), None, None
    if name == "aten::_fused_rms_norm":
        return _affine(x * constant, args[2], None), None
    batch, channels, groups = args[3], args[4], args[6]
    grouped = x.reshape(batch, groups, -1)
    centred = (grouped - grouped.mean(-1, keepdim=True)).reshape(x.shape)
    shape = (1, channels, *([1] * (x.ndim - 2)))
    weight = None if args[1] is None else args[1].reshape(shape)
    bias = None if args[2] is None else args[2].reshape(shape)
    return _affine(centred * constant, weight, bias), None, None


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return (x if bias is None else x + bias).contiguous()


def _cast(x: Tensor, double: bool) -> Tensor:
    return x.double() if double and x.is_floating_point() else x


def _leaf(x: Tensor, double: bool) -> Tensor:
    return _cast(x.detach(), double).clone().requires_grad_()


def _times(grad: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if grad is None else (grad * x).detach()


def _is_shared(leaf: Tensor, batch: int) -> bool:
    return batch > 1 and (leaf.ndim == 2 or leaf.shape[0] == 1)
