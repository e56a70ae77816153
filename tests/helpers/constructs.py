"""Constructs that modellers write: attention, norms, graphs, gates, mixtures, kernels.

Each is a function of ``Weights``, hidden states, ``p`` and ``n``.  These two stand around what a
second run holds constant, attention patterns and divisors of norms, and are the identity else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spellings import BATCH, EXPERTS, TOKENS, WIDTH, Weights, pattern, scores

Hold = Callable[[Tensor], Tensor]
DRAW = torch.Generator().manual_seed(7)


def R(*shape: int) -> Tensor:
    """Numbers that a module would hold as a parameter."""
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64) / math.sqrt(shape[-1])


BIAS = R(TOKENS, TOKENS) * 2
TALK = R(2, 2)
TALK2 = R(2, 2)
LAT = R(3, WIDTH)
KM, VM = (R(5, WIDTH), R(5, WIDTH))
FEAT = R(WIDTH, 6)
LINF = R(4, TOKENS)
SYN = R(WIDTH, TOKENS)
SGU = R(TOKENS, TOKENS)
SE1, SE2 = (R(WIDTH, 4), R(4, WIDTH))
OUT = R(WIDTH, WIDTH)


def unit(z, n, dim=-1):
    return z / n(z.norm(dim=dim, keepdim=True))


def rms(z, n):
    return z / n((z.square().mean(-1, keepdim=True) + 1e-06).sqrt())


def centred(z, n):
    return (z - z.mean(-1, keepdim=True)) / n(
        (z.var(-1, keepdim=True, correction=0) + 1e-05).sqrt()
    )


def heads(z, h=2):
    return z.unflatten(-1, (h, -1)).transpose(1, 2)


def merge(z):
    return z.transpose(1, 2).flatten(2)


def qkv(w, x):
    return (w.a(x), w.b(x), w.c(x))


def hs(w, x):
    q, k, v = map(heads, qkv(w, x))
    return (q @ k.mT / 2, v)


def topk(s, k=3):
    kth = s.topk(k, -1).values[..., -1:]
    return s.masked_fill(s < kth, -torch.inf).softmax(-1)


def sparsemax(s):
    z, _ = s.sort(-1, descending=True)
    c = z.cumsum(-1)
    k = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    ok = 1 + k * z > c
    n = ok.sum(-1, keepdim=True)
    tau = (c.gather(-1, n - 1) - 1) / n
    return (s - tau).clamp(min=0)


def rot(z):
    t = torch.arange(TOKENS, dtype=z.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001]).to(z)
    c, s = (t.cos(), t.sin())
    a, b = z.chunk(2, -1)
    return torch.cat([a * c - b * s, a * s + b * c], -1)


def slot(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = w.slots @ w.b(x).mT
    a = s.softmax(1)
    a = p(a / (a.sum(-1, keepdim=True) + 1e-08))
    return (a @ w.c(x)).mean(1, keepdim=True) + x


def sinkhorn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x).exp()
    for _ in range(4):
        s = s / s.sum(-1, keepdim=True)
        s = s / s.sum(-2, keepdim=True)
    return p(s) @ w.c(x)


def ffw(w: Weights, x: Tensor, p: Hold, n: Hold, phi: Any = lambda z: F.elu(z) + 1) -> Tensor:
    q, k, v = qkv(w, x)
    q, k = (phi(q), phi(k))
    a = q @ k.mT
    return p(a / a.sum(-1, keepdim=True)) @ v


def netvlad(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = (x @ w.router).softmax(-1)
    r = x[:, :, None] - w.slots
    v = (a[..., None] * r).sum(1)
    v = v / n(v.norm(dim=-1, keepdim=True))
    v = v.flatten(1)
    v = v / n(v.norm(dim=-1, keepdim=True))
    return v.unflatten(-1, (-1, WIDTH)).mean(1, keepdim=True) + x


CONSTRUCTS: dict[str, Callable[..., Tensor]] = {
    "t5 bias": lambda w, x, p, n: p((w.a(x) @ w.b(x).mT + BIAS).softmax(-1)) @ w.c(x),
    "alibi causal": lambda w, x, p, n: (
        p(
            (scores(w, x) - 0.5 * (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs())
            .masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
            .softmax(-1)
        )
        @ w.c(x)
    ),
    "rotary": lambda w, x, p, n: p((rot(w.a(x)) @ rot(w.b(x)).mT).softmax(-1)) @ w.c(x),
    "talking heads": lambda w, x, p, n: (
        lambda s, v: merge(
            p(
                torch.einsum(
                    "bhqk,hg->bgqk", torch.einsum("bhqk,hg->bgqk", s, TALK).softmax(-1), TALK2
                )
            )
            @ v
        )
    )(*hs(w, x)),
    "cosine attention": lambda w, x, p, n: (
        p((10 * unit(w.a(x), n) @ unit(w.b(x), n).mT).softmax(-1)) @ w.c(x)
    ),
    "xca": lambda w, x, p, n: (
        lambda q, k, v: (p((unit(q, n, 1).mT @ unit(k, n, 1)).softmax(-1)) @ v.mT).mT
    )(*qkv(w, x)),
    "sparsemax": lambda w, x, p, n: p(sparsemax(scores(w, x))) @ w.c(x),
    "top-k": lambda w, x, p, n: p(topk(scores(w, x))) @ w.c(x),
    "sigmoid attention": lambda w, x, p, n: p(scores(w, x).sigmoid() / TOKENS) @ w.c(x),
    "relu attention": lambda w, x, p, n: p(scores(w, x).relu() / TOKENS) @ w.c(x),
    "relu2 attention": lambda w, x, p, n: p(scores(w, x).relu().square() / TOKENS) @ w.c(x),
    "quiet": lambda w, x, p, n: (lambda e: p(e / (1 + e.sum(-1, keepdim=True))) @ w.c(x))(
        scores(w, x).exp()
    ),
    "sink logit": lambda w, x, p, n: (
        p(
            torch.cat(
                [scores(w, x), w.vector[:TOKENS].view(1, -1, 1).expand(BATCH, -1, 1)], -1
            ).softmax(-1)[..., :-1]
        )
        @ w.c(x)
    ),
    "differential": lambda w, x, p, n: (
        p(pattern(w, x) - 0.4 * (w.b(x) @ w.a(x).mT).softmax(-1)) @ w.c(x)
    ),
    "differential learned": lambda w, x, p, n: (
        (p(pattern(w, x)) - w.vector.mean().exp() * p((w.b(x) @ w.a(x).mT).softmax(-1))) @ w.c(x)
    ),
    "differential normed": lambda w, x, p, n: (
        lambda y: y / n((y.square().mean(-1, keepdim=True) + 1e-06).sqrt())
    )(p(pattern(w, x) - 0.4 * (w.b(x) @ w.a(x).mT).softmax(-1)) @ w.c(x)),
    "two patterns averaged": lambda w, x, p, n: (
        p((pattern(w, x) + (w.b(x) @ w.a(x).mT).softmax(-1)) / 2) @ w.c(x)
    ),
    "two patterns multiplied": lambda w, x, p, n: (
        p(pattern(w, x) @ (w.b(x) @ w.a(x).mT).softmax(-1)) @ w.c(x)
    ),
    "gated attention": lambda w, x, p, n: p(pattern(w, x)) @ w.c(x) * w.d(x).sigmoid(),
    "learned query": lambda w, x, p, n: x + p((w.b(x) @ w.vector).softmax(-1))[:, None] @ w.c(x),
    "mha pooled": lambda w, x, p, n: p((LAT @ w.b(x).mT).softmax(-1)) @ w.c(x),
    "perceiver": lambda w, x, p, n: (
        p((w.a(x) @ w.b((z := (p((LAT @ w.b(x).mT).softmax(-1)) @ w.c(x)))).mT).softmax(-1))
        @ w.c(z)
    ),
    "slot attention": slot,
    "sinkhorn": sinkhorn,
    "bahdanau": lambda w, x, p, n: (
        p((torch.tanh(w.a(x)[:, :, None] + w.b(x)[:, None]) @ w.vector).softmax(-1)) @ w.c(x)
    ),
    "bahdanau sum": lambda w, x, p, n: (
        p((torch.tanh(w.a(x)[:, :, None] + w.b(x)[:, None]) @ w.vector).softmax(-1))[..., None]
        * w.c(x)[:, None]
    ).sum(2),
    "distance": lambda w, x, p, n: p((-torch.cdist(w.a(x), w.b(x)).square()).softmax(-1)) @ w.c(x),
    "gaussian kernel": lambda w, x, p, n: (lambda k: p(k / k.sum(-1, keepdim=True)) @ w.c(x))(
        (-(w.a(x)[:, :, None] - w.b(x)[:, None]).square().sum(-1) / 2).exp()
    ),
    "aft full": lambda w, x, p, n: (
        lambda k, v, q: (
            q.sigmoid() * (p((k[:, None] + BIAS[..., None]).softmax(2)) * v[:, None]).sum(2)
        )
    )(w.b(x), w.c(x), w.a(x)),
    "aft simple": lambda w, x, p, n: (
        w.a(x).sigmoid() * (p(w.b(x).softmax(1)) * w.c(x)).sum(1, keepdim=True)
    ),
    "rwkv wkv": lambda w, x, p, n: (
        lambda k, v: torch.stack(
            [
                (
                    p((k[:, : t + 1] - 0.3 * torch.arange(t, -1, -1)[:, None]).softmax(1))
                    * v[:, : t + 1]
                ).sum(1)
                for t in range(TOKENS)
            ],
            1,
        )
    )(w.b(x), w.c(x)),
    "linformer": lambda w, x, p, n: p((w.a(x) @ (LINF @ w.b(x)).mT).softmax(-1)) @ (LINF @ w.c(x)),
    "synthesizer dense": lambda w, x, p, n: p((w.a(x).relu() @ SYN).softmax(-1)) @ w.c(x),
    "synthesizer random": lambda w, x, p, n: BIAS.softmax(-1) @ w.c(x),
    "performer": lambda w, x, p, n: (
        lambda q, k, v: (lambda a: p(a / a.sum(-1, keepdim=True)) @ v)(
            (q @ FEAT - q.square().sum(-1, keepdim=True) / 2).exp()
            @ (k @ FEAT - k.square().sum(-1, keepdim=True) / 2).exp().mT
        )
    )(*qkv(w, x)),
    "elu linear quadratic": ffw,
    "relu linear quadratic": lambda w, x, p, n: ffw(w, x, p, n, lambda z: F.relu(z) + 0.001),
    "local windows": lambda w, x, p, n: (
        lambda q, k, v: (
            p((q.unflatten(1, (-1, 3)) @ k.unflatten(1, (-1, 3)).mT).softmax(-1))
            @ v.unflatten(1, (-1, 3))
        ).flatten(1, 2)
    )(*qkv(w, x)),
    "unfold windows": lambda w, x, p, n: (
        lambda q, k, v: (
            p((q[:, :, None] @ F.pad(k, (0, 0, 1, 1)).unfold(1, 3, 1)).softmax(-1))
            @ F.pad(v, (0, 0, 1, 1)).unfold(1, 3, 1).mT
        ).squeeze(2)
    )(*qkv(w, x)),
    "axial": lambda w, x, p, n: (
        lambda z: (
            p((w.b(z).unflatten(1, (2, 3)).mT @ w.a(z).unflatten(1, (2, 3))).softmax(-1))
            @ w.c(z).unflatten(1, (2, 3)).mT
        ).mT.flatten(1, 2)
    )(x),
    "external": lambda w, x, p, n: (x @ w.router).softmax(-1) @ w.slots,
    "memory tokens": lambda w, x, p, n: (
        p((w.a(x) @ torch.cat([w.b(x), KM.expand(BATCH, -1, -1)], 1).mT).softmax(-1))
        @ torch.cat([w.c(x), VM.expand(BATCH, -1, -1)], 1)
    ),
    "gcnet": lambda w, x, p, n: x + w.c(p((x @ w.vector).softmax(-1))[:, None] @ x),
    "set2set": lambda w, x, p, n: (
        lambda h: x + (p((x @ h[..., None]).softmax(1)) * x).sum(1, keepdim=True)
    )(w.a((p((x @ w.vector).softmax(1))[..., None] * x).sum(1))),
    "hopfield two steps": lambda w, x, p, n: (
        p((w.a(p(pattern(w, x)) @ w.b(x)) @ w.b(x).mT).softmax(-1)) @ w.c(x)
    ),
    "temperature learned by token": lambda w, x, p, n: (
        p((scores(w, x) * F.softplus(w.d(x)[..., :1])).softmax(-1)) @ w.c(x)
    ),
    "pattern powered": lambda w, x, p, n: (lambda a: p(a / a.sum(-1, keepdim=True)) @ w.c(x))(
        pattern(w, x) ** 2
    ),
    "pattern sharpened": lambda w, x, p, n: (lambda a: p(a / a.sum(-1, keepdim=True)) @ w.c(x))(
        pattern(w, x) * scores(w, x).sigmoid()
    ),
    "pattern masked afterwards": lambda w, x, p, n: (
        lambda a: p(a / a.sum(-1, keepdim=True)) @ w.c(x)
    )(pattern(w, x) * w.adjacency),
    "dropped after": lambda w, x, p, n: F.dropout(p(pattern(w, x)), 0.5, False) @ w.c(x),
    "straight max": lambda w, x, p, n: (
        p(F.one_hot(scores(w, x).argmax(-1), TOKENS).double()) @ w.c(x)
    ),
    "gumbel": lambda w, x, p, n: p((scores(w, x) + BIAS.sin()).softmax(-1)) @ w.c(x),
    "attention of values squared": lambda w, x, p, n: p(pattern(w, x)) @ w.c(x).square(),
    "attention std pooling": lambda w, x, p, n: (
        lambda a, v: (a @ v.square() - (a @ v).square()).clamp(min=0.001).sqrt()
    )(p(pattern(w, x)), w.c(x)),
    "attention in log space": lambda w, x, p, n: (p(pattern(w, x)) @ w.c(x).exp()).log(),
    "multi query": lambda w, x, p, n: merge(
        p((heads(w.a(x)) @ w.b(x)[:, None, :, :4].mT).softmax(-1)) @ w.c(x)[:, None, :, :4]
    ),
    "value residual": lambda w, x, p, n: p(pattern(w, x)) @ (0.5 * w.c(x) + 0.5 * x),
    "pattern transposed (column)": lambda w, x, p, n: p(scores(w, x).softmax(-2)) @ w.c(x),
    "collaborative": lambda w, x, p, n: p((w.a(x) * w.vector @ w.b(x).mT).softmax(-1)) @ w.c(x),
    "biaffine scores": lambda w, x, p, n: (
        p(torch.einsum("bqi,ij,bkj->bqk", x, OUT, x).softmax(-1)) @ w.c(x)
    ),
    "netvlad": netvlad,
    "scale norm": lambda w, x, p, n: 3 * x / n(x.norm(dim=-1, keepdim=True).clamp(min=1e-05)),
    "partial rms": lambda w, x, p, n: (
        x / n(x[..., :4].square().mean(-1, keepdim=True).add(1e-06).sqrt())
    ),
    "pixel norm": lambda w, x, p, n: x * n(torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-08)),
    "grn": lambda w, x, p, n: (lambda gx: x * n(gx / (gx.mean(-1, keepdim=True) + 1e-06)) + x)(
        x.norm(dim=1, keepdim=True)
    ),
    "adain": lambda w, x, p, n: (
        lambda h, c: (
            (h - h.mean(1, keepdim=True))
            / n(h.std(1, keepdim=True) + 1e-05)
            * c.std(1, keepdim=True)
            + c.mean(1, keepdim=True)
        )
    )(w.a(x), w.b(x)),
    "film": lambda w, x, p, n: centred(x, n) * w.vector + w.a(x.mean(1, keepdim=True)) * x,
    "min-max": lambda w, x, p, n: (
        (x - x.amin(-1, keepdim=True)) / n(x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True))
    ),
    "mad": lambda w, x, p, n: (lambda c: c / n(c.abs().median(-1, keepdim=True).values))(
        x - x.median(-1, keepdim=True).values
    ),
    "mean abs dev": lambda w, x, p, n: (lambda c: c / n(c.abs().mean(-1, keepdim=True) + 1e-06))(
        x - x.mean(-1, keepdim=True)
    ),
    "iqr": lambda w, x, p, n: (
        (x - x.median(-1, keepdim=True).values)
        / n(x.quantile(0.75, -1, keepdim=True) - x.quantile(0.25, -1, keepdim=True))
    ),
    # the same by indices: autograd does not see that they tell the order
    "range by gather": lambda w, x, p, n: (
        (x - x.mean(-1, keepdim=True))
        / n(x.gather(-1, x.argmax(-1, True)) - x.gather(-1, x.argmin(-1, keepdim=True)))
    ),
    "iqr by argsort": lambda w, x, p, n: (
        lambda order: (
            (x - x.mean(-1, keepdim=True))
            / n(x.take_along_dim(order[..., 6:7], -1) - x.gather(-1, order.narrow(-1, 1, 1)))
        )
    )(x.argsort(-1)),
    "iqr by indices": lambda w, x, p, n: (
        lambda order: (
            (x - x.mean(-1, keepdim=True))
            / n(x[..., 0:1] * 0 + x.gather(-1, order[..., 6:7]) - x.gather(-1, order[..., 1:2]))
        )
    )(x.sort(-1).indices),
    "iqr by kthvalue": lambda w, x, p, n: (
        (x - x.mean(-1, keepdim=True))
        / n(x.kthvalue(7, -1, keepdim=True).values - x.kthvalue(2, -1, keepdim=True).values)
    ),
    "dyt": lambda w, x, p, n: torch.tanh(0.7 * x) * w.vector,
    "squash": lambda w, x, p, n: (lambda s2: s2 / (1 + s2) * x / n(s2.sqrt()))(
        x.square().sum(-1, keepdim=True)
    ),
    "cosine classifier": lambda w, x, p, n: (
        x / n(x.norm(dim=-1, keepdim=True)) @ F.normalize(OUT, dim=0)
    ),
    "weight standardised": lambda w, x, p, n: F.linear(
        x, (OUT - OUT.mean(1, keepdim=True)) / OUT.std(1, keepdim=True)
    ),
    "qk norm": lambda w, x, p, n: p((rms(w.a(x), n) @ rms(w.b(x), n).mT).softmax(-1)) @ w.c(x),
    "sandwich": lambda w, x, p, n: (lambda r: x + r(w.a(r(x))))(
        lambda z: z / n((z.square().mean(-1, keepdim=True) + 1e-06).sqrt())
    ),
    "energy normalised": lambda w, x, p, n: x / n(x.square().sum((1, 2), keepdim=True).sqrt()),
    "log compress": lambda w, x, p, n: x.sign() * (1 + x.abs()).log(),
    "softmax times width": lambda w, x, p, n: x.softmax(-1) * WIDTH,
    "peak normalised": lambda w, x, p, n: x / n(x.abs().amax((1, 2), keepdim=True)),
    "power norm": lambda w, x, p, n: (
        x.sign() * x.abs().sqrt() / n(x.abs().sum(-1, keepdim=True).sqrt())
    ),
    "signed sqrt l2": lambda w, x, p, n: (lambda y: y / n(y.norm(dim=-1, keepdim=True)))(
        x.sign() * (x.abs() + 1e-08).sqrt()
    ),
    "se": lambda w, x, p, n: x * torch.sigmoid(F.relu(x.mean(1, keepdim=True) @ SE1) @ SE2),
    "se hard": lambda w, x, p, n: x * F.hardsigmoid(F.relu(x.mean(1, keepdim=True) @ SE1) @ SE2),
    "gmlp": lambda w, x, p, n: (
        (lambda u, v: u * (SGU @ centred(v, n) + 1))(*w.a(x).chunk(2, -1)) @ w.experts[0, :4]
    ),
    "highway": lambda w, x, p, n: (lambda t: t * w.a(x).tanh() + (1 - t) * x)(w.b(x).sigmoid()),
    "maxout": lambda w, x, p, n: torch.maximum(w.a(x), w.b(x)),
    "bilinear": lambda w, x, p, n: w.a(x) * w.b(x),
    "compact bilinear": lambda w, x, p, n: (w.a(x)[..., :, None] * w.b(x)[..., None, :]).flatten(2)[
        ..., :WIDTH
    ],
    "gram style": lambda w, x, p, n: x.mT @ x / TOKENS,
    "stat pooling": lambda w, x, p, n: torch.cat([x.mean(1), x.std(1)], -1)[:, None].expand(
        -1, TOKENS, -1
    )[..., 4:12],
    "kernel conv": lambda w, x, p, n: (
        lambda k: torch.einsum("btk,btkd->btd", k, F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mT)
    )(w.a(x)[..., :3]),
    "dynamic conv": lambda w, x, p, n: torch.einsum(
        "btk,btkd->btd", p(w.a(x)[..., :3].softmax(-1)), F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mT
    ),
    "involution": lambda w, x, p, n: (
        w.a(x)[..., :3, None] * F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mT
    ).sum(-2),
    "hypernet": lambda w, x, p, n: torch.einsum(
        "btd,bde->bte", x, w.a(x.mean(1)).tanh()[:, :, None] * w.b(x.mean(1))[:, None]
    ),
    "moe top1": lambda w, x, p, n: (
        lambda r: torch.einsum(
            "bte,eij,btj->bti", r * F.one_hot(r.argmax(-1), EXPERTS), w.experts, x
        )
    )((x @ w.router).softmax(-1)),
    "moe top2 renorm": lambda w, x, p, n: (
        lambda v, i: (
            (v / v.sum(-1, keepdim=True))[..., None]
            .mul(
                torch.einsum("eij,btj->btei", w.experts, x).gather(
                    2, i[..., None].expand(-1, -1, -1, WIDTH)
                )
            )
            .sum(2)
        )
    )(*(x @ w.router).softmax(-1).topk(2, -1)),
    "soft moe": lambda w, x, p, n: (
        lambda z: z.softmax(-1) @ torch.einsum("eij,bej->bei", w.experts, p(z.softmax(1)).mT @ x)
    )(x @ w.router),
    "mixture of softmaxes": lambda w, x, p, n: (
        lambda m: (m[..., None] * torch.einsum("eij,btj->btei", w.experts, x).softmax(-1)).sum(2)
    )((x @ w.router).softmax(-1)),
    "capsules": lambda w, x, p, n: (
        lambda u: (lambda c: (p(c)[..., None] * u).sum(1, keepdim=True) + x)(
            (u * u.mean(1, keepdim=True)).sum(-1).softmax(1)
        )
    )(w.a(x)),
    "layer mixing elmo": lambda w, x, p, n: (
        w.vector[:3].softmax(0)[:, None, None, None] * torch.stack([x, w.a(x), w.b(x)])
    ).sum(0),
    "feature attention": lambda w, x, p, n: w.a(x).softmax(-1) * x,
    "feature attention scaled": lambda w, x, p, n: WIDTH * w.a(x).softmax(-1) * x,
    "token gate": lambda w, x, p, n: (x @ w.vector).softmax(-1)[..., None] * x * TOKENS,
    "noisy-or": lambda w, x, p, n: 1 - (1 - w.a(x).sigmoid()).prod(1, keepdim=True) + x,
    "lse pooling": lambda w, x, p, n: x.logsumexp(1, keepdim=True) + x,
    "gem pooling": lambda w, x, p, n: (
        x.abs().clamp(min=1e-06).pow(3).mean(1, keepdim=True).pow(1 / 3) + x
    ),
    "softplus ratio": lambda w, x, p, n: w.a(x) / (1 + F.softplus(w.b(x))),
    "ratio of two maps": lambda w, x, p, n: w.a(x) / (w.b(x).square() + 1),
    "softsign": lambda w, x, p, n: x / (1 + x.abs()),
    "cosine of pairs": lambda w, x, p, n: unit(w.a(x), n) @ unit(w.b(x), n).mT @ OUT[:TOKENS],
    "dot interaction": lambda w, x, p, n: w.a(x) @ w.b(x).mT @ OUT[:TOKENS],
    "fm": lambda w, x, p, n: (
        (x.sum(1, keepdim=True).square() - x.square().sum(1, keepdim=True)) / 2 + x
    ),
    "cross net": lambda w, x, p, n: x * w.a(x) + x,
    "ntm sharpen": lambda w, x, p, n: (lambda a: p(a / a.sum(-1, keepdim=True)) @ w.c(x))(
        pattern(w, x) ** 1.5
    ),
    "ema": lambda w, x, p, n: torch.stack(
        [sum(0.5 ** (t - s) * x[:, s] for s in range(t + 1)) for t in range(TOKENS)], 1
    ),
    "hyper connections": lambda w, x, p, n: (
        lambda a: torch.einsum("btk,kbtd->btd", a, torch.stack([x, w.a(x)]))
    )(w.b(x)[..., :2].tanh()),
    "mixture density": lambda w, x, p, n: ((x @ w.router).softmax(-1)[..., None] * w.slots).sum(2),
}
T = TOKENS
D = WIDTH
ADJ = (torch.rand(T, T, generator=torch.Generator().manual_seed(3)) < 0.5) | torch.eye(
    T, dtype=torch.bool
)
SRC, DST = ADJ.nonzero(as_tuple=True)
E = len(SRC)
EDGE = R(E, D)
A1, A2 = (R(D), R(D))
W2 = R(D, D)
REL = R(2 * T - 1, D)
K3 = R(D, D, 3)
CODE = R(7, D)


def seg_softmax(e, dst):
    m = torch.full((BATCH, T), -torch.inf, dtype=e.dtype).scatter_reduce(
        1, dst.expand(BATCH, -1), e.detach(), "amax"
    )
    x = (e - m[:, dst]).exp()
    s = torch.zeros(BATCH, T, dtype=e.dtype).index_add(1, dst, x)
    return x / s[:, dst]


def gat(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = w.a(x)
    e = F.leaky_relu(h[:, SRC] @ A1 + h[:, DST] @ A2, 0.2)
    a = p(seg_softmax(e, DST))
    return torch.zeros_like(x).index_add(1, DST, a[..., None] * h[:, SRC])


def gatv2(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    e = F.leaky_relu(w.a(x)[:, SRC] + w.b(x)[:, DST], 0.2) @ A1
    a = p(seg_softmax(e, DST))
    return torch.zeros_like(x).index_add(1, DST, a[..., None] * w.c(x)[:, SRC])


def transformer_conv(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    k = k[:, SRC] + EDGE
    e = (q[:, DST] * k).sum(-1) / math.sqrt(D)
    a = p(seg_softmax(e, DST))
    return torch.zeros_like(x).index_add(1, DST, a[..., None] * (v[:, SRC] + EDGE))


def gated_gcn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    g = (w.a(x)[:, SRC] + w.b(x)[:, DST]).sigmoid()
    num = torch.zeros_like(x).index_add(1, DST, g * w.c(x)[:, SRC])
    den = torch.zeros_like(x).index_add(1, DST, g)
    return num / (den + 1e-06)


def softmax_agg(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    m = w.a(x)[:, SRC]
    z = m.exp()
    s = torch.zeros_like(x).index_add(1, DST, z)
    a = p(z / s[:, DST])
    return torch.zeros_like(x).index_add(1, DST, a * m)


def gcn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = ADJ.double().sum(1).rsqrt()
    return d[:, None] * (ADJ.double() @ (d[:, None] * w.a(x)))


def pna(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    m = torch.where(ADJ[None, :, :, None], w.a(x)[:, None], 0.0)
    c = ADJ.sum(1)[:, None]
    mean = m.sum(2) / c
    var = (m.square().sum(2) / c - mean.square()).clamp(min=0) + 1e-05
    return mean + var.sqrt()


def rel_shift(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    r = q @ REL.T
    r = F.pad(r, (1, 0)).view(BATCH, 2 * T, T)[:, 1:].reshape(BATCH, T, 2 * T - 1)[..., :T]
    return p(((q @ k.mT + r) / 3).softmax(-1)) @ v


def shaw(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    i = torch.arange(T)
    r = REL[i[None] - i[:, None] + T - 1]
    a = p((q @ k.mT + torch.einsum("bqd,qkd->bqk", q, r)).softmax(-1))
    return a @ v + torch.einsum("bqk,qkd->bqd", a, r)


def deberta(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    i = torch.arange(T)
    r = w.b(REL)
    c2p = (q @ r.T).gather(-1, (i[:, None] - i[None] + T - 1).expand(BATCH, -1, -1))
    p2c = (k @ w.a(REL).T).gather(-1, (i[:, None] - i[None] + T - 1).expand(BATCH, -1, -1)).mT
    return p(((q @ k.mT + c2p + p2c) / math.sqrt(3 * D)).softmax(-1)) @ v


def bigbird(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = (z.unflatten(1, (3, 2)) for z in qkv(w, x))
    kk = torch.cat([k, k.roll(1, 1)], 2)
    vv = torch.cat([v, v.roll(1, 1)], 2)
    return (p((q @ kk.mT).softmax(-1)) @ vv).flatten(1, 2)


def lsh(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q = w.a(x)
    h = (q @ OUT[:, :2]).argmax(-1)
    o = torch.argsort(h, dim=1, stable=True)
    qs = q.gather(1, o[..., None].expand(-1, -1, D))
    vs = w.c(x).gather(1, o[..., None].expand(-1, -1, D))
    a = p((qs @ unit(qs, n).mT).softmax(-1))
    y = a @ vs
    return y.gather(1, o.argsort(1)[..., None].expand(-1, -1, D))


def routing_topk(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    v, i = s.topk(3, -1)
    a = p(v.softmax(-1))
    return torch.einsum("bqk,bqkd->bqd", a, w.c(x)[torch.arange(BATCH)[:, None, None], i])


def prod_keys(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = x @ CODE.T
    v, i = s.topk(3, -1)
    return (v.softmax(-1)[..., None] * W2[i]).sum(2)


def vq(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = torch.cdist(x, CODE)
    return CODE[d.argmin(-1)] + x


def soft_vq(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return (-torch.cdist(x, w.slots)).softmax(-1) @ w.slots


def nys(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    ql, kl = (q.unflatten(1, (3, 2)).mean(2), k.unflatten(1, (3, 2)).mean(2))
    k1 = p((q @ kl.mT).softmax(-1))
    k2 = (ql @ kl.mT).softmax(-1)
    k3 = p((ql @ k.mT).softmax(-1))
    return k1 @ (p(torch.linalg.pinv(k2)) @ (k3 @ v))


def lambda_(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    return p(q) @ (p(k.softmax(1)).mT @ v)


def lin_causal(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    q, k = (p(F.elu(q) + 1), p(F.elu(k) + 1))
    kv = torch.einsum("btk,btd->btkd", k, v).cumsum(1)
    z = p(1 / (q * k.cumsum(1)).sum(-1, keepdim=True))
    return torch.einsum("btk,btkd->btd", q, kv) * z


def retention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    i = torch.arange(T)
    dec = torch.where(i[:, None] >= i, 0.9 ** (i[:, None] - i).double(), 0.0)
    return q @ k.mT * dec @ v


def gau(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    u, v = (F.silu(w.a(x)), F.silu(w.b(x)))
    z = F.silu(w.d(x))
    a = p(F.relu(z * A1 @ (z * A2).mT / T).square())
    return u * (a @ v)


def mega_laplace(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    s = q @ k.mT
    a = p(0.5 * (1 + torch.erf((s - 0.7) / 0.4)))
    return a @ v


def cosformer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    q, k = (F.relu(q), F.relu(k))
    t = torch.arange(T).double() * math.pi / 2 / T
    c, s = (t.cos()[:, None], t.sin()[:, None])
    q_ = p(torch.cat([q * c, q * s], -1))
    k_ = p(torch.cat([k * c, k * s], -1))
    kv = k_.mT @ v
    return q_ @ kv * p(1 / ((q_ * k_.sum(1, keepdim=True)).sum(-1, keepdim=True) + 0.001))


def efficient(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    return p(q.softmax(-1)) @ (p(k.softmax(1)).mT @ v)


def fastformer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    gq = (p((q @ A1).softmax(1))[..., None] * q).sum(1, keepdim=True)
    pk = gq * k
    gk = (p((pk @ A2).softmax(1))[..., None] * pk).sum(1, keepdim=True)
    return gk * v + q


def poolformer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return F.avg_pool1d(x.mT, 3, 1, 1).mT - x


def cbam(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    c = (w.a(x.mean(1, keepdim=True)).relu() + w.a(x.amax(1, keepdim=True)).relu()).sigmoid()
    y = x * c
    s = F.conv1d(torch.stack([y.mean(-1), y.amax(-1)], 1), K3[:1, :2]).sigmoid()
    return y[:, 1:-1] * s.mT


def sk(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    u = torch.stack([w.a(x), w.b(x)])
    s = w.c(u.sum(0).mean(1))
    a = torch.stack([s @ OUT, s @ W2]).softmax(0)
    return (a[:, :, None] * u).sum(0)


def dyn_conv(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = (x.mean(1) @ w.router).softmax(-1)
    W = torch.einsum("be,eij->bij", a, w.experts)
    return x @ W


def cond_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    c = x[:, :1]
    g, b = (w.a(c), w.b(c))
    return (x - x.mean(-1, keepdim=True)) / n(
        (x.var(-1, keepdim=True, correction=0) + 1e-05).sqrt()
    ) * (1 + g) + b


def spade(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / n(x.std(1, keepdim=True) + 1e-05) * (1 + w.a(x)) + w.b(x)


def attn_conf(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = pattern(w, x)
    return p(a) @ w.c(x) * a.amax(-1, keepdim=True)


def pointer_mix(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    g = (x @ A1).sigmoid()[..., None]
    return g * x.softmax(-1) + (1 - g) * (p(pattern(w, x)) @ CODE[torch.arange(T) % 7])


def copy_scatter(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = pattern(w, x)
    ids = (torch.arange(T) * 3 % D).expand(BATCH, T, T)
    return torch.zeros(BATCH, T, D, dtype=x.dtype).scatter_add(-1, ids, a) + x


def rnnattn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = x[:, 0]
    out = []
    for _ in range(T):
        a = p((h[:, None] @ w.b(x).mT).softmax(-1))
        c = (a @ x)[:, 0]
        h = torch.tanh(w.a(c) + w.d(h))
        out.append(h)
    return torch.stack(out, 1)


def universal(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    acc = 0
    rem = 1.0
    for _ in range(3):
        x = x + torch.tanh(w.a(x))
        g = (x @ A1).sigmoid()[..., None]
        acc = acc + rem * g * x
        rem = rem * (1 - g)
    return acc + rem * x


def act_halting_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    gs = []
    xs = []
    for _ in range(3):
        x = x + torch.tanh(w.a(x))
        gs.append((x @ A1).sigmoid()[..., None])
        xs.append(x)
    g = torch.stack(gs)
    return (g / g.sum(0) * torch.stack(xs)).sum(0)


def lstm_cell(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    c = torch.zeros(BATCH, D, dtype=x.dtype)
    h = c
    o = []
    for t in range(T):
        i, f, g = ((w.a(x[:, t]) + h @ OUT).sigmoid(), w.b(x[:, t]).sigmoid(), w.c(x[:, t]).tanh())
        c = f * c + i * g
        h = w.d(x[:, t]).sigmoid() * c.tanh()
        o.append(h)
    return torch.stack(o, 1)


def s4d(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    t = torch.arange(T).double()
    k = torch.exp(-t[:, None] * A1.abs())
    return torch.stack([sum(k[j] * x[:, i - j] for j in range(i + 1)) for i in range(T)], 1)


def hyena(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    t = torch.arange(T).double()
    f = torch.exp(-t[:, None] * A1.abs())
    z = k * v
    L = 2 * T
    y = torch.fft.irfft(torch.fft.rfft(z, L, 1) * torch.fft.rfft(f, L, 0), L, 1)[:, :T]
    return q * y


def fnet(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.fft.fft2(x).real


def afno(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.fft.irfft(
        torch.fft.rfft(x, dim=1) * torch.fft.rfft(K3.flatten(1)[:T].T[:D].T[:T, :D], dim=0),
        T,
        dim=1,
    )


def ntk(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = x.roll(1, 1)
    return (
        (x * y).sum(-1, keepdim=True)
        / n(x.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True))
        * x
    )


def trip(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return (w.a(x)[:, :, None] - w.b(x)[:, None]).square().sum(-1) @ OUT[:T]


def dist_w(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = (w.a(x)[:, :, None] - w.b(x)[:, None]).norm(dim=-1)
    return 1 / (1 + d) @ w.c(x)


def knn_mean(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = torch.cdist(x, x)
    i = d.topk(3, largest=False).indices
    return x[torch.arange(BATCH)[:, None, None], i].mean(2)


def idw(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = torch.cdist(w.a(x), w.b(x))
    a = 1 / (d + 0.01)
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def student(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = torch.cdist(w.a(x), w.b(x)).square()
    a = 1 / (1 + d)
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def poly(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = (w.a(x) @ w.b(x).mT + 1).square()
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def absatt(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = (w.a(x) @ w.b(x).mT).abs()
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def l2att(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = w.a(x) @ w.b(x).mT
    return a / n(a.norm(dim=-1, keepdim=True)) @ w.c(x)


def softplus_att(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = F.softplus(scores(w, x))
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def taylor(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    a = 1 + s + s.square() / 2
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def entmax(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x) / 2
    z, _ = s.sort(-1, descending=True)
    k = torch.arange(1, T + 1).double()
    m = z.cumsum(-1) / k
    ms = z.square().cumsum(-1) / k
    ss = k * (ms - m.square())
    delta = ((1 - ss) / k).clamp(min=0)
    tau = m - delta.sqrt()
    sup = (tau <= z).sum(-1, keepdim=True)
    t = tau.gather(-1, sup - 1)
    return p((s - t).clamp(min=0).square()) @ w.c(x)


def twod(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = x.mT.unflatten(-1, (2, 3))
    q, k, v = (F.conv2d(y, W[:, :, None, None]) for W in (OUT, W2, OUT.T))
    a = p((q.flatten(2).mT @ k.flatten(2)).softmax(-1))
    return (v.flatten(2) @ a.mT).mT


def botnet(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return twod(w, x, p, n) + x


def mqa_einsum(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q = w.a(x).unflatten(-1, (2, 4))
    k, v = (w.b(x)[..., :4], w.c(x)[..., :4])
    return torch.einsum(
        "bhqk,bkd->bqhd", p(torch.einsum("bqhd,bkd->bhqk", q, k).softmax(-1)), v
    ).flatten(2)


def gqa_rep(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q = heads(w.a(x), 4)
    k, v = (heads(z[..., :4], 2).repeat_interleave(2, 1) for z in (w.b(x), w.c(x)))
    return merge(p((q @ k.mT).softmax(-1)) @ v)


def mla(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    c = w.a(x)[..., :3]
    k, v = (c @ OUT[:3], c @ W2[:3])
    return p((w.b(x) @ k.mT).softmax(-1)) @ v


def mla_absorbed(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    c = w.a(x)[..., :3]
    q = w.b(x) @ OUT[:3].T
    return p((q @ c.mT).softmax(-1)) @ c @ W2[:3]


def kv_quant(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    k = w.b(x)
    k = k + (torch.round(k * 8) / 8 - k).detach()
    return p((w.a(x) @ k.mT).softmax(-1)) @ w.c(x)


def logits_cap(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return p((5 * torch.tanh(scores(w, x) / 5)).softmax(-1)) @ w.c(x)


def zero_sink(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    k, v = (F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0)))
    return p((q @ k.mT).softmax(-1)) @ v


def bias_kv(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    k = torch.cat([k, A1.expand(BATCH, 1, -1)], 1)
    v = torch.cat([v, A2.expand(BATCH, 1, -1)], 1)
    return p((q @ k.mT).softmax(-1)) @ v


def headgate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = p((heads(w.a(x)) @ heads(w.b(x)).mT).softmax(-1)) @ heads(w.c(x))
    g = (x @ OUT[:, :2]).sigmoid().mT[..., None]
    return merge(y * g)


def headmask(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p((heads(w.a(x)) @ heads(w.b(x)).mT).softmax(-1))
    return merge(a * torch.tensor([0.3, 1.0]).double()[:, None, None] @ heads(w.c(x)))


def subln(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = p((heads(w.a(x)) @ heads(w.b(x)).mT).softmax(-1)) @ heads(w.c(x))
    return merge(y / n((y.square().mean(-1, keepdim=True) + 1e-05).sqrt()))


def wavg_time(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = torch.linspace(0, 1, T).double().softmax(0)
    return (a[:, None] * x).sum(1, keepdim=True) + x


def attn_over_layers(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = torch.stack([x, w.a(x), w.b(x)], 2)
    a = (h @ A1).softmax(-1)
    return (a[..., None] * h).sum(2)


def mixup(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return 0.3 * x + 0.7 * x.flip(0)


def bn_eval(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return F.batch_norm(x.mT, A1, A2.abs() + 0.5, A1, A2).mT


def rms_gated(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = x * F.silu(w.a(x))
    return y / n((y.square().mean(-1, keepdim=True) + 1e-05).sqrt())


def rms_group(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = x.unflatten(-1, (2, 4))
    return (y / n((y.square().mean(-1, keepdim=True) + 1e-05).sqrt())).flatten(-2)


def ln_2d(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return (x - x.mean((1, 2), keepdim=True)) / n((x.var((1, 2), keepdim=True) + 1e-05).sqrt())


def norm_then_scale(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = n(x.norm(dim=-1, keepdim=True))
    return torch.tanh(x / s) * 3


def norm_clip(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = n(x.norm(dim=-1, keepdim=True))
    return x * torch.where(s > 2, 2 / s, torch.ones_like(s))


def unit_sphere_slerp(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = x / n(x.norm(dim=-1, keepdim=True))
    h = w.a(x)
    b = h / n(h.norm(dim=-1, keepdim=True))
    y = a + 0.3 * (b - a)
    return y / n(y.norm(dim=-1, keepdim=True))


def batch_std(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.cat(
        [x[..., :-1], x.var(1, keepdim=True).mean(-1, keepdim=True).sqrt().expand(-1, T, 1)], -1
    )


def softmax_pool_heads(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p((x @ OUT[:, :2]).softmax(1))
    return (a.mT @ x).flatten(1)[:, None, :D] + x


def attn_stat(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p(torch.tanh(w.a(x)).softmax(1))
    m = (a * x).sum(1, keepdim=True)
    s = ((a * x.square()).sum(1, keepdim=True) - m.square()).clamp(min=0.0001).sqrt()
    return m + s + x


def fourier_feat(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = w.a(x)
    return torch.cat([z[..., :4].sin(), z[..., 4:].cos()], -1)


def kan(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return sum(torch.exp(-((x - c) ** 2)) @ OUT * c for c in (-1.0, 0.5, 1.0))


def rbf_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = torch.stack([torch.exp(-((x - c) ** 2)) for c in (-1.0, 0.0, 1.0)], -1)
    return a / a.sum(-1, keepdim=True) @ A1[:3]


def deform(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    off = torch.tanh(w.a(x)[..., :2])
    pos = (torch.arange(T).double()[:, None] + off).clamp(0, T - 1.001)
    lo = pos.floor()
    f = pos - lo
    i = lo.long()

    def g(j: Tensor) -> Tensor:
        return w.c(x).gather(1, j.flatten(1)[..., None].expand(-1, -1, D)).unflatten(1, (T, 2))

    v = g(i) * (1 - f)[..., None] + g(i + 1) * f[..., None]
    a = p(w.b(x)[..., :2].softmax(-1))
    return (a[..., None] * v).sum(2)


def conv_attn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p(F.conv1d(x.mT, K3[:3], padding=1).softmax(1).mT)
    v = F.pad(w.c(x), (0, 0, 1, 1)).unfold(1, 3, 1)
    return torch.einsum("btk,btdk->btd", a, v)


CONSTRUCTS.update(
    {
        f.__name__.strip("_").replace("_", " "): f
        for f in [
            gat,
            gatv2,
            transformer_conv,
            gated_gcn,
            softmax_agg,
            gcn,
            pna,
            rel_shift,
            shaw,
            deberta,
            bigbird,
            lsh,
            routing_topk,
            prod_keys,
            vq,
            soft_vq,
            nys,
            lambda_,
            lin_causal,
            retention,
            gau,
            mega_laplace,
            cosformer,
            efficient,
            fastformer,
            poolformer,
            cbam,
            sk,
            dyn_conv,
            cond_norm,
            spade,
            attn_conf,
            pointer_mix,
            copy_scatter,
            rnnattn,
            universal,
            act_halting_norm,
            lstm_cell,
            s4d,
            hyena,
            fnet,
            afno,
            ntk,
            trip,
            dist_w,
            knn_mean,
            idw,
            student,
            poly,
            absatt,
            l2att,
            softplus_att,
            taylor,
            entmax,
            twod,
            botnet,
            mqa_einsum,
            gqa_rep,
            mla,
            mla_absorbed,
            kv_quant,
            logits_cap,
            zero_sink,
            bias_kv,
            headgate,
            headmask,
            subln,
            wavg_time,
            attn_over_layers,
            mixup,
            bn_eval,
            rms_gated,
            rms_group,
            ln_2d,
            norm_then_scale,
            norm_clip,
            unit_sphere_slerp,
            batch_std,
            softmax_pool_heads,
            attn_stat,
            fourier_feat,
            kan,
            rbf_norm,
            deform,
            conv_attn,
        ]
    }
)
