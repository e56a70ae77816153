"""One function, written in many ways: the parts that models are made of, each with its spellings.

Every spelling is a function of ``(w, x, p, n)``: weights by name, the inputs ``(batch, tokens,
width)``, and the marks that the oracle freezes: ``p`` around what is an attention pattern and ``n``
around what divides as a norm.  All spellings of a part compute the same function.  To add one,
write one line.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, TOKENS, WIDTH, EXPERTS, FEATURES = 2, 6, 8, 4, 3
EPS = 1e-5
Mark = Callable[[Tensor], Tensor]
Spelling = Callable[["Weights", Tensor, Mark, Mark], Tensor]


class Weights(nn.Module):
    """Linear layers ``a`` to ``d`` and tables, the same for every spelling."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def table(*shape: int) -> nn.Parameter:
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(numbers / math.sqrt(shape[-1]))

        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH).double() for _ in range(4))
        for layer in (self.a, self.b, self.c, self.d):
            layer.weight, layer.bias = table(WIDTH, WIDTH), table(WIDTH)
        self.experts = table(EXPERTS, WIDTH, WIDTH)
        self.router = table(WIDTH, EXPERTS)
        self.vector = table(WIDTH)
        self.slots = table(EXPERTS, WIDTH)
        self.adjacency: Tensor
        edges = torch.rand(TOKENS, TOKENS, generator=generator) < 0.5
        self.register_buffer("adjacency", edges | torch.eye(TOKENS, dtype=torch.bool))


def scores(w: Weights, x: Tensor) -> Tensor:
    return w.a(x) @ w.b(x).mT / math.sqrt(WIDTH)


def pattern(w: Weights, x: Tensor) -> Tensor:
    return scores(w, x).softmax(-1)


