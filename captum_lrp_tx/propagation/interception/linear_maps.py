"""Linear layers, convolutions and batch norm in eval mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import Combine, LinearValue, WithValue, safe_ratio
from captum_lrp_tx.propagation.autograd.handing_over import spread_last
from captum_lrp_tx.propagation.autograd.pattern_product import LOW_PRECISION
from captum_lrp_tx.propagation.autograd.rows import product_of_rows
from captum_lrp_tx.propagation.graph import mark_node
from captum_lrp_tx.propagation.interception.biases import Step, composed, of_zeros
from captum_lrp_tx.propagation.interception.calls import Call, Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import (
    apply_linear,
    folds,
    mapped,
    of_constants,
)
from captum_lrp_tx.propagation.interception.contractions import contraction
from captum_lrp_tx.propagation.interception.norms import batch_statistics
from captum_lrp_tx.propagation.interception.quantised import (
    QuantisedMap,
    check_wrapped,
    constant_weight,
    dequantised,
    drawn,
    is_wrapped,
)
from captum_lrp_tx.propagation.interception.spreading import spread_through
from captum_lrp_tx.propagation.operations import Kind, LinearMap
from captum_lrp_tx.propagation.recognition import patterns, weighing
from captum_lrp_tx.propagation.recognition.rescaling import UNTOLD

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


#: From so many tokens on, a backward pass that leaves out rows without gradient pays.
_MANY_ROWS = 64
_OPERANDS = ("input", "weight", "bias")
#: On so many rows a layer with a quantised weight is tried.
_TRIED = 8


def _linear(context: Context, call: Call) -> Any:
    func = call.func
    x, weight, bias = call.args if len(call.args) == 3 else call.bind(_OPERANDS)
    if is_wrapped(weight):
        weight = constant_weight(weight)
        is_told = id(weight) in context.claims or dequantised(weight, x.dtype) is not None
        if is_told and depends(x) and not depends(weight):
            return _wrapped_linear(context, call, x, weight, bias)
    is_vector = weight.dim() == 1  # which makes no axis: the product ``x @ weight``
    if depends(weight) or (is_vector and depends(x)):
        product = contraction(
            context, call.replaced((x, weight), func=torch.matmul if is_vector else None)
        )
        if bias is None:
            return product
        with torch.no_grad():
            value = func(x, weight, bias)
        with context.watching():
            return Combine.call(value, product + bias)
    if not depends(x):
        result = of_constants(context, call.replaced((x, weight, bias)))
        return result if bias is None or bool(x.any()) else of_zeros(result)
    run = func
    trainable = folds(context, x, weight)
    rows = x.numel() // max(1, x.shape[-1]) if x.dim() > 1 else 1
    if trainable or rows >= _MANY_ROWS:

        def run(i: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            value = w.detach().requires_grad_() if trainable else w
            stock = functools.partial(func, i.detach(), value, b)
            return LinearValue.call(i, stock, lambda g: product_of_rows(g, w))

    if context.scope.ledger is None and context.scope.rule(Kind.LINEAR) is None:
        return mapped(context, x, run(x, weight, bias), -1)
    operation = LinearMap(
        run, (x, weight, bias), {}, context.absorber(bias),
        input=x, weight=weight, bias=bias,
        apply=lambda i, w: func(i, w), distribute=spread_last, by_row=True,
        channel=-1, fold=fold_last,
    )  # fmt: skip
    return apply_linear(context, operation)


def _fold(weight: Tensor, factor: Tensor, *, channel: int, groups: int | None) -> Tensor | None:
    """Weights times a factor for each output channel.

    Args:
        weight (Tensor): Of a linear layer or a convolution.
        factor (Tensor): Broadcasts against the results.
        channel (int): The dimension of the channels in the results, from the last.
        groups (int, optional): Of a transposed convolution, which keeps its outputs by group.

    Returns:
        Tensor or None: the weights, or ``None`` if the factor differs elsewhere.
    """
    sizes = dict(zip(range(-1, -factor.dim() - 1, -1), reversed(factor.shape), strict=True))
    if weight.dim() < 2 or any(n != 1 for d, n in sizes.items() if d != channel):
        return None
    factor = factor.reshape(-1).to(weight.dtype)
    if groups is not None and factor.numel() > 1:  # weights (inputs, outputs / groups, ...)
        factor = factor.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
        factor = factor.reshape(*weight.shape[:2], *(1,) * (weight.dim() - 2))
        return weight * factor
    return weight * factor.view(-1, *(1,) * (weight.dim() - 1))


fold_last = functools.partial(_fold, channel=-1, groups=None)


def _wrapped_linear(context: Context, call: Call, x: Tensor, weight: Tensor, bias: Any) -> Any:
    """A linear layer whose weight is a tensor of another class: a product with its numbers."""
    func = call.func

    def plain() -> Tensor:
        return cast(Tensor, dequantised(weight, x.dtype))

    _check_once(
        context, weight, drawn(x.detach(), _TRIED),
        lambda i: func(i, weight, bias), lambda i: func(i, plain(), bias),
    )  # fmt: skip

    def run(i: Tensor, *_: Any) -> Tensor:
        stock = functools.partial(func, i.detach(), weight, bias)
        return LinearValue.call(i, stock, lambda g: product_of_rows(g, plain().to(g.dtype)))

    operation = QuantisedMap(
        run, (x,), {}, context.absorber(bias),
        input=x, weight=plain, bias=bias,
        apply=lambda i, w: func(i, w), distribute=spread_last, by_row=True,
        channel=-1, fold=fold_last,
    )  # fmt: skip
    return apply_linear(context, operation)


def _check_once(
    context: Context,
    weight: Tensor,
    probe: Tensor,
    run: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
) -> None:
    """:func:`~.quantised.check_wrapped`, once in a pass for each weight."""
    if id(weight) not in context.claims:
        check_wrapped(run, reference, probe, context.running(), type(weight).__name__)
        context.claims[id(weight)] = weight  # kept, so that no other takes its id


def _convolution(context: Context, call: Call) -> Any:
    func = call.func
    x, weight, bias = call.bind(_OPERANDS)
    rest = call.args[3:]
    more = {k: v for k, v in call.kwargs.items() if k not in _OPERANDS}
    if not depends(x) or depends(weight):
        result = call.run()
        if context.scope.rule(Kind.ATTENTION) is not None and any(map(_is_pattern, (x, weight))):
            mark_node(result, UNTOLD)
        return result
    spatial, run = weight.dim() - 2, func
    plain = dequantised(weight, x.dtype) if is_wrapped(weight) else None
    if plain is not None:
        wrapped, weight = weight, plain
        _check_once(
            context, wrapped, drawn(x.detach()),
            lambda i: func(i, wrapped, bias, *rest, **more),
            lambda i: func(i, weight, bias, *rest, **more),
        )  # fmt: skip

        def run(i: Tensor, w: Tensor, *others: Any, **named: Any) -> Tensor:
            with torch.no_grad():
                value = func(i.detach(), wrapped, *others, **named)
            return WithValue.call(value, func(i, w, *others, **named))

    def apply(i: Tensor, w: Tensor) -> Tensor:
        result: Tensor = func(i, w, None, *rest, **more)
        return result

    groups = None
    if call.name == "convolution":  # stride, padding, dilation, transposed, ...
        options = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        *_, transposed, _, groups = bind(options, rest, more)
        groups = groups if transposed else None
    elif "transpose" in call.name:
        groups = bind(("stride", "padding", "output_padding", "groups"), rest, more)[3] or 1
    fold = functools.partial(_fold, channel=-spatial - 1, groups=groups)
    operation = LinearMap(
        run, (x, weight, bias, *rest), more, context.absorber(bias),
        input=x, weight=weight,
        bias=None if bias is None else bias.reshape(-1, *(1,) * spatial),
        apply=apply, distribute=spread_through(apply, weight), fold=fold,
        channel=-spatial - 1,
    )  # fmt: skip
    return apply_linear(context, operation)


def _is_pattern(x: Tensor) -> bool:
    """Whether kernels, say, are a pattern or a function of one."""
    return patterns.is_pattern(x) or weighing.is_of_softmax(x.grad_fn)


def _batch_norm(context: Context, call: Call) -> Any:
    names = tuple("input running_mean running_var weight bias training momentum eps".split())
    func, args, kwargs = call.parts
    if func is torch.batch_norm:  # the function behind, with its arguments in another order
        names = (names[0], *names[3:5], *names[1:3], *names[5:])
        x, weight, bias, mean, variance, training, _, eps = call.bind(names)
    else:
        x, mean, variance, weight, bias, training, _, eps = call.bind(names)
    if not depends(x):  # weights standardised by batch_norm, for instance
        return call.run()
    if training or mean is None:
        if mean is None:  # in eval mode, too
            context.scope.mixes_examples |= x.shape[0] > 1
        else:
            context.scope.random.add("batch statistics")
        return batch_statistics(context, call, (x, weight, bias, eps))
    shape = (-1, *(1,) * (x.dim() - 2))
    scale = (variance + (1e-5 if eps is None else eps)).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = (-mean * scale if bias is None else bias - mean * scale).reshape(shape)
    factor = scale.reshape(shape)

    def run(y: Tensor, *_: Any, **__: Any) -> Tensor:
        fixed = {**kwargs, "input": x.detach()} if "input" in kwargs else kwargs
        stock = functools.partial(func, *((x.detach(), *args[1:]) if args else ()), **fixed)
        return LinearValue.call(y, stock, lambda g: g * factor)

    found = None if context.scope.rule(Kind.LINEAR) is None else context.maps.find(x)
    operation = None
    if found is not None:  # one map with the layer in front of it
        operation = composed(context, found, x, run, [Step(factor=factor)], shift, (bias, mean))
    if operation is None:
        operation = LinearMap(
            run, (x, *args[1:]), kwargs, context.absorber(bias, mean),
            input=x, weight=factor, bias=shift,
            apply=torch.mul, distribute=_spread_over_channels, energy=_energy_of_channels,
        )  # fmt: skip
    return apply_linear(context, operation)


def _energy_of_channels(squares: Tensor, _: Tensor) -> Tensor:
    return squares.sum(1, keepdim=True).expand_as(squares)  # views may follow


def _spread_over_channels(x: Tensor, relevance: Tensor) -> Tensor:
    """The shift's relevance at a place to all channels there, as their squares.

    The only input of an output is its own channel: to give it the whole shift divides by what may
    be close to zero.
    """
    wide = x if x.dtype not in LOW_PRECISION else x.float()
    total = relevance.to(wide.dtype).sum(1, keepdim=True)
    return (wide * safe_ratio(total, wide.square().sum(1, keepdim=True))).to(x.dtype)


HANDLERS: dict[str, Handler] = {
    **by_name(_linear, "linear"),
    **by_name(
        _convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    ),
    **by_name(_batch_norm, "batch_norm"),
}
