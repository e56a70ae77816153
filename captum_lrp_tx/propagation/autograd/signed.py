"""Rules for linear maps that tell contributions by their sign, in two products more than plain.

A contribution ``x_i w_ij`` has the size ``|x_i| |w_ij|``, so next to the plain product ``z = x W``
one of magnitudes, ``A = |x| |W|``, holds all there is to know: the positive contributions sum up to
``(A + z) / 2``, the negative ones to ``(z - A) / 2``.  Backward likewise: relevance that treats
contributions by their sign is a part that goes through ``W`` and one that goes through ``|W|`` and
takes the sign of the input.

``A`` is computed in the backward pass: not at all where no relevance arrives (queries and keys
under a constant pattern, gates), for a few rows where only they get any, and ``|W|`` is there for
one layer at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_lrp_tx.propagation.autograd.copies import kept
from captum_lrp_tx.propagation.autograd.functions import RuleFunction, share_of_way
from captum_lrp_tx.propagation.autograd.handing_over import relevance_of_bias
from captum_lrp_tx.propagation.autograd.rows import rows_with_entries
from captum_lrp_tx.propagation.operations import LinearMap

#: A way for relevance: pre-activation without bias, its bias, share of the output relevance.
Way = tuple[Tensor, "Tensor | None", "Tensor | float"]
#: Magnitudes are a sum that may leave the range of float16 where the two signed sums do not.
_SCALE = {torch.float16: 0.25}


class SignedRule(Protocol):
    """What is asked of a rule here."""

    epsilon: float
    #: Whether the relevance of biases goes to the inputs (``"distribute"``), or biases are no part
    #: of the denominators (``"ignore"``).
    bias: str | None

    def factors(
        self, operation: LinearMap, output: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """What the gradient at an output is multiplied by on its way through ``W`` and ``|W|``.

        Args:
            operation (LinearMap): The map, without a graph.
            output (Tensor): Its value.
            magnitudes (Tensor): ``|x| |W|`` in the shape of the output, single precision at least;
                may be overwritten.

        Returns:
            Two tensors, or ``None`` if rounding errors of sums would show: then :meth:`ways` acts.
        """

    def ways(self, operation: LinearMap, output: Tensor) -> list[Way]:
        """The same rule by signed sums of their own."""


class Signed(RuleFunction):
    """A linear map with the backward pass of a rule for signed contributions.

    ``y`` is the map as torch computes it, with a graph that leads to ``x``: it carries the part of
    the relevance that goes through ``W``.  The gradient at ``books``, if given, is the relevance
    of the bias.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, books: Tensor | None, operation: LinearMap, rule: SignedRule
    ) -> Tensor:
        ctx.save_for_backward(kept(x), y, operation.weight, operation.bias)
        # nothing that leads to the graph of the model, or to its inputs
        ctx.operation = LinearMap(
            _gone, (), {}, input=y.new_empty(0), weight=y.new_empty(0), bias=None,
            apply=operation.apply, distribute=operation.distribute, by_row=operation.by_row,
        )  # fmt: skip
        ctx.rule, ctx.books = rule, books is not None
        return y.clone()  # not a view: the model may go on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        x, y, weight, bias = ctx.saved_tensors
        g = grad[0]
        rows, shapes = None, (y.shape, x.shape)
        if ctx.operation.by_row and g.dim() > 1 and (bias is None or bias.dim() == 1):
            rows = rows_with_entries(g.reshape(-1, g.shape[-1]))
        if rows is not None:
            x, y, g = (t.reshape(-1, t.shape[-1])[rows] for t in (x, y, g))
        operation = replace(ctx.operation, input=x, weight=weight, bias=bias)
        spreads = ctx.rule.bias == "distribute"
        to_y, to_x, of_bias = _shared(ctx.rule, operation, y, g, ctx.books or spreads)
        if of_bias is not None and spreads:
            to_x = to_x + ctx.operation.distribute(x, of_bias)
        if rows is not None:
            to_y = None if to_y is None else _scattered(to_y, rows, shapes[0])
            to_x = _scattered(to_x, rows, shapes[1])
        booked = of_bias.double().sum() if ctx.books and of_bias is not None else None
        return to_y, to_x, booked, None, None


class Silent(RuleFunction):
    """A zero that depends on ``x`` but sends nothing back: a place to put hooks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros((), dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return None


def _gone(*_: Any) -> Any:
    raise AssertionError("the operation has run")


def _scattered(part: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    whole = part.new_zeros(shape[:-1].numel(), part.shape[-1])
    whole[rows] = part
    return whole.view(*shape[:-1], -1)


def _times(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``, within the range of a narrower gradient."""
    product = grad * factor
    if product.dtype == grad.dtype:
        return product
    largest = torch.finfo(grad.dtype).max
    return product.clamp(-largest, largest).to(grad.dtype)


def _shared(
    rule: SignedRule, operation: LinearMap, y: Tensor, g: Tensor, asks_for_bias: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients at the plain output and at the input, and the relevance of the bias."""
    x, bias = operation.input, operation.bias if asks_for_bias else None
    scale = _SCALE.get(x.dtype, 1.0)
    with torch.enable_grad():
        sizes = x.abs() if scale == 1.0 else x.abs() * scale
        total = operation.apply(sizes.requires_grad_(), operation.weight.abs())
    magnitudes = total.detach()
    if magnitudes.dtype in (torch.float16, torch.bfloat16):
        magnitudes = magnitudes.float().div_(scale)
    factors = rule.factors(operation, y, magnitudes)
    if factors is None:
        return None, *_by_ways(rule, operation, y, g)
    to_y, to_sizes = (_times(g, factor) for factor in factors)
    (at_sizes,) = torch.autograd.grad(total, sizes, to_sizes)
    of_bias = None
    if bias is not None:
        of_bias = relevance_of_bias(to_y, bias, operation.by_row)
        of_bias = of_bias + relevance_of_bias(to_sizes, bias.abs(), operation.by_row)
    return to_y, at_sizes * x.sign(), of_bias


def _by_ways(
    rule: SignedRule, operation: LinearMap, y: Tensor, g: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradient at the input and relevance of the bias, from signed sums of their own."""
    with torch.enable_grad():
        leaf = operation.input.detach().requires_grad_()
        ways = rule.ways(replace(operation, input=leaf), y)
    parts: list[Tensor] = []
    of_bias: Tensor | None = None
    for z, bias, share in ways:
        counted = None if rule.bias == "ignore" else bias
        biased = z.detach() if counted is None else z.detach() + counted
        parts.append(share_of_way(g, y, biased, share, rule.epsilon))
        if counted is not None:
            of_bias = parts[-1] * counted if of_bias is None else of_bias + parts[-1] * counted
    (at_input,) = torch.autograd.grad([z for z, _, _ in ways], leaf, parts)
    return at_input, of_bias
