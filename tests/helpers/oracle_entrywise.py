"""The oracle's part for patterns that weigh entry by entry: ``(p * v).sum(1)``, loops, index_add.

Where an axis goes is found by sending its coordinates along: the recorded operations that move the
entries of a softmax are run on a tensor that holds, for every entry, its place along the axis of
the softmax.  If what is summed up meets several places, the softmax weighs what it multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

_MOVING = frozenset(
    """view _unsafe_view reshape _reshape_alias expand permute transpose t unsqueeze squeeze clone
    contiguous alias slice select split split_with_sizes unbind as_strided unfold repeat flip index
    index_select""".split()
)
_KEEPING = frozenset("_to_copy to dropout masked_fill nan_to_num convert_element_type".split())
_BY_CONSTANT = frozenset("mul div add sub neg".split())
_TAKEN = frozenset("getitem topk gather sigmoid relu exp softplus _softmax".split())
_SUMS = frozenset("sum mean cumsum".split())
_SCATTERED = frozenset("index_add scatter_add".split())


def base(node: fx.Node) -> str:
    """The name of an operation without namespace and underscore."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return "getitem"
    name = node.target._schema.name.split("::")[-1]
    return name if name.startswith("_") else name.rstrip("_")


def _along(node: fx.Node, axis: int) -> Tensor:
    """For every entry of a node's result its place along an axis."""
    shape = node.meta["shape"]
    line = torch.arange(shape[axis], dtype=torch.float64)
    return line.view([-1 if d == axis % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def _sent(user: fx.Node, node: fx.Node, places: Any, depends: set[fx.Node]) -> Any:
    """What becomes of the places in an operation; None if it does more than move entries."""
    name = base(user)
    if name == "getitem":
        return places[user.args[1]] if isinstance(places, (tuple, list)) else None
    if user.args[:1] == (node,) and name in _MOVING:
        if any(isinstance(a, fx.Node) for a in tree_leaves(user.args[1:])):
            return None
        operation: Any = user.target
        arguments = (user.meta["shape"],) if name.endswith("view") else user.args[1:]
        if name.endswith("view"):
            return places.reshape(*arguments)
        return operation(places, *arguments, **user.kwargs)
    alone = [a for a in user.all_input_nodes if a in depends] == [node]
    if name in _KEEPING or (name in _BY_CONSTANT and alone):
        return places.expand(user.meta["shape"])
    return None


def attends(softmax: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether a softmax multiplies values entry by entry that are then summed along its axis."""
    axis = softmax.args[1]
    if not isinstance(axis, int) or is_routed(softmax, depends):
        return False
    entries: dict[fx.Node, set[float]] = {}
    todo: list[tuple[fx.Node, Any, bool]] = [(softmax, _along(softmax, axis), False)]
    while todo:
        node, places, is_product = todo.pop()
        for user in node.users:
            name = base(user)
            others = [a for a in user.all_input_nodes if a in depends and a is not node]
            if name == "mul" and others and not is_product:
                todo.append((user, places.expand(user.meta["shape"]), True))
            elif is_product and name in _SUMS | _SCATTERED:
                if _varies(user, node, places, name):
                    return True
            elif is_product and name == "add" and others:
                values = set(places.unique().tolist())
                if len(values) == 1:  # one turn of a loop
                    seen = entries.setdefault(softmax, set())
                    seen |= values
                    if len(seen) > 1:
                        return True
            else:
                sent = _sent(user, node, places, depends)
                if sent is not None:
                    todo.append((user, sent, is_product))
    return False


def _varies(user: fx.Node, node: fx.Node, places: Tensor, name: str) -> bool:
    if name in _SCATTERED:
        if user.args[-1] is not node and user.args[3:4] != (node,):
            return False
        dims: Any = [user.args[1]]
    else:
        dims = user.args[1] if len(user.args) > 1 else list(range(places.dim()))
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    dims = list(dims) or list(range(places.dim()))
    return bool((places.amax(dims) > places.amin(dims)).all())


def is_routed(softmax: fx.Node, depends: set[fx.Node], chosen: bool = False) -> bool:
    """Whether the axis of a softmax counts the outputs of a linear map: experts, not tokens.

    ``chosen``: only if the largest were chosen (of BAT the outputs of a map weigh rows of pixels).
    """
    axis: Any = softmax.args[1]
    node: Any = softmax.args[0]
    if base(softmax) == "div":  # activations by their own sum
        total: Any = softmax.args[1]
        while base(total) != "sum":
            total = total.args[0]
        (axis,) = total.args[1]
        while base(node) in _MOVING | _KEEPING:
            node = node.args[0]
    path: list[fx.Node] = []
    while isinstance(node, fx.Node) and base(node) in _TAKEN | _MOVING | _KEEPING | _BY_CONSTANT:
        if base(node) in ("topk", "gather"):
            return True  # the best experts
        live = [a for a in node.all_input_nodes if a in depends]
        if len(live) != 1:
            return False
        path.append(node)
        (node,) = live
    if chosen:
        return False
    if not isinstance(node, fx.Node) or base(node) not in ("convolution", "mm", "addmm", "linear"):
        return False
    places: Any = _along(node, 1 if base(node) == "convolution" else -1)
    for user in reversed(path):
        before = next(a for a in user.all_input_nodes if a in depends)
        if base(user) not in ("sigmoid", "relu", "exp", "softplus", "_softmax"):
            places = _sent(user, before, places, depends)
        if places is None:
            return False
    return bool((places.amax(axis) > places.amin(axis)).all())


def is_own_sum(node: fx.Node) -> bool:
    """Whether a quotient divides weights, made by an activation, by their own sum."""
    numerator, divisor = node.args[:2]
    if not isinstance(divisor, fx.Node) or not isinstance(numerator, fx.Node):
        return False
    while base(divisor) in _MOVING | _KEEPING | {"add", "clamp"}:
        divisor = divisor.args[0]
    activation = numerator
    while base(activation) in _MOVING | _KEEPING:
        activation = activation.args[0]
    is_weight = base(activation) in ("sigmoid", "exp", "relu", "softplus")
    return base(divisor) == "sum" and divisor.args[0] is numerator and is_weight
