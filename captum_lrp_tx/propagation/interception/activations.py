"""Element-wise activations, softmax and exponentials."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_tx.propagation.autograd import compact
from captum_lrp_tx.propagation.autograd.functions import PackedSlope
from captum_lrp_tx.propagation.graph import RECTIFIED, gate_strength, name_of_bounds, node_name
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.interception.writing import overwritten
from captum_lrp_tx.propagation.operations import Activation, Kind
from captum_lrp_tx.propagation.recognition import degrees, patterns, recurrence

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


_ACTIVATIONS = {
    "relu": "Relu", "relu6": "Hardtanh", "gelu": "Gelu", "silu": "Silu", "mish": "Mish",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu", "selu": "Elu", "celu": "Elu",
    "leaky_relu": "LeakyRelu", "hardtanh": "Hardtanh", "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid", "softplus": "Softplus", "softsign": "Softsign",
    "logsigmoid": "LogSigmoid", "tanhshrink": "Tanhshrink", "hardshrink": "Hardshrink",
    "softshrink": "Softshrink", "threshold": "Threshold", "erf": "Erf", "square": "Pow",
    "pow": "Pow", "prelu": "Prelu", "clamp": "Clamp", "clip": "Clamp", "clamp_min": "Clamp",
    "clamp_max": "Clamp", "expm1": "Expm1", "log1p": "Log1P", "sin": "Sin", "atan": "Atan",
    "arctan": "Atan", "asinh": "Asinh", "log_sigmoid": "LogSigmoid", "_threshold": "Threshold",
    "special_ndtr": "Erf",
}  # fmt: skip


#: What is left of scores above a threshold may be weights (sparsemax).
_BOUNDS = frozenset("relu clamp clip clamp_min threshold".split())


def _activation(context: Context, call: Call) -> Any:
    result = _activated(context, call)
    if call.name in _BOUNDS and depends(result) and context.scope.rule(Kind.ATTENTION) is not None:
        patterns.mark_bounded(result)
    return result


def _activated(context: Context, call: Call) -> Any:
    args, kwargs, name = call.args, call.kwargs, call.name
    x = args[0] if args else kwargs.get("input")
    rule = context.scope.rule(Kind.ACTIVATION)
    if name == "softplus" and depends(x):
        context.has_steps = True
    if rule is None and isinstance(x, Tensor) and x.requires_grad and context.scope.has_rules:
        return _packed_slope(call, x)
    if rule is None or not isinstance(x, Tensor) or not x.requires_grad:
        return call.run()
    bare = name.rstrip("_")
    exponent: Any = 2 if bare == "square" else None
    if bare == "pow":
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        if not _positive_power(exponent):
            return call.run()
    func, inplace = call.func, call.is_inplace or bool(kwargs.get("inplace"))
    if inplace:  # out of place first, then into the argument, so that aliases see the new value
        args = (x.clone(), *args[1:])
        kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "input")}
        if call.is_inplace:
            func = getattr(torch, bare, None) or getattr(F, bare)
    operation = Activation(func, args, kwargs, input=x, name=_name(call, bare))
    if context.scope.ledger is not None:
        operation.absorb = context.absorber()
    result = degrees.with_exponent(context.apply(Kind.ACTIVATION, operation), exponent)
    return overwritten(x, result) if inplace else result


def _bounded(context: Context, call: Call) -> Any:
    """``maximum(x, 0)`` and the like: ``clamp`` in another spelling."""
    pair, rule = call.args, context.scope.rule(Kind.ACTIVATION)
    if rule and len(pair) == 2 and not call.kwargs and depends(pair[0]) != depends(pair[1]):
        x, bound = pair if depends(pair[0]) else pair[::-1]
        if _is_bound(context, x, bound):
            side = {"min" if "max" in call.name else "max": bound.flatten()[0].item()}
            return _activation(context, Call(torch.clamp, (x,), side, "clamp", call.original))
    return call.run()


def _is_bound(context: Context, x: Tensor, bound: Any) -> bool:
    """Whether a constant is one number, or zeros, that leave shape and dtype as they are."""
    if not isinstance(bound, Tensor) or context.constants.is_trainable(bound):
        return False
    if torch.result_type(x, bound) != x.dtype or not _spreads(bound, x):
        return False
    if bound.numel() == 1 and (bound.dim() < 2 or context.constants.is_of_model(bound)):
        return True  # else it may be the number of the only example
    return bound.numel() > 0 and not bool(bound.any())


def _spreads(bound: Tensor, x: Tensor) -> bool:
    """Whether a bound is spread out to the shape of ``x``, and not the other way round."""
    sizes = zip(reversed(bound.shape), reversed(x.shape), strict=False)
    return bound.dim() <= x.dim() and all(one in (1, other) for one, other in sizes)


def _name(call: Call, bare: str) -> str:
    """What an activation is, if bounds say so; those of a step size or a gate are no more."""
    x, least, most = call.bind(("input", "max" if bare == "clamp_max" else "min", "max"))
    if bare == "clamp_max":
        least, most = None, least
    if bare not in ("clamp", "clip", "clamp_min", "clamp_max"):
        return _ACTIVATIONS[bare]
    if least is None and x.grad_fn is not None and node_name(x.grad_fn) == RECTIFIED:
        least = 0  # the other bound, one call later
    elif gate_strength(x):
        return _ACTIVATIONS[bare]
    return name_of_bounds(least, most) or _ACTIVATIONS[bare]


def _gelu_slope(x: Tensor, **kwargs: Any) -> Tensor:
    ones = torch.ones_like(x)  # overwritten by the result
    slope: Tensor = torch.ops.aten.gelu_backward.grad_input(ones, x, grad_input=ones, **kwargs)
    return slope


def _silu_slope(x: Tensor) -> Tensor:
    ones = torch.ones_like(x)
    slope: Tensor = torch.ops.aten.silu_backward.grad_input(ones, x, grad_input=ones)
    return slope


_SLOPES: dict[str, Callable[..., Tensor]] = {"gelu": _gelu_slope, "silu": _silu_slope}


def _packed_slope(call: Call, x: Tensor) -> Any:
    """The plain gradient of an activation, in less memory where that is much."""
    name = call.name
    if name not in _SLOPES or x.numel() < compact.LARGE:
        return call.run()
    options = {k: v for k, v in call.kwargs.items() if k != "input"}
    known = len(call.args) <= 1 and not options.get("inplace")
    if not known or not compact.packs(compact.SLOPES, _ACTIVATIONS[name], x):
        return call.run()
    approximate = {k: v for k, v in options.items() if k == "approximate"}
    return PackedSlope.call(
        x,
        Activation(*call.parts, input=x, name=_ACTIVATIONS[name]).value,
        functools.partial(_SLOPES[name], **approximate),
        _ACTIVATIONS[name],
    )


def _exponential(context: Context, call: Call) -> Any:
    if context.has_steps and call.args and depends(call.args[0]):
        recurrence.confirm_steps(call.args[0])
    result = call.run()
    if depends(result) and context.scope.rule(Kind.ATTENTION) is not None:
        patterns.mark_exponential(result)
    return result


def _positive_power(exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and exponent >= 1


def _softmax(context: Context, call: Call) -> Any:
    rule = context.scope.rule(Kind.SOFTMAX)
    x = call.args[0] if call.args else call.kwargs.get("input")
    if rule is None or not isinstance(x, Tensor) or not x.requires_grad:
        return call.run()
    return rule.propagate(Activation(*call.parts, input=x, name="Softmax"))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **{name + "_": _activation for name in _ACTIVATIONS},
    **by_name(_softmax, "softmax"),
    **by_name(_exponential, "exp exp_"),
    **by_name(_bounded, "maximum minimum max min"),
}
