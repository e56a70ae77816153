"""Maps by constant weights, with the value that trainable weights give to the last bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import Combine, LinearValue
from captum_lrp_tx.propagation.interception.calls import Call
from captum_lrp_tx.propagation.operations import Kind, LinearMap
from captum_lrp_tx.propagation.recognition import axes, patterns

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def folds(context: Context, x: Tensor, weight: Tensor) -> bool:
    """Whether torch's choice of matrix product depends on the weight requiring a gradient."""
    shape, stride = x.shape, x.stride()  # is_contiguous() overlooks strides of dimensions of size 1
    for i in range(len(shape) - 2):
        if stride[i] != stride[i + 1] * shape[i + 1]:
            return weight.dim() <= 2 and context.constants.is_trainable(weight)
    return False


def of_constants(context: Context, call: Call) -> Any:
    """A product of constants, with the value that the plain model gives it."""
    if not any(context.constants.is_trainable(a) for a in call.args):
        return call.run()
    is_trainable = context.constants.is_trainable
    args = tuple(a.detach().requires_grad_() if is_trainable(a) else a for a in call.args)
    return call.replaced(args, call.kwargs).run().detach()


def folded_product(
    context: Context, func: Any, x: Tensor, weight: Tensor, weight_first: bool
) -> Callable[..., Any]:
    """``func`` for the matrix product of ``x`` and a constant, with the plain model's value."""
    if weight_first:  # torch folds for trainable weights only, whatever the strides
        is_matrix = weight.dim() <= 2 or (weight.dim() == 3 and weight.shape[0] == 1)
        if not (is_matrix and x.dim() > 2) or not context.constants.is_trainable(weight):
            return cast(Callable[..., Any], func)
    elif not folds(context, x, weight):
        return cast(Callable[..., Any], func)

    def call(first: Tensor, second: Tensor) -> Tensor:
        w, i = (first, second) if weight_first else (second, first)
        trainable, value = w.detach().requires_grad_(), i.detach()
        operands = (trainable, value) if weight_first else (value, trainable)

        def back(grad: Tensor) -> Tensor:
            if w.dim() == 1:  # no axis of its own in the result
                return w[:, None] * grad[..., None, :] if weight_first else grad[..., None] * w
            return w.mT @ grad if weight_first else grad @ w.mT

        return LinearValue.call(i, functools.partial(func, *operands), back)

    return call


def apply_linear(context: Context, operation: LinearMap) -> Any:
    """Let the rule for linear maps carry out the operation; book the bias where there is none."""
    if operation.bias is not None and operation.bias.requires_grad:  # a summand, no constant
        bare = replace(
            operation, func=operation.apply, args=(operation.input, operation.weight), kwargs={},
            bias=None,
        )  # fmt: skip
        return Combine.call(operation.value(), apply_linear(context, bare) + operation.bias)
    if context.scope.rule(Kind.LINEAR) is None or _only_adds_up(context, operation):
        output = operation.plain()
        if operation.bias is not None:
            operation.absorb(output, operation.bias)
    else:
        output = context.apply(Kind.LINEAR, operation)
        context.maps.remember(output, operation, context.scope.module)
    made = -1 if operation.by_row else operation.channel
    return mapped(context, operation.input, output, made if made is not None else operation.sources)


def _only_adds_up(context: Context, operation: LinearMap) -> bool:
    """Whether a product with constants is a sum or a mean, ``x @ ones``, which has no weights."""
    weight = operation.weight
    if isinstance(weight, torch.nn.Parameter) or context.constants.is_trainable(weight):
        return False
    if weight.layout is not torch.strided or weight.numel() == 0:
        return False
    return bool((weight == weight.flatten()[0]).all())


def mapped(
    context: Context, x: Tensor, output: Any, made: int | tuple[int | None, ...] | None
) -> Any:
    """``output``, which remembers what a map of ``x`` did to its axes.

    A map of patterns along another axis than theirs, between heads, makes patterns again.

    Args:
        context (Context): Of the pass.
        x (Tensor): What was mapped.
        output: The result.
        made: The axis that the weights made, all others staying as they are, or for every axis of
            the result which one it was; ``None`` if the map scales entries.
    """
    if context.scope.rule(Kind.ATTENTION) is None:
        return output
    if made is not None:
        axes.note(output, x, made)
    found = patterns.pattern_of(x)
    if found is None or found.is_entry:
        return output
    if found.axis is None or made is None:
        patterns.mark(output, found.axis)
    elif isinstance(made, tuple):
        if found.axis in made:
            patterns.mark(output, made.index(found.axis))
    elif found.axis != made % x.dim():
        patterns.mark(output, found.axis)
    return output  # summed over its axis it is no pattern any more
