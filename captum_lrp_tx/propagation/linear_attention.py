"""Attention without a softmax over a matrix of scores: which factor of a product weighs the other?

Linear attention computes ``f(q) @ (f(k).T @ v)`` (Katharopoulos et al. 2020; factorised attention
of CoaT; lambda layers), so its pattern ``f(q) @ f(k).T`` is never formed.  Holding that pattern
constant, as the rule for attention heads does, means that ``f(q)`` and ``f(k)`` are constants and
all relevance goes to the values.  In bilinear attention and in attention by sigmoid or ReLU, too,
one factor is the result of an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    Node,
    Role,
    gate_strength,
    has_role,
    is_activation,
    node_name,
    parents,
)

_MATMUL = frozenset({"Mm", "Bmm", "Baddbmm", "Addmm", "Einsum"})
_SCALED = KEEP_ENTRIES | {"Add", "Sub", "Mul", "Div"}
_MAX_DEPTH = 40


def weights(args: Sequence[Any], factors: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Which factors of a product weigh the remaining one, if no softmax made any of them.

    A sum of values by earlier weights is weighed by all other factors.  Of two factors, the one
    that comes from an activation (a feature map, or scores without a softmax) weighs the other.
    Bare scores, i.e. another product of two input-dependent tensors, are no values: what multiplies
    them is left alone.

    Args:
        args (sequence): Arguments of the product.
        factors (sequence of int): Positions of the input-dependent ones.

    Returns:
        tuple: the positions of the weights, if any; whether both factors are feature maps, so that
        their product is a pattern without a softmax.
    """
    sums = [i for i in factors if _is_sum_of_values(args[i])]
    if len(sums) == 1:
        return tuple(i for i in factors if i != sums[0]), False
    if len(factors) != 2:
        return (), False
    of_scores = [i for i in factors if _leads_to(args[i], _is_activated_score)]
    features = of_scores or [i for i in factors if gate_strength(args[i])]
    if len(features) == 2:
        return (), True
    if len(features) == 1:
        (value,) = (i for i in factors if i != features[0])
        if not _leads_to(args[value], _is_score):
            return (features[0],), False
    return (), False


def renormalizer(args: Sequence[Any], quotient: bool) -> int | None:
    """Position of what rescales a sum of values to weights of sum one: divisor or reciprocal."""
    if _is_sum_of_values(args[0]):
        return 1 if quotient or _leads_to(args[1], _is_reciprocal) else None
    if not quotient and _is_sum_of_values(args[1]) and _leads_to(args[0], _is_reciprocal):
        return 0
    return None


def is_weighed(tensor: Tensor) -> bool:
    """Whether a tensor is what an attention head has read: values weighed by a pattern."""
    return _is_sum_of_values(tensor) or _leads_to(
        tensor, lambda node: node_name(node) in ("ConstantPattern", "UniformAttention")
    )


def _is_sum_of_values(tensor: Tensor) -> bool:
    return _leads_to(tensor, lambda node: has_role(node, Role.SUMMARY))


def _is_score(node: Node) -> bool:
    return node_name(node) in _MATMUL and len(parents(node)) > 1


def _is_activated_score(node: Node) -> bool:
    return is_activation(node) and any(_walks_to(edge, _is_score) for edge in parents(node))


def _is_reciprocal(node: Node) -> bool:
    return node_name(node) == "Reciprocal"


def _leads_to(tensor: Tensor, found: Callable[[Node], bool]) -> bool:
    """Whether a tensor is what is looked for, moved, masked or scaled since."""
    return _walks_to(tensor.grad_fn, found)


def _walks_to(node: Node | None, found: Callable[[Node], bool]) -> bool:
    for _ in range(_MAX_DEPTH):
        if node is None or found(node):
            return node is not None
        edges = parents(node)
        if len(edges) != 1 or node_name(node) not in _SCALED:
            return False
        node = edges[0]
    return False
