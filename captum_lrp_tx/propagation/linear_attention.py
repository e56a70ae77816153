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
    node_name,
    parents,
)

_MATMUL = frozenset({"Mm", "Bmm", "Baddbmm", "Addmm", "Einsum"})
_SCALED = KEEP_ENTRIES | {"Add", "Mul", "Div"}
_MAX_DEPTH = 40


def weights(args: Sequence[Any], factors: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Which of two factors weighs the other, neither of them made by a softmax.

    A factor weighs the other if that one is a sum of values by earlier weights, or if it alone is
    a feature map (from an activation).  Scores, i.e. another product of two input-dependent
    tensors, are no values: what multiplies them is left alone.

    Args:
        args (sequence): Arguments of the product.
        factors (sequence of two int): Positions of the input-dependent ones.

    Returns:
        tuple: the position of the weights, or none; whether both factors are feature maps, so that
        their product is a pattern without a softmax.
    """
    sums = [_is_sum_of_values(args[i]) for i in factors]
    if sums[0] != sums[1]:
        return (factors[1] if sums[0] else factors[0],), False
    strengths = [gate_strength(args[i]) for i in factors]
    if all(strengths):
        return (), True
    if any(strengths):
        feature, value = factors if strengths[0] else reversed(factors)
        if not _is_scores(args[value]):
            return (feature,), False
    return (), False


def _is_sum_of_values(tensor: Tensor) -> bool:
    return _leads_to(tensor, lambda node: has_role(node, Role.SUMMARY))


def _is_scores(tensor: Tensor) -> bool:
    return _leads_to(tensor, lambda node: node_name(node) in _MATMUL and len(parents(node)) > 1)


def _leads_to(tensor: Tensor, found: Callable[[Node], bool]) -> bool:
    """Whether a tensor is what is looked for, moved, masked or scaled since."""
    node = tensor.grad_fn
    for _ in range(_MAX_DEPTH):
        if node is None or found(node):
            return node is not None
        edges = parents(node)
        if len(edges) != 1 or node_name(node) not in _SCALED:
            return False
        node = edges[0]
    return False
