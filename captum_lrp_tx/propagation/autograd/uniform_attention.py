"""Fused attention that shares relevance uniformly at its two products (AttnLRP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_lrp_tx.propagation.autograd.functions import RuleFunction
from captum_lrp_tx.propagation.autograd.pattern_product import (
    additive,
    attention_with_logsumexp,
    heads_of,
)


def shares(query: bool, key: bool, value: bool, mask: bool) -> tuple[float, float, float, float]:
    """What each part of fused attention has of the gradient, by which of them depend on the inputs.

    A product of two that do gives half to each; one with a constant (a learned query) all to the
    other, as a linear map does.
    """
    scores = 0.5 if query and key else 1.0
    pattern = 0.5 if value and (query or key or mask) else 1.0
    return scores * pattern, scores * pattern, pattern, pattern


class UniformAttention(RuleFunction):
    """Fused attention whose gradient is halved at each of its two products (AttnLRP).

    Where the stock kernel tells what its own backward pass needs, that pass is all that runs; else
    the kernel runs a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        output, logsumexp = attention_with_logsumexp(
            query, key, value, mask, is_causal, scale, kwargs
        )
        kept = None
        if logsumexp is not None and not ctx.needs_input_grad[3]:
            kept = output.clone()  # the model may go on in place
        ctx.save_for_backward(query, key, value, mask, kept, logsumexp)
        ctx.is_causal, ctx.scale, ctx.kwargs = is_causal, scale, kwargs
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        *given, output, logsumexp = ctx.saved_tensors  # once: this may run a block again
        if output is None:
            grads = _again(ctx, given, grad[0])
        else:
            grads = _by_kernel(ctx, given, output, logsumexp, grad[0])
        given_shares = zip(grads, shares(*ctx.needs_input_grad[:4]), strict=True)
        scaled = [g if g is None or share == 1.0 else g * share for g, share in given_shares]
        return *scaled, None, None, None


def _by_kernel(
    ctx: Any, given: list[Any], output: Tensor, logsumexp: Tensor, grad: Tensor
) -> list[Tensor | None]:
    """The backward pass of torch's kernel for the CPU, from one run of it."""
    query, key, value, mask = given
    shared = [heads_of(query, t).expand(*query.shape[:2], -1, -1) for t in (key, value)]
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, *shared, output, logsumexp, 0.0, ctx.is_causal,
        attn_mask=None if mask is None else additive(mask, query.dtype), scale=ctx.scale,
    )  # fmt: skip
    given_heads = zip(found, (query, key, value), strict=True)
    return [*(_of_shared_heads(g, t) for g, t in given_heads), None]


def _of_shared_heads(grad: Tensor, shared: Tensor) -> Tensor:
    """Gradients of heads summed for those that they share."""
    batch, heads, rows, channels = grad.shape
    if heads != shared.shape[1] and shared.shape[1] > 1:
        grad = grad.reshape(batch, shared.shape[1], -1, rows, channels).sum(2)
    return grad if grad.shape == shared.shape else grad.sum_to_size(shared.shape)


def _again(ctx: Any, given: list[Any], grad: Tensor) -> list[Tensor | None]:
    """The backward pass of whatever torch runs for these arguments, run once more."""
    with torch.enable_grad():
        leaves: list[Any] = [
            t.detach().requires_grad_(needed) if t is not None else None
            for t, needed in zip(given, ctx.needs_input_grad[:4], strict=True)
        ]
        run = torch.nn.functional.scaled_dot_product_attention
        query, key, value, mask = leaves
        output = run(
            query, key, value, mask, is_causal=ctx.is_causal, scale=ctx.scale, **ctx.kwargs
        )
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    grads = iter(torch.autograd.grad(output, wanted, grad))
    return [next(grads) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
