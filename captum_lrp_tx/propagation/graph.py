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
from typing import Any

from torch import Tensor

#: Where the node of a write notes that nothing is left of what was there before.
OVERWRITTEN = "captum_lrp_tx.overwritten"
Node = Any  # torch.autograd.graph.Node; custom functions expose attributes of their own

#: Operations that move, copy, cast, mask or scale entries without mixing them.
KEEP_ENTRIES = frozenset(
    """View UnsafeView ReshapeAlias Alias Expand Transpose T Permute Squeeze Unsqueeze
    Slice Select Index Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Unbind Unfold
    Clone ToCopy AsStrided Diagonal MaskedFill NativeDropout NanToNum Tril Triu Repeat Roll Flip
    IndexSelect Gather Copy ConstantPadNd Chunk Neg
    ScaleGradient ToSparse ToSparseCsr ToDense SparseMask SparseCooTensorWithDimsAndTensors
    SparseCompressedTensor Coalesce Values""".split()
)

#: Put something else in the place of some entries.
MASKS = frozenset("Where IndexPut CopySlices".split())
#: Keep entries within bounds.
BOUNDS = frozenset("Clamp ClampMin ClampMax Maximum Minimum".split())

#: What a bound at zero stands for under a rule for activations.
RECTIFIED = "ClampAtZero"
#: The strength of a factor that is a gate whatever it meets.
CLEAR = 3
#: How strongly a factor looks like a gate: bounded functions first, then self-gated activations.
_GATE_STRENGTH = {
    **dict.fromkeys("Softmax SafeSoftmax Sigmoid Hardsigmoid".split(), CLEAR),
    **dict.fromkeys("Tanh Erf Hardtanh Softplus".split(), 2),
    **dict.fromkeys("Silu Gelu Relu LeakyRelu Elu Mish Hardswish Exp Exp2 Expm1".split(), 1),
    RECTIFIED: 1,
}
#: Gates stay gates when they are shifted, scaled, bounded, selected, summed, joined with others or
#: when their root is taken.
_KEEP_GATE = frozenset(
    """Add Sub Mul Div Rsub Sum Mean Cumsum Topk Sort Max Amax Min Amin Clamp Sqrt Cat Stack Where
    Scatter ScatterAdd IndexPut IndexAdd CopySlices""".split()
)
_SUMS = frozenset({"Sum", "Mean", "Cumsum"})
_MAX_DEPTH = 200
#: Names by class, of torch's operations and of our functions; a pass asks thousands of times.
_NAMES: dict[type, str] = {}


def node_name(node: Node) -> str:
    """Name of an autograd node without ``Backward0``; of our own functions, what they stand for.

    Of functions of others it is no name of torch's: ``Add`` may be anything.

    Example::

        >>> node_name(torch.ones(2, requires_grad=True).softmax(0).grad_fn)
        'Softmax'
    """
    stands_for: str | None = getattr(node, "stands_for", None)
    if stands_for is not None:
        return stands_for
    kind = type(node)
    known = _NAMES.get(kind)
    if known is not None:
        return known
    full: str = node.name()
    function = getattr(kind, "_forward_cls", None)  # of autograd functions in Python
    home = "torch." if function is None else function.__module__
    name = _short_name(full)
    if not home.startswith(("torch.", "captum_lrp_tx.")):
        return f"{name} of the model"
    # one class for each operation, and not those that a compiler makes as it goes
    if kind.__name__ == full and (full[-1].isdigit() or home.startswith("captum_lrp_tx.")):
        _NAMES[kind] = name
    return name


def _short_name(full: str) -> str:
    name = full.rsplit("::", 1)[-1]
    if name.startswith("BackwardHookFunction"):  # of a module with backward hooks: the identity
        return "Alias"
    return name.split("Backward")[0]


