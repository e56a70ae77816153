"""Biases outside of the call: a constant added to, or multiplied into, the result of a linear map.

``x @ W + b``, a batch norm behind a convolution, ``conv(x) * scale + shift``: one linear map with
a bias, whose rule is that of ``F.linear(x, W, b)``.  A constant is a bias if it is the same for all
rows that the same weights make; positions, or a residual stream that does not depend on the inputs,
are summands of their own.  The last maps of a forward pass are remembered by their autograd node.
A constant that meets one of them, with nothing between but views, casts and constant factors, is
handed to the rule as the bias of that map.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.autograd.functions import WithValue, safe_ratio
from captum_lrp_tx.propagation.graph import Node, node_name
from captum_lrp_tx.propagation.interception.calls import Call, depends
from captum_lrp_tx.propagation.interception.spreading import HandedOver, handed_over, spread_through
from captum_lrp_tx.propagation.interception.writing import overwritten
from captum_lrp_tx.propagation.operations import Kind, LinearMap
from captum_lrp_tx.propagation.recognition.axes import signed
from captum_lrp_tx.propagation.state.layers import LEAF
from captum_lrp_tx.propagation.state.scope import TAP, tap

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Numbers that remembered maps may hold (their inputs and outputs) beside the newest map: enough
#: for whatever else is computed between a map and its bias, and little beside a large model.
_HELD = 1 << 23
#: Attribute of constants that are one row, repeated, with their version.
_ROW = "_captum_lrp_tx_row"
#: How many views and factors are followed.
_MAX_STEPS = 100

Replay = Callable[[Tensor, Node, int], Tensor]


def _shape(node: Node, number: int = 0) -> Any:
    return node._input_metadata[number].shape


def _reshape(x: Tensor, node: Node, number: int) -> Tensor:
    return x.reshape(_shape(node))


def _split(x: Tensor, node: Node, number: int) -> Tensor:
    """One part, by itself: torch forbids to change several views of one call in place."""
    dim, shapes = signed(node._saved_dim), [m.shape for m in node._input_metadata]
    return x.narrow(dim, sum(s[dim] for s in shapes[:number]), shapes[number][dim])


def _slice(x: Tensor, node: Node, number: int) -> Tensor:
    bounds = (node._saved_start, node._saved_end)
    start, stop = (None if b is None else signed(b) for b in bounds)
    result: Tensor = torch.ops.aten.slice.Tensor(x, node._saved_dim, start, stop, node._saved_step)
    return result


#: Views, by the name of their autograd node: how to do the same to another tensor.
_VIEWS: dict[str, Replay] = {
    **dict.fromkeys("View UnsafeView ReshapeAlias Squeeze Unsqueeze".split(), _reshape),
    **dict.fromkeys("Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes".split(), _split),
    "Clone": lambda x, node, _: x,
    "ToCopy": lambda x, node, _: x.to(node._input_metadata[0].dtype),
    "Copy": lambda x, node, _: x.to(node._input_metadata[0].dtype).expand(_shape(node)),
    "Expand": lambda x, node, _: x.expand(_shape(node)),
    "T": lambda x, node, _: x.t(),
    "Transpose": lambda x, node, _: x.transpose(signed(node._saved_dim0), signed(node._saved_dim1)),
    "Permute": lambda x, node, _: x.permute([signed(d) for d in node._saved_dims]),
    "Select": lambda x, node, _: x.select(signed(node._saved_dim), signed(node._saved_index)),
    "Slice": _slice,
    "Unbind": lambda x, node, number: x.select(signed(node._saved_dim), number),
}


def _factor(node: Node) -> Tensor | None:
    """The constant that a node multiplies by, if it does nothing else."""
    name = node_name(node)
    if name == "Neg":
        return torch.tensor(-1.0)
    if name not in ("Mul", "Div"):
        return None
    is_live = [edge is not None for edge, _ in node.next_functions]
    if is_live == [True, False] or is_live == [True]:
        other: Tensor = node._saved_other
        return other if name == "Mul" else other.reciprocal()
    if is_live == [False, True] and name == "Mul":
        this: Tensor = node._saved_self
        return this
    return None


@dataclass
class Step:
    """What happened to the result of a map: a view, or a constant factor."""

    view: Callable[[Tensor], Tensor] | None = None
    factor: Tensor | None = None
    #: Books the relevance that passes the boundary of a module here.
    add: Callable[[float], None] | None = None
    #: Whether the value of the map changed here, in the last bits.
    revalued: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        y = self.view(x) if self.view is not None else x
        y = y if self.factor is None else y * self.factor.to(y.device, y.dtype)
        return y if self.add is None else tap(y, self.add)


@dataclass
class Found:
    """A linear map that was remembered, its module, and what happened to its result since."""

    operation: LinearMap
    module: str
    shape: Sequence[int]
    steps: list[Step]


class Maps:
    """The last linear maps of a forward pass."""

    def __init__(self) -> None:
        self._made: OrderedDict[Node, tuple[LinearMap, str, int]] = OrderedDict()
        self._held = 0

    def remember(self, output: Any, operation: LinearMap, module: str) -> None:
        """Keep a map whose result under the rule in force is ``output``."""
        node = output.grad_fn if isinstance(output, Tensor) else None
        if node is None:
            return
        made = operation.made
        size = operation.input.numel() + (0 if made is None else made.numel())
        self._made[node] = (operation, module, size)
        self._held += size
        while self._held > _HELD and len(self._made) > 1:
            _, (_, _, size) = self._made.popitem(last=False)
            self._held -= size

    def forget(self) -> None:
        """Let go of everything, once the forward pass is over."""
        self._made.clear()
        self._held = 0

    def find(self, x: Tensor) -> Found | None:
        """The map that ``x`` is the result of, through views and constant factors."""
        if not self._made or x.numel() == 0:  # an expert that got no tokens
            return None
        node, number, steps = x.grad_fn, x.output_nr, list[Step]()
        for _ in range(_MAX_STEPS):
            if node is None:
                return None
            known = self._made.get(node)
            if known is not None:
                return Found(known[0], known[1], _shape(node, number), steps[::-1])
            step = _step(node, number)
            if step is None:
                return None
            steps.append(step)
            (node, number) = [edge for edge in node.next_functions if edge[0] is not None][-1]
        return None


def _step(node: Node, number: int) -> Step | None:
    """The step that a node stands for, or ``None`` if it is another kind of operation."""
    is_own = hasattr(type(node), "_forward_cls")
    view = None if is_own else _VIEWS.get(node_name(node))
    if view is not None:
        return Step(lambda x: view(x, node, number), add=node.metadata.get(TAP))
    if LEAF in node.metadata:
        return None  # the layer gets the relevance of its value, bias or not
    if getattr(type(node), "_forward_cls", None) is WithValue:
        return Step(revalued=True)
    factor = None if is_own else _factor(node)
    return None if factor is None else Step(factor=factor)


def composed(
    context: Context,
    found: Found,
    x: Tensor,
    call: Callable[[Tensor], Tensor],
    steps: list[Step],
    constant: Tensor,
    sources: Sequence[Any],
) -> LinearMap | None:
    """One linear map: the one found, the steps since and those given, and a constant added.

    Args:
        context (Context): Of the pass.
        found (Found): What :meth:`Maps.find` found for ``x``.
        x (Tensor): The result of that map as the model knows it.
        call (callable): From ``x`` to the result that the model expects.
        steps (list of Step): The factor or view in that call.
        constant (Tensor): What it adds; broadcasts against the result.
        sources (sequence): Tensors that give the constant its name.

    Returns:
        LinearMap or None: ``None`` if there is no such map.
    """
    inner = found.operation
    folded = _folded(found, [*found.steps, *steps])
    if folded is None:
        return None
    weight, path = folded
    made = inner.made
    if any(step.revalued for step in found.steps):
        value, run = call(x.detach()), call

        def call(y: Tensor) -> Tensor:
            return WithValue.call(value, run(y))

    def replay(y: Tensor, steps: Sequence[Step]) -> Tensor:
        for step in steps:
            y = step(y)
        return y

    def apply(i: Tensor, w: Tensor) -> Tensor:
        return replay(inner.apply(i, w), path)

    bias, own = constant, None
    if inner.bias is not None:
        untapped = [Step(s.view, s.factor) for s in [*found.steps, *steps]]
        own = replay(inner.bias.expand(found.shape) if untapped else inner.bias, untapped)
        bias = own + constant
    views = [Step(s.view) for s in path if s.view is not None]

    def energy(i: Tensor, w: Tensor) -> Tensor:
        return replay((inner.energy or inner.apply)(i, w), views)

    distribute = inner.distribute
    if views:
        distribute, known = spread_through(energy, weight), distribute
        if isinstance(known, HandedOver):
            distribute = known.moved(
                distribute, lambda share: replay(share.expand(found.shape), views)
            )

    def absorb(output: Tensor, taken: Any) -> None:
        if context.scope.ledger is None:
            return None
        taken = taken() if callable(taken) else taken
        if own is not None:
            if taken.dim() < bias.dim():  # the sum of both: told apart by nothing
                return inner.absorb(output, taken)
            share = own.expand_as(bias)  # the sum may be zero
            share = share if taken is bias else taken * safe_ratio(share, bias)
            if made is None:  # else it was booked where that was made
                inner.absorb(output, share)
            taken = taken - share
        return context.absorb(output, taken, *sources)

    return LinearMap(
        call, (x if made is None else replay(made, found.steps),), {}, absorb,
        input=inner.input, weight=weight, bias=bias, apply=apply,
        distribute=handed_over(context, found.module, distribute, own, bias),
        fold=None if path else inner.fold, energy=energy,
        by_row=inner.by_row and not path, channel=None if path else inner.channel,
    )  # fmt: skip


def _folded(found: Found, steps: list[Step]) -> tuple[Tensor, list[Step]] | None:
    """The factors go into the weights, which rules for signs look at; what is left are views.

    Returns:
        tuple or None: weights and steps; ``None`` if no weights of this kind have some factor of
        both signs.
    """
    weight, path = found.operation.weight, list[Step]()
    for step in steps:
        factor, folded = step.factor, None
        if factor is None:
            path.append(step)
            continue
        if factor.numel() == 1:
            folded = weight * factor.to(weight.device, weight.dtype).reshape(())
        elif found.operation.fold is not None:
            folded = found.operation.fold(weight, _before_views(factor, found.shape, path))
        if folded is None and bool((factor < 0).any()):
            return None
        if folded is None:
            path.append(step)
        else:
            weight = folded
            path += [] if step.add is None else [Step(add=step.add)]
    return weight, path


def of_zeros(result: Tensor) -> Tensor:
    """The result of a map of zeros (a first state, padding): its bias once for every row."""
    setattr(result, _ROW, result._version)  # until something is written into it
    return result


def _is_same_for_all_rows(
    context: Context, found: Found, x: Tensor, constant: Any, original: Any
) -> bool:
    """Whether a constant is a bias: told by its shape, so that no row has one of its own.

    Constants of their own for tokens or examples (positions, what another model made) are summands
    that have nothing to do with the map.  A dimension of size 1 does not show which it is: there a
    bias is what had one dimension, or is or was made of the whole of what the model stores.
    """
    if not isinstance(constant, Tensor):
        return True
    if constant.numel() == 1 and (constant.dim() < 2 or context.constants.is_of_model(constant)):
        return True  # else it may be the number of the only example
    if any(getattr(t, _ROW, None) == constant._version for t in (constant, constant._base)):
        constant = constant[(0,) * (constant.dim() - 1)]
    shape = torch.broadcast_shapes(x.shape, constant.shape)  # type: ignore[no-untyped-call]
    if shape.numel() != x.numel():
        return False
    views = [step for step in found.steps if step.view is not None]
    if constant.dim() == 1 and found.operation.channel == -1 and not views:
        return True
    if 1 in x.shape[-constant.dim() :]:
        base = constant if constant._base is None else constant._base
        stored = any(map(context.constants.is_whole, (constant, _once(constant))))
        if base.dim() != 1 and not (stored or isinstance(original, nn.Parameter)):
            return False
    rows = _rows_of(found)
    ones = torch.ones((), dtype=torch.float64, device=x.device).expand(x.shape)
    covered = _moved_back(ones, found.shape, views) != 0
    constant = constant[(0,) * (constant.dim() - x.dim())] if constant.dim() > x.dim() else constant
    numbers = _moved_back(_numbered(constant).expand(x.shape), found.shape, views)
    least = numbers.masked_fill(~covered, math.inf).amin(rows)
    most = numbers.masked_fill(~covered, -math.inf).amax(rows)
    return bool(((most <= least) | (most == -math.inf)).all())


def _rows_of(found: Found) -> list[int]:
    """The dimensions of a map's output along which all entries are made by the same weights."""
    operation, dims = found.operation, len(found.shape)
    if operation.channel is not None:
        return [d for d in range(dims) if d != dims + operation.channel]
    with torch.no_grad():
        weight = operation.weight.double()
        if weight.layout == torch.strided:
            numbers = torch.linspace(1, 2, weight.numel(), out=torch.empty_like(weight).flatten())
            weight = numbers.view(weight.shape)
        else:  # its values come at their places in a row, or in the order of a triangle
            weight = weight.clone()
            values = weight._values() if weight.is_sparse else weight.values()
            values.copy_(torch.linspace(1, 2, values.numel(), out=values.flatten()).view_as(values))
        made = operation.apply(torch.ones_like(operation.input, dtype=torch.float64), weight)
    return [d for d in range(dims) if torch.allclose(made, made.narrow(d, 0, 1), rtol=1e-12)]


