"""Attention weights as modellers guard, mask, gate and join them: as in :mod:`constructs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constructs import BIAS, OUT, Hold, R, sparsemax
from spellings import TOKENS, Weights, scores

CAUSAL = torch.ones(TOKENS, TOKENS).tril().bool()
SINK = R(1)
Form = Callable[[Weights, Tensor, Hold, Hold], Tensor]
Scores = Callable[[Tensor], Tensor]
Read = Callable[[Tensor, Tensor], Tensor]


def largest(s: Tensor) -> Tensor:
    return s.amax(-1, keepdim=True)


def total(s: Tensor) -> Tensor:
    return s.logsumexp(-1, keepdim=True)


def where(s: Tensor, value: float = 0.0) -> Tensor:
    return torch.where(CAUSAL, s, value)


def written_into(s: Tensor) -> Tensor:
    s = s.clone()
    s[..., ~CAUSAL] = -1e9
    return s


# ---- how weights meet values --------------------------------------------------------------------
def by_entries(a: Tensor, v: Tensor) -> Tensor:
    return (a[..., None] * v[:, None]).sum(2)


def by_loop(a: Tensor, v: Tensor) -> Tensor:
    return sum(a[..., j : j + 1] * v[:, j : j + 1] for j in range(TOKENS))


def by_picks(a: Tensor, v: Tensor) -> Tensor:
    """By indices in tensors, in several ways."""
    j = [torch.tensor([i]) for i in range(TOKENS)]
    taken = [a.index_select(-1, j[0]), a[..., j[1]], a[:, :, j[2]]]
    taken += [a.gather(-1, j[i].expand(len(a), TOKENS, 1)) for i in range(3, TOKENS)]
    return sum(one * v[:, j[i]] for i, one in enumerate(taken))


def as_kernels(a: Tensor, v: Tensor) -> Tensor:
    kernels = zip(a, v)
    return torch.stack(
        [F.conv1d(one.mT[:, None], rows[:, None])[..., 0].mT for rows, one in kernels]
    )


def by_ones(a: Tensor, v: Tensor) -> Tensor:
    return (torch.ones(1, TOKENS).to(v) @ (a[..., None] * v[:, None]))[:, :, 0]


def by_pool(a: Tensor, v: Tensor) -> Tensor:
    products = (a[..., None] * v[:, None]).flatten(0, 1)
    return F.avg_pool1d(products.mT, TOKENS)[..., 0].view_as(v) * TOKENS


def by_chunks(a: Tensor, v: Tensor) -> Tensor:
    return a[..., :2] @ v[:, :2] + a[..., 2:] @ v[:, 2:]


def by_example(a: Tensor, v: Tensor) -> Tensor:
    return torch.stack([torch.tensordot(one, other, 1) for one, other in zip(a, v)])


def by_rows(a: Tensor, v: Tensor) -> Tensor:
    return torch.stack([(v * a[:, i, :, None]).sum(1) for i in range(TOKENS)], 1)


READS: dict[str, Read] = {
    "matmul": torch.matmul, "entries": by_entries, "loop": by_loop, "chunks": by_chunks,
    "tensordot": by_example, "rows": by_rows, "picks": by_picks,
}  # fmt: skip


def reading(weights: Scores, read: Read) -> Form:
    return lambda w, x, p, n: read(p(weights(scores(w, x))), w.c(x))


# ---- weights that no softmax names --------------------------------------------------------------
def topk(s: Tensor) -> Tensor:
    found = s.topk(3, -1)
    return torch.zeros_like(s).scatter(-1, found.indices, found.values.softmax(-1))


def entmax(s: Tensor) -> Tensor:
    """With the power of 1.5; the threshold by bisection."""
    s = (s - largest(s)) / 2
    with torch.no_grad():
        low, step = torch.full_like(s[..., :1], -1.0), 1.0
        for _ in range(50):
            step /= 2
            more = (s - low - step).clamp(min=0).square().sum(-1, keepdim=True) >= 1
            low = torch.where(more, low + step, low)
    roots = (s - low).clamp(min=0).square()
    return roots / roots.sum(-1, keepdim=True)


def squares(s: Tensor) -> Tensor:
    e = F.relu(s + 1).square()
    return e / (e.sum(-1, keepdim=True) + 1e-3)


def masked_ratio(s: Tensor) -> Tensor:
    e = where(s.exp())
    return e / e.sum(-1, keepdim=True)


def guarded_ratio(s: Tensor) -> Tensor:
    e = where((s - largest(s)).exp())
    return e / (e.sum(-1, keepdim=True) + 1e-9)


WEIGHTS: dict[str, Scores] = {
    "sparsemax": sparsemax, "entmax": entmax, "topk": topk,
    "clipped": lambda s: (1.06 * s.softmax(-1) - 0.03).clip(0, 1),
    "where": masked_ratio, "where, guarded": guarded_ratio, "squares": squares,
}  # fmt: skip


# ---- attention without a softmax ----------------------------------------------------------------
def joined(w: Weights, x: Tensor) -> Tensor:
    q, k = w.a(x), w.b(x)
    return torch.cat([q @ part.mT for part in k.split(2, 1)], -1)


def by_products(w: Weights, x: Tensor) -> Tensor:
    return (w.a(x)[:, :, None] * w.b(x)[:, None]).sum(-1)


def relative(w: Weights, x: Tensor) -> Tensor:
    return scores(w, x) + w.a(x) @ OUT[:, :TOKENS]


def cosine(w: Weights, x: Tensor) -> Tensor:
    """The lengths, which ``ln`` holds constant, are not part of what is tried here."""
    q, k = w.a(x), w.b(x)
    return 4 * F.cosine_similarity(q[:, :, None], k[:, None], dim=-1)


SCORES: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "masked_fill": lambda w, x: scores(w, x).masked_fill(~CAUSAL, -1e9),
    "where": lambda w, x: where(scores(w, x), -1e9),
    "written into": lambda w, x: written_into(scores(w, x)),
    "clamp": lambda w, x: scores(w, x).clamp(-50, 50),
    "joined": joined, "products": by_products, "relative": relative,
    "stacked": lambda w, x: torch.stack(scores(w, x).unbind(-1), -1),
}  # fmt: skip


def activated(made: Callable[[Weights, Tensor], Tensor], f: Scores, read: Read) -> Form:
    return lambda w, x, p, n: read(p(f(made(w, x))), w.c(x) / TOKENS)


ACTIVATIONS: dict[str, Scores] = {"sigmoid": torch.sigmoid, "relu2": lambda s: F.relu(s).square()}


# ---- divided after the sum ----------------------------------------------------------------------
DIVISORS: dict[str, Scores] = {
    "bare": lambda z: z, "eps": lambda z: z + 1e-9, "clamp": lambda z: z.clamp(min=1e-9),
    "maximum": lambda z: torch.maximum(z, torch.tensor(1e-9).to(z)),
}  # fmt: skip


def divided_late(divisor: Scores, mask: Scores) -> Form:
    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        s = scores(w, x)
        e = p(mask((s - largest(s)).exp()))
        return (e @ w.c(x)) / divisor(e.sum(-1, keepdim=True))

    return form


def pooled(divisor: Scores) -> Form:
    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        e = p((x @ w.vector).exp())
        return ((e[..., None] * w.c(x)).sum(1) / divisor(e.sum(1, keepdim=True)))[:, None] + x

    return form


def by_example_sparse(z: Tensor) -> Tensor:
    near = (CAUSAL + 0.5).to(z).to_sparse()
    return torch.stack([torch.sparse.mm(near, one) for one in z])


def scattered(z: Tensor) -> Tensor:
    places = torch.tensor([0, 0, 0, 1, 1, 1])[None, :, None].expand(z.shape)
    return torch.zeros_like(z[:, :2]).scatter_reduce(1, places, z, "mean", include_self=False)


#: Sums by weights that are no part of the inputs: the attention free transformer, pooling.
MAPS: dict[str, Scores] = {
    "matrix": lambda z: BIAS.exp().to(z) @ z,
    "einsum": lambda z: torch.einsum("ij,bjd->bid", BIAS.exp().to(z), z),
    "sparse": by_example_sparse,
    "convolution": lambda z: F.conv1d(z.mT, BIAS[:1, None, :3].exp().to(z).repeat(
        z.shape[-1], 1, 1), padding=1, groups=z.shape[-1]).mT,
    "pool": lambda z: F.avg_pool1d(z.mT, 3, 1, 1).mT,
    "scattered": scattered,
}  # fmt: skip


def mapped(by: Scores) -> Form:
    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        e = p(w.b(x).exp())
        return (by(e * w.c(x)) / by(e)).mean(1, keepdim=True) + x

    return form


def in_units_of_itself(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """What exponentials have scaled is divided by its own sum, not by theirs."""
    y = (w.a(x).exp() * w.c(x)).sum(1, keepdim=True)
    return y / y.sum(-1, keepdim=True) + x


# ---- sinks --------------------------------------------------------------------------------------
def stable_sink(sink: Callable[[Tensor], Tensor]) -> Form:
    """``sink`` is the score of the sink; the largest score has a gradient."""

    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        s = scores(w, x)
        top = torch.maximum(largest(s), sink(s))
        e = (s - top).exp()
        return p(e / (e.sum(-1, keepdim=True) + (sink(s) - top).exp())) @ w.c(x)

    return form


def off_by_one(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    e = (s - largest(s)).exp()
    return p(e / (e.sum(-1, keepdim=True) + (-largest(s)).exp())) @ w.c(x)


def late_sink(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    top = torch.maximum(largest(s), SINK)
    e = p((s - top).exp())
    return (e @ w.c(x)) / (e.sum(-1, keepdim=True) + p((SINK - top).exp()))


def sink(weights: Scores, gate: Scores, late: Callable[[Tensor, Tensor], Tensor]) -> Form:
    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        s = scores(w, x)
        return late(p(weights(s)) @ w.c(x), p(gate(s)))

    return form


SINKS: dict[str, Form] = {
    "off by one, stable": off_by_one,
    "learned, stable": stable_sink(lambda s: SINK.to(s)),
    "learned, late": late_sink,
    "logaddexp": reading(lambda s: (s - torch.logaddexp(total(s), SINK)).exp(), torch.matmul),
    "softplus": reading(lambda s: (s - F.softplus(total(s))).exp(), torch.matmul),
    "gate before": reading(
        lambda s: s.softmax(-1) * (total(s) - SINK).sigmoid(), torch.matmul
    ),
    "gate as a divisor": sink(
        lambda s: s.softmax(-1), lambda s: 1 + (SINK - total(s)).exp(), torch.div
    ),
    "gate as a reciprocal": sink(
        lambda s: s.softmax(-1), lambda s: 1 / (1 + (SINK - total(s)).exp()), torch.mul
    ),
    "gate of what is left": sink(
        lambda s: s.softmax(-1), lambda s: 1 - (SINK - total(s)).sigmoid(), torch.mul
    ),
    "gate by softplus": sink(
        lambda s: s.softmax(-1), lambda s: (-F.softplus(SINK - total(s))).exp(), torch.mul
    ),
}  # fmt: skip


# ---- chunks of keys, merged ---------------------------------------------------------------------
Merge = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def merged(how: Merge) -> Form:
    """``how`` gets what two chunks have read, each with the total of its scores."""

    def form(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
        s, v = scores(w, x), w.c(x)
        one, other = s.split(3, -1)
        # the oracle holds scores where it holds patterns: nothing else is made of them
        one, other = p(one), p(other)
        first, second = one.softmax(-1) @ v[:, :3], other.softmax(-1) @ v[:, 3:]
        return how(first, total(one), second, total(other))

    return form


def by_shares(o: Tensor, t: Tensor, o2: Tensor, t2: Tensor, whole: Tensor) -> Tensor:
    return (t - whole).exp() * o + (t2 - whole).exp() * o2


def by_largest(o: Tensor, t: Tensor, o2: Tensor, t2: Tensor) -> Tensor:
    top = torch.maximum(t, t2)
    a, b = (t - top).exp(), (t2 - top).exp()
    return (a * o + b * o2) / (a + b)


MERGES: dict[str, Merge] = {
    "logaddexp": lambda o, t, o2, t2: by_shares(o, t, o2, t2, torch.logaddexp(t, t2)),
    "log1p": lambda o, t, o2, t2: by_shares(o, t, o2, t2, t + torch.log1p((t2 - t).exp())),
    "log": lambda o, t, o2, t2: by_shares(o, t, o2, t2, t + (1 + (t2 - t).exp()).log()),
    "sigmoids": lambda o, t, o2, t2: (1 - (t2 - t).sigmoid()) * o + (t2 - t).sigmoid() * o2,
    "difference": lambda o, t, o2, t2: o - (t2 - t).sigmoid() * (o - o2),
    "largest": by_largest,
    "lerp": lambda o, t, o2, t2: torch.lerp(o, o2, (t2 - t).sigmoid()),
}  # fmt: skip


# ---- gates in front of the values ---------------------------------------------------------------
def gated(gate: Callable[[Weights, Tensor], Tensor], read: Read = torch.matmul) -> Form:
    return lambda w, x, p, n: read(p(scores(w, x).softmax(-1)) * gate(w, x), w.c(x))


GATES: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "sigmoid": lambda w, x: w.d(x)[..., :1].sigmoid(),
    "rest": lambda w, x: 1 - w.d(x)[..., :1].sigmoid(),
    "tanh": lambda w, x: w.d(x)[..., :1].tanh(),
    "softplus": lambda w, x: F.softplus(w.d(x)[..., :1]),
    "pooled": lambda w, x: w.d(x).mean(1)[:, :1].sigmoid()[..., None],
    "of the key": lambda w, x: w.d(x)[..., 0].sigmoid()[:, None],
}


def log_sinkhorn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    for _ in range(5):
        s = s - s.logsumexp(-1, keepdim=True)
        s = s - s.logsumexp(-2, keepdim=True)
    return p(s.exp()) @ w.c(x)


#: No rule weighs values by a convolution.
KERNELS: dict[str, Scores] = {
    "softmax": lambda s: s.softmax(-1),
    "of two": lambda s: s.softmax(-1) @ (s.mT - s).softmax(-1),
    "squared": lambda s: s.softmax(-1).square(),
}


# ---- queries one by one -------------------------------------------------------------------------
def factorised_by_entries(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Keys with a softmax over the tokens: what they have summed is read by queries as they are."""
    summed = p(w.b(x).softmax(1)).mT @ w.c(x)
    return (p(w.a(x))[..., None] * summed[:, None]).sum(2)


