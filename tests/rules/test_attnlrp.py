"""The ``attnlrp`` preset against the equations of Achtibat et al. (ICML 2024), in plain loops.

Relevance is propagated here as the paper writes it, ``R`` from layer to layer, not as a gradient.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP

pytestmark = pytest.mark.core

TOKENS, WIDTH, CLASSES = 5, 6, 3


class Block(nn.Module):
    """Norm, one attention head, residual, gated MLP, residual, mean, head; no biases."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        names = ("q", "k", "v", "o", "gate", "up", "down")
        for name in names:
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            pattern = (q @ k.mT / math.sqrt(WIDTH)).softmax(-1)
            mixed = pattern @ v
        x = x + self.o(mixed)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(1))


def linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Eq. 8 (epsilon rule): R_i = sum_j x_i W_ji R_j / z_j, one token at a time."""
    result = torch.zeros_like(x)
    for t in range(x.shape[0]):
        for j in range(weight.shape[0]):
            z = sum(x[t, i] * weight[j, i] for i in range(x.shape[1]))
            for i in range(x.shape[1]):
                result[t, i] += x[t, i] * weight[j, i] * relevance[t, j] / z
    return result


def product(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 13 and 14: O = A B, each factor receives A_ji B_ip R_jp / (2 O_jp)."""
    out = a @ b
    of_a, of_b = torch.zeros_like(a), torch.zeros_like(b)
    for j in range(a.shape[0]):
        for i in range(a.shape[1]):
            for p in range(b.shape[1]):
                share = a[j, i] * b[i, p] * relevance[j, p] / (2 * out[j, p])
                of_a[j, i] += share
                of_b[i, p] += share
    return of_a, of_b


def softmax(x: Tensor, relevance: Tensor) -> Tensor:
    """Proposition 3.1: R_i = x_i (R_i - s_i sum_j R_j)."""
    s = x.softmax(-1)
    return x * (relevance - s * relevance.sum(-1, keepdim=True))


def norm(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Proposition 3.4: the divisor is a constant, the centring is linear."""
    centred = x - x.mean(-1, keepdim=True)
    factor = weight / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    result = torch.zeros_like(x)
    n = x.shape[1]
    for t in range(x.shape[0]):
        for j in range(n):
            y = factor[t, j] * centred[t, j]
            for i in range(n):
                part = factor[t, j] * ((i == j) - 1 / n) * x[t, i]
                result[t, i] += part * relevance[t, j] / y
    return result


def add(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """A sum is a linear layer."""
    return a / (a + b) * relevance, b / (a + b) * relevance


def by_the_equations(block: Block, x: Tensor, target: int) -> Tensor:
    w = {name: module.weight.detach() for name, module in block.named_children()}
    # forward, keeping what the backward pass needs
    h = block.norm(x).detach()
    q, k, v = h @ w["q"].T, h @ w["k"].T, h @ w["v"].T
    scores = q @ k.T / math.sqrt(WIDTH)
    pattern = scores.softmax(-1)
    mixed = pattern @ v
    attended = mixed @ w["o"].T
    x1 = x + attended
    g, u = x1 @ w["gate"].T, x1 @ w["up"].T
    gated = F.silu(g) * u
    lifted = gated @ w["down"].T
    x2 = x1 + lifted
    pooled = x2.mean(0, keepdim=True)
    # backward
    relevance = torch.zeros(1, CLASSES, dtype=x.dtype)
    relevance[0, target] = (pooled @ w["head"].T)[0, target]
    r_pooled = linear(pooled, w["head"], relevance)
    r_x2 = x2 / TOKENS / pooled * r_pooled
    r_x1, r_lifted = add(x1, lifted, r_x2)
    r_gated = linear(gated, w["down"], r_lifted)
    r_gate = r_up = r_gated / 2  # eq. 13 for an element-wise product; eq. 9 through the silu
    r_x1 = r_x1 + linear(x1, w["gate"], r_gate) + linear(x1, w["up"], r_up)
    r_x, r_attended = add(x, attended, r_x1)
    r_mixed = linear(mixed, w["o"], r_attended)
    r_pattern, r_v = product(pattern, v, r_mixed)
    r_scores = softmax(scores, r_pattern)
    r_q, r_kt = product(q, k.T / math.sqrt(WIDTH), r_scores)
    r_h = linear(h, w["q"], r_q) + linear(h, w["k"], r_kt.T) + linear(h, w["v"], r_v)
    return r_x + norm(x, w["norm"], r_h)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_attnlrp_follows_the_equations(fused: bool, seed: int) -> None:
    torch.manual_seed(seed)
    block = Block(fused).double().eval()
    with torch.no_grad():
        block.norm.weight.copy_(torch.randn(WIDTH))
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    expected = by_the_equations(block, x[0], target=1)
    # the equations divide without a stabiliser
    got = ConservativeLRP(block, rules="attnlrp", epsilon=0.0).attribute(x, target=1, strict=True)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("preset", ["attnlrp", "lrp"])
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_factorised_attention_is_shared_alike_entry_by_entry(
    summed: bool, read: bool, preset: str
) -> None:
    """Whether keys sum values, or queries read them, as a matrix product or entry by entry."""
    maps = torch.randn(3, 4, 4, dtype=torch.float64)

    def forward(summed: bool, read: bool, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (x @ one for one in maps)
        k = k.softmax(1)
        kv = (k[..., None] * v[:, :, None]).sum(1) if summed else k.mT @ v
        return ((q[..., None] * kv[:, None]).sum(2) if read else q @ kv).tanh().sum((1, 2))

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    got, want = (
        ConservativeLRP(functools.partial(forward, *how), preset).attribute(x)
        for how in ((summed, read), (False, False))
    )
    torch.testing.assert_close(got, want)
