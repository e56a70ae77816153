"""Activations written by hand: ``x * sigmoid(x)``, ``0.5 * x * (1 + erf(x / sqrt(2)))``.

A product of ``x`` with a function of that very ``x``, entry by entry and bounded by an activation,
is an activation of ``x``, as if it had been called by its name.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from captum_lrp_tx.propagation.graph import (
    Node,
    bound_strength,
    edges,
    is_activation,
    is_softmax,
    node_name,
)

_SCALED = frozenset({"Mul", "Div", "ToCopy", "Alias", "Neg", "ScaleGradient"})
_ENTRYWISE = _SCALED | frozenset(
    "Add Sub Rsub Pow Exp Log1P Expm1 Clamp ClampMin ClampMax Reciprocal Minimum Maximum".split()
)
_MAX_NODES = 30


def activated(first: Tensor, second: Tensor, quotient: bool) -> int | None:
    """Position of the factor that the product of both is an activation of, if it is one.

    Args:
        first, second (Tensor): Factors, or a dividend and its divisor.
        quotient (bool): Whether the second divides.
    """
    if first.shape != second.shape:
        return None
    if _is_function_of(second, first):
        return 0
    return 1 if not quotient and _is_function_of(first, second) else None


def _is_function_of(gate: Tensor, signal: Tensor) -> bool:
    root = _unscaled(_edge(signal))
    todo = [_edge(gate)]
    seen: set[tuple[Node, int]] = set()
    is_active = False
    while todo:
        edge = todo.pop()
        if edge == root or edge in seen:
            continue
        seen.add(edge)
        node, name = edge[0], node_name(edge[0])
        active = is_activation(node) or name == "Exp" or bound_strength(node) > 0
        before = edges(node)
        if not before or len(seen) > _MAX_NODES or is_softmax(name):
            return False
        if not active and name not in _ENTRYWISE:
            return False
        is_active = is_active or active
        todo.extend(before)
    return is_active


def _edge(tensor: Tensor) -> tuple[Node, int]:
    """The node of a tensor, and which of its results the tensor is."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _unscaled(edge: tuple[Node, int]) -> tuple[Node, int]:
    """Where a factor comes from, before it was multiplied by numbers."""
    while node_name(edge[0]) in _SCALED and len(edges(edge[0])) == 1:
        (edge,) = edges(edge[0])
    return edge
