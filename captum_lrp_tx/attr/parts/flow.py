"""Relevance from part to part, by walking the graph of one forward pass from reader to reader.

The modified backward pass is linear.  So the gradient that a reader (a head, an MLP, the output)
has at what it reads says what every writer below is to it.  It is carried down the residual stream
alone, from sum to sum: past norms, where they stand on the stream, and through the last linear map
of attention to the heads.  The inside of a branch is gone through once for each of its heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from captum_lrp_tx.attr.parts.layouts import moved_back, row_layout
from captum_lrp_tx.attr.parts.part_graph import NodeKind, PartNode
from captum_lrp_tx.attr.parts.watching import Branch, Sum, Watcher, root_of
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.backward.seeds import forget
from captum_lrp_tx.propagation.graph import Node, parents
from captum_lrp_tx.propagation.state.scope import Scope

Reader = int  # place in the list of nodes
Gradients = dict[Reader, Tensor]


@dataclass(eq=False)
class Place:
    """Where the gradients of readers are kept until the walk gets there.

    Attributes:
        tensor (Tensor): The result of a sum, the beginning of a stream, or a leaf.
        node (Node): Of the graph; where the entries of a stream were made.
        kept (Sum, optional): What it is the result of.
        number (int): Which of the results of the node it is.
        pending (dict): The gradients, by reader.
    """

    tensor: Tensor
    node: Node
    kept: Sum | None = None
    number: int = 0
    pending: Gradients = field(default_factory=dict)

    def add(self, reader: Reader, grad: Tensor) -> None:
        """Add a gradient."""
        known = self.pending.get(reader)
        self.pending[reader] = grad if known is None else known + grad


@dataclass(eq=False)
class Written:
    """Values of all that writes in one pass, in the order of the forward pass.

    Attributes:
        branches (list of Branch): What the branches write.
        leaves (list of Tensor): What is explained.
    """

    branches: list[Branch]
    leaves: list[Tensor]


class Flow:
    """One walk.

    Args:
        watcher (Watcher): Of a forward pass whose graph is alive.
        scope (Scope): With a ledger.
        target (Tensor): One value for each example.
        leaves (sequence of Tensor): What is explained.
        corrupted (Written, optional): Values of another pass; then edges are differences of values
            times gradients, and there is no rest for constants.

    Raises:
        InputError: examples cannot be told apart.
    """

    def __init__(
        self,
        watcher: Watcher,
        scope: Scope,
        target: Tensor,
        leaves: Sequence[Tensor],
        corrupted: Written | None = None,
    ) -> None:
        self._scope, self._batch, self._corrupted = scope, watcher.batch, corrupted
        self._mixed = watcher.mixed
        self._branches = {branch: i for i, branch in enumerate(watcher.branches)}
        self.nodes: list[PartNode] = []
        self.edges: dict[tuple[int, int], Tensor] = {}
        self._leaves = [
            Place(leaf, torch.autograd.graph.get_gradient_edge(leaf).node) for leaf in leaves
        ]
        self._places = {place.node: place for place in self._leaves}
        self._stems: dict[Place, tuple[Branch, Tensor, Callable[[Tensor], Tensor]]] = {}
        self._sums = [place for kept in watcher.sums for place in self._placed(kept)]
        self._walk(target)
        forget(scope)

    def edge_matrix(self) -> tuple[list[PartNode], Tensor]:
        """Nodes in the order of the forward pass, and edges ``(batch, nodes, nodes)``."""
        some = next(iter(self.edges.values()))
        matrix = some.new_zeros(self._batch, len(self.nodes), len(self.nodes))
        for (writer, reader), value in self.edges.items():
            matrix[:, writer, reader] = value
        idle = (matrix == 0).all(2).all(0).tolist()
        order = [
            i for i, node in enumerate(self.nodes)
            if node.kind != "constants" or node.constants or not idle[i]
        ][::-1]  # fmt: skip
        nodes, known = [self.nodes[i] for i in order], dict[str, int]()
        for node in nodes:
            known[node.name] = known.get(node.name, 0) + 1
            if known[node.name] > 1:
                node.name += f"#{known[node.name]}"
        return nodes, matrix[:, order][:, :, order]

    def _placed(self, kept: Sum) -> list[Place]:
        """The sum, behind the beginning of its stream if that is new."""
        found = []
        ends = self._ends([kept.stream.grad_fn])
        if all(end in self._leaves for end in ends):
            place, viewed = _beginning(kept.stream)
            found.append(place)
            self._stems[place] = kept.parts[0][0], kept.stream, viewed
        found.append(_result(kept.result, kept))
        self._places.update((place.node, place) for place in found)
        return found

    def _ends(self, nodes: Sequence[Node]) -> list[Place]:
        """The places that these nodes come from, the nearest on every way."""
        ahead, seen, found = list(nodes), set(), []
        while ahead:
            node = ahead.pop()
            if node in seen:
                continue
            seen.add(node)
            place = self._places.get(node)
            if place is None:
                ahead += parents(node)
            else:
                found.append(place)
        return found

    # ---- the walk ----------------------------------------------------------------------------
    def _walk(self, target: Tensor) -> None:
        values = target.detach().reshape(len(target) if target.dim() else 1, -1).sum(1)
        if len(values) != self._batch:
            raise InputError(
                f"There are {self._batch} examples and {len(values)} outputs; edges need one "
                "output for each example. Explain one example at a time."
            )
        output = self._node("output", "output")
        self._read(output, target, torch.ones_like(target), self._ends([target.grad_fn]), values)
        for place in reversed(self._sums):
            if place.kept is not None:
                self._pass_sum(place, place.kept)
            else:
                self._begin(place)
            place.pending.clear()
        for i, leaf in reversed(list(enumerate(self._leaves))):
            node = self._node("input" if len(self._leaves) == 1 else f"input {i}", "input")
            value = leaf.tensor.detach()
            if self._corrupted is not None:
                value = value - self._corrupted.leaves[i]
            for reader, grad in leaf.pending.items():
                self.edges[node, reader] = self._by_example(value * grad, value)

    def _pass_sum(self, place: Place, kept: Sum) -> None:
        for branch, part in reversed(kept.parts):
            arriving = place.pending
            if part is not kept.branch:
                end = _result(part)
                arriving = {
                    reader: self._carried(kept.branch, grad, [end])[0][0]
                    for reader, grad in arriving.items()
                }
            if branch in self._mixed and branch.heads is not None:
                self._pass_heads(branch, part, arriving)
            else:
                self._pass_whole(branch, part, arriving)
        ends = self._ends([kept.stream.grad_fn])
        constants = None
        for reader, grad in place.pending.items():
            if len(ends) == 1 and ends[0].node is kept.stream.grad_fn:
                ends[0].add(reader, grad)  # the stream is as the last sum, or its beginning
                continue
            if constants is None:
                branch = kept.parts[0][0]
                constants = self._node(f"constants before {_name(branch)}", "constants", branch)
            self._read(
                reader, kept.stream, grad, ends,
                self._by_row(kept.stream.detach() * grad, kept.stream), constants,
            )  # fmt: skip

    def _pass_whole(self, branch: Branch, part: Tensor, arriving: Gradients) -> None:
        node = self._node(_name(branch), branch.kind, branch)
        rows = row_layout(part.shape, self._batch)
        value = self._value(branch, "written")
        total = torch.zeros_like(part)
        for reader, grad in arriving.items():
            self.edges[node, reader] = self._summed(value * rows(grad))
            total = total + grad
        ends = self._ends([part.grad_fn])
        self._read(node, part, total, ends, self._by_row(part.detach() * total, part))

    def _pass_heads(self, branch: Branch, part: Tensor, arriving: Gradients) -> None:
        mixed, shaped = self._mixed[branch]
        assert branch.heads is not None
        own, value = branch.heads.value, self._value(branch, "heads")
        if len(own) != self._batch:
            raise InputError("The heads of single examples cannot be told; explain one at a time.")
        constants = self._node(f"constants of {_name(branch)}", "constants", branch)
        inner = self._node(f"constants in {_name(branch)}", "constants", branch)
        count = own.shape[1]
        nodes = [
            self._node(f"{_name(branch)}.h{i}", "head", branch, i) for i in reversed(range(count))
        ][::-1]
        end, total = _result(mixed), torch.zeros_like(mixed)
        for reader, grad in arriving.items():
            (at_heads,), booked = self._carried(part, grad, [end])
            total = total + at_heads
            found = _wide(value * shaped(at_heads)).sum((2, 3))
            for i, node in enumerate(nodes):
                self.edges[node, reader] = found[:, i]
            if self._corrupted is None:
                through = _wide(own * shaped(at_heads)).sum((1, 2, 3))
                rest = self._by_row(part.detach() * grad, part) - through
                self._rest(constants, reader, rest, booked)
        ends = self._ends([mixed.grad_fn])
        arrived = _wide(own * shaped(total)).sum((2, 3))
        for i, node in enumerate(nodes):
            mask = torch.zeros_like(own)
            mask[:, i] = 1
            masked = total * moved_back(mask, shaped, mixed)
            self._read(node, mixed, masked, ends, arrived[:, i], inner)

    def _begin(self, place: Place) -> None:
        """What a stream begins with is written by the embeddings, which read the inputs."""
        branch, stream, viewed = self._stems[place]
        node = self._node("embedding", "embedding")
        rows = row_layout(stream.shape, self._batch)
        value, total = branch.stream, torch.zeros_like(stream)
        if self._corrupted is not None:
            value = value - self._corrupted.branches[self._branches[branch]].stream
        for reader, grad in place.pending.items():
            grad = viewed(grad)
            self.edges[node, reader] = self._summed(value * rows(grad))
            total = total + grad
        ends = self._ends(parents(place.node))
        self._read(node, stream, total, ends, self._summed(branch.stream * rows(total)))

    # ---- steps -------------------------------------------------------------------------------
    def _read(
        self,
        reader: Reader,
        start: Tensor,
        grad: Tensor,
        ends: list[Place],
        arriving: Tensor,
        constants: int | None = None,
    ) -> None:
        """Carry the gradient of a reader on to what it comes from; constants take the rest."""
        grads, booked = self._carried(start, grad, ends)
        rest = arriving
        for end, found in zip(ends, grads, strict=True):
            end.add(reader, found)
            rest = rest - self._relevance(end, found)
        if self._corrupted is None:
            if constants is None:
                known = self.nodes[reader]
                constants = self._node(f"constants in {known.name}", "constants")
                self.nodes[constants].layer = known.layer
                self.nodes[constants].module = known.module
            self._rest(constants, reader, rest, booked)

    def _carried(
        self, start: Tensor, grad: Tensor, ends: list[Place]
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Gradients at the ends, and what constants on the way absorb, by name."""
        if not ends:
            return [], {}
        forget(self._scope)
        # what goes on from one end to another is carried when the walk gets to the first
        stops = [_stop(end) for end in ends] if len(ends) > 1 else []
        try:
            found = torch.autograd.grad(
                start, [GradientEdge(end.node, end.number) for end in ends], grad,
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
        finally:
            for stop in stops:
                stop.remove()
        # what is booked at an end belongs to the way that starts there
        beyond = {int(end.node._sequence_nr()) for end in ends}
        booked: dict[str, float] = {}
        assert self._scope.ledger is not None
        for entry in self._scope.ledger.entries:
            if entry.relevance and entry.number not in beyond:
                booked[entry.name] = booked.get(entry.name, 0.0) + entry.relevance
        return [
            torch.zeros_like(end.tensor) if g is None else g.detach()
            for end, g in zip(ends, found, strict=True)
        ], booked

    def _rest(self, node: int, reader: Reader, rest: Tensor, booked: dict[str, float]) -> None:
        self.edges[node, reader] = self.edges.get((node, reader), 0) + rest
        known = self.nodes[node]
        for name, value in booked.items():
            known.constants[name] = known.constants.get(name, 0.0) + value
        self.nodes[node].unexplained += float(rest.sum()) - sum(booked.values())

    def _node(
        self, name: str, kind: NodeKind, branch: Branch | None = None, number: int | None = None
    ) -> int:
        layer, module = (None, "") if branch is None else (branch.layer, branch.module)
        self.nodes.append(PartNode(name, kind, layer, module, number))
        return len(self.nodes) - 1

    # ---- values ------------------------------------------------------------------------------
    def _value(self, branch: Branch, what: str) -> Tensor:
        """What a branch or its heads write, less what they write in the corrupted pass."""
        value: Tensor = getattr(branch, what).value
        if self._corrupted is None:
            return value
        other: Tensor = getattr(self._corrupted.branches[self._branches[branch]], what).value
        return value - other

    def _relevance(self, end: Place, grad: Tensor) -> Tensor:
        product = end.tensor.detach() * grad
        if end in self._leaves:
            return self._by_example(product, end.tensor)
        return self._by_row(product, end.tensor)

    def _by_row(self, product: Tensor, like: Tensor) -> Tensor:
        """Sums for the examples of a residual stream."""
        return self._summed(row_layout(like.shape, self._batch)(product))

    def _by_example(self, product: Tensor, leaf: Tensor) -> Tensor:
        """Sums for the examples of an input."""
        if leaf.shape[:1] == (self._batch,):
            return self._summed(product)
        return self._by_row(product, leaf)

    def _summed(self, product: Tensor) -> Tensor:
        if len(product) != self._batch:
            if self._batch > 1:
                raise InputError(
                    f"{self._batch} examples cannot be told apart in a tensor of shape "
                    f"{tuple(product.shape)}; explain one at a time."
                )
            product = product.unsqueeze(0)
        return _wide(product).flatten(1).sum(1)


def _stop(place: Place) -> RemovableHandle:
    """Let no gradient go on from a place; torch has noted what arrives there before."""

    def stop(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        kept = list(grads)
        arriving = kept[place.number]
        kept[place.number] = None if arriving is None else torch.zeros_like(arriving)
        return tuple(kept)

    handle: RemovableHandle = place.node.register_prehook(stop)
    return handle


def _result(tensor: Tensor, kept: Sum | None = None) -> Place:
    return Place(tensor, tensor.grad_fn, kept, tensor.output_nr)


def _beginning(stream: Tensor) -> tuple[Place, Callable[[Tensor], Tensor]]:
    """Where the entries of a stream were made, and what brings gradients there into its shape.

    All that reads the stream comes by there; between that and the stream may lie views, such as the
    argument of a layer.
    """
    node = root_of(stream.grad_fn)
    if node is stream.grad_fn:
        return _result(stream), lambda grad: grad

    def before(values: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(stream, [GradientEdge(node, 0)], values, retain_graph=True)
        return found

    made = before(stream.detach())
    if made.shape == stream.shape and torch.equal(made, stream):
        return Place(made, node), lambda grad: grad
    places = torch.arange(stream.numel(), device=stream.device).view(stream.shape)
    numbers = torch.zeros_like(made, dtype=torch.int64)
    for digit in (1 << 24, 1 << 16, 1 << 8, 1):  # what bfloat16 can tell apart
        numbers += digit * before((places // digit % 256).to(stream.dtype)).long()

    def viewed(grad: Tensor) -> Tensor:
        found = torch.zeros_like(stream).flatten()
        return found.index_copy(0, numbers.flatten(), grad.flatten()).view(stream.shape)

    return Place(made, node), viewed


def _name(branch: Branch) -> str:
    return f"{'a' if branch.kind == 'attention' else 'm'}{branch.layer}"


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
