"""Gated delta rule: linear attention whose memory forgets what a key held before.

In chunks (Yang et al. 2024) it solves a triangular system of scores ``k k^T`` for new values, reads
a memory of values by queries and writes to it by keys.  With queries, keys and decays constant, as
the pattern of an attention head is, all of this is linear in the values:

* ``solve(scores, values)``: the scores weigh the values; ``solve(scores, keys)`` is a constant;
* what multiplies new values, or a sum of values that was read from or written to the memory,
  weighs them.

Keys are recognised by having made the scores.  Roles are noted on autograd nodes.
"""

from __future__ import annotations

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    Node,
    mark_node,
    node_name,
    parents,
    signals,
)
from captum_lrp_tx.propagation.recognition import axes
from captum_lrp_tx.propagation.recognition.summaries import is_summary

_KEY, _VALUE = "captum_lrp_tx.delta_key", "captum_lrp_tx.delta_value"
_PARTS = frozenset({"Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Chunk"})
_MOVED = (KEEP_ENTRIES | {"Mul", "Div", "Undecided"}) - _PARTS
_SUMS = frozenset({"Add", "Sub", "Cat", "Stack", "CopySlices"})
_MAX_NODES = 400


def is_system(scores: Tensor, values: Tensor) -> bool | None:
    """Whether ``solve(scores, values)`` is of a delta rule; its keys are noted then.

    Returns:
        None if the matrix is not made of scores; else whether the right-hand side is made of
        values (and not of keys).
    """
    product = _score(scores.grad_fn)
    if product is None:
        return None
    for factor in parents(product):
        _note_keys(factor)
    return not _is_noted(values.grad_fn, _KEY)


def note(result: Tensor, of_values: bool) -> None:
    """Note whether a result is a sum of values or of keys."""
    mark_node(result, _VALUE if of_values else _KEY)


def is_sum_of_values(tensor: Tensor) -> bool:
    """Whether a tensor is a sum of values, read from the memory, written to it or the memory."""
    return _is_noted(tensor.grad_fn, _VALUE)


def is_key(tensor: Tensor) -> bool:
    """Whether a tensor is made of keys."""
    return _is_noted(tensor.grad_fn, _KEY)


def is_decay(tensor: Tensor) -> bool:
    """Whether a tensor is an exponential, moved since: how much of the memory is kept."""
    node = axes.moved(tensor)
    return node is not None and node_name(node) == "Exp"


def _score(node: Node | None) -> Node | None:
    """The product of two input-dependent tensors that a matrix is, masked and decayed since."""
    todo, seen = [node], set[Node]()
    weighted = False  # one factor was taken for the weights of the other, and is a constant
    while todo and len(seen) < _MAX_NODES:
        current = todo.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        weighted = weighted or is_summary(current)
        if node_name(current) in ("Bmm", "Mm") and (weighted or len(parents(current)) == 2):
            return current
        if node_name(current) in _MOVED or node_name(current) in _SUMS | {"Combine"}:
            todo.extend(parents(current))
    return None


def _note_keys(node: Node) -> None:
    todo, seen = [node], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        current = todo.pop()
        if current in seen or node_name(current) not in _MOVED:
            continue
        seen.add(current)
        current.metadata[_KEY] = True
        todo.extend(signals(current))


def _is_noted(node: Node | None, role: str) -> bool:
    todo, seen = [node], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        current = todo.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        if current.metadata.get(role):
            return True
        name = node_name(current)
        if name in _MOVED or name in _SUMS:
            todo.extend(parents(current) if name in _SUMS else signals(current))
    return False
