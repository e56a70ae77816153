"""A pattern times values entry by entry: ``(p * v).sum(1)``, ``index_add``, a loop over tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    Node,
    edges,
    is_softmax,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.recognition import axes, patterns, weighing
from captum_lrp_tx.propagation.recognition.axes import Origin
from captum_lrp_tx.propagation.recognition.summaries import leads_to

_MAX_DEPTH = 400


@dataclass(frozen=True)
class Weights:
    """The factor that is a pattern.

    Attributes:
        position (int): 0 or 1.
        along (tuple of int): The axis that it sums to one along, in the product, counted from the
            right; none if this is one entry of it, several if the axis is not known.
        source (Node, optional): The softmax; of what has no name, what an entry was taken of.
        is_untold (bool): Whether a softmax made it in a way that no rule knows.
    """

    position: int
    along: tuple[int, ...]
    source: Node | None
    is_untold: bool = False

    @property
    def ways(self) -> list[Weights]:
        """The sums that make it attention: along an axis, or of entries that were taken of one."""
        taken = [replace(self, along=())] if self.source is not None else []
        return [replace(self, source=None)] * bool(self.along) + taken


def weights(first: Tensor, second: Tensor) -> Weights | None:
    """Which of two factors is a pattern that may weigh the other, if one is.

    Weights along an axis that only parameters have, on both sides, are a mixture of experts.
    """
    found = [patterns.pattern_of(first), patterns.pattern_of(second)]
    if found == [None, None]:
        return _unnamed(first, second)
    if None not in found:
        return None
    position = 0 if found[0] is not None else 1
    pattern, one, other = found[position], (first, second)[position], (second, first)[position]
    assert pattern is not None
    axis = None if pattern.axis is None else pattern.axis - one.dim()
    if pattern.is_entry or (axis is not None and one.shape[axis] == 1):
        if pattern.is_made_by_parameters and not _is_part_of_data(other):
            return None
        return Weights(position, (), pattern.source)
    if axis is None and pattern.logits is not None:  # entries of a softmax, laid out anew
        along = patterns.axes_of_ones(one)  # an axis that was split and joined again, say
        if len(along) != 1:
            return None
        axis = along[0] - one.dim()
    if axis is None:  # a pattern without a softmax
        shared = range(-min(one.dim(), other.dim()), 0)
        common = tuple(d for d in shared if one.shape[d] == other.shape[d] > 1)
        return Weights(position, common, None) if common and one.shape != other.shape else None
    has_axis = -axis <= other.dim() and other.shape[axis] > 1
    if not has_axis:
        return None  # one value spread out by weights: nothing is read
    made = axes.origin(other, axis, through_scores=True) if pattern.is_made_by_parameters else None
    return None if made is Origin.PARAMETERS else Weights(position, (axis,), pattern.source)


def _unnamed(first: Tensor, second: Tensor) -> Weights | None:
    """The same of factors that are no pattern by name."""
    kinds = [_kind(first), _kind(second)]
    if (kinds[0] is None) == (kinds[1] is None):
        return None
    position = 0 if kinds[0] is not None else 1
    one, other, kind = (first, second)[position], (second, first)[position], kinds[position]
    shared = range(-min(one.dim(), other.dim()), 0)
    common = tuple(d for d in shared if one.shape[d] == other.shape[d] > 1)
    along = () if one.shape == other.shape else common
    source = axes.moved(one) if _is_one_of_many(one) else None
    is_any = along or source is not None
    return Weights(position, along, source, kind == "untold") if is_any else None


def _kind(tensor: Tensor) -> str | None:
    """What a factor may be: a function of patterns, activated scores, or more than these."""
    if weighing.is_of_patterns(tensor, entry_by_entry=True):
        return "patterns"
    if leads_to(tensor, weighing.is_activated_score):
        return "scores"
    return "untold" if weighing.is_of_softmax(tensor.grad_fn) else None


def _is_one_of_many(tensor: Tensor) -> bool:
    """Whether a tensor was taken out of another along an axis of which this is one entry."""
    node: Node | None = tensor.grad_fn
    while node is not None and node_name(node) in KEEP_ENTRIES and len(parents(node)) == 1:
        at = axes.picked(node)
        (node,) = parents(node)
        if at is not None:
            return _may_be_weights(node, at)
    return False


def _may_be_weights(node: Node, axis: int) -> bool:
    """Whether entries along an axis may sum to one; not if a softmax along another made them."""
    for _ in range(_MAX_DEPTH):
        before, here = edges(node), axes.shape(node)
        if is_softmax(node_name(node)):
            along = axes.saved_axis(node, "dim", len(here))
            return along is None or along == axis
        moved = axes.backwards(node, axis, axes.shape(*before[0]), here) if before else None
        if len(before) != 1 or moved is None:
            return True
        node, axis = before[0][0], moved
    return True


def _is_part_of_data(tensor: Tensor) -> bool:
    """Whether a tensor was taken out of another along an axis of the data."""
    node = tensor.grad_fn
    for _ in range(_MAX_DEPTH):
        if node is None:
            return False
        before = parents(node)
        if len(before) != 1 or node_name(node) not in KEEP_ENTRIES:
            return False
        old, new = axes.shape_before(node), axes.shape(node)
        if node_name(node) in ("Select", "Unbind", "Slice") and old != new:
            at = axes.saved_axis(node, "dim", len(old))
            if at is not None:
                return axes.of_node(before[0], at) is Origin.DATA
        (node,) = before
    return False