def edges(node: Node) -> list[tuple[Node, int]]:
    """The results that this node used and which depend on the inputs, in argument order.

    Returns:
        list of (Node, int): what made each of them, and which of its results it is.
    """
    name = node_name(node)
    if name == "Undecided":  # the meaning that was chosen
        meaning = node.next_functions[1 + node.chosen]
        return [] if meaning[0] is None else [meaning]
    used = [edge for edge in node.next_functions if edge[0] is not None]
    # of x.copy_(y) only y is left
    return used[-1:] if name == "Copy" or OVERWRITTEN in node.metadata else used


def parents(node: Node) -> list[Node]:
    """Nodes whose results this node used and which depend on the inputs, in argument order."""
    return [edge for edge, _ in edges(node)]


@functools.lru_cache(maxsize=1024)
def is_softmax(name: str) -> bool:
    """Whether a node name is a softmax's, built in or of a custom function; not log-softmax."""
    lower = name.lower()
    return "softmax" in lower and "logsoftmax" not in lower and "log_softmax" not in lower


def gate_strength(tensor: Tensor) -> int:
    """0 if ``tensor`` is no gate, else how clearly it is one (see ``_GATE_STRENGTH``)."""
    return 0 if tensor.grad_fn is None else _gate(tensor.grad_fn, _MAX_DEPTH, {})


def is_activation(node: Node) -> bool:
    """Whether a node is an activation that makes gates or feature maps."""
    return node_name(node) in _GATE_STRENGTH or _is_power_of_constant(node)


def _is_power_of_constant(node: Node) -> bool:
    """``2 ** x``, an exponential; asked of the name, since a saved tensor may have to be made."""
    name = node.name()
    return name == "PowBackward2" or (name == "PowBackward1" and node.next_functions[0][0] is None)


def bound_strength(node: Node) -> int:
    """How much like a gate bounds make what had none: like a hardsigmoid, like a ReLU, or not."""
    if node_name(node) not in ("Clamp", "ClampMin"):
        return 0
    name = name_of_bounds(getattr(node, "_saved_min", None), getattr(node, "_saved_max", None))
    return 0 if name is None else _GATE_STRENGTH[name]


def name_of_bounds(least: Any, most: Any) -> str | None:
    """What bounds make, if that is a gate; a signal that is clipped, ``clamp(-7, 7)``, is none."""
    if not isinstance(least, (int, float)) or least < 0:
        return None
    if isinstance(most, (int, float)):
        return "Hardsigmoid"
    return RECTIFIED if least == 0 and most is None else None


def signals(node: Node) -> list[Node]:
    """Those parents of a product that look least like gates."""
    before = parents(node)
    strengths = [_gate(one, _MAX_DEPTH, {}) for one in before]
    return [e for e, s in zip(before, strengths, strict=True) if s == min(strengths)]


def _gate(node: Node, depth: int, known: dict[Node, int]) -> int:
    """How clearly a node makes a gate; what is known of others is asked once."""
    if depth > 0 and node not in known:
        known[node] = _told(node, depth, known)
    return known.get(node, 0)


def _told(node: Node, depth: int, known: dict[Node, int]) -> int:
    name = node_name(node)
    if name in _GATE_STRENGTH:
        return _GATE_STRENGTH[name]
    if is_softmax(name):
        return CLEAR
    if name not in KEEP_ENTRIES and name not in _KEEP_GATE:
        return 0
    if name == "CopySlices" and OVERWRITTEN not in node.metadata:
        return 0  # a part of it: which, a gate does not tell
    before = parents(node)
    if name == "Div":
        before = [e for e, _ in node.next_functions[:1] if e is not None]
    strength = min((_gate(one, depth - 1, known) for one in before), default=0)
    if strength == 1 and (name in _SUMS or (len(before) > 1 and name != "Cat")):
        return 0  # a sum of self-gated values is a signal
    return strength or bound_strength(node)


def mark_node(result: Any, key: str, value: Any = True) -> None:
    """Note something on the node that made a result, if it depends on the inputs."""
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None:
        node.metadata[key] = value


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
