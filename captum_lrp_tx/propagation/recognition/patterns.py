"""Attention patterns: weights that sum to one along an axis, in whatever spelling.

A pattern comes from a softmax (built in, a quotient ``w / w.sum()``, an exponential of a
log-softmax) through operations that keep its entries.  Along which axis it sums to one is followed
through views, so that what sums over another axis is no attention: see :mod:`~.weighing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    BOUNDS,
    KEEP_ENTRIES,
    MASKS,
    Node,
    edges,
    is_activation,
    is_softmax,
    mark_node,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.operations import entries_of, summed
from captum_lrp_tx.propagation.recognition import axes

_MARKED = "captum_lrp_tx.pattern"
_MAX_STEPS = 400
_MAX_NODES = 200
#: Nodes that one question may lead to.
_MOST_NODES = 20_000
_GLANCE = 4
#: Adding, scaling or joining patterns gives a pattern again.
_COMBINED = frozenset({"Add", "Sub", "Mul", "Cat", "Where", "Rsub"})
#: Between the weights and the sum that they are divided by.
_SAFEGUARDS = KEEP_ENTRIES | BOUNDS | MASKS | {"Add"}
_INVERSES = frozenset("Reciprocal Div Pow Exp".split())
#: What sums weights; those by index are brought back to the entries by an index.
_SUMS = frozenset("Sum Mean IndexAdd ScatterAdd ScatterReduce SegmentReduce IndexPut".split())
#: Sums that are further from one than this are none of weights, whatever the precision.
_MOST_OFF = 0.05
#: Make weights of weights.
_OF_WEIGHTS = frozenset("Sqrt Pow Mul Sum Undecided".split())
#: Views that lay entries out in another way, and those that take one entry of an axis.
_LAID_OUT = frozenset("AsStrided Unfold Diagonal".split())
_PICKS = frozenset("Select Unbind".split())
_SCALED = KEEP_ENTRIES | MASKS | {"Mul", "Add"}
#: What shares are made of others by: what is left of one is ``1 - share``.
_SHARES = (
    KEEP_ENTRIES | MASKS | BOUNDS
    | frozenset("Add Sub Rsub Mul Div Reciprocal Cat Stack".split())
)  # fmt: skip
#: What totals of several chunks and sinks are compared and joined by.
_OF_TOTALS = KEEP_ENTRIES | MASKS | BOUNDS | frozenset(
    """Add Sub Rsub Cat Stack Logaddexp Logaddexp2 Amax Max Exp Log Log1P Softplus
    LogSigmoid""".split()
)  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """Weights that sum to one.

    Attributes:
        axis (int, optional): Along it, counted from the left; ``None`` if it is not known.
        is_entry (bool): Whether one entry was taken of that axis.
        logits (Node, optional): What the weights were made of, and
        logits_axis (int, optional): the axis there.
        source (Node): The softmax.
    """

    source: Node
    axis: int | None = None
    is_entry: bool = False
    logits: Node | None = None
    logits_axis: int | None = None

    @property
    def is_made_by_parameters(self) -> bool:
        """Whether there is one weight for each of what parameters made (experts, bases)."""
        if self.logits is None or self.logits_axis is None:
            return False
        made = axes.of_node(self.logits, self.logits_axis)
        return made is axes.Origin.PARAMETERS


def mark(tensor: Tensor, axis: int | None, logits: Node | None = None) -> None:
    """Let a result be known as a pattern whose axis is this, counted from the left.

    Args:
        tensor (Tensor): The result.
        axis (int, optional): The axis; ``None`` if it is not known.
        logits (Node, optional): What the weights were made of, with the same axes.
    """
    # not the node itself: a cycle that no collector sees
    mark_node(tensor, _MARKED, (axis, False, logits, axis))


def mark_product(result: Tensor, values: Tensor, sources: Sequence[int | None]) -> None:
    """Mark a pattern of patterns, ``(p1 @ p2) @ v``, as one along the axis of the second.

    Args:
        result (Tensor): Of the product.
        values (Tensor): The factor that was weighed.
        sources (sequence of int, optional): For every axis of the result that of ``values``.
    """
    pattern = pattern_of(values)
    if pattern is not None and pattern.axis in sources:
        axis = sources.index(pattern.axis)
        mark_node(result, _MARKED, (axis, False, pattern.logits, pattern.logits_axis))


def mark_if_ones(weights: Tensor, logits: Node | None, rounding: float = 64) -> bool:
    """Mark weights as a pattern if they sum to one along an axis, as their values tell.

    Args:
        weights (Tensor): The weights.
        logits (Node, optional): What they were made of.
        rounding (float): Error of a weight that arithmetic explains, in smallest steps at one.
    """
    if along := axes_of_ones(weights, rounding):
        mark(weights, along[0] if len(along) == 1 else None, logits)  # None: rows and columns
    return bool(along)


def axes_of_ones(weights: Tensor, rounding: float = 64) -> list[int]:
    """The axes along which the values of weights sum to one."""
    with torch.no_grad():
        if not weights.is_floating_point() or bool((entries_of(weights) < 0).any()):
            return []  # complex numbers weigh nothing
        precision = rounding * torch.finfo(weights.dtype).eps
        most = [min(size * precision, _MOST_OFF) for size in weights.shape]
        return [
            axis
            for axis, size in enumerate(weights.shape)
            if size > 1 and bool(((summed(weights.double(), axis) - 1).abs() < most[axis]).all())
        ]


def mark_exponential(result: Tensor) -> None:
    """Mark ``exp(s - t)`` as a pattern if ``t`` is the log of the sum of ``exp(s)``."""
    node: Node = result.grad_fn
    before = parents(node)
    operands = parents(before[0]) if len(before) == 1 else []
    if len(operands) == 2 and node_name(before[0]) == "Sub" and _exponential(node) is None:
        # exp(s - t) is as inexact as the difference: scores of a thousand cost three digits
        mark_if_ones(result, operands[0], 4096)


def mark_bounded(result: Tensor) -> None:
    """Mark ``(s - t).clamp(min=0)`` as a pattern if it sums to one (sparsemax)."""
    before = parents(result.grad_fn)
    source = axes.moved(before[0]) if len(before) == 1 else None
    if source is not None and node_name(source) == "Sub" and len(parents(source)) == 2:
        mark_if_ones(result, parents(source)[0])


def weights_in(dividend: Tensor, divisor: Tensor, quotient: bool) -> Node | None:
    """The activation that made a dividend, if the divisor was made of it, too.

    If it is no ``quotient``, the divisor is given by its reciprocal.
    """
    if dividend.grad_fn is None or divisor.grad_fn is None:
        return None
    if not quotient and node_name(_root(divisor.grad_fn)) not in _INVERSES:
        return None
    weights = _root(dividend.grad_fn)
    if not is_activation(weights):
        return None
    seen: set[Node] = set()
    todo: list[Node] = [divisor.grad_fn]
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node is weights:
            return weights
        if node not in seen:
            seen.add(node)
            todo.extend(parents(node))
    return None


def pattern_of(tensor: Tensor) -> Pattern | None:
    """The pattern that every input-dependent part of a tensor comes from, if there is one."""
    return None if tensor.grad_fn is None else Search().of(tensor.grad_fn)


def is_pattern(tensor: Tensor) -> bool:
    """Whether a tensor is a pattern."""
    return pattern_of(tensor) is not None


class Search:
    """What one question leads to, each node once; without recursion, graphs are long."""

    def __init__(self) -> None:
        self._found: dict[Node, Pattern | None] = {}

    def of(self, root: Node) -> Pattern | None:
        """The pattern that a node makes, if it makes one."""
        found, todo, needed = self._found, [root], dict[Node, list[tuple[Node, int]]]()
        while todo:
            node = todo[-1]
            if node in found:
                todo.pop()
                continue
            if len(todo) + len(found) > _MOST_NODES:
                return None
            if node not in needed:
                told = self._told(node)
                if not isinstance(told, list):
                    found[node] = told
                    continue
                needed[node] = told
            before = needed[node]
            if any(found.get(one, one) is None for one, _ in before):
                found[node] = None
            elif missing := [one for one, _ in before if one not in found]:
                todo.append(missing[0])
            else:
                found[node] = _joined(node, before, [found[one] for one, _ in before])
        return found[root]

    def is_of_data(self, node: Node) -> bool:
        """Whether a node makes a pattern of what the data holds, no router's weights."""
        found = self.of(node)
        return found is not None and not found.is_made_by_parameters

    def _told(self, node: Node) -> Pattern | list[tuple[Node, int]] | None:
        """The answer, or the results that have to be patterns for this one to be one."""
        name = node_name(node)
        marked: tuple[Any, ...] | None = node.metadata.get(_MARKED)
        if marked is not None:
            return Pattern(node, *marked)
        if is_softmax(name):
            (logits, *_) = parents(node)
            axis = axes.saved_axis(node, "dim", len(axes.shape(node)))
            return Pattern(node, axis, False, logits, axis)
        if name == "Exp":
            return _exponential(node)
        if name in ("Div", "Mul"):
            quotient = _quotient(node, name, self)
            if quotient is not None:
                return quotient
            factors = edges(node)
            if len(factors) == 2:  # what a sink leaves of a pattern is a pattern
                for weights, gate in (factors, factors[::-1])[: 1 if name == "Div" else 2]:
                    if is_sink_gate(gate[0]):
                        return [weights]
        if name == "Div":
            numerator = node.next_functions[0]
            return None if numerator[0] is None else [numerator]
        if name not in KEEP_ENTRIES and name not in _COMBINED:
            return None
        before = edges(node)
        if len(before) > 1 and not all(_may_make(one) for one, _ in before):
            return None  # at once: a residual stream is long
        return before or None


