"""Which factor of a product weighs the other: attention, linear attention, mixtures, products.

==================  ============================================================================
softmax attention   weights that sum to one along an axis of the data (tokens, channels, neighbours)
                    meet values along that axis
mixture             the same along an axis that only parameters have on both sides (experts, bases):
                    a router, which stays as it is
scores              ``f(q @ k.T) @ v``: activated scores meet values along an axis of the data;
                    attention without a softmax
linear attention    ``f(q) @ (f(k).T @ v)``: a feature map meets values along an axis of the data,
                    and a query reads the sum along the channels of the keys
plain               everything else: two towers, biaffine layers, hypernetworks, Gram matrices
==================  ============================================================================

Linear attention (Katharopoulos et al. 2020; with a softmax over the tokens for ``f(k)`` the
factorised attention of CoaT; lambda layers) never forms its pattern ``f(q) @ f(k).T``.  Holding
that constant, as the rule for attention heads does, means that ``f(q)`` and ``f(k)`` are constants
and all relevance goes to the values.  Whether ``f(k).T @ v`` is half of it shows only when a query
reads it; until then it is *undecided*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    Node,
    gate_strength,
    is_activation,
    is_softmax,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.recognition import axes, patterns
from captum_lrp_tx.propagation.recognition.axes import Origin
from captum_lrp_tx.propagation.recognition.contracted import Contraction, contraction_of
from captum_lrp_tx.propagation.recognition.undecided import UNDECIDED, Weighed

_SUMMARY = "captum_lrp_tx.summary"
#: Where the node of a product notes that a softmax made a factor in a way that no rule knows.
UNTOLD = "captum_lrp_tx.untold"
#: Where the node of a softmax notes that a product with it was seen.
SEEN = "captum_lrp_tx.seen"
_MATMUL = frozenset({"Mm", "Bmm", "Baddbmm", "Addmm", "Einsum"})
_SCALED = KEEP_ENTRIES | {"Add", "Sub", "Mul", "Div"}
#: What values summed with weights go through before a query reads them.
_KEPT = _SCALED | frozenset("Sum Mean Nansum Cumsum Cat Stack CopySlices Undecided".split())
#: Functions of single entries.
_ENTRYWISE = frozenset("Pow Sqrt Rsqrt Log Exp Relu Clamp ClampMin Abs Rsub Topk Sort".split())
#: Adds up entries.
_ADDED = frozenset("Sum Mean Nansum Cumsum IndexAdd ScatterAdd SegmentReduce".split())
_MAX_DEPTH = 40
_MAX_NODES = 400


@dataclass
class Summary:
    """Values summed with weights.

    Attributes:
        weights (list of Node): What weighed them, before it was moved or masked.
        keys (list): Candidates for the keys of linear attention: the meaning of the product under
            which they are weights, their node and axis there, and where that axis is in the
            result, counted from the right.
        weighed (Weighed, optional): The undecided product, if it is one.
    """

    weights: list[Node]
    keys: list[tuple[int, Node, int, int]] = field(default_factory=list)
    weighed: Weighed | None = None

    @property
    def is_certain(self) -> bool:
        """Whether the weights are known to be such."""
        return self.weighed is None or (self.weighed.is_settled and self.weighed.node.chosen != 0)


@dataclass(frozen=True)
class Weighing:
    """What a product is.

    Attributes:
        weights (tuple of int): Positions of the factors that weigh the others.
        proposed (tuple of int): Positions of factors each of which may turn out to.
        mixes (int, optional): Position of the weights of a mixture.
        shares (dict, optional): Of the factors of linear attention whose keys have had theirs.
        is_pattern (bool): Whether the result is a pattern without a softmax, ``f(q) @ f(k).T``.
        is_untold (bool): Whether a softmax made a factor in a way that no rule knows.
        what (str): In words, if it is more than a product.
    """

    weights: tuple[int, ...] = ()
    proposed: tuple[int, ...] = ()
    mixes: int | None = None
    shares: dict[int, float] | None = None
    is_pattern: bool = False
    is_untold: bool = False
    what: str = ""


def weighing_of(func: Any, args: Sequence[Any], factors: Sequence[int]) -> Weighing:
    """What a product of two or more input-dependent tensors is.

    Args:
        func (callable): The product, which tells what axes it sums over.
        args (sequence): Its arguments.
        factors (sequence of int): Positions of the input-dependent ones.
    """
    how = contraction_of(func, args)
    found = {i: p for i in factors if (p := patterns.pattern_of(args[i])) is not None}
    for pattern in found.values():
        pattern.source.metadata[SEEN] = True
    met = {i: _meets(p, i, args, factors, how) for i, p in found.items()}
    weights = tuple(i for i, what in met.items() if what == "attention")
    if weights and len(weights) < len(factors):
        return Weighing(weights, what="softmax attention")
    mixes = [i for i, what in met.items() if what == "mixture"]
    if len(mixes) == 1:
        return Weighing(mixes=mixes[0], what="mixture")
    read = _reads(args, factors, how)
    if read is not None:
        return read
    if len(factors) == 3:
        maps = tuple(i for i in factors if i in found or gate_strength(args[i]))
        others = [i for i in factors if i not in maps]
        if len(others) == 1 and _is_of_data(args[others[0]], others[0], how):
            shares = {**dict.fromkeys(maps, 0.25), others[0]: 0.5}
            return Weighing(maps, shares=shares, what="linear attention (convention)")
    if len(factors) != 2:
        return Weighing()
    scores = [
        i for i in factors
        if _leads_to(args[i], _is_activated_score) and _is_of_data(args[i], i, how)
    ]  # fmt: skip
    features = scores or [i for i in factors if i in found or gate_strength(args[i])]
    if len(features) == 2 and not _is_along_data(args, features, how):
        return Weighing(is_pattern=True)
    values = [i for i in factors if i not in features]
    if len(features) == 1 and _leads_to(args[values[0]], _is_score):
        return Weighing()
    if scores and len(scores) == 1:
        return Weighing((scores[0],), what="attention without a softmax (convention)")
    if features and _is_along_data(args, features, how):
        return Weighing(proposed=tuple(features))
    untold = any(
        i not in found and gate_strength(args[i]) == 0 and _is_of_softmax(args[i])
        and _is_of_data(args[i], i, how)
        for i in factors
    )  # fmt: skip
    return Weighing(is_untold=untold)


def _is_of_softmax(tensor: Tensor) -> bool:
    """Whether the entries of a tensor are those of a softmax, put through other functions."""
    todo: list[Any] = [tensor.grad_fn]
    seen: set[Node] = set()
    while todo and len(seen) < _MAX_DEPTH:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_softmax(node_name(node)):
            return True
        if node_name(node) in _KEPT | _ENTRYWISE:
            todo.extend(parents(node))
    return False


def _meets(
    pattern: patterns.Pattern,
    position: int,
    args: Sequence[Any],
    factors: Sequence[int],
    how: Contraction | None,
) -> str:
    """What a pattern is in a product: attention, the router of a mixture, or something else."""
    if pattern.is_entry:
        return ""
    others = [i for i in factors if i != position]
    if pattern.axis is None or how is None or len(others) != 1:
        return "attention"
    axis = pattern.axis - args[position].dim()
    if axis not in how.summed(position):
        return ""
    (other,) = others
    there = how.axis_in(position, other, axis)
    if there is None or not pattern.is_made_by_parameters or _is_read(args[other], there):
        return "attention"
    is_mixed = axes.origin(args[other], there, through_scores=True) is Origin.PARAMETERS
    return "mixture" if is_mixed else "attention"


def _is_read(tensor: Tensor, axis: int) -> bool:
    """Whether an axis of values that were summed with weights is the channels of their keys."""
    return any(_keys_at(*found, axis) for found in _summaries(tensor))


def _reads(args: Sequence[Any], factors: Sequence[int], how: Contraction | None) -> Weighing | None:
    """Whether queries read values that were summed with keys."""
    for i in factors:
        others = [j for j in factors if j != i]
        along = [None] if how is None else how.summed(i)
        for summary, steps in _summaries(args[i]):
            for axis in along:
                key = _keys_at(summary, steps, axis)
                if key is None:
                    continue
                shares = None
                if not summary.is_certain:
                    if not any(gate_strength(args[j]) or patterns.is_pattern(args[j])
                               for j in others):  # fmt: skip
                        continue
                    for one, _ in _summaries(args[i]):
                        if one.weighed is not None:
                            one.weighed.confirm(key)
                if summary.weighed is not None and len(others) == 1:
                    shares = {others[0]: 0.25, i: 0.75}
                return Weighing(tuple(others), shares=shares, what="linear attention (convention)")
    return None


@dataclass(frozen=True)
class Reading:
    """A query that may read values summed with keys, entry by entry: ``(q * s).sum(k)``.

    Attributes:
        query (int): Its position, 0 or 1.
        axis (int): The channels of the keys, from the right.
        key (int): The meaning of the product of keys and values.
        sums (list of Weighed): The products of keys and values.
    """

    query: int
    axis: int
    key: int
    sums: list[Weighed]


def reading_of(first: Tensor, second: Tensor) -> Reading | None:
    """Whether one of two factors may be a query of the other, entry by entry."""
    for query, one, other in ((0, first, second), (1, second, first)):
        found = _summaries(other)
        for summary, steps in found:
            for axis in range(-min(one.dim(), other.dim()), 0):
                if one.shape[axis] != other.shape[axis] or one.shape[axis] == 1:
                    continue
                key = _keys_at(summary, steps, axis)
                if key is not None and (gate_strength(one) or patterns.is_pattern(one)):
                    sums = [s.weighed for s, _ in found if s.weighed is not None]
                    return Reading(query, axis, key, sums)
    return None


def _keys_at(summary: Summary, steps: list[Node], axis: int | None) -> int | None:
    """The meaning of a product under which this axis of it is the channels of its keys."""
    if not axes.KNOWS_SHAPES:
        return summary.keys[0][0] if summary.keys else None
    for meaning, node, there, place in summary.keys:
        if axes.of_node(node, there) is not Origin.PARAMETERS:
            continue
        if axis is None:
            return meaning
        at: int | None = None
        shape = None
        for step in reversed(steps):
            before = axes.shape_before(step)
            at = place + len(before) if shape is None else at
            assert at is not None
            shape = axes.shape(step)
            at = axes.forwards(step, at, before, shape)
            if at is None:
                break
        if shape is None:
            if axis == place:
                return meaning
        elif at is not None and at - len(shape) == axis:
            return meaning
    return None


def summarize(result: Any, args: Sequence[Any], func: Any, weights: Sequence[int]) -> Summary:
    """Let the node of a product remember that it sums values with weights, and with which.

    Args:
        result: The result of the product.
        args (sequence): Its arguments.
        func (callable): The product.
        weights (sequence of int): Positions of the weights, in the order of its meanings.
    """
    how = contraction_of(func, args)
    roots = [node for i in weights if (node := axes.moved(args[i])) is not None]
    summary = Summary(roots)
    for meaning, i in enumerate(weights, 1):
        node = args[i].grad_fn
        for there, place in how.own(i) if how is not None and node is not None else []:
            summary.keys.append((meaning, node, there + args[i].dim(), place))
    node = getattr(result, "grad_fn", None)
    if node is not None:
        node.metadata[_SUMMARY] = summary
    if how is not None:
        axes.note_weighed(result, [(args[i], axis) for i, axis in how.came_from(weights)])
    return summary


def is_summary(node: Node) -> bool:
    """Whether the result of a node is values summed with weights that are known to be such."""
    summary: Summary | None = node.metadata.get(_SUMMARY)
    return summary is not None and summary.is_certain


def is_weighed(tensor: Tensor) -> bool:
    """Whether a tensor is what an attention head has read: values weighed by a pattern."""
    return _leads_to(
        tensor,
        lambda node: is_summary(node) or node_name(node) in ("ConstantPattern", "UniformAttention"),
    )


def renormalizer(args: Sequence[Any], quotient: bool) -> int | None:
    """Position of what rescales a sum of values to weights of sum one: divisor or reciprocal.

    It must be made of the weights themselves: ``o / rms(o)`` and ``o / (1 + exp(-g))`` are not.
    """
    for i, other in ((0, 1), (1, 0)):
        if quotient and i == 1:
            return None
        if not quotient and not _leads_to(args[other], lambda n: node_name(n) == "Reciprocal"):
            continue
        certain = [s for s, _ in _summaries(args[i]) if s.is_certain]
        if certain and _is_made_of(args[other], [w for s in certain for w in s.weights]):
            return other
    return None


def rescaled_entries(dividend: Tensor, divisor: Tensor) -> bool:
    """Whether a divisor is the sum of the weights that its dividend was summed with.

    The products of values with these weights, undecided until now, are attention then.  If there
    are products that did not wait for this, they are noted as what no rule knows.

    Args:
        dividend (Tensor): A sum, as in the online softmax of FlashAttention or RWKV.
        divisor (Tensor): What may be the sum of its weights.
    """
    weights, _ = _activated(divisor.grad_fn, is_summed=False)
    if not weights:
        return False
    _, weighed = _activated(dividend.grad_fn, is_summed=False)
    products = [node for node, weight in weighed if weight in weights]
    if not products:
        return False
    waiting = [one.metadata.get(UNDECIDED) for one in products]
    if None in waiting:
        products[waiting.index(None)].metadata[UNTOLD] = True
        return False
    for one in waiting:
        one.confirm()
    return True


def is_exponential(tensor: Tensor) -> bool:
    """Whether a tensor is an exponential, moved or scaled since: weights before their division."""
    return _leads_to(tensor, lambda node: node_name(node) in ("Exp", "Exp2"))


def _activated(root: Node | None, is_summed: bool) -> tuple[set[Node], list[tuple[Node, Node]]]:
    """The activations whose entries a tensor sums up, and the products with them.

    Args:
        root (Node, optional): Of the tensor; what rules have summed with weights is left out.
        is_summed (bool): Whether activations count that nothing adds up on the way.

    Returns:
        tuple: the activations; for each product with something else its node and the activation.
    """
    found: set[Node] = set()
    products: list[tuple[Node, Node]] = []
    seen: set[tuple[Node, bool]] = set()
    todo = [(root, is_summed)]
    while todo and len(seen) < _MAX_NODES:
        node, summed = todo.pop()
        if node is None or (node, summed) in seen or is_summary(node):
            continue
        seen.add((node, summed))
        name, before = node_name(node), parents(node)
        if is_activation(node):
            if summed:
                found.add(node)
            continue
        whole = node
        is_waiting = name == "Undecided"
        while is_waiting and len(before) == 1:  # the plain product behind it
            (node,) = before
            name, before = node_name(node), parents(node)
        is_product = len(before) == 2 and name in _MATMUL | {"Mul"}
        if is_product and (summed or name in _MATMUL):  # else a gate in units of its mean
            sides = [one for edge in before if (one := _walk_to(edge, is_activation))]
            products += [(whole, sides[0])] if len(sides) == 1 else []
        if name in _KEPT or name in _ADDED or is_product:
            adds = name in _ADDED or name in _MATMUL or (name == "Add" and len(before) > 1)
            todo.extend((edge, summed or adds) for edge in before)
    return found, products


def _is_made_of(tensor: Tensor, weights: list[Node]) -> bool:
    seen: set[Node] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node is None or node in seen or node.metadata.get(_SUMMARY) is not None:
            continue
        if node in weights:
            return True
        seen.add(node)
        todo.extend(parents(node))
    return False


def _summaries(tensor: Tensor) -> list[tuple[Summary, list[Node]]]:
    """The sums of values that a tensor is made of, moved and scaled since, and the nodes between.

    None of its parts may be anything else.
    """
    found: list[tuple[Summary, list[Node]]] = []
    todo: list[tuple[Node | None, list[Node]]] = [(tensor.grad_fn, [])]
    count = 0
    while todo:
        node, steps = todo.pop()
        count += 1
        if node is None or count > _MAX_NODES:
            return []
        summary = node.metadata.get(_SUMMARY)
        if summary is not None:
            found.append((summary, steps))
            continue
        before = parents(node)
        if not before or node_name(node) not in _KEPT:
            return []
        if node_name(node) in ("Mul", "Div") and len(before) > 1:
            return []
        todo.extend((parent, [*steps, node]) for parent in before)
    return found


def _is_of_data(tensor: Tensor, position: int, how: Contraction | None) -> bool:
    """Whether a factor is summed over an axis of the data."""
    if how is None:
        return True
    summed = how.summed(position)
    return bool(summed) and all(
        axes.origin(tensor, axis, through_scores=True) is Origin.DATA for axis in summed
    )


def _is_along_data(args: Sequence[Any], positions: Sequence[int], how: Contraction | None) -> bool:
    """Whether feature maps meet their values along positions of the data, or are not summed yet."""
    if how is None:
        return False
    return all(not how.summed(i) or _is_of_data(args[i], i, how) for i in positions)


def _is_score(node: Node) -> bool:
    return node_name(node) in _MATMUL and len(parents(node)) > 1


def _is_activated_score(node: Node) -> bool:
    return is_activation(node) and any(_walks_to(edge, _is_score) for edge in parents(node))


def _leads_to(tensor: Tensor, found: Callable[[Node], bool]) -> bool:
    """Whether a tensor is what is looked for, moved, masked or scaled since."""
    return _walks_to(tensor.grad_fn, found)


def _walks_to(node: Node | None, found: Callable[[Node], bool]) -> bool:
    return _walk_to(node, found) is not None


def _walk_to(node: Node | None, found: Callable[[Node], bool]) -> Node | None:
    """What is looked for, if a node is that, moved, masked or scaled since."""
    for _ in range(_MAX_DEPTH):
        if node is None or found(node):
            return node
        edges = parents(node)
        if len(edges) != 1 or node_name(node) not in _SCALED:
            return None
        node = edges[0]
    return None
