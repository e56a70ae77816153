"""Linear layers, convolutions and batch norm in eval mode."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.functions import Combine, LinearValue
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import (
    apply_linear,
    folds,
    mark_head,
)
from captum_lrp_tx.propagation.interception.contractions import contraction
from captum_lrp_tx.propagation.interception.norms import batch_statistics
from captum_lrp_tx.propagation.interception.spreading import spread_last, spread_through
from captum_lrp_tx.propagation.operations import (
    Kind,
    LinearMap,
)
from captum_lrp_tx.propagation.rows import product_of_rows

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


#: From so many tokens on, a backward pass that leaves out rows without gradient pays.
_MANY_ROWS = 64


def _linear(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == 3:
        x, weight, bias = args
    else:
        x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
    if depends(weight):
        product = contraction(mode, func, (x, weight), {})
        if bias is None:
            return product
        with torch.no_grad():
            value = func(x, weight, bias)
        with mode:
            return Combine.call(value, product + bias)
    if not depends(x):
        return func(x, weight, bias)
    call = func
    trainable = folds(mode, x, weight)
    rows = x.numel() // max(1, x.shape[-1]) if x.dim() > 1 else 1
    if trainable or (weight.dim() == 2 and rows >= _MANY_ROWS):

        def call(i: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            value = w.detach().requires_grad_() if trainable else w
            run = functools.partial(func, i.detach(), value, b)
            return LinearValue.call(i, run, lambda g: product_of_rows(g, w))

    if mode.scope.ledger is None and mode.scope.rule(Kind.LINEAR) is None:
        return mark_head(mode, x, call(x, weight, bias))
    operation = LinearMap(
        call, (x, weight, bias), {}, mode.absorber(bias),
        input=x, weight=weight, bias=bias,
        apply=lambda i, w: func(i, w), distribute=spread_last, by_row=weight.dim() == 2,
    )  # fmt: skip
    return apply_linear(mode, operation)


_CONVOLUTION = ("input", "weight", "bias")


def _convolution(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    x, weight, bias = bind(_CONVOLUTION, args[:3], kwargs)
    rest = args[3:]
    more = {k: v for k, v in kwargs.items() if k not in _CONVOLUTION}
    if not depends(x) or depends(weight):
        return func(*args, **kwargs)
    spatial = weight.dim() - 2

    def apply(i: Tensor, w: Tensor) -> Tensor:
        result: Tensor = func(i, w, None, *rest, **more)
        return result

    operation = LinearMap(
        func, (x, weight, bias, *rest), more, mode.absorber(bias),
        input=x, weight=weight,
        bias=None if bias is None else bias.reshape(-1, *(1,) * spatial),
        apply=apply, distribute=spread_through(apply, weight),
    )  # fmt: skip
    return apply_linear(mode, operation)


def _addmm(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) < 3 or kwargs or not depends(args[1]) or depends(args[0]) or depends(args[2]):
        return booked(mode, func, args, kwargs, func(*args, **kwargs))
    bias, x, weight = args[:3]
    operation = LinearMap(
        func, args, kwargs, mode.absorber(bias),
        input=x, weight=weight, bias=bias,
        apply=lambda i, w: i @ w, distribute=spread_last, by_row=True,
    )  # fmt: skip
    return apply_linear(mode, operation)


def _batch_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    if func is torch.batch_norm:  # the function behind, with its arguments in another order
        names = (names[0], *names[3:5], *names[1:3], *names[5:])
        x, weight, bias, mean, variance, training, _, eps = bind(names, args[:8], kwargs)
    else:
        x, mean, variance, weight, bias, training, _, eps = bind(names, args, kwargs)
    if not depends(x):  # weights standardised by batch_norm, for instance
        return func(*args, **kwargs)
    if training or mean is None:
        if mean is None:  # in eval mode, too
            mode.scope.mixes_examples |= x.shape[0] > 1
        else:
            mode.scope.random.add("batch statistics")
        return batch_statistics(mode, func, args, kwargs, (x, weight, bias, eps))
    shape = (-1, *(1,) * (x.dim() - 2))
    scale = (variance + (1e-5 if eps is None else eps)).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale

    def apply(i: Tensor, w: Tensor) -> Tensor:
        return i * w

    factor = scale.reshape(shape)

    def call(*_: Any, **__: Any) -> Tensor:
        fixed = {**kwargs, "input": x.detach()} if "input" in kwargs else kwargs
        run = functools.partial(func, *((x.detach(), *args[1:]) if args else ()), **fixed)
        return LinearValue.call(x, run, lambda g: g * factor)

    operation = LinearMap(
        call, args, kwargs, mode.absorber(bias, mean),
        input=x, weight=factor, bias=shift.reshape(shape),
        apply=apply, distribute=spread_through(apply, factor),
    )  # fmt: skip
    return apply_linear(mode, operation)


HANDLERS: dict[str, Handler] = {
    **by_name(_linear, "linear"),
    **by_name(
        _convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    **by_name(_addmm, "addmm"),
    **by_name(_batch_norm, "batch_norm"),
}
