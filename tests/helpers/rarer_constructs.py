"""Further constructs, of single papers: as in :mod:`constructs`, with what is held constant."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from constructs import A1, BIAS, LAT, OUT, REL, D, Hold, R, T, centred, hs, merge, qkv, unit
from spellings import EXPERTS, Weights, pattern, scores

NK, NV = (R(3, D), R(3, D))

W3, W4, W5 = (R(D, D), R(D, D), R(D, D))

KER1 = R(1, 1, 3, 3)

KER2 = R(1, 1, 3, 3)

PROJ = R(D, 4)

UP = R(4, D)

CAUSAL = torch.ones(T, T).tril().bool()


def streams_among_the_examples(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Two halves of the tokens, mixed twice, in the axis of the examples in between."""
    for _ in range(2):
        x = x.reshape(-1, 2, T // 2, D)
        x = torch.einsum("bsnt,bsnd->btnd", p((x @ w.router[:, :2]).tanh()), x)
        x = x.reshape(-1, T // 2, D)
    return x.reshape(-1, T, D)


def gated_messages(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """The gate of the receiver is multiplied onto the values, inside of the sum over senders."""
    messages = w.c(x)[:, None] * w.d(x).sigmoid()[:, :, None]
    return (p(pattern(w, x))[..., None] * messages).sum(2)


def segments_as_blocks(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """The patterns of two segments of each example side by side in one matrix."""
    pairs = zip(w.a(x).unflatten(1, (2, -1)), w.b(x).unflatten(1, (2, -1)), strict=True)
    return p(torch.stack([torch.block_diag(*(q @ k.mT).softmax(-1)) for q, k in pairs])) @ w.c(x)


def deformable(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Two places for each token, whose values are weighed in a matrix product."""
    along = w.a(x)[..., :2].tanh()
    places = p(torch.stack([along, torch.zeros_like(along)], -1))
    found = F.grid_sample(w.c(x).mT[:, :, None], places, align_corners=True)
    return torch.einsum("bdtk,btk->btd", found, p(w.b(x)[..., :2].softmax(-1)))


def deformable_levels(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """As Deformable DETR has it: two heads, with two places on each of two levels."""
    weights = p(w.b(x).unflatten(-1, (2, 4)).softmax(-1)).unflatten(-1, (2, 2))
    along = w.a(x).tanh().unflatten(-1, (2, 2, 2))
    places = p(torch.stack([along, torch.zeros_like(along)], -1))
    values = w.c(x).unflatten(-1, (2, 4)).permute(0, 2, 3, 1).flatten(0, 1)[:, :, None]
    found = [
        F.grid_sample(v, places[:, :, :, i].transpose(1, 2).flatten(0, 1), align_corners=False)
        for i, v in enumerate(values.split(T // 2, -1))
    ]
    weights = weights.transpose(1, 2).reshape(2 * len(x), 1, T, 4)
    weighed = (torch.stack(found, -2).flatten(-2) * weights).sum(-1)
    return weighed.view(len(x), D, T).mT


def state_space_as_matrix(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    """Mamba-2: scores that decay, without a softmax; a scan has no rule here."""
    decay = -F.softplus(w.d(x)[..., 0]).cumsum(1)
    kept = (decay[:, :, None] - decay[:, None]).masked_fill(~CAUSAL, -torch.inf).exp()
    return (F.silu(w.a(x)) @ F.silu(w.b(x)).mT * kept) @ w.c(x)


def stick_breaking(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = scores(w, x).masked_fill(~CAUSAL, -1000000000.0)
    lb, l1 = (F.logsigmoid(z), F.logsigmoid(-z))
    rest = l1.flip(-1).cumsum(-1).flip(-1) - l1
    return p((lb + rest).exp().masked_fill(~CAUSAL, 0.0)) @ w.c(x)


def forgetting(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    f = F.logsigmoid(x @ w.vector).cumsum(-1)
    s = scores(w, x) + f[:, :, None] - f[:, None, :]
    return p(s.masked_fill(~CAUSAL, -torch.inf).softmax(-1)) @ w.c(x)


def cope(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    gate = s.sigmoid().masked_fill(~CAUSAL, 0.0)
    pos = gate.flip(-1).cumsum(-1).flip(-1).clamp(max=T - 1)
    lo, hi = (pos.floor().long(), pos.ceil().long())
    table = w.a(x) @ R_COPE
    e = table.gather(-1, lo) * (1 - (pos - lo)) + table.gather(-1, hi) * (pos - lo)
    return p((s + e).masked_fill(~CAUSAL, -torch.inf).softmax(-1)) @ w.c(x)


R_COPE = R(D, T + 1)


def selective(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    m = s.relu().masked_fill(torch.eye(T).bool(), 0.0).cumsum(1)
    return p((s - m).softmax(-1)) @ w.c(x)


def conv_over_scores(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = F.conv2d(scores(w, x)[:, None], KER1, padding=1)[:, 0]
    return p(s.softmax(-1)) @ w.c(x)


def conv_over_pattern(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p(pattern(w, x))
    return F.conv2d(a[:, None], KER2, padding=1)[:, 0] @ w.c(x)


def hierarchical(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = w.a(x).unflatten(1, (2, 3))
    words = p((h.tanh() @ w.vector).softmax(-1))
    s = (words[..., None] * h).sum(2)
    sent = p((s.tanh() @ A1).softmax(-1))
    return (sent[..., None] * s).sum(1, keepdim=True) + x


def coattention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    a, b = (p(s.softmax(-1)), p(s.softmax(1)))
    return torch.cat([a @ w.c(x), a @ (b.mT @ x)], -1) @ torch.cat([W3, W4])


def bidaf(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    b = p(s.amax(-1).softmax(-1))
    q2c = (b[..., None] * x).sum(1, keepdim=True)
    c2q = p(s.softmax(-1)) @ w.c(x)
    return x * c2q + x * q2c


def pattern_l2(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = pattern(w, x)
    return p(a / a.norm(dim=-1, keepdim=True)) @ w.c(x)


def nonlocal_dot(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return w.a(x) @ w.b(x).mT / T @ w.c(x)


def sagan(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = x.mT.unflatten(-1, (2, 3))
    q = F.conv2d(z, W3[:4, :, None, None]).flatten(2)
    k = F.conv2d(z, W4[:4, :, None, None]).flatten(2)
    v = F.conv2d(z, W5[:, :, None, None]).flatten(2)
    a = p(torch.bmm(q.mT, k).softmax(-1))
    return (torch.bmm(v, a.mT).view_as(z) * 0.7 + z).flatten(2).mT


def criss_cross(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = (f(x).unflatten(1, (2, 3)) for f in (w.a, w.b, w.c))
    row = torch.einsum("bhwc,bhvc->bhwv", q, k)
    col = torch.einsum("bhwc,bgwc->bhwg", q, k)
    a = p(torch.cat([row, col], -1).softmax(-1))
    ra, ca = a.split([3, 2], -1)
    return (
        torch.einsum("bhwv,bhvc->bhwc", ra, v) + torch.einsum("bhwg,bgwc->bhwc", ca, v)
    ).flatten(1, 2)


def set_transformer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = p((LAT @ w.a(x).mT).softmax(-1)) @ w.b(x)
    h = h + F.relu(h @ W3)
    return p((x @ h.mT).softmax(-1)) @ (h @ W4)


def local_and_global(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    kg, vg = (k.mean(1, keepdim=True), v.mean(1, keepdim=True))
    s = torch.cat([(q @ k.mT).masked_fill(~CAUSAL, -torch.inf), q @ kg.mT], -1)
    a = p(s.softmax(-1))
    return a[..., :T] @ v + a[..., T:] * vg


def pooled_keys(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    k, v = (F.avg_pool1d(f(x).mT, 2).mT for f in (w.b, w.c))
    return p((w.a(x) @ k.mT).softmax(-1)) @ v


def expert_choice(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = (x @ w.router).softmax(-1)
    gates, idx = s.topk(2, dim=1)
    out = torch.zeros_like(x)
    for e in range(EXPERTS):
        i = idx[..., e, None].expand(-1, -1, D)
        h = x.gather(1, i) @ w.experts[e]
        out = out.scatter_add(1, i, gates[..., e, None] * h)
    return out


def expert_choice_over_tokens(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = (x @ w.router).softmax(1)
    gates, idx = s.topk(2, dim=1)
    out = torch.zeros_like(x)
    for e in range(EXPERTS):
        i = idx[..., e, None].expand(-1, -1, D)
        out = out.scatter_add(1, i, gates[..., e, None] * (x.gather(1, i) @ w.experts[e]))
    return out


def deepseek_router(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = (x @ w.router).sigmoid()
    _v, i = (s + w.vector[:EXPERTS]).topk(2, -1)
    gates = s.gather(-1, i)
    gates = gates / (gates.sum(-1, keepdim=True) + 1e-20) * 2.5
    h = torch.einsum("btd,edf->btef", x, w.experts)
    return (gates[..., None] * h.gather(2, i[..., None].expand(-1, -1, -1, D))).sum(2)


def point_transformer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    rel = q[:, :, None] - k[:, None] + REL[torch.arange(T)[:, None] - torch.arange(T) + T - 1]
    a = p((rel.relu() @ W3).softmax(2))
    return (a * (v[:, None] + 0.1)).sum(2)


def triangle_update(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = w.a(x)[:, :, None] * w.b(x)[:, None]
    a, b = ((z @ W3).sigmoid() * (z @ W4), (z @ W5).sigmoid() * z)
    u = torch.einsum("bikc,bjkc->bijc", a, b)
    return centred(u, n).mean(2)


def triangle_attention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = w.a(x)[:, :, None] + w.b(x)[:, None]
    q, k, v, bias = (z @ W3, z @ W4, z @ W5, z @ A1)
    s = torch.einsum("bijc,bikc->bijk", q, k) + bias[:, None]
    return (torch.einsum("bijk,bikc->bijc", p(s.softmax(-1)), v) * (z @ OUT).sigmoid()).mean(2)


def outer_product_mean(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.einsum("btc,btd->bcd", w.a(x), w.b(x))[:, :T] / T


def gated_softmax_renormalised(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = pattern(w, x) * w.d(x)[..., :1].sigmoid().mT
    return p(a / a.sum(-1, keepdim=True)) @ w.c(x)


def exp2_softmax(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    e = torch.exp2(scores(w, x) * math.log2(math.e))
    return p(e / e.sum(-1, keepdim=True)) @ w.c(x)


def log_softmax_exp(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return p(F.log_softmax(scores(w, x), -1).exp()) @ w.c(x)


def softmin(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return p(F.softmin(-scores(w, x), -1)) @ w.c(x)


def subtract_lse(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    return p((s - s.logsumexp(-1, keepdim=True)).exp()) @ w.c(x)


def merged_partials(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    outs, ls = ([], [])
    for kk, vv in zip(k.chunk(2, 1), v.chunk(2, 1)):
        s = q @ kk.mT
        ls.append(s.logsumexp(-1, keepdim=True))
        outs.append(p(s.softmax(-1)) @ vv)
    gate = p(torch.sigmoid(ls[0] - ls[1]))
    return gate * outs[0] + (1 - gate) * outs[1]


def kv_cache(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    k, v = (torch.cat([NK.expand(2, -1, -1), k], 1), torch.cat([NV.expand(2, -1, -1), v], 1))
    return p((q @ k.mT).softmax(-1)) @ v


def null_key(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    s = torch.cat([q @ k.mT, torch.zeros(2, T, 1)], -1)
    return p(s.softmax(-1))[..., :T] @ v


def token_merging(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    size = torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0, 1.0]).double()
    return p((scores(w, x) + size.log()).softmax(-1)) @ w.c(x)


def head_mixed_by_softmax(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s, v = hs(w, x)
    o = p(s.softmax(-1)) @ v
    g = (x @ R_H).softmax(-1)
    return merge(o * g.mT[..., None])


R_H = R(D, 2)


def unrolled_hopfield(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = x
    for _ in range(3):
        h = h + 0.3 * (p((h @ w.b(x).mT).softmax(-1)) @ w.c(x) - h)
    return h


def complex_rotary(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    t = torch.polar(
        torch.ones(T, D // 2).double(),
        torch.arange(T)[:, None].double() * torch.linspace(0.1, 1, D // 2),
    )

    def r(z):
        return torch.view_as_real(
            torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * t
        ).flatten(-2)

    return p((r(w.a(x)) @ r(w.b(x)).mT).softmax(-1)) @ w.c(x)


def corrcoef_attention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = torch.stack([torch.corrcoef(z) for z in w.a(x)])
    return p((3 * y).softmax(-1)) @ w.c(x)


def frn(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    y = x * n(torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-06)) * w.vector
    return torch.maximum(y, w.vector)


def evonorm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = n((x.var((1, 2), keepdim=True, correction=0) + 1e-05).sqrt())
    return x * (x * w.vector).sigmoid() / s


def divisive(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    pool = F.avg_pool1d(x.square(), 3, 1, 1)
    return x / n((1e-06 + pool).sqrt())


def local_contrast(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    m = F.avg_pool1d(x, 3, 1, 1)
    d = x - m
    s = F.avg_pool1d(d.square(), 3, 1, 1).sqrt()
    return d / n(torch.maximum(s, s.mean(-1, keepdim=True)))


def cumulative_ln(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    k = torch.arange(1, T + 1).double()[:, None] * D
    m = x.sum(-1, keepdim=True).cumsum(1) / k
    v = x.square().sum(-1, keepdim=True).cumsum(1) / k - m.square()
    return (x - m) / n((v + 1e-05).sqrt()) * w.vector


def global_ln(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    m = x.mean((1, 2), keepdim=True)
    return (x - m) / n(((x - m).square().mean((1, 2), keepdim=True) + 1e-05).sqrt())


def welford(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    m, s = (torch.zeros_like(x[..., :1]), torch.zeros_like(x[..., :1]))
    for i in range(D):
        d = x[..., i : i + 1] - m
        m = m + d / (i + 1)
        s = s + d * (x[..., i : i + 1] - m)
    return (x - m) / n((s / D + 1e-05).sqrt())


def crms(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
    return x / n((z.square().mean(-1, keepdim=True) + 1e-06).sqrt())


def ngpt(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = unit(x, n)
    o = unit(p((unit(w.a(h), n) @ unit(w.b(h), n).mT * 3).softmax(-1)) @ w.c(h), n)
    return unit(h + w.vector.abs() * (o - h), n)


def cov_whiten(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = x - x.mean(1, keepdim=True)
    cov = z.mT @ z / T + torch.eye(D)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), z.mT, upper=False).mT


def std_mean_call(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s, m = torch.std_mean(x, -1, keepdim=True, correction=0)
    return (x - m) / n(s + 1e-05)


def aminmax_call(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    lo, hi = torch.aminmax(x, dim=-1, keepdim=True)
    return (x - lo) / n(hi - lo + 1e-05)


def linalg_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x / n(torch.linalg.matrix_norm(x, keepdim=True))


def nuclear(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x / n(torch.linalg.matrix_norm(x, ord="nuc", keepdim=True))


def sum_normalised_relu(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    r = F.relu(w.a(x)) + 0.001
    return r / r.sum(-1, keepdim=True) * w.c(x)


def norm_of_difference(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = x[:, 1:] - x[:, :-1]
    return torch.cat([x[:, :1], d / n(d.norm(dim=-1, keepdim=True) + 1e-06)], 1)


def distance_ratio(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = (x - w.vector).norm(dim=-1, keepdim=True)
    return x / (1 + d)


def scaled_by_other_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return w.a(x) / (1 + w.b(x).norm(dim=-1, keepdim=True))


def renorm_clip(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    nn_ = x.norm(dim=-1, keepdim=True)
    return torch.where(nn_ > 2, 2 * x / n(nn_), x)


def geometric_mean_norm(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x / n((x.abs() + 0.01).log().mean(-1, keepdim=True).exp())


def hyperbolic(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    r = x.norm(dim=-1, keepdim=True)
    return r.tanh() * x / n(r)


def mobius_exp(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    r = x.norm(dim=-1, keepdim=True).clamp_min(1e-15)
    u = (r / 2).tanh() * x / n(r)
    return 2 * u / (1 + u.square().sum(-1, keepdim=True))


def lorentz(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    t = (1 + x.square().sum(-1, keepdim=True)).sqrt()
    return torch.cat([t, x], -1)[..., :D]


def softmax_entropy_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = pattern(w, x)
    h = -(a * (a + 1e-09).log()).sum(-1, keepdim=True)
    return x * p(h)


def signal_energy_db(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x + 0.1 * (x.square().sum(-1, keepdim=True) + 1).log10()


def variance_feature(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x * x.var(-1, keepdim=True) + x.std(1, keepdim=True)


def z_score_then_clamp(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return ((x - x.mean(1, keepdim=True)) / n(x.std(1, keepdim=True) + 1e-05)).clamp(-1, 1)


def ode_rk4(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    def f(h):
        return torch.tanh(w.a(h))

    h = x
    for _ in range(2):
        k1 = f(h)
        k2 = f(h + 0.1 * k1)
        k3 = f(h + 0.1 * k2)
        k4 = f(h + 0.2 * k3)
        h = h + 0.2 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return h


def fixed_point(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = torch.zeros_like(x)
    for _ in range(5):
        h = torch.tanh(0.3 * w.a(h) + x)
    return h


def tensor_fusion(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    one = torch.ones(2, T, 1)
    a, b = (torch.cat([w.a(x), one], -1), torch.cat([w.b(x), one], -1))
    return torch.einsum("bti,btj->btij", a, b).flatten(2)[..., :D]


def mfb(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = w.a(x) * w.b(x)
    z = z.sign() * (z.abs() + 1e-09).sqrt()
    return unit(z, n)


def dcn_v2(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x * (x @ PROJ @ UP + w.vector) + x


def fibinet(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    z = F.relu(x.mean(-1) @ R_T)
    return x * z[..., None]


R_T = R(T, T)


def eca(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x * F.conv1d(x.mean(1, keepdim=True), KER1[0, :, 0][None], padding=1).sigmoid()


def simam(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    d = (x - x.mean(1, keepdim=True)).square()
    v = d.sum(1, keepdim=True) / (T - 1)
    return x * (d / (4 * (v + 0.0001)) + 0.5).sigmoid()


def gct(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    e = (x.square().sum(1, keepdim=True) + 1e-05).sqrt() * w.vector
    m = n((e.square().mean(-1, keepdim=True) + 1e-05).sqrt())
    return x * (1 + torch.tanh(e / m))


def simple_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = torch.cat([w.a(x), w.b(x)], -1)
    a, b = h.chunk(2, -1)
    return a * b


def sca(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return x * (x.mean(1, keepdim=True) @ W3)


def restormer(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = (f(x).mT for f in (w.a, w.b, w.c))
    q, k = (unit(q, n), unit(k, n))
    return (p((q @ k.mT * 2).softmax(-1)) @ v).mT


def star_relu(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return 0.8944 * F.relu(w.a(x)).square() - 0.4472


def loop_over_heads(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    q, k, v = qkv(w, x)
    outs = []
    for h in range(2):
        sl = slice(4 * h, 4 * h + 4)
        outs.append(p((q[..., sl] @ k[..., sl].mT).softmax(-1)) @ v[..., sl])
    return torch.cat(outs, -1)


def attention_by_linear(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    rows = zip(*qkv(w, x), strict=True)
    return torch.stack([F.linear(p(F.linear(q, k).softmax(-1)), v.mT) for q, k, v in rows])


def bias_of_the_data(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    shifted = [F.conv1d(z.mT[None], OUT[..., None], bias=z.mean(0))[0].mT for z in w.a(x)]
    return torch.stack(shifted) + p(pattern(w, x)) @ x


def diagonal_of_products(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    gate = torch.einsum("bii,bid->bid", s, torch.sigmoid(w.c(x)))
    return gate + p(s.softmax(-1)) @ x


def tensordot_attention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.stack([torch.tensordot(p((w.a(z) @ w.b(z).T).softmax(-1)), w.c(z), 1) for z in x])


def inplace_scores(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = w.a(x) @ w.b(x).mT
    s /= math.sqrt(D)
    s += BIAS
    s.masked_fill_(~CAUSAL, -torch.inf)
    return p(s.softmax(-1)) @ w.c(x)


def inplace_softmax(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    s = scores(w, x)
    s = s - s.max(-1, keepdim=True)[0]
    e = s.exp()
    e = e / e.sum(-1, keepdim=True)
    o = torch.empty_like(x)
    o[:] = p(e) @ w.c(x)
    return o


def out_argument(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return p(pattern(w, x)).matmul(w.c(x)).add(x).mul(0.5)


def diag_embed_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.diag_embed(w.a(x).sigmoid()).matmul(w.c(x)[..., None])[..., 0]


def kron_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.stack(
        [torch.kron(a[:2].contiguous(), b[:3].contiguous())[:, :D] for a, b in zip(w.a(x), w.b(x))]
    )


def logaddexp_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.logaddexp(w.a(x), w.b(x))


def hypot(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.hypot(w.a(x), w.b(x))


def lerp_by_gate(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return torch.lerp(w.a(x), w.b(x), w.d(x).sigmoid())


def attention_by_lerp(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p(pattern(w, x))
    h = torch.zeros_like(x)
    tot = torch.zeros(2, T, 1)
    for j in range(T):
        tot = tot + a[..., j : j + 1]
        h = torch.lerp(h, w.c(x)[:, j : j + 1].expand_as(h), a[..., j : j + 1] / tot)
    return h


def cumulative_mean_of_pattern(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p(pattern(w, x))
    a = a.cumsum(1) / torch.arange(1, T + 1)[:, None]
    return a @ w.c(x)


def rollout(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = 0.5 * p(pattern(w, x)) + 0.5 * torch.eye(T)
    b = 0.5 * p((x @ x.mT).softmax(-1)) + 0.5 * torch.eye(T)
    return a @ b @ w.c(x)


def pattern_shifted(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    return p(pattern(w, x)).roll(1, -1) @ w.c(x)


def location_based(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    a = p((x @ w.router[:, :3]).softmax(-1))
    z = F.pad(w.c(x), (0, 0, 1, 1))
    return sum(a[..., i : i + 1] * z[:, i : i + T] for i in range(3))


def span_attention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = torch.cumsum(x, 1)
    s = h[:, 2:] - h[:, :-2]
    a = p((s @ w.vector).softmax(-1))
    return (a[..., None] * s).sum(1, keepdim=True) + x


def monotonic(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    b = scores(w, x).sigmoid()
    rest = torch.cat([torch.ones(2, T, 1).double(), (1 - b).cumprod(-1)[..., :-1]], -1)
    return p(b * rest) @ w.c(x)


def gaussian_window(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    mu = (x @ w.vector).sigmoid() * T
    j = torch.arange(T).double()
    k = (-(j - mu[..., None]).square() / 2).exp()
    return p(k / k.sum(-1, keepdim=True)) @ w.c(x)


R_G = R(D, 6)


def gmm_attention(w: Weights, x: Tensor, p: Hold, n: Hold) -> Tensor:
    h = x @ R_G
    al, be, ka = h[..., :2].exp(), h[..., 2:4].exp(), h[..., 4:].exp()
    j = torch.arange(T).double()
    phi = (al[..., None] * (-be[..., None] * (ka[..., None] - j).square()).exp()).sum(-2)
    return p(phi / (phi.sum(-1, keepdim=True) + 1e-08)) @ w.c(x)


RARER: dict[str, Callable[..., Tensor]] = {
    one.__name__.replace("_", " "): one
    for one in (
        stick_breaking,
        forgetting,
        cope,
        selective,
        conv_over_scores,
        conv_over_pattern,
        hierarchical,
        coattention,
        bidaf,
        pattern_l2,
        nonlocal_dot,
        sagan,
        criss_cross,
        set_transformer,
        local_and_global,
        pooled_keys,
        expert_choice,
        expert_choice_over_tokens,
        deepseek_router,
        point_transformer,
        triangle_update,
        triangle_attention,
        outer_product_mean,
        gated_softmax_renormalised,
        exp2_softmax,
        log_softmax_exp,
        softmin,
        subtract_lse,
        merged_partials,
        kv_cache,
        null_key,
        token_merging,
        head_mixed_by_softmax,
        unrolled_hopfield,
        complex_rotary,
        corrcoef_attention,
        frn,
        evonorm,
        divisive,
        local_contrast,
        cumulative_ln,
        global_ln,
        welford,
        crms,
        ngpt,
        cov_whiten,
        std_mean_call,
        aminmax_call,
        linalg_norm,
        nuclear,
        sum_normalised_relu,
        norm_of_difference,
        distance_ratio,
        scaled_by_other_norm,
        renorm_clip,
        geometric_mean_norm,
        hyperbolic,
        mobius_exp,
        lorentz,
        softmax_entropy_gate,
        signal_energy_db,
        variance_feature,
        z_score_then_clamp,
        ode_rk4,
        fixed_point,
        tensor_fusion,
        mfb,
        dcn_v2,
        fibinet,
        eca,
        simam,
        gct,
        simple_gate,
        sca,
        restormer,
        star_relu,
        loop_over_heads,
        tensordot_attention,
        attention_by_linear,
        bias_of_the_data,
        diagonal_of_products,
        inplace_scores,
        inplace_softmax,
        out_argument,
        diag_embed_gate,
        kron_gate,
        logaddexp_gate,
        hypot,
        lerp_by_gate,
        attention_by_lerp,
        cumulative_mean_of_pattern,
        rollout,
        pattern_shifted,
        location_based,
        span_attention,
        monotonic,
        gaussian_window,
        gmm_attention,
        streams_among_the_examples,
        gated_messages,
        segments_as_blocks,
        deformable,
        deformable_levels,
        state_space_as_matrix,
    )
}
