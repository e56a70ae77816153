"""Products whose meaning shows only in what becomes of them.

``p * v`` is attention if it is summed along the axis of ``p``, and a gate if not; ``f(k).T @ v`` is
half of linear attention if a query reads it, and a product of two layers if not.  Such a product is
computed once for each meaning, and :class:`Undecided` passes its gradient on to the meaning that
was confirmed, at first the plain one.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge

from captum_lrp_tx.propagation.autograd.functions import RuleFunction
from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, node_name, parents
from captum_lrp_tx.propagation.recognition import axes

#: Where the node of a product keeps the ``Summary`` of what it has summed.
SUMMARY = "captum_lrp_tx.summary"
#: Where the node of a product notes what it may be.
UNDECIDED = "captum_lrp_tx.undecided"
_SCALED = KEEP_ENTRIES | frozenset({"Mul", "Div", "Add", "Sub", "Undecided"})
_SUMS = frozenset("Sum Mean Cumsum Nansum".split())
_SCATTERED = frozenset("IndexAdd ScatterAdd SegmentReduce ScatterReduce IndexPut".split())
_MAX_NODES = 400


class Undecided(RuleFunction):
    """One value computed for several meanings; the gradient goes to the meaning ``chosen``."""

    chosen: int

    @staticmethod
    def forward(ctx: Any, value: Tensor, *meanings: Tensor) -> Tensor:
        ctx.chosen, ctx.count = 0, len(meanings)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return (None, *(grad[0] if i == ctx.chosen else None for i in range(ctx.count)))


@dataclass
class Weighed:
    """A product that may be values summed with weights.

    Attributes:
        of (weak reference to Node): Of the product, which itself leads here: a strong one would be
            a cycle that no collector sees.
        group (Node, optional): What made the weights; the summands of a loop share it.
        along (tuple of int): The axes to sum along, one of them, counted from the right; none if
            one entry was taken.
        confirmed (callable): Called with the meaning once that is known.
        values (Tensor, optional): What may be weighed, sampled at places that then are decided too.
        sums (sequence of (Weighed, int)): Products of keys and values that this one may read, and
            their meaning then.
        is_settled (bool): Whether it is.
    """

    of: weakref.ref[Node]
    group: Node | None
    along: tuple[int, ...]
    confirmed: Callable[[int], None] = field(repr=False)
    values: Tensor | None = field(default=None, repr=False)
    sums: Sequence[tuple[Weighed, int]] = field(default=(), repr=False)
    is_settled: bool = False

    @property
    def node(self) -> Node:
        """The node of the product."""
        return self.of()

    def confirm(self, meaning: int = 1) -> None:
        """From now on the gradient goes to this meaning."""
        if not self.is_settled:
            self.is_settled = True
            self.node.chosen = meaning
            self.confirmed(meaning)
            confirm_places(self.values)
            self.values = None
            for one, key in self.sums:
                one.confirm(key)
            self.sums = ()
        elif self.node.chosen != meaning:
            self.node.chosen = 0  # read in two ways: neither


def remember(result: Tensor, weighed: Weighed) -> None:
    """Let the node of a product know what it may be."""
    weighed.node.metadata[UNDECIDED] = weighed


def found(tensor: Any) -> Weighed | None:
    """The undecided product that a tensor is, moved or scaled since."""
    path = _path(getattr(tensor, "grad_fn", None))
    return None if path is None else path[0]


def confirm_places(values: Tensor | None) -> None:
    """Let places be part of the pattern that weighs what was sampled there, on any of its levels.

    Other products that are weighed (gated values, keys times values) stay what they are.
    """
    todo, seen = [getattr(values, "grad_fn", None)], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        before, weighed = parents(node), node.metadata.get(UNDECIDED)
        if weighed is not None:
            if any(node_name(one).startswith("GridSampler") for one in before):
                weighed.confirm()
        elif len(before) == 1 or node_name(node) in ("Stack", "Cat"):
            todo += before if node_name(node) in _SCALED | {"Stack", "Cat"} else []


def settle(result: Any) -> bool:
    """Whether a result sums what was undecided, which is then confirmed."""
    node: Node | None = getattr(result, "grad_fn", None)
    for _ in range(3):  # a sum may have been reshaped by the same call
        if node is None:
            return False
        name = node_name(node)
        if name in _SUMS or name in _SCATTERED or name == "Add":
            break
        before = parents(node)
        if name not in KEEP_ENTRIES or len(before) != 1:
            return False
        node = before[0]
    else:
        return False
    if name == "Add":
        return _settle_loop(node)
    source = parents(node)
    return bool(source) and _settle_sum(node, name, source[-1])


def _settle_sum(node: Node, name: str, source: Node) -> bool:
    dims = len(axes.shape(source))
    if name in ("Sum", "Mean", "Nansum"):
        along = axes.summed_axes(node, dims)
    else:
        axis = axes.saved_axis(node, "dim", dims)
        along = {0 if axis is None else axis}
    if node_name(source) in ("Stack", "Cat"):  # a loop whose results were joined
        joined = axes.saved_axis(source, "dim", dims)
        ones = [p[0] for p in map(_path, parents(source)) if p is not None and not p[0].along]
        groups = {one.group for one in ones}
        if joined in along and len(ones) > 1 and len(groups) == 1 and None not in groups:
            for one in ones:
                one.confirm()
            return True
        return False
    for weighed, steps in _paths(source):
        if name in _SCATTERED and weighed.group is None:
            continue  # to a place of its own each, perhaps: what has no name must be summed
        for axis in weighed.along:
            first = axis + len(axes.shape(weighed.node))
            if axes.followed(first, reversed(steps), exactly=name not in _SCATTERED) in along:
                weighed.confirm()
                return True
    return False


def settle_by_gradients(waiting: Iterable[weakref.ref[Weighed]], targets: Sequence[Tensor]) -> bool:
    """Confirm the patterns whose products are summed in a way that :func:`settle` did not see.

    However a sum is written (a product with ones, pooling, writes into a buffer), the explained
    values depend on the products through it alone: the gradient is the same all along the axis.

    Args:
        waiting (iterable of reference to Weighed): All products that were undecided.
        targets (sequence of Tensor): The explained values.

    Returns:
        bool: whether a backward pass was run to see.
    """
    held = [one for ref in waiting if (one := ref()) is not None]
    held = [one for one in held if (one.along or one.group is not None) and not one.is_settled]
    live = [target for target in targets if target.requires_grad]
    if not held or not live:
        return False
    totals = [_apart(target) for target in live]
    at = [GradientEdge(one.node, 0) for one in held]
    gradients = torch.autograd.grad(totals, at, retain_graph=True, allow_unused=True)
    reached = [(w, g) for w, g in zip(held, gradients, strict=True) if g is not None and g.any()]
    for one, gradient in reached:
        if any(_is_uniform(gradient, axis) for axis in one.along):
            one.confirm()
    alike: dict[tuple[Any, ...], list[Weighed]] = {}
    for one, gradient in reached:
        if not one.along:  # one of the entries of a pattern
            what = (one.group, gradient.shape, float(gradient.sum()), float(gradient.abs().max()))
            alike.setdefault(what, []).append(one)
    for entry in itertools.chain(*(found for found in alike.values() if len(found) > 1)):
        entry.confirm()
    return True


def _apart(target: Tensor) -> Tensor:
    """The sum of a target with a factor for each example: nothing is summed over these."""
    values = target.flatten()
    ramp = torch.linspace(1, 2, len(values), dtype=values.dtype, device=values.device)
    return (values * ramp).sum()


def _is_uniform(gradient: Tensor, axis: int) -> bool:
    """Up to rounding: sums may be taken in several steps."""
    precision = 64 * torch.finfo(gradient.dtype).eps
    differences = gradient - gradient.narrow(axis, 0, 1)
    return bool(differences.abs().max() <= precision * gradient.abs().max())


def _settle_loop(node: Node) -> bool:
    """``p[0] * v[0] + p[1] * v[1] + ...``, also ``p[:-1] @ v[:-1] + p[-1] * v[-1]``."""
    sides = [_first_of_sum(edge) for edge in parents(node)]
    entries = [one for one in sides if one is not None and not one.along]
    if len(sides) == 2 and len(entries) == 1 and entries[0].group is not None:
        other = parents(node)[1 - sides.index(entries[0])]
        if _is_summed_with(other, entries[0].group):
            entries[0].confirm()
            return True
    if len(sides) != 2 or any(s is None or s.along for s in sides):
        return False
    first, second = sides
    assert first is not None and second is not None
    if first is second or first.group is None or first.group is not second.group:
        return False
    first.confirm()
    second.confirm()
    return True


def _is_summed_with(node: Node, source: Node) -> bool:
    """Whether a result is values that other weights of the same softmax have summed."""
    for _ in range(_MAX_NODES):
        summary = node.metadata.get(SUMMARY)
        if summary is not None:
            return bool(summary.is_certain) and source in summary.weights
        before = parents(node)
        if len(before) != 1 or node_name(node) not in _SCALED:
            return False
        (node,) = before
    return False


def _first_of_sum(node: Node) -> Weighed | None:
    for _ in range(_MAX_NODES):
        path = _path(node)
        if path is not None:
            return path[0]
        if node_name(node) != "Add":
            return None
        node = parents(node)[-1]  # what was added last
    return None


def _path(node: Node | None) -> tuple[Weighed, list[Node]] | None:
    return next(_paths(node), None)


def _paths(node: Node | None) -> Iterator[tuple[Weighed, list[Node]]]:
    """The undecided products behind a node, and the nodes in between, the last first.

    A product may wait for several things at once: one of its meanings is undecided again.
    """
    steps: list[Node] = []
    for _ in range(_MAX_NODES):
        if node is None:
            return
        weighed: Weighed | None = node.metadata.get(UNDECIDED)
        if weighed is not None:
            yield weighed, list(steps)
        before = parents(node)
        if len(before) != 1 or node_name(node) not in _SCALED:
            return
        steps.append(node)
        node = before[0]