def by_hand(s: Tensor, dim: int = -1) -> Tensor:
    e = (s - s.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def chunked(w: Weights, x: Tensor, p: Mark) -> Tensor:
    q, k, v = w.a(x) / math.sqrt(WIDTH), w.b(x), w.c(x)
    rows = [p((part @ k.mT).softmax(-1)) @ v for part in q.split(2, 1)]
    return torch.cat(rows, 1)


def products(w: Weights, x: Tensor, p: Mark) -> Tensor:
    """A pattern times values, of every query and key."""
    return p(pattern(w, x))[..., None] * w.c(x)[:, None]


Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def loop(w: Weights, x: Tensor, p: Mark, step: Step) -> Tensor:
    q, v = p(pattern(w, x)), w.c(x)
    result = torch.zeros_like(v)
    for j in range(TOKENS):
        result = step(result, q[:, :, j : j + 1], v[:, j : j + 1])
    return result


def written(w: Weights, x: Tensor, p: Mark) -> Tensor:
    q, v = p(pattern(w, x)), w.c(x)
    result = torch.zeros_like(v)
    for i in range(TOKENS):
        for j in range(TOKENS):
            result[:, i] += q[:, i, j, None] * v[:, j]
    return result


def ratio(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def joined(w: Weights, x: Tensor) -> Tensor:
    """Keys in chunks, whose results are weighed by their share of the whole sum."""
    chunks = [(s, v) for s, v in zip(scores(w, x).split(3, -1), w.c(x).split(3, 1))]
    totals = [s.logsumexp(-1, keepdim=True) for s, _ in chunks]
    whole = torch.cat(totals, -1).logsumexp(-1, keepdim=True)
    return sum((t - whole).exp() * (s.softmax(-1) @ v) for t, (s, v) in zip(totals, chunks))


def merged(w: Weights, x: Tensor, how: str) -> Tensor:
    """Keys in chunks, each divided by its own sum, joined by these sums."""
    results, sums, largest = [], [], []
    for s, v in zip(scores(w, x).split(3, -1), w.c(x).split(3, 1)):
        largest.append(s.amax(-1, keepdim=True))
        e = (s - largest[-1]).exp() if how == "maxima" else s.exp()
        sums.append(e.sum(-1, keepdim=True))
        results.append(s.softmax(-1) @ v if how == "softmax" else e @ v / sums[-1])
    if how == "maxima":
        most = torch.maximum(*largest)
        sums = [(one - most).exp() * total for one, total in zip(largest, sums)]
    if how == "shares":
        return sum(one * (total / sum(sums)) for one, total in zip(results, sums))
    return sum(one * total for one, total in zip(results, sums)) / sum(sums)


def running(w: Weights, x: Tensor, start: float | None = -math.inf) -> Tensor:
    """Keys in chunks with a running maximum, as FlashAttention has it; ``None``: from a score."""
    whole = scores(w, x)
    largest = whole[..., :1] if start is None else torch.full_like(x[..., :1], start)
    total, result = torch.zeros_like(x[..., :1]), torch.zeros_like(x)
    for s, v in zip(whole.split(2, -1), w.c(x).split(2, 1)):
        new = torch.maximum(largest, s.amax(-1, keepdim=True))
        e, kept = (s - new).exp(), (largest - new).exp()
        total, result = kept * total + e.sum(-1, keepdim=True), kept * result + e @ v
        largest = new
    return result / total


ATTENTION: dict[str, Spelling] = {
    "matmul": lambda w, x, p, n: p(pattern(w, x)) @ w.c(x),
    "bmm": lambda w, x, p, n: torch.bmm(p(torch.bmm(w.a(x) / math.sqrt(WIDTH), w.b(x).mT)
        .softmax(-1)), w.c(x)),
    "einsum": lambda w, x, p, n: torch.einsum("bij,bjd->bid", p(pattern(w, x)), w.c(x)),
    "einsum, values first": lambda w, x, p, n: torch.einsum(
        "bjd,bij->bid", w.c(x), p(pattern(w, x))),
    "einsum, keys before queries": lambda w, x, p, n: torch.einsum(
        "bji,bjd->bid", p(scores(w, x).mT.softmax(1)), w.c(x)),
    "einsum without an arrow": lambda w, x, p, n: torch.einsum(
        "...ai,...ib", p(pattern(w, x)), w.c(x)),
    "transposed": lambda w, x, p, n: (w.c(x).mT @ p(pattern(w, x)).mT).mT,
    "product and sum": lambda w, x, p, n: (
        p(pattern(w, x)).unsqueeze(-1) * w.c(x).unsqueeze(1)).sum(2),
    "product and mean": lambda w, x, p, n: (
        p(pattern(w, x))[..., None] * w.c(x)[:, None]).mean(2) * TOKENS,
    "loop over keys": lambda w, x, p, n: (lambda q, v: sum(
        q[:, :, j : j + 1] * v[:, j : j + 1] for j in range(TOKENS)))(
            p(pattern(w, x)), w.c(x)),
    "loop over keys, stacked": lambda w, x, p, n: (lambda q, v: torch.stack(
        [q[:, :, j, None] * v[:, None, j] for j in range(TOKENS)]).sum(0))(
            p(pattern(w, x)), w.c(x)),
    "loop over queries": lambda w, x, p, n: (lambda q, v: torch.stack(
        [(q[:, i, None] @ v)[:, 0] for i in range(TOKENS)], 1))(p(pattern(w, x)), w.c(x)),
    "queries in chunks": lambda w, x, p, n: chunked(w, x, p),
    "exponential by its sum": lambda w, x, p, n: p(by_hand(scores(w, x))) @ w.c(x),
    "reciprocal of the sum": lambda w, x, p, n: (lambda e: p(
        e * e.sum(-1, keepdim=True).reciprocal()) @ w.c(x))(scores(w, x).exp()),
    "divided afterwards": lambda w, x, p, n: (lambda e: (p(e) @ w.c(x))
        / p(e.sum(-1, keepdim=True)))(scores(w, x).exp()),
    "exponential of log-softmax": lambda w, x, p, n: p(
        scores(w, x).log_softmax(-1).exp()) @ w.c(x),
    "log-sum-exp": lambda w, x, p, n: (lambda s: p(
        (s - s.logsumexp(-1, keepdim=True)).exp()) @ w.c(x))(scores(w, x)),
    "masked with nothing": lambda w, x, p, n: p(scores(w, x).masked_fill(
        torch.zeros(TOKENS, TOKENS, dtype=torch.bool), -1e9).softmax(-1)) @ w.c(x),
    "fused": lambda w, x, p, n: F.scaled_dot_product_attention(w.a(x), w.b(x), w.c(x))
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "heads of one": lambda w, x, p, n: (p(pattern(w, x)).unsqueeze(1) @ w.c(x).unsqueeze(1))
        .squeeze(1),
    "out of place in baddbmm": lambda w, x, p, n: torch.baddbmm(
        torch.zeros(1, 1, 1, dtype=x.dtype), p(pattern(w, x)), w.c(x)),
    # sums in other words
    "addcmul": lambda w, x, p, n: loop(w, x, p, torch.addcmul),
    "addcmul in place": lambda w, x, p, n: loop(w, x, p, lambda o, q, v: o.addcmul_(q, v)),
    "baddbmm of one key": lambda w, x, p, n: loop(w, x, p, torch.baddbmm),
    "added in place": lambda w, x, p, n: loop(w, x, p, lambda o, q, v: o.add_(q * v)),
    "written entry by entry": lambda w, x, p, n: written(w, x, p),
    "a summand inside the sum": lambda w, x, p, n: (products(w, x, p) + w.d(x)[:, None]).sum(2)
        - w.d(x).sum(1, keepdim=True),
    "subtracted from a summand": lambda w, x, p, n: w.d(x).sum(1, keepdim=True)
        - (w.d(x)[:, None] - products(w, x, p)).sum(2),
    "product with ones": lambda w, x, p, n: products(w, x, p).mT @ torch.ones(
        TOKENS, dtype=x.dtype),
    "two sums": lambda w, x, p, n: products(w, x, p).unflatten(2, (2, -1)).sum(2).sum(2),
    "halves": lambda w, x, p, n: (lambda t: t[:, :, :3].sum(2) + t[:, :, 3:].sum(2))(
        products(w, x, p)),
    "unbound": lambda w, x, p, n: sum(products(w, x, p).unbind(2)),
    "pooled": lambda w, x, p, n: TOKENS * F.avg_pool1d(
        products(w, x, p).mT.flatten(0, 1), TOKENS).view_as(x),
    "convolution with ones": lambda w, x, p, n: F.conv1d(products(w, x, p).mT.reshape(
        -1, 1, TOKENS), torch.ones(1, 1, TOKENS, dtype=x.dtype)).view_as(x),
    "vecdot": lambda w, x, p, n: torch.linalg.vecdot(
        p(pattern(w, x))[:, :, None], w.c(x).mT[:, None]),
    "outer products": lambda w, x, p, n: torch.stack([sum(torch.outer(q[:, j], v[j])
        for j in range(TOKENS)) for q, v in zip(p(pattern(w, x)), w.c(x))]),
    "einsum that sums nothing": lambda w, x, p, n: torch.einsum(
        "bij,bjd->bijd", p(pattern(w, x)), w.c(x)).sum(2),
    "gathered": lambda w, x, p, n: (lambda i: (p(pattern(w, x)).gather(-1, i)[..., None]
        * w.c(x)[torch.arange(BATCH)[:, None, None], i]).sum(2))(
            torch.arange(TOKENS).flip(0).expand(BATCH, TOKENS, -1)),
    # softmax in other words
    "powers of two": lambda w, x, p, n: p(ratio(torch.exp2(
        scores(w, x) * math.log2(math.e)))) @ w.c(x),
    "powers of e": lambda w, x, p, n: p(ratio(math.e ** scores(w, x))) @ w.c(x),
    "expm1": lambda w, x, p, n: p(ratio(torch.expm1(scores(w, x)) + 1)) @ w.c(x),
    "sum by ones": lambda w, x, p, n: (lambda e: p(e / (e @ torch.ones(
        TOKENS, 1, dtype=x.dtype))) @ w.c(x))(scores(w, x).exp()),
    "l1 norm": lambda w, x, p, n: (lambda e: p(e / e.norm(1, -1, keepdim=True)) @ w.c(x))(
        scores(w, x).exp()),
    "normalize": lambda w, x, p, n: p(F.normalize(scores(w, x).exp(), 1, -1)) @ w.c(x),
    "sum in a loop": lambda w, x, p, n: (lambda e: p(e / sum(e.split(1, -1))) @ w.c(x))(
        scores(w, x).exp()),
    "log of the sum": lambda w, x, p, n: (lambda s: p(
        (s - s.exp().sum(-1, keepdim=True).log()).exp()) @ w.c(x))(scores(w, x)),
    "logaddexp": lambda w, x, p, n: (lambda s: p((s - functools.reduce(
        torch.logaddexp, s.split(1, -1))).exp()) @ w.c(x))(scores(w, x)),
    "logcumsumexp": lambda w, x, p, n: (lambda s: p(
        (s - s.logcumsumexp(-1)[..., -1:]).exp()) @ w.c(x))(scores(w, x)),
    "chunks joined by their totals": lambda w, x, p, n: joined(w, x)
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "divided afterwards, entry by entry": lambda w, x, p, n: (lambda e: (p(e)[..., None]
        * w.c(x)[:, None]).sum(2) / p(e.sum(-1, keepdim=True)))(scores(w, x).exp()),
    "divided chunks joined by sums": lambda w, x, p, n: merged(w, x, "sums")
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "divided chunks joined by shares": lambda w, x, p, n: merged(w, x, "shares")
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "divided chunks joined with maxima": lambda w, x, p, n: merged(w, x, "maxima")
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "softmax in chunks joined by sums": lambda w, x, p, n: merged(w, x, "softmax")
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "running maximum": lambda w, x, p, n: running(w, x)
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "running maximum from zero": lambda w, x, p, n: running(w, x, 0.0)
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
    "running maximum from a score": lambda w, x, p, n: running(w, x, None)
        if p(x) is x else p(pattern(w, x)) @ w.c(x),
}  # fmt: skip


def pooling(w: Weights, x: Tensor) -> Tensor:
    """Additive attention: a weight for each token."""
    return (torch.tanh(w.a(x)) @ w.vector).softmax(1)


POOLING: dict[str, Spelling] = {
    "product and sum": lambda w, x, p, n: (p(pooling(w, x)).unsqueeze(-1) * w.b(x)).sum(1),
    "values first": lambda w, x, p, n: (w.b(x) * p(pooling(w, x))[..., None]).sum(dim=1),
    "spread out": lambda w, x, p, n: (
        p(pooling(w, x)).unsqueeze(-1).expand(-1, -1, WIDTH) * w.b(x)).sum(1),
    "matmul": lambda w, x, p, n: (p(pooling(w, x)).unsqueeze(1) @ w.b(x)).squeeze(1),
    "matmul, values first": lambda w, x, p, n: (
        w.b(x).mT @ p(pooling(w, x)).unsqueeze(-1)).squeeze(-1),
    "bmm": lambda w, x, p, n: torch.bmm(p(pooling(w, x))[:, None], w.b(x))[:, 0],
    "einsum": lambda w, x, p, n: torch.einsum("bt,btd->bd", p(pooling(w, x)), w.b(x)),
    "mean": lambda w, x, p, n: (p(pooling(w, x))[..., None] * w.b(x)).mean(1) * TOKENS,
    "last of a cumulative sum": lambda w, x, p, n: (
        p(pooling(w, x))[..., None] * w.b(x)).cumsum(1)[:, -1],
    "loop": lambda w, x, p, n: (lambda q, v: sum(
        q[:, t, None] * v[:, t] for t in range(TOKENS)))(p(pooling(w, x)), w.b(x)),
    "index_add": lambda w, x, p, n: torch.zeros(BATCH, WIDTH, dtype=x.dtype).index_add(
        0, torch.arange(BATCH).repeat_interleave(TOKENS),
        (p(pooling(w, x))[..., None] * w.b(x)).flatten(0, 1)),
    "by hand": lambda w, x, p, n: (p(by_hand(torch.tanh(w.a(x)) @ w.vector, 1))[..., None]
        * w.b(x)).sum(1),
    "scaled back": lambda w, x, p, n: (2 * p(pooling(w, x))[..., None] * w.b(x) / 2).sum(1),
    "in place": lambda w, x, p, n: w.b(x).clone().mul_(p(pooling(w, x))[..., None]).sum(1),
}  # fmt: skip


def edges(w: Weights) -> tuple[Tensor, Tensor]:
    to, of = w.adjacency.nonzero().unbind(1)
    return to, of


def edge_weights(w: Weights, x: Tensor) -> Tensor:
    """Graph attention: exponentials of the edges by their sums at each node."""
    to, of = edges(w)
    logits = F.leaky_relu(w.a(x)[:, to] @ w.vector + w.b(x)[:, of] @ w.vector)
    e = logits.exp()
    total = torch.zeros(BATCH, TOKENS, dtype=x.dtype).index_add(1, to, e)
    return e / total[:, to]


def edge_logits(w: Weights, x: Tensor) -> Tensor:
    logits = F.leaky_relu((w.a(x) @ w.vector)[:, :, None] + (w.b(x) @ w.vector)[:, None])
    return logits.masked_fill(~w.adjacency, -math.inf)


GRAPH_ATTENTION: dict[str, Spelling] = {
    "dense": lambda w, x, p, n: p(edge_logits(w, x).softmax(-1)) @ w.c(x),
    "dense, product and sum": lambda w, x, p, n: (
        p(edge_logits(w, x).softmax(-1))[..., None] * w.c(x)[:, None]).sum(2),
    "index_add": lambda w, x, p, n: torch.zeros_like(x).index_add(
        1, edges(w)[0], p(edge_weights(w, x))[..., None] * w.c(x)[:, edges(w)[1]]),
    "scatter_add": lambda w, x, p, n: torch.zeros_like(x).scatter_add(
        1, edges(w)[0][None, :, None].expand(BATCH, -1, WIDTH),
        p(edge_weights(w, x))[..., None] * w.c(x)[:, edges(w)[1]]),
    "weights on the right": lambda w, x, p, n: torch.zeros_like(x).index_add(
        1, edges(w)[0], w.c(x)[:, edges(w)[1]] * p(edge_weights(w, x)).unsqueeze(-1)),
    "index_add in place": lambda w, x, p, n: torch.zeros_like(x).index_add_(
        1, edges(w)[0], p(edge_weights(w, x))[..., None] * w.c(x)[:, edges(w)[1]]),
}  # fmt: skip


def feature(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def causal(w: Weights, x: Tensor) -> Tensor:
    return torch.ones(TOKENS, TOKENS, dtype=x.dtype)


def linear_loop(
    w: Weights, x: Tensor, p: Mark, outer: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    q, k, v = p(feature(w.a(x))), p(feature(w.b(x))), w.c(x)
    state = torch.zeros(BATCH, WIDTH, WIDTH, dtype=x.dtype)
    for t in range(TOKENS):
        state = state + outer(k[:, t], v[:, t])
    return torch.stack([(q[:, t, :, None] * state).sum(1) for t in range(TOKENS)], 1)


LINEAR_ATTENTION: dict[str, Spelling] = {
    "keys times values": lambda w, x, p, n: p(feature(w.a(x))) @ (
        p(feature(w.b(x))).mT @ w.c(x)),
    "einsum": lambda w, x, p, n: torch.einsum("bik,bkd->bid", p(feature(w.a(x))),
        torch.einsum("bjk,bjd->bkd", p(feature(w.b(x))), w.c(x))),
    "einsum, values first": lambda w, x, p, n: torch.einsum("bdk,bik->bid",
        torch.einsum("bjd,bjk->bdk", w.c(x), p(feature(w.b(x)))), p(feature(w.a(x)))),
    "pattern first": lambda w, x, p, n: p(
        feature(w.a(x)) @ feature(w.b(x)).mT) @ w.c(x),
    "transposed": lambda w, x, p, n: ((w.c(x).mT @ p(feature(w.b(x))))
        @ p(feature(w.a(x))).mT).mT,
    "one product": lambda w, x, p, n: torch.einsum(
        "bik,bjk,bjd->bid", p(feature(w.a(x))), p(feature(w.b(x))), w.c(x)),
    "heads of one": lambda w, x, p, n: (p(feature(w.a(x)))[:, None] @ (
        p(feature(w.b(x)))[:, None].mT @ w.c(x)[:, None])).squeeze(1),
    "bmm": lambda w, x, p, n: torch.bmm(p(feature(w.a(x))),
        torch.bmm(p(feature(w.b(x))).mT, w.c(x))),
    "scaled": lambda w, x, p, n: 3 * (p(feature(w.a(x))) @ (
        p(feature(w.b(x))).mT @ (w.c(x) / 3))),
    "outer products": lambda w, x, p, n: p(feature(w.a(x))) @ (
        p(feature(w.b(x)))[..., None] * w.c(x)[:, :, None]).sum(1),
    "read entry by entry": lambda w, x, p, n: (p(feature(w.a(x)))[..., None]
        * (p(feature(w.b(x))).mT @ w.c(x))[:, None]).sum(2),
    "all entry by entry": lambda w, x, p, n: (p(feature(w.a(x)))[..., None]
        * (p(feature(w.b(x)))[..., None] * w.c(x)[:, :, None]).sum(1)[:, None]).sum(2),
    "loop": lambda w, x, p, n: linear_loop(w, x, p, lambda k, v: k[..., None] * v[:, None]),
    "loop of products": lambda w, x, p, n: linear_loop(
        w, x, p, lambda k, v: k[..., None] @ v[:, None]),
    "pattern entry by entry": lambda w, x, p, n: (p(
        feature(w.a(x)) @ feature(w.b(x)).mT)[..., None] * w.c(x)[:, None]).sum(2),
}  # fmt: skip


def root(x: Tensor) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + EPS).sqrt()


RMS_NORM: dict[str, Spelling] = {
    "division": lambda w, x, p, n: x / n(root(x)),
    "rsqrt": lambda w, x, p, n: x * n((x.square().mean(-1, keepdim=True) + EPS).rsqrt()),
    "power": lambda w, x, p, n: x * n((x.pow(2).mean(-1, keepdim=True) + EPS) ** -0.5),
    "norm": lambda w, x, p, n: x / n(
        (x.norm(dim=-1, keepdim=True) ** 2 / WIDTH + EPS).sqrt()),
    "one over": lambda w, x, p, n: x * n(1 / root(x)),
    "einsum": lambda w, x, p, n: torch.einsum(
        "btd,bt->btd", x, n((torch.einsum("btd,btd->bt", x, x) / WIDTH + EPS).rsqrt())),
    "call": lambda w, x, p, n: F.rms_norm(x, (WIDTH,), eps=EPS) if n(x) is x
        else x / n(root(x)),
    "addcmul": lambda w, x, p, n: x / n((functools.reduce(lambda total, c: torch.addcmul(total, c,
        c), x.split(1, -1), torch.zeros_like(x[..., :1])) / WIDTH + EPS).sqrt()),
    "vecdot": lambda w, x, p, n: x / n(
        (torch.linalg.vecdot(x, x)[..., None] / WIDTH + EPS).sqrt()),
    "applied by addcmul": lambda w, x, p, n: torch.addcmul(
        torch.zeros_like(x), x, n(1 / root(x))),
    "product with ones": lambda w, x, p, n: x / n(
        (x.square() @ torch.full((WIDTH, 1), 1 / WIDTH, dtype=x.dtype) + EPS).sqrt()),
}  # fmt: skip


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


LAYER_NORM: dict[str, Spelling] = {
    "variance": lambda w, x, p, n: centred(x) / n(
        (x.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()),
    "rsqrt": lambda w, x, p, n: centred(x) * n(
        (x.var(-1, keepdim=True, unbiased=False) + EPS).rsqrt()),
    "of the centred": lambda w, x, p, n: (lambda c: c / n(root(c)))(centred(x)),
    "moments": lambda w, x, p, n: centred(x) / n(
        (x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square() + EPS).sqrt()),
    "call": lambda w, x, p, n: F.layer_norm(x, (WIDTH,), eps=EPS) if n(x) is x
        else centred(x) / n(root(centred(x))),
    "var_mean": lambda w, x, p, n: (lambda v, m: (x - m) * n(torch.rsqrt(v + EPS)))(
        *torch.var_mean(x, -1, correction=0, keepdim=True)),
    "group norm": lambda w, x, p, n: F.group_norm(x.flatten(0, 1), 1, eps=EPS).view_as(x)
        if n(x) is x else centred(x) / n(root(centred(x))),
}  # fmt: skip
L2_NORM: dict[str, Spelling] = {
    "division": lambda w, x, p, n: x / n(x.norm(dim=-1, keepdim=True)),
    "call": lambda w, x, p, n: F.normalize(x, dim=-1) if n(x) is x
        else x / n(x.norm(dim=-1, keepdim=True)),
    "square root": lambda w, x, p, n: x / n(x.square().sum(-1, keepdim=True).sqrt()),
    "rsqrt": lambda w, x, p, n: x * n((x * x).sum(-1, keepdim=True).rsqrt()),
    "vector norm": lambda w, x, p, n: x / n(torch.linalg.vector_norm(x, dim=-1, keepdim=True)),
    "einsum": lambda w, x, p, n: x / n(torch.einsum("btd,btd->bt", x, x).sqrt()[..., None]),
    "power pool": lambda w, x, p, n: x / n(F.lp_pool1d(x, 2.0, WIDTH)),
    "hypot": lambda w, x, p, n: x / n(functools.reduce(torch.hypot, x.split(1, -1))),
}  # fmt: skip


def routing(w: Weights, x: Tensor) -> Tensor:
    return (x @ w.router).softmax(-1)


def expert_outputs(w: Weights, x: Tensor) -> Tensor:
    return F.gelu(torch.einsum("btd,edf->btef", x, w.experts))


MIXTURE: dict[str, Spelling] = {
    "product and sum": lambda w, x, p, n: (routing(w, x)[..., None] * expert_outputs(w, x)).sum(2),
    "einsum": lambda w, x, p, n: torch.einsum("bte,btef->btf", routing(w, x), expert_outputs(w, x)),
    "matmul": lambda w, x, p, n: (routing(w, x)[..., None, :] @ expert_outputs(w, x)).squeeze(-2),
    "bmm": lambda w, x, p, n: torch.bmm(routing(w, x).flatten(0, 1)[:, None],
        expert_outputs(w, x).flatten(0, 1)).view_as(x),
    "loop": lambda w, x, p, n: (lambda r: sum(
        r[..., e : e + 1] * F.gelu(x @ w.experts[e]) for e in range(EXPERTS)))(routing(w, x)),
    "stack": lambda w, x, p, n: (routing(w, x)[..., None] * torch.stack(
        [F.gelu(x @ w.experts[e]) for e in range(EXPERTS)], 2)).sum(2),
    "stack, einsum": lambda w, x, p, n: torch.einsum("bte,ebtf->btf", routing(w, x),
        torch.stack([F.gelu(x @ w.experts[e]) for e in range(EXPERTS)])),
}  # fmt: skip
GATED: dict[str, Spelling] = {
    "silu": lambda w, x, p, n: F.silu(w.a(x)) * w.b(x),
    "sigmoid": lambda w, x, p, n: (lambda g: g * torch.sigmoid(g) * w.b(x))(w.a(x)),
    "values first": lambda w, x, p, n: w.b(x) * F.silu(w.a(x)),
    "mul": lambda w, x, p, n: torch.mul(w.b(x), F.silu(w.a(x))),
    "by its divisor": lambda w, x, p, n: (lambda g: g / (1 + (-g).exp()) * w.b(x))(w.a(x)),
    "einsum": lambda w, x, p, n: torch.einsum("btd,btd->btd", F.silu(w.a(x)), w.b(x)),
    "one map": lambda w, x, p, n: (lambda g, v: F.silu(g) * v)(*F.linear(
        x, torch.cat([w.a.weight, w.b.weight]), torch.cat([w.a.bias, w.b.bias])).chunk(2, -1)),
}  # fmt: skip
GEGLU: dict[str, Spelling] = {
    "gelu": lambda w, x, p, n: F.gelu(w.a(x)) * w.b(x),
    "values first": lambda w, x, p, n: w.b(x) * F.gelu(w.a(x)),
    "erf": lambda w, x, p, n: (lambda g: 0.5 * g * (1 + torch.erf(g / math.sqrt(2)))
        * w.b(x))(w.a(x)),
    "erf, factors apart": lambda w, x, p, n: (lambda g: g * (0.5 * (1 + torch.erf(
        g * math.sqrt(0.5)))) * w.b(x))(w.a(x)),
    "ndtr": lambda w, x, p, n: (lambda g: g * torch.special.ndtr(g) * w.b(x))(w.a(x)),
}  # fmt: skip
SIGMOID_GATE: dict[str, Spelling] = {
    "sigmoid": lambda w, x, p, n: torch.sigmoid(w.a(x)) * w.b(x),
    "glu": lambda w, x, p, n: F.glu(torch.cat([w.b(x), w.a(x)], -1), -1),
    "values first": lambda w, x, p, n: w.b(x) * w.a(x).sigmoid(),
    "by its divisor": lambda w, x, p, n: w.b(x) / (1 + (-w.a(x)).exp()),
    "lerp": lambda w, x, p, n: torch.lerp(torch.zeros_like(x), w.b(x), w.a(x).sigmoid()),
    "lerp in place": lambda w, x, p, n: torch.zeros_like(x).lerp_(w.b(x), w.a(x).sigmoid()),
    "lerp of aten": lambda w, x, p, n: torch.ops.aten.lerp_.Tensor(
        torch.zeros_like(x), w.b(x), w.a(x).sigmoid()),
    "sum and product of aten": lambda w, x, p, n: torch.ops.aten.addcmul_.default(
        torch.zeros_like(x), w.b(x), w.a(x).sigmoid()),
    "half a tanh": lambda w, x, p, n: w.b(x) * (0.5 * torch.tanh(w.a(x) / 2) + 0.5),
    "einsum": lambda w, x, p, n: torch.einsum("btd,btd->btd", w.b(x), w.a(x).sigmoid()),
}  # fmt: skip
BIASED_MAP: dict[str, Spelling] = {
    "linear": lambda w, x, p, n: F.linear(x, w.a.weight, w.a.bias),
    "module": lambda w, x, p, n: w.a(x),
    "matmul": lambda w, x, p, n: x @ w.a.weight.T + w.a.bias,
    "einsum": lambda w, x, p, n: torch.einsum("btd,od->bto", x, w.a.weight) + w.a.bias,
    "bmm": lambda w, x, p, n: torch.bmm(x, w.a.weight.T.expand(BATCH, -1, -1)) + w.a.bias,
    "baddbmm": lambda w, x, p, n: torch.baddbmm(
        w.a.bias.expand(BATCH, 1, -1), x, w.a.weight.T.expand(BATCH, -1, -1)),
    "addmm": lambda w, x, p, n: torch.addmm(
        w.a.bias, x.flatten(0, 1), w.a.weight.T).view_as(x),
    "aten": lambda w, x, p, n: torch.ops.aten.linear.default(x, w.a.weight, w.a.bias),
    "convolution": lambda w, x, p, n: F.conv1d(x.mT, w.a.weight[..., None], w.a.bias).mT,
    "product and sum": lambda w, x, p, n: (x[..., None, :] * w.a.weight).sum(-1) + w.a.bias,
}  # fmt: skip
TWO_TOWERS: dict[str, Spelling] = {
    "matmul": lambda w, x, p, n: F.relu(w.a(x)) @ w.b(x).mT,
    "einsum": lambda w, x, p, n: torch.einsum("bid,bjd->bij", F.relu(w.a(x)), w.b(x)),
    "bmm": lambda w, x, p, n: torch.bmm(F.relu(w.a(x)), w.b(x).mT),
    "transposed": lambda w, x, p, n: (w.b(x) @ F.relu(w.a(x)).mT).mT,
    "product and sum": lambda w, x, p, n: (
        F.relu(w.a(x))[:, :, None] * w.b(x)[:, None]).sum(-1),
    "loop": lambda w, x, p, n: torch.stack(
        [(F.relu(w.a(x)) @ row[..., None]).squeeze(-1) for row in w.b(x).unbind(1)], -1),
}  # fmt: skip
SLOTS: dict[str, Spelling] = {
    "matrix": lambda w, x, p, n: (x @ w.router).softmax(-1) @ w.slots,
    "batch of matrices": lambda w, x, p, n: (x @ w.router).softmax(-1) @ w.slots[None],
    "linear": lambda w, x, p, n: F.linear((x @ w.router).softmax(-1), w.slots.T),
    "einsum": lambda w, x, p, n: torch.einsum("bte,ed->btd", (x @ w.router).softmax(-1), w.slots),
    "product and sum": lambda w, x, p, n: (
        (x @ w.router).softmax(-1)[..., None] * w.slots).sum(-2),
    "expanded": lambda w, x, p, n: torch.bmm(
        (x @ w.router).softmax(-1), w.slots.expand(BATCH, -1, -1)),
    "fused": lambda w, x, p, n: F.scaled_dot_product_attention(
        x, w.router.T.expand(BATCH, -1, -1), w.slots.expand(BATCH, -1, -1), scale=1.0),
}  # fmt: skip

PARTS: dict[str, dict[str, Spelling]] = {
    "attention": ATTENTION,
    "pooling": POOLING,
    "graph attention": GRAPH_ATTENTION,
    "linear attention": LINEAR_ATTENTION,
    "RMS norm": RMS_NORM,
    "layer norm": LAYER_NORM,
    "l2 norm": L2_NORM,
    "mixture of experts": MIXTURE,
    "SwiGLU": GATED,
    "GEGLU": GEGLU,
    "sigmoid gate": SIGMOID_GATE,
    "biased linear map": BIASED_MAP,
    "two towers": TWO_TOWERS,
    "memory slots": SLOTS,
}


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, TOKENS, WIDTH, generator=generator, dtype=torch.float64)


def frozen(x: Tensor) -> Tensor:
    return x.detach()


def live(x: Tensor) -> Tensor:
    return x


class Model(nn.Module):
    """A part in one spelling behind a linear layer, with a head of two classes."""

    def __init__(self, spelling: Spelling, freeze: str = "") -> None:
        super().__init__()
        self.weights, self.spelling, self.freeze = Weights(), spelling, freeze

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        marks: list[Any] = [frozen if mark in self.freeze else live for mark in "pn"]
        y = self.spelling(w, w.d(x) + x, *marks)
        y = torch.tanh(y.flatten(1)) if y.shape[-1] != WIDTH else w.c(y).reshape(BATCH, -1)
        return torch.stack([y.sum(1), (y * torch.linspace(-1, 1, y.shape[1]).to(y)).sum(1)], 1)
