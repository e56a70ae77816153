"""Layer, RMS, group, instance and batch norm, and cosine similarity, as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import Combine
from captum_lrp_tx.propagation.autograd.pattern_product import LOW_PRECISION
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.operations import FusedNorm, Kind

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def _layer_norm(context: Context, call: Call) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, weight, bias, eps = call.bind(names)
    if not depends(x):
        return call.run()

    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        epsilon = 1e-5 if eps is None else eps
        if torch.is_autocast_enabled(x.device.type):  # which knows layer_norm by this name only
            variance = x.float().var(dims, unbiased=False, keepdim=True)
            return call.run(), (variance + epsilon).rsqrt()
        y, _, inv_std = torch.native_layer_norm(x, shape, weight, bias, epsilon)
        return y, inv_std

    return _apply_norm(
        context,
        FusedNorm(
            *call.parts, context.absorber(bias),
            input=x, weight=weight, bias=bias, shape=tuple(x.shape),
            dims=dims, center=True, run=run,
        ),
    )  # fmt: skip


def _rms_norm(context: Context, call: Call) -> Any:
    names = ("input", "normalized_shape", "weight", "eps")
    x, shape, weight, eps = call.bind(names)
    if not depends(x):
        return call.run()
    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in LOW_PRECISION else x
        epsilon = torch.finfo(wide.dtype).eps if eps is None else eps
        return call.run(), (wide.square().mean(dims, keepdim=True) + epsilon).rsqrt()

    return _apply_norm(
        context,
        FusedNorm(
            *call.parts, context.absorber(),
            input=x, weight=weight, bias=None, shape=tuple(x.shape), dims=dims, center=False,
            run=run,
        ),
    )  # fmt: skip


def _group_norm(context: Context, call: Call) -> Any:
    names = ("input", "num_groups", "weight", "bias", "eps")
    x, groups, weight, bias, eps = call.bind(names)
    if not depends(x):
        return call.run()
    operation = _by_channel(context, call, (x, weight, bias, eps))
    operation.shape = (x.shape[0], groups, -1)
    return _apply_norm(context, operation)


_INSTANCE_NORM = tuple(
    "input running_mean running_var weight bias use_input_stats momentum eps".split()
)
#: of ``torch.instance_norm``, which ``F.instance_norm`` calls
_OF_TORCH = (*("input", "weight", "bias", "running_mean", "running_var"), *_INSTANCE_NORM[5:])


def _instance_norm(context: Context, call: Call) -> Any:
    if call.func is torch.instance_norm:
        x, weight, bias, mean, variance, fresh, _, eps = call.bind(_OF_TORCH)
    else:
        x, mean, variance, weight, bias, fresh, _, eps = call.bind(_INSTANCE_NORM)
        fresh = True if fresh is None else fresh
    if not depends(x):
        return call.run()
    if not fresh:  # with running statistics it is batch norm in eval mode
        with context.watching():
            return torch.nn.functional.batch_norm(
                x, mean, variance, weight, bias, False, 0.1, 1e-5 if eps is None else eps
            )
    return _apply_norm(context, _by_channel(context, call, (x, weight, bias, eps)))


def batch_statistics(
    context: Context,
    call: Call,
    operands: tuple[Tensor, Tensor | None, Tensor | None, float | None],
) -> Any:
    """Batch norm with the statistics of this batch: a norm of every channel over all examples.

    Args:
        context (Context): Of the pass.
        call (Call): The call.
        operands (tuple): Its input ``(batch, channels, ...)``, weight, bias and epsilon.

    Returns:
        Tensor: the result, under the rule for norms.
    """
    operation = _by_channel(context, call, operands)
    operation.dims = (0, 2)
    return _apply_norm(context, operation)


def _by_channel(
    context: Context,
    call: Call,
    operands: tuple[Tensor, Tensor | None, Tensor | None, float | None],
) -> FusedNorm:
    """A norm of ``(batch, channels, ...)`` with a weight for each channel, over each of them."""
    x, weight, bias, eps = operands
    channel = (-1, *(1,) * (x.dim() - 2))

    def run() -> tuple[Tensor, Tensor]:
        variance = x.reshape(operation.shape).var(operation.dims, unbiased=False, keepdim=True)
        return call.run(), (variance + (1e-5 if eps is None else eps)).rsqrt()

    operation = FusedNorm(
        *call.parts, context.absorber(bias),
        input=x,
        weight=None if weight is None else weight.reshape(channel),
        bias=None if bias is None else bias.reshape(channel),
        shape=(*x.shape[:2], -1), dims=(-1,), center=True, run=run,
    )  # fmt: skip
    return operation


def _cosine_similarity(context: Context, call: Call) -> Any:
    """The product of two normalised vectors, as torch computes it."""
    first, second, dim, eps = call.bind(("x1", "x2", "dim", "eps"))
    dim, eps = 1 if dim is None else dim, 1e-8 if eps is None else eps

    def spelled(dtype: torch.dtype) -> Tensor:
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        units = []
        for x in (first, second):
            x = x.to(dtype).expand(shape)
            norm = torch.linalg.vector_norm(x, 2, dim, True).clone()
            with torch.no_grad():  # the gradient of a bounded norm is that of the norm in torch
                norm.clamp_min_(eps)
            with context.watching():
                units.append(x / norm)
        with context.watching():
            result: Tensor = (units[0] * units[1]).sum(dim)
        return result

    return _spelled_out(call, spelled)


def _pairwise_distance(context: Context, call: Call) -> Any:
    first, second, p, eps, keepdim = call.bind(("x1", "x2", "p", "eps", "keepdim"))

    def spelled(dtype: torch.dtype) -> Tensor:
        with context.watching():
            difference = first - second + (1e-6 if eps is None else eps)
            result: Tensor = torch.linalg.vector_norm(
                difference, 2.0 if p is None else p, -1, bool(keepdim), dtype=dtype
            )
        return result

    return _spelled_out(call, spelled)


def _spelled_out(call: Call, spelled: Callable[[torch.dtype], Tensor]) -> Any:
    """What a function does in calls of its own, with the value of the function to the last bit."""
    if not any(depends(x) for x in (*call.args, *call.kwargs.values())):
        return call.run()
    with torch.no_grad():
        value: Tensor = call.run()
    result = spelled(value.dtype)
    return result if torch.equal(result.detach(), value) else Combine.call(value, result)


def _apply_norm(context: Context, operation: FusedNorm) -> Any:
    name: str = getattr(operation.func, "__name__", "norm")
    context.scope.find(name.replace("_", " "))
    if context.scope.rule(Kind.NORM) is None:
        output = operation.plain()
        if operation.bias is not None:
            operation.absorb(output, operation.bias)
        return output
    return context.apply(Kind.NORM, operation)


HANDLERS: dict[str, Handler] = {
    **by_name(_layer_norm, "layer_norm"),
    **by_name(_rms_norm, "rms_norm"),
    **by_name(_group_norm, "group_norm"),
    **by_name(_instance_norm, "instance_norm"),
    **by_name(_cosine_similarity, "cosine_similarity"),
    **by_name(_pairwise_distance, "pairwise_distance"),
}
