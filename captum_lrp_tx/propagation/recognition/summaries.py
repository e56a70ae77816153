"""Values summed with weights: what a product remembers of them, until a query or a divisor asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    BOUNDS,
    KEEP_ENTRIES,
    MASKS,
    Node,
    mark_node,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.recognition import axes
from captum_lrp_tx.propagation.recognition.axes import Origin
from captum_lrp_tx.propagation.recognition.contracted import contraction_of
from captum_lrp_tx.propagation.recognition.undecided import SUMMARY, Weighed

_SCALED = KEEP_ENTRIES | MASKS | BOUNDS | {"Add", "Sub", "Mul", "Div"}
#: What values summed with weights go through before a query reads them.
KEPT = _SCALED | frozenset("Sum Mean Nansum Cumsum Cat Stack Undecided".split())
_MAX_DEPTH = 400
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

    @property
    def for_query(self) -> Weighed | None:
        """The product of keys and values that waits for a query, not for a sum of its entries."""
        one = self.weighed
        return None if one is None or one.along or one.group is not None else one


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
    mark_node(result, SUMMARY, summary)
    if how is not None:
        came_from = [(args[i], axis) for i, axis in how.came_from(weights)]
        axes.note_weighed(result, came_from, [args[i] for i in weights])
    return summary


def is_summary(node: Node) -> bool:
    """Whether the result of a node is values summed with weights that are known to be such."""
    summary: Summary | None = node.metadata.get(SUMMARY)
    return summary is not None and summary.is_certain


def is_weighed(tensor: Tensor) -> bool:
    """Whether a tensor is made of what attention heads have read: values weighed by patterns."""
    todo, seen = [tensor.grad_fn], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        node: Any = todo.pop()
        if node is None:
            return False
        if node in seen or is_summary(node):
            continue
        if node_name(node) in ("ConstantPattern", "UniformAttention"):
            continue
        seen.add(node)
        before = parents(node)
        if not before or node_name(node) not in KEPT:
            return False
        todo.extend(before)
    return not todo


def summaries_of(tensor: Tensor) -> list[tuple[Summary, list[Node]]]:
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
        summary = node.metadata.get(SUMMARY)
        if summary is not None:
            found.append((summary, steps))
            continue
        before = parents(node)
        if not before or node_name(node) not in KEPT:
            return []
        if node_name(node) in ("Mul", "Div") and len(before) > 1:
            return []
        todo.extend((parent, [*steps, node]) for parent in before)
    return found


def keys_at(summary: Summary, steps: list[Node], axis: int | None) -> int | None:
    """The meaning of a product under which this axis of it is the channels of its keys."""
    for meaning, node, there, place in summary.keys:
        if axes.of_node(node, there) is not Origin.PARAMETERS:
            continue
        if axis is None:
            return meaning
        if not steps:
            if axis == place:
                return meaning
            continue
        first = place + len(axes.shape_before(steps[-1]))
        at = axes.followed(first, reversed(steps))
        if at is not None and at - len(axes.shape(steps[0])) == axis:
            return meaning
    return None


def picked_key(summary: Summary, steps: list[Node]) -> int | None:
    """The meaning of a product under which one channel of its keys was taken out of it."""
    for meaning, node, there, place in summary.keys if steps else ():
        if axes.of_node(node, there) is not Origin.PARAMETERS:
            continue
        axis: int | None = place + len(axes.shape_before(steps[-1]))
        for step in reversed(steps):
            if axis is not None and axes.picked(step) == axis:
                return meaning
            axis = None if axis is None else axes.followed(axis, [step])
    return None


def leads_to(tensor: Tensor, found: Callable[[Node], bool]) -> bool:
    """Whether a tensor is what is looked for, moved, masked or scaled since."""
    return walk_to(tensor.grad_fn, found) is not None


def walk_to(node: Node | None, found: Callable[[Node], bool]) -> Node | None:
    """What is looked for, if a node is that, moved, masked or scaled since."""
    for _ in range(_MAX_DEPTH):
        if node is None or found(node):
            return node
        edges = parents(node)
        if len(edges) != 1 or node_name(node) not in _SCALED:
            return None
        node = edges[0]
    return None
