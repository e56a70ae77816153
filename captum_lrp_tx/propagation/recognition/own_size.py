"""Norms that no name tells: what is divided by something that grows as it does.

A statistic ``s`` of degree one in ``x`` has, by Euler's theorem, a derivative along ``x`` that is
``s`` itself.  One partial backward pass, from the statistic to what it divides, tells whether that
holds, however the statistic is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_lrp_tx.propagation.graph import Node, node_name
from captum_lrp_tx.propagation.recognition import axes, homogeneity

#: How far from one the degree may be: of a sum of squares with a safeguard added.
_TOLERANCE = 1e-2


def is_divided_by_its_size(node: Node) -> bool:
    """Whether a quotient (or a product with a reciprocal) was divided by a norm of its dividend.

    Args:
        node (Node): Of the plain quotient or product of two input-dependent tensors.
    """
    first, second = node.next_functions
    if node_name(node) == "Div":
        return _has_degree(second, first, node._saved_other, node._saved_self, 1.0)
    values = node._saved_self, node._saved_other
    return _has_degree(second, first, values[1], values[0], -1.0) or _has_degree(
        first, second, values[0], values[1], -1.0
    )


def _has_degree(
    statistic: tuple[Node, int],
    factor: tuple[Node, int],
    size: Tensor | None,
    value: Tensor | None,
    degree: float,
) -> bool:
    if size is None or value is None or size.numel() >= value.numel():
        return False
    if size.is_complex() or not bool((size > 0).all()):
        return False
    if degree > 0 and _is_sum_of_moduli(size, value):
        return True
    source = homogeneity.moved(*factor)
    if homogeneity.is_known(statistic, source):
        return False
    at, of = GradientEdge(*source), GradientEdge(*statistic)
    whole = value if source == factor else _backward(GradientEdge(*factor), at, value)
    if whole is None:
        return False
    # once for all entries alike, and once weighted: a mean over entries may be one by chance
    ramp = torch.linspace(1, 2, size.numel(), dtype=size.dtype, device=size.device)
    for weight in (torch.ones_like(ramp), ramp):
        weight = weight.view(size.shape)
        gradient = _backward(of, at, weight / size)
        if gradient is None or gradient.shape != whole.shape:
            return False
        found = float((gradient * whole).detach().sum() / weight.sum())
        if abs(found - degree) >= _TOLERANCE:
            return False
    return True


def _is_sum_of_moduli(size: Tensor, value: Tensor) -> bool:
    """Whether a divisor is the sum of moduli of what it divides, by masks: no graph tells that."""
    if value.is_complex() or bool((value >= 0).all()):
        return False
    try:
        total = value.abs().sum_to_size(size.shape)
    except RuntimeError:  # the divisor has dimensions that the dividend lacks
        return False
    return torch.allclose(size, total) or torch.allclose(
        size * (value.numel() / size.numel()), total
    )


def _backward(of: GradientEdge, at: GradientEdge, gradient: Tensor) -> Tensor | None:
    """The gradient at one result, from that of another."""
    shape = axes.shape(of.node, of.output_nr)
    (found,) = torch.autograd.grad(
        [of], [at], [gradient.detach().reshape(shape)], retain_graph=True, allow_unused=True
    )
    return found