def _joined(
    node: Node, before: list[tuple[Node, int]], found: list[Pattern | None]
) -> Pattern | None:
    """The pattern that several make together, as the axes of this node have it."""
    moved = [
        _moved(node, edge, one) for edge, one in zip(before, found, strict=True) if one is not None
    ]
    same = all(one.axis == moved[0].axis for one in moved)
    return moved[0] if same else replace(moved[0], axis=None)


def _may_make(node: Node) -> bool:
    """Whether a node may be, or lead back to, a pattern; a glance at what is behind its views."""
    name = node_name(node)
    for _ in range(_GLANCE):
        before = node.next_functions
        if name not in KEEP_ENTRIES or len(before) != 1 or _MARKED in node.metadata:
            break
        if before[0][0] is None:
            return False
        node = before[0][0]
        name = node_name(node)
    return (
        name in KEEP_ENTRIES
        or name in _COMBINED
        or name in ("Exp", "Div")
        or _MARKED in node.metadata
        or is_softmax(name)
    )


def _moved(node: Node, edge: tuple[Node, int], found: Pattern) -> Pattern:
    """A pattern that was used, as the axes of this node have it."""
    if found.axis is None:
        return found
    old, new = axes.shape(*edge), axes.shape(node)
    name = node_name(node)
    lost = name in _LAID_OUT or (name == "Index" and len(old) != len(new))
    axis = None if lost else axes.forwards(node, found.axis, old, new)
    is_entry = axis is None and name in _PICKS
    return replace(found, axis=axis, is_entry=is_entry or found.is_entry)


