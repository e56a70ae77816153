"""What sums of values are divided by afterwards: the sum of the weights, in whatever spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    BOUNDS,
    KEEP_ENTRIES,
    MASKS,
    Node,
    is_activation,
    is_softmax,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.recognition.axes import moved
from captum_lrp_tx.propagation.recognition.degrees import LINEAR_MAPS
from captum_lrp_tx.propagation.recognition.summaries import (
    KEPT,
    Summary,
    is_summary,
    leads_to,
    summaries_of,
    walk_to,
)
from captum_lrp_tx.propagation.recognition.undecided import SUMMARY, UNDECIDED

#: Where the node of a product notes that its weights were made in a way that no rule knows.
UNTOLD = "captum_lrp_tx.untold"
MATMUL = frozenset({"Mm", "Bmm", "Baddbmm", "Addmm"})
#: Adds up entries.
_ADDED = frozenset("Sum Mean Nansum Cumsum IndexAdd ScatterAdd SegmentReduce".split())
#: The same, if they are no extremes.
_REDUCED = frozenset("ScatterReduce IndexReduce".split())
_MAPS = LINEAR_MAPS | {"SparseAddmm"}
_MAX_NODES = 400
_EXPONENTIALS = frozenset({"Exp", "Exp2"})
#: A maximum with zero is a rectifier.
_MAXIMA = frozenset("Maximum Amax Max Clamp ClampMin Relu".split())
#: How sums of weights are compared and joined, and maxima.
_SHARES = (
    KEEP_ENTRIES | MASKS | BOUNDS | frozenset("Add Mul Div Reciprocal Cat Stack Undecided".split())
)
_COMPARED = KEEP_ENTRIES | frozenset("Sub Maximum Cat Stack Amax Max".split())


def renormalizer(args: Sequence[Any], quotient: bool) -> int | None:
    """Position of what rescales a sum of values to weights of sum one: divisor or reciprocal.

    It must be made of the weights themselves: ``o / rms(o)`` and ``o / (1 + exp(-g))`` are not.
    """
    for i, other in ((0, 1), (1, 0)):
        if quotient and i == 1:
            return None
        if not quotient and not leads_to(args[other], lambda n: node_name(n) == "Reciprocal"):
            continue
        certain = [s for s, _ in summaries_of(args[i]) if s.is_certain]
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
    weights, own, _ = _activated(divisor.grad_fn)
    if not weights:
        return False
    _, weighed, known = _activated(dividend.grad_fn)
    # values that are in the divisor, too, are in units of their own sum
    products = [one[0] for one in weighed if one[1] in weights and one not in own]
    if not products:  # but for those that another divisor, of another example, has confirmed
        return any(weight in weights for one in known for weight in one.weights)
    waiting = [one.metadata.get(UNDECIDED) for one in products]
    if None in waiting:
        products[waiting.index(None)].metadata[UNTOLD] = True
        return False
    for one in waiting:
        one.confirm()
    return True


def is_share(factor: Tensor, read: Tensor) -> bool:
    """Whether a factor is made of sums of the very exponentials that read the values.

    So are chunks of keys joined whose results were divided by their own sums:
    ``(o_1 l_1 + o_2 l_2) / (l_1 + l_2)``, each ``l`` perhaps times ``exp(m_i - m)`` for maxima.

    Args:
        factor (Tensor): Multiplies or divides.
        read (Tensor): What it multiplies or divides.
    """
    own = {_scores(weight) for one in _summaries_in(read) for weight in one.weights} - {None}
    seen, is_of_own = set[Node](), False
    todo: list[Any] = [factor.grad_fn]
    while todo and own and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        before = parents(node) if node is not None else []
        if not before:
            return False
        name = node_name(node)
        if name == "Exp" and _are_maxima(before[0]):
            continue
        exponential = moved(before[0]) if name in _ADDED else None
        if exponential is not None and node_name(exponential) in _EXPONENTIALS:
            is_of_own |= _scores(exponential) in own
        elif name in _SHARES:
            todo.extend(before)
        else:
            return False
    return is_of_own and not todo


def _summaries_in(tensor: Tensor) -> list[Summary]:
    """What attention heads have read that a tensor is made of; none if it is made of more."""
    found, seen = list[Summary](), set[Node]()
    todo: list[Any] = [tensor.grad_fn]
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        before = parents(node) if node is not None else []
        if before and is_summary(node):
            found.append(node.metadata[SUMMARY])
        elif before and node_name(node) in KEPT | {"ConstantPattern", "UniformAttention"}:
            todo.extend(before)
        else:
            return []
    return found


def _scores(weights: Node) -> Node | None:
    """The scores of an exponential or a softmax, without what was subtracted from all."""
    if node_name(weights) not in _EXPONENTIALS and not is_softmax(node_name(weights)):
        return None
    node: Node | None = moved(parents(weights)[0])
    while node is not None and node_name(node) == "Sub":
        node = moved(node.next_functions[0][0])
    return node


def _are_maxima(root: Node) -> bool:
    """Whether differences of maxima are all that a node is made of."""
    todo, seen, found = [root], set[Node](), False
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node_name(node) in ("Amax", "Max"):
            found = True
        elif node_name(node) not in _COMPARED or node in seen or not parents(node):
            return False
        else:
            todo.extend(parents(node))
        seen.add(node)
    return found and not todo


def is_exponential(tensor: Tensor) -> bool:
    """Whether a tensor is an exponential, moved or scaled since: weights before their division."""
    return leads_to(tensor, lambda node: node_name(node) in _EXPONENTIALS)


def is_rescaling_of_nothing(tensor: Tensor) -> bool:
    """Whether a tensor is ``exp(c - m)`` for a maximum ``m``: scales a sum that is still empty."""
    node = walk_to(tensor.grad_fn, lambda one: node_name(one) in _EXPONENTIALS)
    before = parents(node) if node is not None else []
    if not before or node_name(before[0]) != "Sub":
        return False
    largest = moved(before[0].next_functions[1][0])
    return largest is not None and node_name(largest) in _MAXIMA


def _activated(
    root: Node | None,
) -> tuple[set[Node], list[tuple[Node, Node]], list[Summary]]:
    """The activations whose entries a tensor sums up, and the products with them.

    Args:
        root (Node, optional): Of the tensor.

    Returns:
        tuple: the activations; for each product with something else its node and the activation;
        what rules have summed with weights already.
    """
    found: set[Node] = set()
    products: list[tuple[Node, Node]] = []
    known: list[Summary] = []
    seen: set[tuple[Node, bool]] = set()
    todo = [(root, False)]  # and whether it has been added up on the way
    while todo and len(seen) < _MAX_NODES:
        node, summed = todo.pop()
        if node is None or (node, summed) in seen:
            continue
        seen.add((node, summed))
        if is_summary(node):
            known.append(node.metadata[SUMMARY])
            continue
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
        is_product = len(before) == 2 and name in MATMUL | {"Mul"}
        if is_product and (summed or name in MATMUL):  # else a gate in units of its mean
            sides = [one for edge in before if (one := walk_to(edge, is_activation))]
            products += [(whole, sides[0])] if len(sides) == 1 else []
        is_map = len(before) == 1 and (name in _MAPS or _is_sum(node, name))
        if name in KEPT or is_map or is_product:
            adds = is_map or name in MATMUL or (name == "Add" and len(before) > 1)
            todo.extend((edge, summed or adds) for edge in before)
    return found, products, known


def _is_sum(node: Node, name: str) -> bool:
    is_reduced = name in _REDUCED and node._saved_reduce in ("sum", "mean")
    return name in _ADDED or is_reduced


def _is_made_of(tensor: Tensor, weights: list[Node]) -> bool:
    seen: set[Node] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node is None or node in seen or node.metadata.get(SUMMARY) is not None:
            continue
        if node in weights:
            return True
        seen.add(node)
        todo.extend(parents(node))
    return False