def summed_by_entries(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """What keys have summed entry by entry is read by queries as the product is."""
    summed = (p(w.b(x).softmax(1))[..., None] * w.c(x)[:, :, None]).sum(1)
    return p(w.a(x)) @ summed


#: How queries read what keys have summed, channel by channel.
READERS: dict[str, Read] = {
    "matmul": torch.matmul,
    "loop": lambda q, kv: sum(
        q[..., i : i + 1] * kv[:, i : i + 1] for i in range(q.shape[-1])
    ),
    "stacked": lambda q, kv: torch.stack(
        [a[..., None] * b[:, None] for a, b in zip(q.unbind(-1), kv.unbind(1))]
    ).sum(0),
}  # fmt: skip


def of_features(query: Scores, key: Scores, read: Read) -> Form:
    return lambda w, x, p, n: read(p(query(w.a(x))), p(key(w.b(x))).mT @ w.c(x))


def both_signs(z: Tensor) -> Tensor:
    """The features of Hedgehog."""
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)


def beside_softmax(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """LoLCATs: near tokens by a softmax, those far away by features, divided by both sums."""
    e, q, k, v = p(scores(w, x).exp()), p(both_signs(w.a(x))), p(both_signs(w.b(x))), w.c(x)
    total = e.sum(-1, keepdim=True) + q @ k.sum(1)[..., None]
    return (e @ v + q @ (k.mT @ v)) / total


#: Of keys and of queries.
FEATURES: dict[str, tuple[Scores, Scores]] = {
    "elu": (lambda z: F.elu(z) + 1, lambda z: F.elu(z) + 1),
    "softmax": (lambda z: z.softmax(-1), lambda z: z.softmax(-1)),
    "hedgehog": (both_signs, both_signs),
    "softmax of tokens": (lambda z: z, lambda z: z.softmax(1)),
}


def pooled_rows(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """What queries have read is joined to tokens again, no mixture of experts."""
    a, v = p(scores(w, x).softmax(-1)), w.c(x)
    read = torch.stack([torch.einsum("bj,bjc->bc", a[:, i], v) for i in range(TOKENS)], 1)
    return p((read @ w.vector).softmax(-1))[:, None] @ read + x


# ---- what only looks like a part of a pattern --------------------------------------------------
def by_one_weight(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Divided by a single one of the exponentials, not by their sum."""
    e = (x @ w.vector).exp()
    return ((e[..., None] * w.c(x)).sum(1) / e[:, :1])[:, None] + x


def energies(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Tokens compared with nothing but themselves."""
    h = w.a(x)
    return (h * h).sum(-1).sigmoid()[:, None] @ w.c(x) + x


def two_of_one_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Summed over what was stacked, not along the axis of the softmax."""
    gate = (x @ w.vector).softmax(-1)[..., None]
    return torch.stack([gate * w.c(x), gate * w.d(x)]).sum(0)


def gate_behind_tanh(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """A sink's share of what a function has made of the values is a gate like any other."""
    s = scores(w, x)
    return (p(s.softmax(-1)) @ w.c(x)).tanh() * (total(s) - SINK).sigmoid()


DISGUISED: dict[str, Callable[..., Any]] = {
    **{f"{a}, {b}": reading(WEIGHTS[a], READS[b]) for a in WEIGHTS for b in READS},
    **{f"{a} of {b}": activated(SCORES[b], ACTIVATIONS[a], torch.matmul)
       for a in ACTIVATIONS for b in SCORES},
    **{f"{a}, entries": activated(SCORES["clamp"], ACTIVATIONS[a], by_entries)
       for a in ACTIVATIONS},
    **{f"{a}, {b}": activated(scores, ACTIVATIONS[a], read)
       for a in ACTIVATIONS for b, read in (("ones", by_ones), ("pool", by_pool))},
    **{f"late, {a}": divided_late(DIVISORS[a], lambda e: e) for a in DIVISORS},
    **{f"late, by a {a}": mapped(MAPS[a]) for a in MAPS},
    "in units of itself": in_units_of_itself,
    **{f"late, {a}, masked": divided_late(DIVISORS[a], where) for a in DIVISORS},
    **{f"pooled, {a}": pooled(DIVISORS[a]) for a in DIVISORS},
    **{f"sink, {a}": SINKS[a] for a in SINKS},
    **{f"merged, {a}": merged(MERGES[a]) for a in MERGES},
    **{f"gated, {a}": gated(GATES[a]) for a in GATES},
    **{f"gated, {a}": gated(GATES["sigmoid"], READS[a]) for a in READS if a != "matmul"},
    "sinkhorn of logarithms": log_sinkhorn,
    **{f"kernels, {a}": reading(KERNELS[a], as_kernels) for a in KERNELS},
    "factorised, by entries": factorised_by_entries,
    "factorised, summed by entries": summed_by_entries,
    **{f"features, {a}, {b}": of_features(*FEATURES[a], READERS[b])
       for a in FEATURES for b in READERS},
    "features beside a softmax": beside_softmax,
    "rows, pooled": pooled_rows,
    "divided by one weight": by_one_weight,
    "energies": energies,
    "two of one gate": two_of_one_gate,
    "gate behind a tanh": gate_behind_tanh,
}  # fmt: skip
