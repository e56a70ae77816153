"""Layer, RMS and group norm as one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.operations import (
    FusedNorm,
    Kind,
)

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception

_LOW = (torch.float16, torch.bfloat16)


def _layer_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, weight, bias, eps = bind(names, args, kwargs)
    if not depends(x):
        return func(*args, **kwargs)

    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        epsilon = 1e-5 if eps is None else eps
        if torch.is_autocast_enabled(x.device.type):  # which knows layer_norm by this name only
            variance = x.float().var(dims, unbiased=False, keepdim=True)
            return func(*args, **kwargs), (variance + epsilon).rsqrt()
        y, _, inv_std = torch.native_layer_norm(x, shape, weight, bias, epsilon)
        return y, inv_std

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(bias),
            input=x, weight=weight, bias=bias, shape=tuple(x.shape),
            dims=dims, center=True, run=run,
        ),
    )  # fmt: skip


def _rms_norm(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("input", "normalized_shape", "weight", "eps")
    x, shape, weight, eps = bind(names, args, kwargs)
    if not depends(x):
        return func(*args, **kwargs)
    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in _LOW else x
        epsilon = torch.finfo(wide.dtype).eps if eps is None else eps
        return func(*args, **kwargs), (wide.square().mean(dims, keepdim=True) + epsilon).rsqrt()

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(),
            input=x, weight=weight, bias=None, shape=tuple(x.shape), dims=dims, center=False,
            run=run,
        ),
    )  # fmt: skip


def _group_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "num_groups", "weight", "bias", "eps")
    x, groups, weight, bias, eps = bind(names, args, kwargs)
    if not depends(x):
        return func(*args, **kwargs)
    channel = (-1, *(1,) * (x.dim() - 2))
    shape = (x.shape[0], groups, -1)

    def run() -> tuple[Tensor, Tensor]:
        variance = x.reshape(shape).var(-1, unbiased=False, keepdim=True)
        return func(*args, **kwargs), (variance + (1e-5 if eps is None else eps)).rsqrt()

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(bias),
            input=x,
            weight=None if weight is None else weight.reshape(channel),
            bias=None if bias is None else bias.reshape(channel),
            shape=shape, dims=(-1,), center=True, run=run,
        ),
    )  # fmt: skip


def _apply_norm(mode: Interception, operation: FusedNorm) -> Any:
    if mode.scope.rule(Kind.NORM) is None:
        output = operation.plain()
        if operation.bias is not None:
            operation.absorb(output, operation.bias)
        return output
    return mode.apply(Kind.NORM, operation)


HANDLERS: dict[str, Handler] = {
    **by_name(_layer_norm, "layer_norm"),
    **by_name(_rms_norm, "rms_norm"),
    **by_name(_group_norm, "group_norm"),
}
