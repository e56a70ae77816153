"""Activations that run as an autograd function of the model's own (Bloom's GELU, old Swish layers).

Their values and their derivative say which activation they are, never a name. The model's values
are kept; the gradient is that of torch's function of the same values, which the rules know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.state.scope import suspended, trial

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

Function = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


_KNOWN: tuple[Function, ...] = (
    functools.partial(F.gelu, approximate="tanh"), F.gelu, _quick_gelu, F.silu, F.mish, F.relu,
    _squared_relu, torch.sigmoid, torch.tanh, F.softplus, F.hardswish, F.hardsigmoid,
)  # fmt: skip
#: Two spellings of one function differ by less than this or by fewer steps of their dtype: some
#: constants are rounded, those of derivatives more.
_VALUES, _STEPS, _DERIVATIVE = 4e-6, 32, 1e-4
#: Where a function is tried: no kink of a known one lies there.
_FROM, _TO, _COUNT = -12.03, 12.01, 257


def known(context: Context, module: nn.Module, x: Tensor, output: Tensor) -> Tensor | None:
    """The result of a module with the gradient of the activation that it is.

    Args:
        context (Context): Of the pass.
        module (Module): Has no tensors; ran a function that nothing sees into.
        x (Tensor): Its only argument.
        output (Tensor): What it gave.

    Returns:
        Tensor or None: ``output``, bit for bit; or None if no known activation gives that.
    """
    if not context.scope.has_rules or output.shape != x.shape or output.dtype != x.dtype:
        return None
    if id(module) not in context.claims:
        with trial(x.device):
            context.claims[id(module)] = _claim(module, x.device)
    function: Function | None = context.claims[id(module)]
    if function is None:
        return None
    with suspended():  # our own calls are none of the model's
        value = output.detach()
        if not _is_close(value, function(x.detach())):
            return None  # depends on more than the entry
    return WithValue.call(value, function(x))


def _claim(module: nn.Module, device: torch.device) -> Function | None:
    """The activation that has the values and the derivative of a module, if one has."""
    tried = torch.linspace(_FROM, _TO, _COUNT, device=device).reshape(1, 1, -1)
    try:
        values, slopes = _derived(module.forward, tried)
    except Exception:  # whatever a layer raises that takes other inputs only
        return None
    for function in _KNOWN:
        expected, slope = _derived(function, tried)
        if _is_close(values, expected) and torch.allclose(slopes, slope, _DERIVATIVE, _DERIVATIVE):
            return function
    return None


def _derived(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        values = function(x)
        (slopes,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slopes


def _is_close(values: Tensor, expected: Tensor) -> bool:
    step = max(_VALUES, _STEPS * torch.finfo(values.dtype).eps)
    return values.shape == expected.shape and torch.allclose(values, expected, step, step)
