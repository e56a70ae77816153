"""Patterns that many operations make: nothing depends on how many, and none takes for ever.

Each model is written once, with a place for ``hold``: the identity for the package, ``detach`` in
the reference, which is gradient x input of the model with its weights held constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP

Hold = Callable[[Tensor], Tensor]
Weights = Callable[[Tensor, Tensor, Tensor, Hold], Tensor]


class Reading(nn.Module):
    """One head behind an ordinary one, so that a rule acts in any case."""

    def __init__(self, read: Weights) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.maps = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head, self.read = nn.Linear(6, 3), read
        self.hold: Hold = lambda x: x
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, w = (m(x) for m in self.maps)
        x = x + self.hold((q @ w.mT / 3).softmax(-1)) @ v
        q, k, v, w = (m(x) for m in self.maps)
        logits: Tensor = self.head(self.read(q, k, v, self.hold)).sum(1)
        return logits


def log_sinkhorn(rounds: int) -> Weights:
    def read(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
        a = q @ k.mT / 3
        for _ in range(rounds):
            a = a - torch.logsumexp(a, -1, keepdim=True)
            a = a - torch.logsumexp(a, -2, keepdim=True)
        return hold(a.exp()) @ v

    return read


def nystrom(rounds: int, from_the_left: bool) -> Weights:
    def inverse(x: Tensor) -> Tensor:
        z = x.mT / (x.sum(-1).amax() * x.sum(-2).amax())
        one = torch.eye(x.shape[-1], dtype=x.dtype)[None]
        for _ in range(rounds):
            xz = x @ z
            z = 0.25 * z @ (13 * one - (xz @ (15 * one - (xz @ (7 * one - xz)))))
        return z

    def read(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
        few = [t.unflatten(1, (-1, 4)).mean(2) for t in (q, k)]
        first, middle, last = (
            s.softmax(-1) for s in (q @ few[1].mT, few[0] @ few[1].mT, few[0] @ k.mT)
        )
        first, middle, last = hold(first), hold(inverse(middle)), hold(last)
        return (first @ middle) @ (last @ v) if from_the_left else first @ (middle @ (last @ v))

    return read


def rows(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
    """A causal pattern written into a buffer row by row, and read from it row by row."""
    n = q.shape[1]
    pattern = torch.zeros(len(q), n, n, dtype=q.dtype)
    for i in range(n):
        pattern[:, i, : i + 1] = ((q[:, i : i + 1] * k[:, : i + 1]).sum(-1) / 3).softmax(-1)
    pattern = hold(pattern)
    return torch.stack([(pattern[:, i, :, None] * v).sum(1) for i in range(n)], 1)


def forward_attention(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
    """Weights made of those of the step before, used twice (forward attention of Tacotron)."""
    found, weights = [], torch.eye(k.shape[1], dtype=k.dtype)[:1]
    for step in range(q.shape[1]):
        new = ((q[:, step : step + 1] * k).sum(-1) / 3).softmax(-1)
        weights = (weights + F.pad(weights[:, :-1], (1, 0))) * new
        weights = weights / weights.sum(-1, keepdim=True)
        found.append((hold(weights)[:, None] @ v)[:, 0])
    return torch.stack(found, 1)


def location_shift(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
    """Addressing of a Neural Turing Machine: interpolated, shifted and sharpened weights."""
    found, weights = [], torch.eye(k.shape[1], dtype=k.dtype)[:1].expand(len(k), -1)
    for step in range(4):
        new = (F.cosine_similarity(k, q[:, step : step + 1], dim=-1)).softmax(-1)
        share = torch.sigmoid(q[:, step, :1])
        mixed = share * new + (1 - share) * weights
        shift = q[:, step, 1:4].softmax(-1)
        ring = torch.cat([mixed[:, -1:], mixed, mixed[:, :1]], 1)
        places = range(k.shape[1])
        moved = torch.stack([(ring[:, i : i + 3] * shift).sum(1) for i in places], 1)
        moved = moved ** (1 + F.softplus(q[:, step, 4:5]))
        weights = moved / (moved.sum(1, keepdim=True) + 1e-16)
        found.append((hold(weights)[:, None] @ v)[:, 0])
    return torch.stack(found, 1)


CASES: dict[str, tuple[Weights, int]] = {
    "log-domain sinkhorn, 5 rounds": (log_sinkhorn(5), 6),
    "log-domain sinkhorn, 30 rounds": (log_sinkhorn(30), 6),
    "inverse by 1 step, from the left": (nystrom(1, True), 12),
    "inverse by 6 steps, from the left": (nystrom(6, True), 12),
    "inverse by 1 step, from the right": (nystrom(1, False), 12),
    "inverse by 6 steps, from the right": (nystrom(6, False), 12),
    "rows of a buffer": (rows, 40),
    "forward attention": (forward_attention, 24),
    "location shift": (location_shift, 7),
}


@pytest.mark.parametrize("rules", ["ah", "lrp"])
@pytest.mark.parametrize("name", CASES)
def test_held_as_a_whole(name: str, rules: str) -> None:
    read, tokens = CASES[name]
    model, x = Reading(read).eval(), torch.randn(2, tokens, 6, dtype=torch.float64)
    found = ConservativeLRP(model, rules).attribute(x, target=1, strict=True)
    model.hold = Tensor.detach
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found, x * grad)


def test_a_running_softmax_that_starts_empty() -> None:
    """As FlashAttention is written: the first chunk meets a maximum of minus infinity and zeros."""

    def flash(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
        largest = torch.full((len(q), q.shape[1], 1), -torch.inf, dtype=q.dtype)
        total, read = torch.zeros_like(largest), torch.zeros_like(v)
        for keys, values in zip(k.split(2, 1), v.split(2, 1), strict=True):
            scores = q @ keys.mT / 3
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            weights, kept = (scores - new).exp(), (largest - new).exp()
            total = total * kept + weights.sum(-1, keepdim=True)
            read = read * kept + weights @ values
            largest = new
        return read / total

    def plain(q: Tensor, k: Tensor, v: Tensor, hold: Hold) -> Tensor:
        return (q @ k.mT / 3).softmax(-1) @ v

    x = torch.randn(2, 6, 6, dtype=torch.float64)
    for rules in ("ah", "lrp", "lrp-gated"):
        one, other = (
            ConservativeLRP(Reading(read).eval(), rules).attribute(x, target=0, strict=True)
            for read in (flash, plain)
        )
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", ["einsum", "product and sum", "matrix product"])
def test_experts_that_a_dense_dispatch_chooses(way: str) -> None:
    """GShard and Switch: a router's weight in a tensor of ones and zeros is a gate."""
    torch.manual_seed(0)
    router, first, head = nn.Linear(6, 3), torch.randn(3, 6, 6), nn.Linear(6, 2)

    def run(x: Tensor, hold: Hold) -> Tensor:
        gate, expert = router(x).softmax(-1).max(-1)
        place = F.one_hot(expert, 3)
        slot = F.one_hot(((place.cumsum(1) - 1) * place).sum(-1), x.shape[1])
        chosen = (place[..., None] * slot[..., None, :]).to(x.dtype)
        combine = hold(gate)[..., None, None] * chosen
        dispatched = torch.einsum("bnd,bnec->ebcd", x, chosen)
        out = torch.relu(torch.einsum("ebcd,edh->ebch", dispatched, first))
        if way == "einsum":
            y = torch.einsum("ebcd,bnec->bnd", out, combine)
        elif way == "matrix product":
            y = combine.flatten(2) @ out.permute(1, 0, 2, 3).flatten(1, 2)
        else:
            y = (out.permute(1, 0, 2, 3)[:, None] * combine[..., None]).sum((2, 3))
        logits: Tensor = head(x + y).sum(1)
        return logits

    x = torch.randn(2, 5, 6)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf, Tensor.detach)[:, 0].sum(), leaf)
    found: Any = ConservativeLRP(lambda t: run(t, lambda g: g)).attribute(x, target=0, strict=True)
    torch.testing.assert_close(found, x * grad, atol=1e-5, rtol=1e-4)