def _exponential(node: Node) -> Pattern | None:
    """``exp(log_softmax(s))`` and ``exp(s - t)`` for the total ``t`` of ``s`` and of sinks."""
    (before,) = parents(node)
    if node_name(before) == "LogSoftmax":
        axis = axes.saved_axis(before, "dim", len(axes.shape(node)))
        return Pattern(node, axis, False, parents(before)[0], axis)
    operands = parents(before)
    if node_name(before) != "Sub" or len(operands) != 2:
        return None
    scores, (totals, is_total) = axes.moved(operands[0]), _totals(operands[1])
    for total in totals if is_total else ():
        summed = axes.summed_axes(total, len(axes.shape(node)))
        if axes.moved(parents(total)[0]) is scores and len(summed) == 1:
            axis = min(summed)
            return Pattern(node, axis, False, operands[0], axis)
    return None


def _totals(root: Node) -> tuple[list[Node], bool]:
    """The ``logsumexp`` that a node is made of, and whether it is made of nothing else."""
    found: list[Node] = []
    todo, seen = [root], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node_name(node) == "Logsumexp":
            found.append(node)
        elif node_name(node) in _OF_TOTALS and (before := parents(node)):
            todo.extend(before)
        else:
            return found, False
    return found, bool(found) and not todo


def _quotient(node: Node, name: str, search: Search) -> Pattern | None:
    """``w / w.sum()`` for weights ``w`` that an activation made."""
    first, second = ([edge for edge, _ in node.next_functions] + [None])[:2]
    if first is None or second is None:
        return None
    for numerator, divisor in _divided(first, second, name == "Div"):
        axis = _own_sum(numerator, divisor, search)
        if axis is not None:
            logits = parents(_root(numerator))
            return Pattern(node, axis, False, logits[0] if logits else None, axis)
    return None