def _once(constant: Tensor) -> Tensor:
    """What a constant really has, before it was expanded for a batch."""
    return constant[tuple(slice(1) if s == 0 else slice(None) for s in constant.stride())]


def _numbered(constant: Tensor) -> Tensor:
    """A number of its own for each entry that a constant really has, however far it is expanded."""
    once = _once(constant)
    numbers = torch.arange(1, once.numel() + 1, dtype=torch.float64, device=constant.device)
    return numbers.view(once.shape).expand(constant.shape)


def _moved_back(values: Tensor, shape: Sequence[int], views: list[Step]) -> Tensor:
    """Values of the result of some views where their entries were before."""
    if not views:
        return values.reshape(tuple(shape))
    with torch.enable_grad():
        start = torch.zeros(shape, dtype=values.dtype, device=values.device, requires_grad=True)
        end = start
        for step in views:
            end = step.view(end) if step.view is not None else end
        (moved,) = torch.autograd.grad(end, start, values.expand_as(end))
    return moved


def _before_views(factor: Tensor, shape: Sequence[int], path: list[Step]) -> Tensor:
    """A factor of the result of some views in the layout of what they were taken of."""
    if not any(step.view is not None for step in path):
        return factor
    moved = _moved_back(factor, shape, path)
    for d in range(moved.dim()):
        first = moved.narrow(d, 0, 1)
        moved = first if bool((moved == first).all()) else moved
    return moved


