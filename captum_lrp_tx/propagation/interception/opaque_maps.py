"""Layers of quantised weights that run as one operation of a package's own.

What such a layer does is checked (:mod:`~.quantised`), and a linear map is handed to the rule in
force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.autograd.functions import LinearValue
from captum_lrp_tx.propagation.autograd.handing_over import spread_last
from captum_lrp_tx.propagation.autograd.rows import is_packed
from captum_lrp_tx.propagation.interception import quantised
from captum_lrp_tx.propagation.interception.constant_weights import apply_linear
from captum_lrp_tx.propagation.interception.linear_maps import fold_last
from captum_lrp_tx.propagation.state.scope import suspended, trial

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Differences from a product that are the arithmetic's own, in units of its smallest step.
_OWN_ROUNDING = 64


def claim(
    context: Context, name: str, module: nn.Module, x: Tensor, output: Tensor
) -> quantised.Claim | None:
    """Whether the module is a linear map, asked once in a pass.

    Raises:
        UnsupportedModelError: if it is none, and what it gives has no derivative.
    """
    if id(module) not in context.claims:

        def run(rows: Tensor) -> Tensor:
            # its inputs require a gradient: some packages repack weights for calls without
            made: Tensor = module.forward(rows)
            return made

        with trial(x.device):
            try:
                tried = quantised.claim(run, x.detach())
            except Exception:  # whatever a layer raises that takes other inputs only
                tried = None
        context.claims[id(module)] = tried
    found: quantised.Claim | None = context.claims[id(module)]
    if found is None and not output.requires_grad:
        quantised.refuse(
            name or context.running(),
            f"({type(module).__name__}) gives results without a derivative that are not those of "
            "a linear map",
        )
    return found


def as_linear_map(
    context: Context,
    name: str,
    module: nn.Module,
    x: Tensor,
    output: Tensor,
    found: quantised.Claim,
) -> Any:
    """The result once more, with the backward pass of the rule in force."""
    dtype = x.dtype
    with suspended():  # our own calls are none of the model's
        value = output.detach()
        bias = found.constant.to(value.dtype) if bool(found.constant.any()) else None
        source = None if bias is None else _source(module, bias)

    def back(grad: Tensor) -> Tensor:
        if found.has_derivative and not is_packed(grad):
            return found.back(grad)
        return (grad @ weight().to(grad.dtype)).to(dtype)

    def weight() -> Tensor:
        with suspended():
            return found.weight().to(dtype)

    def call(i: Tensor, *_: Any) -> Tensor:
        return LinearValue.call(i, lambda: value, back)

    with suspended():
        operation = quantised.QuantisedMap(
            call, (x,), {}, context.absorber(source),
            input=x, weight=weight, bias=bias,
            apply=_product, distribute=spread_last, by_row=True, channel=-1, fold=fold_last,
        )  # fmt: skip
        result = apply_linear(context, operation)
        if context.scope.ledger is not None:
            plain = torch.nn.functional.linear(x.detach(), weight(), bias)
            if quantised.differs(value, plain) > _OWN_ROUNDING * torch.finfo(value.dtype).eps:
                name = f"{name or 'the model'}: rounding of its activations"
                context.absorb(result, value - plain, name=name)
    return result


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def _source(module: nn.Module, bias: Tensor) -> Tensor | None:
    """The parameter or buffer that a bias is, which gives it its name."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.shape != bias.shape or not tensor.is_floating_point():
            continue
        if quantised.differs(bias, tensor.detach()) <= quantised.DERIVATIVE:  # rounded, maybe
            return tensor
    return None