def _divided(first: Node, second: Node, quotient: bool) -> list[tuple[Node, Node]]:
    """Dividend and divisor of a quotient, or of a product with a reciprocal."""
    if quotient:
        return [(first, second)]
    pairs = []
    for one, other in ((first, second), (second, first)):
        inverse = _root(other)
        is_quotient = node_name(inverse) == "Div" and inverse.next_functions[0][0] is None
        if is_quotient or node_name(inverse) == "Reciprocal":
            pairs.append((one, parents(inverse)[0]))
    return pairs


def is_normalised(first: Tensor, second: Tensor, quotient: bool) -> bool:
    """Whether a quotient, or a product with a reciprocal, is a softmax written by hand."""
    if first.grad_fn is None or second.grad_fn is None:
        return False
    pairs, search = _divided(first.grad_fn, second.grad_fn, quotient), Search()
    return any(_own_sum(*pair, search) is not None for pair in pairs)


def _own_sum(numerator: Node, divisor: Node, search: Search) -> int | None:
    """The axis along which a divisor sums the weights that it divides; None if it does not."""
    weights = _root(numerator)
    if not _makes_weights(weights, _GLANCE, search):
        return None
    node: Node | None = divisor
    for _ in range(_MAX_STEPS):
        if node is None:
            return None
        name, before = node_name(node), parents(node)
        if _is_sum(node, name) and len(before) == 1 and _root(before[0]) is weights:
            dims = len(axes.shape_before(node))
            if name in ("Sum", "Mean", "LinalgVectorNorm"):
                summed = axes.summed_axes(node, dims)
                return min(summed) if len(summed) == 1 else None
            return axes.saved_axis(node, "dim", dims) or 0
        if name == "Add" and len(before) == 2:  # the weight of a sink beside the sum
            before = [one for one in before if not is_activation(_root(one))]
        if name not in _SAFEGUARDS or len(before) != 1:
            return None
        node = before[0]
    return None


def is_own_quotient(node: Node) -> bool:
    """Whether a node divides weights by their own sum."""
    return node_name(node) == "Div" and _quotient(node, "Div", Search()) is not None


def _makes_weights(node: Node, depth: int, search: Search) -> bool:
    """Whether a node makes weights: an activation, a pattern, or powers and products of such."""
    if is_activation(node) or search.of(node) is not None:
        return True
    if node_name(node) in ("Clamp", "ClampMin") and getattr(node, "_saved_min", None) == 0:
        return True
    before = parents(node)
    if depth == 0 or not before or node_name(node) not in _OF_WEIGHTS:
        return False
    return all(_makes_weights(_root(one), depth - 1, search) for one in before)


def _is_sum(node: Node, name: str) -> bool:
    return name in _SUMS or (name == "LinalgVectorNorm" and node._saved_ord == 1)


def _root(node: Node) -> Node:
    """Where weights come from, before they were moved, masked or scaled."""
    while node_name(node) in _SCALED and len(parents(node)) == 1:
        (node,) = parents(node)
    return node


def is_sink_gate(node: Node | None) -> bool:
    """Whether a node makes ``sigmoid(logsumexp(scores) - sink)``, ``exp(logsumexp - total)`` or so.

    It is what the pattern loses to an attention sink, or to the keys of other chunks, multiplied in
    after the values or dividing them: part of the pattern, not a gate of the values.
    """
    todo, seen = [node], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        one = todo.pop()
        if one is None:
            return False
        if one in seen:
            continue
        seen.add(one)
        name, before = node_name(one), parents(one)
        if name in ("Sigmoid", "Exp") and _totals(before[0])[1]:
            continue
        if name not in _SHARES or not before:
            return False
        todo.extend(before)
    return not todo
