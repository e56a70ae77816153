"""What an axis of a tensor counts: positions of the data, or what parameters made.

A linear layer makes its output channels, a stack of experts their number: such axes are made by
*parameters*.  Tokens, pixels, neighbours and steps of time come from the *data*.  Products of two
input-dependent tensors make *scores*: along the keys, of whatever kind these are.  The axis is
followed backwards through the autograd graph to the operation that made it; what a linear map did
to the axes is noted on its node (:func:`note`), since rules run maps as functions of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor

from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, edges, node_name, parents

_MADE = "captum_lrp_tx.made_axes"
_CAME_FROM = "captum_lrp_tx.axes_came_from"
_MADE_OF = "captum_lrp_tx.made_of"
_NOTES = {_MADE, _CAME_FROM}
_MATRIX = frozenset("Mm Addmm Bmm Baddbmm".split())
_DISTANCES = frozenset("Cdist EuclideanDist".split())
_VIEWS = frozenset("View UnsafeView ReshapeAlias".split())
_ORDERS = frozenset("Permute Transpose T".split())
_DIMENSIONS = frozenset("Select Unbind Unsqueeze Squeeze".split())
_JOINS = frozenset("Cat Stack".split())
_REDUCTIONS = frozenset("Sum Mean Amax Amin Logsumexp Nansum".split())
_PICKS = frozenset("Select Unbind Split SplitWithSizes Slice UnsafeSplit Chunk".split())
#: Those that may take one entry of an axis.
_TAKES = (_PICKS | frozenset("IndexSelect Gather Index".split())) - {"UnsafeSplit", "Chunk"}
#: Neighbours or blocks laid out along an axis, and places taken by index: of the data.
_LAID_OUT = frozenset("Im2Col Unfold GridSampler2D GridSampler3D Index AsStrided BlockDiag".split())
#: Nodes looked at for one axis; what lies further back is the data.
_MAX_NODES = 400


class Origin(Enum):
    """Where an axis comes from."""

    DATA = "data"
    PARAMETERS = "parameters"
    SCORES = "scores"


class _Part(NamedTuple):
    """One of several axes that are one by now: its size, and the product of those inside it."""

    size: int
    inner: int


#: What was found out of nodes and their axes while one question was answered.
_Known = dict[tuple[Node, int, bool], Origin]


def note(result: Any, x: Tensor, sources: int | tuple[int | None, ...]) -> None:
    """Remember what a linear map did to the axes of its input.

    Args:
        result: The result of the map.
        x (Tensor): Its input.
        sources: The axis that the weights made, all others staying as they are; or for every axis
            of the result the axis of the input that it was, ``None`` if the weights made it.
    """
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None and node is not x.grad_fn:
        node.metadata[_MADE] = (x.grad_fn, sources)


def is_linear_map(node: Node) -> bool:
    """Whether a node maps its input by weights of the model."""
    return _MADE in node.metadata or node_name(node) == "Convolution"


def note_weighed(
    result: Any, came_from: Sequence[tuple[Tensor, int] | None], weights: Sequence[Tensor] = ()
) -> None:
    """Remember for every axis of weighed values which tensor it came from, and its axis there.

    The ``weights`` are constants by then, from which the graph leads nowhere.  ``None`` stands for
    an axis that parameters made.
    """
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None:
        node.metadata[_CAME_FROM] = [
            None if one is None else (one[0].grad_fn, one[1] % one[0].dim()) for one in came_from
        ]
        tensors = [*weights, *(one[0] for one in came_from if one is not None)]
        made_of = {(t.grad_fn, t.output_nr) for t in tensors if t.grad_fn is not None}
        node.metadata[_MADE_OF] = made_of


def note_spread(result: Any, first: Tensor, second: Tensor) -> None:
    """Remember for every axis of a product entry by entry which factor is not spread out there."""
    dims = max(first.dim(), second.dim())
    note_weighed(
        result,
        [
            (first, d) if (-d <= first.dim() and first.shape[d] > 1) or -d > second.dim()
            else (second, d)
            for d in range(-dims, 0)
        ],
    )  # fmt: skip


def shape(node: Node, output: int = 0) -> tuple[int, ...]:
    """Shape of a result of a node."""
    variable = getattr(node, "variable", None)
    return tuple(node._input_metadata[output].shape if variable is None else variable.shape)


def shape_before(node: Node) -> tuple[int, ...]:
    """Shape of the (first) tensor that a node used."""
    return shape(*edges(node)[0])


def saved_axis(node: Node, name: str, dims: int) -> int | None:
    """An axis that a node keeps, counted from the left; ``None`` if it keeps none of that name."""
    value = getattr(node, "_saved_" + name, None)
    return signed(value) % max(1, dims) if isinstance(value, int) else None


def picked(node: Node) -> int | None:
    """The axis that a node takes one entry of, if it does, counted from the left before that."""
    if node_name(node) not in _TAKES:
        return None
    old, new = shape_before(node), shape(node)
    at = saved_axis(node, "dim", len(old))
    if node_name(node) == "Index":
        by = [axis for axis, index in enumerate(node._saved_indices) if index is not None]
        at = by[0] if len(by) == 1 else None
    if at is None or old[at] == 1 or (len(new) == len(old) and new[at] > 1):
        return None
    return at


def signed(value: int) -> int:
    """A number that autograd saved without its sign."""
    return value - 2**64 if value >= 2**63 else value


def origin(tensor: Tensor, axis: int, through_scores: bool = False) -> Origin:
    """Where an axis of a tensor comes from.

    Args:
        tensor (Tensor): One that depends on the inputs.
        axis (int): From the left or, negative, from the right.
        through_scores (bool): Look behind products of two input-dependent tensors, too.
    """
    if tensor.grad_fn is None:
        return Origin.DATA
    return of_node(tensor.grad_fn, axis % tensor.dim(), through_scores)


def of_node(
    node: Node, axis: int, through_scores: bool = False, known: _Known | None = None
) -> Origin:
    """The same for the result of a node and an axis counted from the left."""
    known = {} if known is None else known
    asked = node, axis, through_scores
    if asked not in known:
        known[asked] = _found(node, axis, through_scores, known)
    return known[asked]


def _found(node: Node, axis: int, through_scores: bool, known: _Known) -> Origin:
    seen: set[tuple[Node, int, _Part | None]] = set()
    todo: list[tuple[Node, int, _Part | None]] = [(node, axis, None)]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        if len(seen) > _MAX_NODES:
            return Origin.DATA
        node, axis, part = here
        if node_name(node) in _VIEWS and parents(node) and not _NOTES & set(node.metadata):
            before = edges(node)[0]
            regrouped = _regrouped(axis, part, shape(node), shape(*before), exactly=False)
            todo += [] if regrouped is None else [(before[0], *regrouped)]
            continue
        told = _step(node, axis, through_scores, known)
        if told is None:
            continue
        if isinstance(told, Origin):
            return told
        todo += [(before, moved, part) for before, moved in told]
    return Origin.PARAMETERS


def _regrouped(
    axis: int, part: _Part | None, old: Sequence[int], new: Sequence[int], exactly: bool
) -> tuple[int, _Part | None] | None:
    """Where an axis, or one that was joined with others in it, is across a view."""
    size, inner = (old[axis], 1) if part is None else part
    step = math.prod(old[axis + 1 :]) * inner
    for i, n in enumerate(new):
        rest = math.prod(new[i + 1 :])
        if size > 1 and _holds((n, rest), (size, step)):
            return i, None if size == n else _Part(size, step // rest)
    moved = _contained(axis, old, new, exactly)
    return None if moved is None else (moved, None)


def _step(
    node: Node, axis: int, through_scores: bool, known: _Known
) -> Origin | list[tuple[Node, int]] | None:
    """An answer, where to look next, or None if the weights of this node made the axis."""
    name, before = node_name(node), parents(node)
    came_from = node.metadata.get(_CAME_FROM)
    if came_from is not None:
        if came_from[axis] is None:
            return None
        source, before_map = came_from[axis]
        return Origin.DATA if source is None else [(source, before_map)]
    made = node.metadata.get(_MADE)
    if made is not None:
        source, sources = made
        before_map = axis
        if isinstance(sources, int):
            if axis == sources % len(shape(node)):
                return None
        elif sources[axis] is None:
            return None
        else:
            before_map = sources[axis]
        return Origin.DATA if source is None else [(source, before_map)]
    if name in _LAID_OUT or not before or name == "AccumulateGrad":
        return Origin.DATA
    here = shape(node)
    if name in _MATRIX:
        return _of_matrix_product(node, axis, len(here), through_scores)
    if name in _DISTANCES:
        return _of_distances(node, axis, len(here), through_scores)
    if name == "Convolution":
        return None if axis == 1 else Origin.DATA
    if name in _JOINS:
        joined = saved_axis(node, "dim", len(here))
        if joined == axis:
            several = [(b, axis) for b, i in edges(node) if name == "Cat" and shape(b, i)[axis] > 1]
            if several or len(before) == 1:
                return several or Origin.DATA
            return Origin.DATA if _are_parts(edges(node), known) else None
        return [(b, axis - (name == "Stack" and axis > (joined or 0))) for b in before]
    nexts = []
    for parent, output in edges(node):
        old = shape(parent, output)
        moved = backwards(node, axis, old, here)
        if moved is None or (old[moved] != here[axis] and len(before) > 1):
            continue
        if not old[moved] == 1 < here[axis]:  # else repeated, to meet what parameters made
            nexts.append((parent, moved))
    return nexts or None


def _of_matrix_product(
    node: Node, axis: int, dims: int, through_scores: bool
) -> Origin | list[tuple[Node, int]] | None:
    left, right = [edge for edge, _ in node.next_functions][-2:]
    is_left = axis != dims - 1
    if left is not None and right is not None:
        if not through_scores:
            return Origin.SCORES
        return [(left if is_left else right, axis)]
    if dims == 3 and axis == 0:  # the batch of both
        return Origin.DATA
    edge = left if is_left else right
    return None if edge is None else [(edge, axis)]


def _of_distances(
    node: Node, axis: int, dims: int, through_scores: bool
) -> Origin | list[tuple[Node, int]] | None:
    first, second = [edge for edge, _ in node.next_functions][:2]
    if first is not None and second is not None and not through_scores:
        return Origin.SCORES
    edge, there = (first, axis) if axis < dims - 1 else (second, dims - 2)
    return None if edge is None else [(edge, there)]


def _are_parts(joined: list[tuple[Node, int]], known: _Known) -> bool:
    """Whether what is joined was taken out of one tensor: steps of time, not experts."""
    taken = [_taken(node, output, known) for node, output in joined]
    return all(taken) and len({frozenset(t) for t in taken}) > 1


def _taken(node: Node, output: int, known: _Known) -> set[tuple[Node, int]]:
    """The parts of the data that a tensor was computed from: of which node, and which part."""
    found: set[tuple[Node, int]] = set()
    seen: set[Node] = set()
    todo = [(node, output)]
    while todo and len(seen) < _MAX_NODES:
        one, output = todo.pop()
        before = parents(one)
        if node_name(one) in _PICKS and before and shape(one, output) != shape_before(one):
            axis = saved_axis(one, "dim", len(shape_before(one)))
            if axis is not None and of_node(before[0], axis, known=known) is not Origin.PARAMETERS:
                picked = getattr(one, "_saved_index", None) or getattr(one, "_saved_start", None)
                found.add((before[0], signed(picked) if picked else output))
        if one in seen:
            continue
        seen.add(one)
        todo.extend((e, i) for e, i in one.next_functions if e is not None)
        todo.extend(one.metadata.get(_MADE_OF, ()))  # weights, which are constants by now
    return found


def _order(node: Node, dims: int) -> list[int] | None:
    """Which axis of the operand each axis of the result is."""
    order, name = list(range(dims)), node_name(node)
    if name == "Permute":
        return [signed(d) % dims for d in node._saved_dims]
    if name == "Transpose":
        one, other = saved_axis(node, "dim0", dims), saved_axis(node, "dim1", dims)
        if one is None or other is None:
            return None
        order[one], order[other] = order[other], order[one]
    else:
        order.reverse()
    return order


def forwards(
    node: Node, axis: int, old: Sequence[int], new: Sequence[int], exactly: bool = True
) -> int | None:
    """Where an axis of the operand is in the result; ``None`` if it is no axis there any more.

    If not ``exactly``, an axis that was joined with others counts as the joint one.
    """
    name = node_name(node)
    if name in _ORDERS:
        order = _order(node, len(new))
        return None if order is None else order.index(axis)
    if name in _VIEWS:
        return _contained(axis, old, new, exactly)
    if name in _DIMENSIONS:
        at = saved_axis(node, "dim", max(len(old), len(new)))
        if at is None:  # a squeeze of everything of size one
            return _contained(axis, old, new, exactly=True)
        if name == "Unsqueeze":
            return axis + (axis >= at)
        if len(old) == len(new):
            return axis
        return None if axis == at else axis - (axis > at)
    if name in _REDUCTIONS:
        gone, kept = _reduced(node, len(old))
        if axis in gone:
            return None
        return axis if kept else axis - sum(g < axis for g in gone)
    moved = axis + len(new) - len(old)
    return moved if 0 <= moved < len(new) else None


def followed(axis: int, steps: Iterable[Node], exactly: bool = True) -> int | None:
    """Where an axis is after several nodes; one that was joined with others and split again is."""
    part: _Part | None = None
    for step in steps:
        old, new = shape_before(step), shape(step)
        if node_name(step) in _VIEWS:
            regrouped = _regrouped(axis, part, old, new, exactly)
            if regrouped is None:
                return None
            axis, part = regrouped
            continue
        moved = forwards(step, axis, old, new, exactly)
        if moved is None or (part is not None and old[axis] != new[moved]):
            return None
        axis = moved
    return None if exactly and part is not None else axis


def backwards(node: Node, axis: int, old: Sequence[int], new: Sequence[int]) -> int | None:
    """The axis of the operand that an axis of the result comes from, if it has one."""
    name = node_name(node)
    if name in _ORDERS:
        order = _order(node, len(new))
        return None if order is None else order[axis]
    if name in _VIEWS:
        return _contained(axis, new, old, exactly=False)
    if name in _DIMENSIONS:
        at = saved_axis(node, "dim", max(len(old), len(new)))
        if at is None:
            return _contained(axis, new, old, exactly=False)
        if name == "Unsqueeze":
            return None if axis == at else axis - (axis > at)
        return axis if len(old) == len(new) else axis + (axis >= at)
    if name in _REDUCTIONS:
        gone, kept = _reduced(node, len(old))
        if kept:
            return None if axis in gone else axis
        left = [d for d in range(len(old)) if d not in gone]
        return left[axis] if axis < len(left) else None
    moved = axis - len(new) + len(old)
    return moved if 0 <= moved < len(old) else None


def _reduced(node: Node, dims: int) -> tuple[set[int], bool]:
    """The axes that a reduction takes together, and whether they stay with size one."""
    saved = getattr(node, "_saved_dim", None)
    saved = [saved] if isinstance(saved, int) else saved
    axes = {signed(d) % max(1, dims) for d in saved} if saved else set(range(dims))
    return axes, bool(getattr(node, "_saved_keepdim", False))


def summed_axes(node: Node, dims: int) -> set[int]:
    """The axes that a sum or mean takes together."""
    return _reduced(node, dims)[0]


def _contained(axis: int, old: Sequence[int], new: Sequence[int], exactly: bool) -> int | None:
    """The axis of a reshaped tensor that is, that holds, or is a part of an axis of it before."""
    own = (old[axis], math.prod(old[axis + 1 :]))
    for i, n in enumerate(new):
        one = (n, math.prod(new[i + 1 :]))
        if one == own:
            return i
        if not exactly and n > 1 and (_holds(one, own) or _holds(own, one)):
            return i
    return None


def _holds(whole: tuple[int, int], part: tuple[int, int]) -> bool:
    """Whether one axis is others joined, another among them: each given by size and step."""
    (n, rest), (size, step) = whole, part
    if not min(n * rest, size * step):  # there are no entries
        return False
    return step % rest == 0 and (n * rest) % (size * step) == 0


def moved(tensor_or_node: Tensor | Node) -> Node | None:
    """The node of a tensor before it was viewed, cast or masked."""
    node: Node | None = (
        tensor_or_node.grad_fn if isinstance(tensor_or_node, Tensor) else tensor_or_node
    )
    while node is not None and node_name(node) in KEEP_ENTRIES and len(parents(node)) == 1:
        (node,) = parents(node)
    return node
