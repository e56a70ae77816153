"""Attention as one call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation.interception.attention_patterns import await_use, proposed
from captum_lrp_tx.propagation.interception.booking import SDPA
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.operations import FusedAttention, Kind, PatternProduct
from captum_lrp_tx.propagation.recognition import axes

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def _fused_attention(context: Context, call: Call) -> Any:
    query, key, value, mask, dropout_p, is_causal = call.bind(SDPA)
    rest = {k: v for k, v in call.kwargs.items() if k not in SDPA}
    scale = rest.pop("scale", None)
    if dropout_p:
        context.scope.random.add("attention dropout")
    if not any(depends(t) for t in (query, key, value, mask)):
        return call.run()
    if not depends(value) and context.constants.is_of_model(value):
        return call.run()  # slots of a memory, which are weights of the model
    if context.constants.is_trainable(mask):
        # the kernel that torch picks depends on whether the mask requires a gradient
        mask = mask.detach().requires_grad_()
    run = functools.partial(call.func, query, key, value, mask, dropout_p or 0.0, bool(is_causal))
    context.scope.find("softmax attention")
    result = context.apply(
        Kind.ATTENTION,
        FusedAttention(
            run, (), {**rest, "scale": scale},
            query=query, key=key, value_=value, mask=mask,
            dropout_p=dropout_p or 0.0, is_causal=bool(is_causal), scale=scale, rest=rest,
        ),
    )  # fmt: skip
    came_from: list[tuple[Tensor, int] | None] = [(value, d) for d in range(-value.dim(), 0)]
    came_from[-2] = (
        None if context.constants.is_of_model(query) and not depends(query) else (query, -2)
    )
    axes.note_weighed(result, came_from)
    return result


def _grid_sample(context: Context, call: Call) -> Any:
    """Values sampled at places that depend on the inputs.

    The places are part of a pattern if a pattern weighs what is found there (deformable attention);
    else they are a factor of their own, constant like a gate where products have a rule.
    """
    values, grid = call.bind(("input", "grid"))
    if not depends(grid) or context.scope.rule(Kind.ATTENTION) is None:
        return call.run()
    rest = {k: v for k, v in call.kwargs.items() if k not in ("input", "grid")}
    args = (values, grid, *call.args[2:])
    operation = PatternProduct(call.func, args, rest, patterns=(1,), operands=(0,))
    if context.scope.rule(Kind.PRODUCT) is not None or not depends(values):
        context.scope.find("places to sample at, constant (convention)")
        return context.apply(Kind.ATTENTION, operation)
    result, weighed = proposed(
        context, operation.plain(), [operation], "deformable attention (convention)"
    )
    await_use(context, result, weighed)
    return result


HANDLERS: dict[str, Handler] = {
    **by_name(_fused_attention, "scaled_dot_product_attention"),
    **by_name(_grid_sample, "grid_sample"),
}
