"""Attention as one call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation.interception.attention_patterns import await_use, proposed
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.operations import (
    FusedAttention,
    Kind,
    PatternProduct,
)
from captum_lrp_tx.propagation.recognition import axes

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _fused_attention(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    query, key, value, mask, dropout_p, is_causal = bind(_SDPA, args, kwargs)
    rest = {k: v for k, v in kwargs.items() if k not in _SDPA}
    scale = rest.pop("scale", None)
    if dropout_p:
        mode.scope.random.add("attention dropout")
    if not any(depends(t) for t in (query, key, value, mask)):
        return func(*args, **kwargs)
    if not depends(value) and mode.is_of_model(value):
        return func(*args, **kwargs)  # slots of a memory, which are weights of the model
    if mode.is_trainable(mask):
        # the kernel that torch picks depends on whether the mask requires a gradient
        mask = mask.detach().requires_grad_()
    call = functools.partial(func, query, key, value, mask, dropout_p or 0.0, bool(is_causal))
    mode.scope.find("softmax attention")
    result = mode.apply(
        Kind.ATTENTION,
        FusedAttention(
            call, (), {**rest, "scale": scale},
            query=query, key=key, value_=value, mask=mask,
            dropout_p=dropout_p or 0.0, is_causal=bool(is_causal), scale=scale, rest=rest,
        ),
    )  # fmt: skip
    came_from: list[tuple[Tensor, int] | None] = [(value, d) for d in range(-value.dim(), 0)]
    came_from[-2] = None if mode.is_of_model(query) and not depends(query) else (query, -2)
    axes.note_weighed(result, came_from)
    return result


def _grid_sample(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Values sampled at places that depend on the inputs.

    The places are part of a pattern if a pattern weighs what is found there (deformable attention);
    else they are a factor of their own, constant like a gate where products have a rule.
    """
    values, grid = bind(("input", "grid"), args, kwargs)
    if not depends(grid) or mode.scope.rule(Kind.ATTENTION) is None:
        return func(*args, **kwargs)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "grid")}
    operation = PatternProduct(func, (values, grid, *args[2:]), rest, patterns=(1,), operands=(0,))
    if mode.scope.rule(Kind.PRODUCT) is not None or not depends(values):
        mode.scope.find("places to sample at, constant (convention)")
        return mode.apply(Kind.ATTENTION, operation)
    result, weighed = proposed(
        mode, operation.plain(), [operation], "deformable attention (convention)"
    )
    if weighed is not None:
        await_use(mode, result, weighed)
    return result


HANDLERS: dict[str, Handler] = {
    **by_name(_fused_attention, "scaled_dot_product_attention"),
    **by_name(_grid_sample, "grid_sample"),
}
