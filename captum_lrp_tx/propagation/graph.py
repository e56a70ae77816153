"""Reading the autograd graph: where does a tensor come from?

Attention patterns, normalisers and gates are recognised by what computed them, never by the
name of a class: a pattern is a tensor that comes from a softmax through operations that keep its
entries (views, masks, casts, dropout); a normaliser comes from the root of a reduced statistic.
The autograd graph already records this, and while a forward pass is explained only tensors that
depend on the inputs are in it (parameters are passed as constants).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import Enum
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

#: How strongly a factor looks like a gate: bounded functions first, then self-gated activations.
_GATE_STRENGTH = {
    "Softmax": 3,
    "SafeSoftmax": 3,
    "Sigmoid": 3,
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
    "Exp": 1,
}
#: Gates stay gates when they are shifted, scaled, bounded, selected, summed, joined with others or
#: when their root is taken.
_KEEP_GATE = frozenset(
    """Add Sub Mul Div Rsub Sum Mean Cumsum Topk Sort Max Amax Min Amin Clamp Sqrt Cat Stack Where
    Scatter ScatterAdd IndexPut IndexAdd""".split()
)
_SUMS = frozenset({"Sum", "Mean", "Cumsum"})
_MAX_DEPTH = 40
#: Where a node keeps the role that an operation gave to its result (see :func:`mark`).
_ROLE = "captum_lrp_tx.role"


class Role(str, Enum):
    """What a tensor is for, where the operation that made it does not show that any more."""

    #: Linear map of attention patterns alone (talking heads), or a product of feature maps.
    PATTERN = "pattern"
    #: Values summed with the weights of a pattern.
    SUMMARY = "summary"


def mark(tensor: Any, role: Role) -> None:
    """Let the node of ``tensor`` remember its role."""
    node: Node = getattr(tensor, "grad_fn", None)
    if node is not None:
        node.metadata[_ROLE] = role


def has_role(node: Node, role: Role) -> bool:
    """Whether the result of a node was given this role."""
    return node.metadata.get(_ROLE) is role


def node_name(node: Node) -> str:
    """Name of an autograd node without ``Backward0``; of our own functions, what they stand for.

    Example::

        >>> node_name(torch.ones(2, requires_grad=True).softmax(0).grad_fn)
        'Softmax'
    """
    stands_for = getattr(node, "stands_for", None)
    if stands_for is not None:
        return str(stands_for)
    return _short_name(node.name())


@functools.lru_cache(maxsize=1024)
def _short_name(full: str) -> str:
    name = full.rsplit("::", 1)[-1]
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


@functools.lru_cache(maxsize=1024)
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
    if is_softmax(name) or has_role(node, Role.PATTERN):
        return True
    if name == "Div":  # a pattern renormalised by its own row sums, or a softmax by hand
        numerator, divisor = _argument(node, 0), _argument(node, 1)
        if numerator is None:
            return False
        return _pattern(numerator, depth - 1) or _is_own_sum(numerator, divisor)
    # adding, subtracting or mixing patterns with constant weights gives a pattern again
    if name in KEEP_ENTRIES or name in {"Add", "Sub", "Mul", "Cat", "Where"}:
        edges = parents(node)
        return bool(edges) and all(_pattern(edge, depth - 1) for edge in edges)
    return False


def is_quotient_by_own_sum(numerator: Tensor, divisor: Tensor) -> bool:
    """Whether ``numerator / divisor`` is a softmax written by hand."""
    return numerator.grad_fn is not None and _is_own_sum(numerator.grad_fn, divisor.grad_fn)


def _is_own_sum(numerator: Node, divisor: Node | None) -> bool:
    """Whether ``numerator / divisor`` is ``exp(s) / (exp(s).sum() + constant)``."""
    exponential = _through(numerator, "Exp", KEEP_ENTRIES)
    if exponential is None or divisor is None:
        return False
    total = _through(divisor, "Sum", KEEP_ENTRIES | {"Add", "Clamp", "ClampMin", "Maximum"})
    return total is not None and _through(parents(total)[0], "Exp", KEEP_ENTRIES) is exponential


def _through(node: Node, wanted: str, between: frozenset[str]) -> Node | None:
    """The node of this name that ``node`` comes from, if only such operations lie between."""
    for _ in range(_MAX_DEPTH):
        if node_name(node) == wanted:
            return node
        before = parents(node)
        if node_name(node) not in between or len(before) != 1:
            return None
        node = before[0]
    return None


def is_sink_gate(tensor: Tensor) -> bool:
    """Whether ``tensor`` is ``sigmoid(logsumexp(scores) - sink)``.

    It is what the pattern loses to an attention sink, multiplied in after the values: part of the
    pattern, not a gate of the values.
    """
    node = tensor.grad_fn
    is_sigmoid = False
    for _ in range(_MAX_DEPTH):
        if node is None:
            return False
        name = node_name(node)
        if name == "Logsumexp":
            return is_sigmoid
        is_sigmoid = is_sigmoid or name == "Sigmoid"
        before = parents(node)
        if len(before) != 1 or not (name in KEEP_ENTRIES or name in {"Sigmoid", "Add", "Sub"}):
            return False
        node = before[0]
    return False


def gate_strength(tensor: Tensor) -> int:
    """0 if ``tensor`` is no gate, else how clearly it is one (see ``_GATE_STRENGTH``)."""
    return 0 if tensor.grad_fn is None else _gate(tensor.grad_fn, _MAX_DEPTH)


def is_activation(node: Node) -> bool:
    """Whether a node is an activation that makes gates or feature maps."""
    return node_name(node) in _GATE_STRENGTH


def signals(node: Node) -> list[Node]:
    """Those parents of a product that look least like gates."""
    edges = parents(node)
    strengths = [_gate(edge, _MAX_DEPTH) for edge in edges]
    return [e for e, s in zip(edges, strengths, strict=True) if s == min(strengths)]


def _gate(node: Node, depth: int) -> int:
    if depth == 0:
        return 0
    name = node_name(node)
    if name in _GATE_STRENGTH:
        return _GATE_STRENGTH[name]
    if is_softmax(name):
        return 3
    if name not in KEEP_ENTRIES and name not in _KEEP_GATE:
        return 0
    edges = parents(node)
    if name == "Div":
        edges = [e for e in (_argument(node, 0),) if e is not None]
    strength = min((_gate(edge, depth - 1) for edge in edges), default=0)
    if strength == 1 and (name in _SUMS or (len(edges) > 1 and name != "Cat")):
        return 0  # a sum of self-gated values is a signal
    return strength


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
