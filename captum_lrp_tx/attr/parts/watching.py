"""Finding heads, MLPs and the residual stream by what a model computes, not by its names.

A rule can be watched: a :class:`Watcher` sees every sum, attention and linear map of a pass.  A sum
``x + f(x)`` adds a *branch* to the residual stream ``x``, which the graph shows: ``f(x)`` comes
from ``x`` by way of linear maps or attention.  A branch with attention in it has heads, all others
count as MLPs, whose neurons are what their last linear map reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from captum_lrp_tx.attr.parts.layouts import (
    Shaped,
    head_layouts,
    moved_back,
    row_layout,
    told_layout,
)
from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.backward.seeds import forget
from captum_lrp_tx.propagation.engine import Pass
from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, node_name, parents
from captum_lrp_tx.propagation.operations import (
    FusedAttention,
    Kind,
    LinearMap,
    PatternProduct,
    PropagationRule,
    Residual,
    RuleTable,
)
from captum_lrp_tx.propagation.state.scope import Scope, current

BranchKind = Literal["attention", "mlp"]
#: Gets the gradient that arrives, returns the one that goes on (``None``: the same).
OnGradient = Callable[[Tensor], "Tensor | None"]
_WATCHED = (Kind.ATTENTION, Kind.RESIDUAL, Kind.LINEAR)
_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


@dataclass(eq=False)
class Seen:
    """A tensor of the forward pass, and the gradient that has arrived there.

    Attributes:
        value (Tensor): Detached, in the shape that ``shaped`` gives.
        gradient (Tensor, optional): In the same shape.
    """

    value: Tensor
    gradient: Tensor | None = None

    def relevance(self) -> Tensor:
        """Value times gradient; zero where none has arrived."""
        if self.gradient is None:
            return torch.zeros_like(self.value)
        return self.value * self.gradient


@dataclass(eq=False)
class Branch:
    """What one branch adds to the residual stream.

    Attributes:
        layer (int): Of the model, counted in the order of the forward pass.
        module (str): The module that makes it; a second call of it has ``#2`` behind its name.
        kind (str): ``"attention"`` or ``"mlp"``.
        written (Seen): What it adds, ``(batch, tokens, features)``.
        stream (Tensor): What it is added to, in the same shape.
        heads (Seen, optional): ``(batch, heads, tokens, channels)``, before they are mixed.
        neurons (Seen, optional): What the last linear map of an MLP reads, ``(batch, tokens,
            neurons)``.
        beside (list of Seen): What others add to the stream in the same sum.
    """

    layer: int
    module: str
    kind: BranchKind
    written: Seen
    stream: Tensor
    heads: Seen | None = None
    neurons: Seen | None = None
    beside: list[Seen] = field(default_factory=list)


@dataclass(eq=False)
class Sum:
    """Where branches are added to the residual stream, with the graph of the pass.

    Attributes:
        result (Tensor): Stream and branch added up.
        stream (Tensor): What passes by.
        branch (Tensor): What is added.
        parts (list of tuple): Attention and MLP that the branch is made of, each with what it adds.
    """

    result: Tensor
    stream: Tensor
    branch: Tensor
    parts: list[tuple[Branch, Tensor]]


class Masks:
    """What of a gradient goes on; the base lets everything pass."""

    def at_stream(self, branch: Branch) -> OnGradient | None:
        """For what passes the branch by."""
        return None

    def at_written(self, branch: Branch) -> OnGradient | None:
        """For what the branch adds."""
        return None

    def at_heads(self, branch: Branch) -> OnGradient | None:
        """For its heads, ``(batch, heads, tokens, channels)``."""
        return None

    def at_neurons(self, branch: Branch) -> OnGradient | None:
        """For its neurons."""
        return None


@dataclass(eq=False)
class _Watched(PropagationRule):
    """A rule whose results somebody sees; ``None`` is the plain gradient."""

    rule: PropagationRule | None
    see: Callable[[Any, Tensor], Tensor]

    def propagate(self, operation: Any) -> Tensor:
        """The result of the rule, or of the plain operation."""
        result = operation.plain() if self.rule is None else self.rule.propagate(operation)
        return self.see(operation, result)

    def __str__(self) -> str:
        return "GradientRule()" if self.rule is None else str(self.rule)

    @property
    def is_plain_gradient(self) -> bool:
        """As the rule."""
        return self.rule is None or self.rule.is_plain_gradient

    @property
    def gives_to_zero_inputs(self) -> bool:
        """As the rule."""
        return self.rule is not None and self.rule.gives_to_zero_inputs

    @property
    def covers_softmax(self) -> bool:
        """As the rule; the plain gradient does."""
        return self.rule is None or self.rule.covers_softmax


@dataclass(eq=False)
class Watcher:
    """Sees the operations of one forward pass, and the gradients of the backward pass.

    Args:
        batch (int): Number of examples.
        neurons (bool): Also see the neurons of MLPs.
        masks (Masks): What goes on.
    """

    batch: int
    neurons: bool = False
    masks: Masks = field(default_factory=Masks)
    branches: list[Branch] = field(default_factory=list)
    #: With their graph, until it is let go of.
    sums: list[Sum] = field(default_factory=list)
    #: What tells the heads of a branch, with what brings it into shape.
    mixed: dict[Branch, tuple[Tensor, Shaped]] = field(default_factory=dict)
    #: Attention with its result, and what linear maps read, by node.
    _attention: dict[Node, tuple[Tensor, FusedAttention | PatternProduct]] = field(
        default_factory=dict
    )
    _linear: dict[Node, Tensor] = field(default_factory=dict)
    #: Sums that add no branch, by node: both summands.
    _sums: dict[Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    #: Branches by number of the node of the stream that they read.
    _beside: dict[int, list[Branch]] = field(default_factory=dict)
    #: Number of the node of a stream, by number of the sum that a branch was added to it by.
    _below: dict[int, int] = field(default_factory=dict)

    def watch(self, job: Pass) -> Pass:
        """The same pass under watched rules.

        Raises:
            RuleError: A rule shares the relevance of residual sums in its own way.
        """

        def table(rules: RuleTable, everywhere: bool) -> RuleTable:
            if rules.get(Kind.RESIDUAL, (0, None))[1] is not None:
                raise RuleError(
                    f"{rules[Kind.RESIDUAL][1]} shares the relevance of residual sums in its own "
                    "way, so that parts do not add up; take another preset."
                )
            watched = dict(rules)
            for kind in _WATCHED:
                if everywhere or kind in rules:
                    priority, rule = rules.get(kind, (float("inf"), None))
                    watched[kind] = priority, _Watched(rule, self._see)
            return watched

        assigned = [(module, table(rules, False)) for module, rules in job.assigned]
        return replace(job, base=table(job.base, True), assigned=assigned, trace=True)

    def forget(self) -> None:
        """Let go of the graph, which otherwise leads to this object and back."""
        for held in (self._attention, self._linear, self._sums, self.sums, self.mixed):
            held.clear()

    # ---- the forward pass --------------------------------------------------------------------
    def _see(self, operation: Any, result: Tensor) -> Tensor:
        if result.grad_fn is None:
            return result
        with torch._C.DisableTorchFunction():  # none of the model's doing
            if isinstance(operation, (FusedAttention, PatternProduct)):
                self._attention[result.grad_fn] = result, operation
            elif isinstance(operation, LinearMap):
                if operation.input.requires_grad:
                    self._linear[result.grad_fn] = operation.input
            elif isinstance(operation, Residual):
                return self._sum(operation, result)
        return result

    def _sum(self, operation: Residual, result: Tensor) -> Tensor:
        for stream, branch in (
            (operation.first, operation.second),
            (operation.second, operation.first),
        ):
            root = self._stream_of(branch, stream)
            if root is None:
                continue
            if self._goes_on(branch, root) or not (
                _nearest(branch.grad_fn, root, self._attention)
                or _nearest(branch.grad_fn, root, self._linear)
            ):
                break  # hidden states of two layers; x + x ** 3 inside an activation
            parts = self._parts(branch, root)
            found = [self._branch(part, stream, root) for part in parts]
            self._note_beside(found, parts, root)
            masks = [m for b in found if (m := self.masks.at_stream(b)) is not None]
            if masks:
                alias = stream.view_as(stream)
                for mask in masks:
                    alias.register_hook(mask)  # type: ignore[no-untyped-call]
                result = torch.add(alias, branch)
            self._below[_number(result.grad_fn)] = root
            self.sums.append(Sum(result, stream, branch, list(zip(found, parts, strict=True))))
            return result
        self._sums[result.grad_fn] = operation.first, operation.second
        return result

    def _note_beside(self, found: list[Branch], parts: list[Tensor], root: int) -> None:
        """Branches that read the same stream: what passes one by may go through the others."""
        beside = self._beside.setdefault(root, [])
        for branch, part in zip(found, parts, strict=True):
            branch.beside = [other.written for other in found if other is not branch]
            for other in (*beside, *found):
                mask = None if other is branch else self.masks.at_stream(other)
                if mask is not None:
                    part.register_hook(mask)  # type: ignore[no-untyped-call]
        beside += found

    def _stream_of(self, branch: Tensor, stream: Tensor) -> int | None:
        """Number of the node that both come from, if the branch was computed from the stream."""
        if branch.grad_fn is None or stream.grad_fn is None:
            return None
        number: int | None = _number(root_of(stream.grad_fn))
        while number is not None:
            if any(_number(node) == number for node in _since(branch.grad_fn, number)):
                return number
            number = self._below.get(number)  # attention and MLP side by side
        return self._crossed(branch, root_of(stream.grad_fn))

    def _crossed(self, branch: Tensor, node: Node) -> int | None:
        """The same where rules cut the queries off, the only way from a stream to cross-attention.

        The stream is then known from the sum, perhaps behind a norm, that a branch has made.
        """
        root = _number(node)
        if _number(root_of(branch.grad_fn)) < root:
            return None
        for _ in range(3):
            if _number(node) in self._below:
                if self._goes_on(branch, _number(node)):
                    return None
                return root if _nearest(branch.grad_fn, root, self._attention) else None
            before = parents(node)
            if len(before) != 1:
                return None
            node = before[0]
        return None

    def _goes_on(self, branch: Tensor, root: int) -> bool:
        """Whether what looks like a branch is the stream itself, or goes through its later sums."""
        if _number(root_of(branch.grad_fn)) == root:
            return True
        for node in _since(branch.grad_fn, root):
            below = self._below.get(_number(node))
            while below is not None and below > root:
                below = self._below.get(below)
            if below == root:
                return True
        return False

    def _parts(self, branch: Tensor, root: int) -> list[Tensor]:
        """The branch, or attention and MLP whose sum it is."""
        parts = self._sums.get(root_of(branch.grad_fn))
        if parts is None or parts[0].shape != branch.shape:
            return [branch]
        heads = [bool(_nearest(p.grad_fn, root, self._attention)) for p in parts]
        if all(heads) or not any(heads):
            return [branch]
        return list(parts) if heads[0] else [parts[1], parts[0]]  # attention comes first

    def _branch(self, written: Tensor, stream: Tensor, root: int) -> Branch:
        attention = _nearest(written.grad_fn, root, self._attention)
        linear = [] if attention else _nearest(written.grad_fn, root, self._linear)
        scope = current()
        assert scope is not None
        kind: BranchKind = "attention" if attention else "mlp"
        maker = (attention or linear or [root_of(written.grad_fn)])[0]
        name = self._unique(_outermost(scope, _number(maker)))
        rows = row_layout(stream.shape, self.batch)
        found = Branch(
            self._layer(name, kind), name, kind, Seen(rows(written.detach())), rows(stream.detach())
        )
        if len(attention) == 1:
            result, operation = self._attention[attention[0]]
            layouts = head_layouts(operation, result, *found.stream.shape[:2])
            shaped = told_layout(layouts, result, written, rows)
            forget(scope)
            if shaped is not None:
                self.mixed[found] = result, shaped
                found.heads = _keep(result, shaped, self.masks.at_heads(found))
        if self.neurons and len(linear) == 1:
            read = self._linear[linear[0]]
            is_stream = _number(root_of(read.grad_fn)) == root  # what passes by arrives there, too
            if not is_stream and read.shape[:-1].numel() == stream.shape[:-1].numel():
                as_stream = torch.Size((*stream.shape[:-1], read.shape[-1]))
                found.neurons = _keep(
                    read, lambda x: rows(x.reshape(as_stream)), self.masks.at_neurons(found)
                )
        hook_gradient(written, found.written, rows, self.masks.at_written(found))
        self.branches.append(found)
        return found

    def _unique(self, name: str) -> str:
        count = sum(b.module.split("#")[0] == name for b in self.branches)
        return name if not count else f"{name}#{count + 1}"

    def _layer(self, name: str, kind: BranchKind) -> int:
        if not self.branches:
            return 0
        last = self.branches[-1]
        is_new = _prefix(last.module) != _prefix(name) or (kind, last.kind) == ("attention", "mlp")
        return last.layer + is_new


def _keep(x: Tensor, shaped: Shaped, mask: OnGradient | None) -> Seen:
    seen = Seen(shaped(x.detach()))
    hook_gradient(x, seen, shaped, mask)
    return seen


def hook_gradient(x: Tensor, seen: Seen, shaped: Shaped, mask: OnGradient | None) -> None:
    """Keep the gradient that arrives at a tensor, and let what a mask leaves of it go on.

    Args:
        x (Tensor): Of the forward pass.
        seen (Seen): Gets the gradient.
        shaped (callable): Moves entries only.
        mask (callable, optional): From the gradient in this shape to what goes on.
    """

    def arrive(grad: Tensor) -> Tensor | None:
        seen.gradient = shaped(grad.detach())
        if mask is None:
            return None
        kept = mask(seen.gradient)
        return None if kept is None else moved_back(kept, shaped, grad)

    x.register_hook(arrive)  # type: ignore[no-untyped-call]


def _number(node: Node) -> int:
    return int(node._sequence_nr())


def root_of(node: Node) -> Node:
    """Where the entries of a tensor were made, through what keeps entries."""
    while node_name(node) in KEEP_ENTRIES:
        before = parents(node)
        if len(before) != 1 or not parents(before[0]):  # a copy of what is explained
            break
        node = before[0]
    return node


def _since(node: Node, number: int) -> Iterator[Node]:
    """Nodes from which this one was computed and which are not older than a number."""
    ahead, seen = [node], set()
    while ahead:
        node = ahead.pop()
        if node in seen or _number(node) < number:
            continue
        seen.add(node)
        yield node
        ahead += parents(node)


def _nearest(node: Node, number: int, wanted: Any) -> list[Node]:
    """The first of the wanted nodes on every way back to a number."""
    ahead, seen, found = [node], set(), []
    while ahead:
        node = ahead.pop(0)
        if node in seen or _number(node) <= number:
            continue
        seen.add(node)
        if node in wanted:
            found.append(node)
        else:
            ahead += parents(node)
    return found


def _outermost(scope: Scope, number: int) -> str:
    """The outermost module that has made a node and is done."""
    inside = [call for call in scope.calls if call.start <= number < call.stop]
    if not inside:
        return scope.module
    return max(inside, key=lambda call: call.stop - call.start).module


def _prefix(name: str) -> str:
    match = _LAYER.match(name)
    return match[0] if match else ""
