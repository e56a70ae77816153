"""A function as a graph of aten operations: recording it, and what its nodes are called."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Rules = Literal["gi", "ah", "ln", "ah+ln", "lrp"]


def aten(names: str) -> set[str]:
    """Operations by the names of their packets, for instance "aten::bmm" of "bmm"."""
    return {f"aten::{name}" for name in names.split()}


SOFTMAX = {"aten::_softmax", "aten::_safe_softmax", "aten::softmax"}
RESHAPE = aten(
    """view _unsafe_view reshape _reshape_alias expand permute transpose t unsqueeze squeeze
    clone contiguous alias lift_fresh_copy _to_copy to"""
) | {"prims::convert_element_type"}
VIEW = RESHAPE | aten("slice select as_strided diagonal")
_LIKE = aten(
    """ones_like zeros_like empty_like full_like new_zeros new_ones new_full new_empty rand_like
    randn_like"""
)
FUSED_NORM = {"aten::native_layer_norm", "aten::native_group_norm", "aten::_fused_rms_norm"}
_RANDOM = torch.Tag.nondeterministic_seeded


def name_of(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else schema_name(node.target)


def schema_name(target: Any) -> str:
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def dependents_of(nodes: Iterable[fx.Node], leaves: set[fx.Node]) -> set[fx.Node]:
    depends, size = set(leaves), 0
    while len(depends) != size:  # again when an in-place operation has tainted earlier nodes
        size = len(depends)
        for node in nodes:
            if not any(argument in depends for argument in node.all_input_nodes):
                continue
            if not node.meta.get("float", True) or name_of(node) in _LIKE:
                continue  # indices, masks and constants of the same shape
            depends.add(node)
            written: Any = node
            while _writes(written) or (written is not node and name_of(written) in VIEW):
                written = written.args[0]
                depends.add(written)
    return depends


def _writes(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_")


def operands_of(node: fx.Node, depends: set[fx.Node]) -> list[fx.Node]:
    return [argument for argument in node.all_input_nodes if argument in depends]


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


def recorded_graph(
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