_ADD = "add add_ __add__ __radd__ __iadd__".split()
_SUB = "sub sub_ subtract subtract_ __sub__ __isub__".split()
#: What a call does with its operands, by its name and ``alpha``.
SUMS: dict[str, Callable[[float], tuple[float, float]]] = {
    **dict.fromkeys(_ADD, lambda alpha: (1, alpha)),
    **dict.fromkeys(_SUB, lambda alpha: (1, -alpha)),
    **dict.fromkeys(("rsub", "__rsub__"), lambda alpha: (-alpha, 1)),
}


def added_constant(context: Context, call: Call) -> Any:
    """The sum of a linear map's result and a constant; ``None`` if this is another sum."""
    (func, args, kwargs), name = call.parts, call.name
    if len(args) != 2 or kwargs.keys() - {"alpha"} or context.scope.rule(Kind.LINEAR) is None:
        return None
    where = [i for i in (0, 1) if depends(args[i])]
    if len(where) != 1:
        return None
    (i,) = where
    x, constant = args[i], args[1 - i]
    found = context.maps.find(x)
    if found is None or not _is_same_for_all_rows(context, found, x, constant, call.passed(1 - i)):
        return None
    if not isinstance(constant, Tensor):
        constant = torch.as_tensor(constant, dtype=x.dtype, device=x.device)
    if not bool(torch.isfinite(constant).all()):  # a mask
        return None
    scales = SUMS[name](kwargs.get("alpha", 1))
    shape = torch.broadcast_shapes(x.shape, constant.shape)  # type: ignore[no-untyped-call]
    steps = [] if scales[i] == 1 else [Step(factor=torch.tensor(float(scales[i])))]
    if shape != x.shape:
        steps.append(Step(lambda y: y.expand(shape)))
    inplace = call.is_inplace or name.startswith("__i")
    plain = getattr(torch, name.strip("_").removeprefix("i")) if inplace else func

    def run(y: Tensor) -> Tensor:
        operands = (y, args[1]) if i == 0 else (args[0], y)
        result: Tensor = plain(*operands, **kwargs)
        return result

    bias = constant if scales[1 - i] == 1 else constant * scales[1 - i]
    operation = composed(context, found, x, run, steps, bias.to(x.dtype), [constant])
    if operation is None:
        return None
    result = context.apply(Kind.LINEAR, operation)
    context.maps.remember(result, operation, context.scope.module)
    return overwritten(args[0], result) if inplace else result
