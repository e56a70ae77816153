"""Reading the autograd graph: where does a tensor come from?

Attention patterns, normalisers and gates are recognised by what computed them, never by the
name of a class: a pattern is a tensor that comes from a softmax through operations that keep its
entries (views, masks, casts, dropout); a normaliser comes from the root of a reduced statistic.
The autograd graph already records this, and while a forward pass is explained only tensors that
depend on the inputs are in it (parameters are passed as constants).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

Node = Any  # torch.autograd.graph.Node; custom functions expose attributes of their own

#: Operations that move, copy, cast, mask or scale entries without mixing them.
KEEP_ENTRIES = frozenset(
    """View UnsafeView Reshape ReshapeAlias Alias Expand Transpose T Permute Squeeze Unsqueeze
    Slice Select Index Narrow Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Unbind Unfold
    Clone ToCopy AsStrided Diagonal MaskedFill NativeDropout NanToNum Tril Triu Repeat Roll Flip
    IndexSelect Gather Contiguous Copy Detach ConstantPadNd SwapAxes Chunk Neg
    ScaleGradient""".split()
)

#: Element-wise functions that bound or shift a statistic but leave it a statistic.
_KEEP_STATISTIC = KEEP_ENTRIES | frozenset(
    {"Add", "Sub", "Clamp", "ClampMin", "ClampMax", "Maximum", "Where", "Reciprocal", "Mul", "Div"}
)
_ROOTS = frozenset({"Rsqrt", "Sqrt"})
_NORMS = frozenset({"Std", "StdMean", "LinalgVectorNorm", "LinalgNorm", "Norm"})
_REDUCTIONS = _NORMS | frozenset({"Mean", "Sum", "Var", "VarMean", "NativeBatchNorm"})

#: How strongly a factor looks like a gate: bounded functions first, then self-gated activations.
_GATE_STRENGTH = {
    "Softmax": 3,
    "SafeSoftmax": 3,
    "Sigmoid": 3,
    "HardSigmoid": 3,
    "Hardsigmoid": 3,
    "Tanh": 2,
    "Erf": 2,
    "Hardtanh": 2,
    "Softplus": 2,
    "Silu": 1,
    "Gelu": 1,
    "Relu": 1,
    "LeakyRelu": 1,
    "Elu": 1,
    "Mish": 1,
    "Hardswish": 1,
}
_MAX_DEPTH = 40


def node_name(node: Node) -> str:
    """Name of an autograd node without ``Backward0``; of our own functions, what they stand for.

    Example::

        >>> node_name(torch.ones(2, requires_grad=True).softmax(0).grad_fn)
        'Softmax'
    """
    stands_for = getattr(node, "stands_for", None)
    if stands_for is not None:
        return str(stands_for)
    name: str = node.name().rsplit("::", 1)[-1]
    if name.startswith("BackwardHookFunction"):  # of a module with backward hooks: the identity
        return "Alias"
    return name.split("Backward")[0]


def parents(node: Node) -> list[Node]:
    """Nodes whose results this node used and which depend on the inputs, in argument order."""
    edges = [edge for edge, _ in node.next_functions if edge is not None]
    # of x.copy_(y) only y is left
    return edges[-1:] if node_name(node) == "Copy" else edges


def _argument(node: Node, position: int) -> Node | None:
    edges = node.next_functions
    return edges[position][0] if position < len(edges) else None


def is_softmax(name: str) -> bool:
    """Whether a node name is a softmax's, built in or of a custom function; not log-softmax."""
    lower = name.lower()
    return "softmax" in lower and "logsoftmax" not in lower and "log_softmax" not in lower


def is_pattern(tensor: Tensor) -> bool:
    """Whether every input-dependent part of ``tensor`` is an attention pattern (from a softmax)."""
    return tensor.grad_fn is not None and _pattern(tensor.grad_fn, _MAX_DEPTH)


def _pattern(node: Node, depth: int) -> bool:
    if depth == 0:
        return False
    name = node_name(node)
    if is_softmax(name):
        return True
    if name == "Div":  # a pattern renormalised by its own row sums
        numerator = _argument(node, 0)
        return numerator is not None and _pattern(numerator, depth - 1)
    # adding or mixing patterns with constant weights gives a pattern again
    if name in KEEP_ENTRIES or name in {"Add", "Mul", "Cat", "Where"}:
        edges = parents(node)
        return bool(edges) and all(_pattern(edge, depth - 1) for edge in edges)
    return False


def is_normalizer(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a root of a reduced statistic: 1/rms, std + eps, an l2 norm, ..."""
    return tensor.grad_fn is not None and _normalizer(tensor.grad_fn, _MAX_DEPTH)


def _normalizer(node: Node, depth: int) -> bool:
    while depth > 0:
        depth -= 1
        name = node_name(node)
        if name in _NORMS:
            return True
        if name in _ROOTS or (name == "Pow" and _is_root(node)):
            return any(_statistic(edge, depth) for edge in parents(node))
        if name not in _KEEP_STATISTIC:
            return False
        edges = parents(node)
        if len(edges) != 1:
            return False
        node = edges[0]
    return False


def _is_root(node: Node) -> bool:
    exponent = getattr(node, "_saved_exponent", None)
    return isinstance(exponent, float) and exponent in (0.5, -0.5)


def _statistic(node: Node, depth: int) -> bool:
    while depth > 0:
        depth -= 1
        name = node_name(node)
        if name in _REDUCTIONS:
            return True
        if name not in _KEEP_STATISTIC:
            return False
        edges = parents(node)
        if len(edges) != 1:
            # E[x^2] - E[x]^2 and the like: a combination of statistics is a statistic
            return bool(edges) and all(_statistic(edge, depth) for edge in edges)
        node = edges[0]
    return False


def gate_strength(tensor: Tensor) -> int:
    """0 if ``tensor`` is no gate, else how clearly it is one (see ``_GATE_STRENGTH``)."""
    return 0 if tensor.grad_fn is None else _gate(tensor.grad_fn, _MAX_DEPTH)


def _gate(node: Node, depth: int) -> int:
    if depth == 0:
        return 0
    name = node_name(node)
    if name in _GATE_STRENGTH:
        return _GATE_STRENGTH[name]
    if is_softmax(name):
        return 3
    if name in KEEP_ENTRIES or name in {"Add", "Mul", "Div", "Topk", "Sort", "Clamp", "Sub"}:
        edges = parents(node)
        if name == "Div":
            numerator = _argument(node, 0)
            return 0 if numerator is None else _gate(numerator, depth - 1)
        if len(edges) == 1:
            return _gate(edges[0], depth - 1)
    return 0


def walk(roots: list[Node]) -> Iterator[Node]:
    """Every node that the roots depend on, each once."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parents(node))
