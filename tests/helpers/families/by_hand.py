"""Relevance under ``ah`` and ``ah+ln`` for models whose softmaxes are all patterns.

Softmaxes and the deviations of layer norms are detached where they are called, and autograd does
the rest: for families whose recorded operations the oracle reads otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_lrp_tx import ConservativeLRP
from families.common import TOLERANCE, Case, Outcome

_REASON = "judged by a computation that detaches every softmax"


class _Detaching(TorchFunctionMode):
    def __init__(self, norms: bool, exponentials: bool) -> None:
        super().__init__()
        self.norms, self.exponentials = norms, exponentials
        self.rows: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "softmax" or (name == "exp" and self.exponentials):
            return func(*args, **kwargs).detach()
        if (
            name == "scaled_dot_product_attention"
            and len(args) == 3
            and not kwargs.get("attn_mask")
        ):
            query, key, value = args
            return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).detach() @ value
        if name == "embedding":
            self.rows.append(func(*args, **kwargs).detach().requires_grad_())
            return self.rows[-1]
        if name == "layer_norm" and self.norms:
            x, _, weight, bias, eps = (*args, *kwargs.values())[:5]
            variance = x.var(-1, unbiased=False, keepdim=True)
            scaled = (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt().detach()
            return scaled * weight + bias
        return func(*args, **kwargs)


def judged(case: Case, preset: str) -> Outcome:
    """A preset without rules for activations and products, token by token (sums over the batch)."""
    rules: Any = preset
    given = case.inputs.clone()
    if given.is_floating_point():
        given.requires_grad_()
    # RWKV divides by the sum of its exponentials, which are its pattern
    mode = _Detaching(norms="ln" in preset, exponentials=case.family == "rwkv")
    with mode:
        value = case.select(case.forward(given)).sum()
    leaves = [given] if given.is_floating_point() else mode.rows
    grads = torch.autograd.grad(value, leaves)
    parts = [(x * g).detach() for x, g in zip(leaves, grads, strict=True)]
    if not given.is_floating_point():
        parts = [part.sum(-1) for part in parts]
    expected = torch.stack([part.sum(0) for part in parts]).sum(0)
    got = ConservativeLRP(case.forward, rules).attribute(
        case.inputs, target=case.target, strict=True
    )
    assert isinstance(got, Tensor)
    scale = max(float(part.abs().max()) for part in parts)
    error = float((got.sum(0) - expected).abs().max()) / scale
    return Outcome("convention" if error <= TOLERANCE else "wrong", _REASON, error)
