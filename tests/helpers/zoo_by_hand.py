"""Models written by hand in the zoo: norms, attention, routers and kernels in several spellings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_cases import (
    BATCH,
    CLASSES,
    HEADS,
    LENGTHS,
    TOKENS,
    WIDTH,
    WORDS,
    Case,
    add,
    floats,
    randomise,
    token_ids,
)

# The names of these classes say nothing about what they do, on purpose.


class Leveller(nn.Module):
    """A norm written by hand, in several styles."""

    def __init__(self, style: str, width: int = WIDTH) -> None:
        super().__init__()
        self.style = style
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5
        if self.style == "rsqrt":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.gain
        if self.style == "sqrt":
            centred = x - x.mean(-1, keepdim=True)
            var = x.var(-1, unbiased=False, keepdim=True)
            return centred / torch.sqrt(var + eps) * self.gain + self.shift
        if self.style == "std":
            centred = x - x.mean(-1, keepdim=True)
            return self.gain * centred / (x.std(-1, keepdim=True) + eps) + self.shift
        if self.style == "power":
            centred = x - x.mean(-1, keepdim=True)
            return centred * (centred.square().mean(-1, keepdim=True) + eps) ** -0.5 * self.gain
        if self.style == "half":
            var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
            return (x - mean) / (var + eps) ** 0.5 * self.gain + self.shift
        if self.style == "length":
            return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + eps) * self.gain
        if self.style == "f.rms":
            return F.rms_norm(x, (x.shape[-1],), self.gain, eps)
        if self.style == "f.rms-plain":
            return F.rms_norm(x, (x.shape[-1],))
        if self.style == "f.layer-plain":
            return F.layer_norm(x, (x.shape[-1],))
        raise ValueError(self.style)


class Blend(nn.Module):
    """Self-attention with one fused projection, by einsum, bmm or baddbmm."""

    def __init__(self, style: str = "einsum", width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.style, self.heads = style, heads
        self.fused = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        scale = (width // self.heads) ** -0.5
        q, k, v = self.fused(x).view(batch, tokens, 3, self.heads, -1).unbind(2)
        if self.style == "einsum":
            p = (torch.einsum("bqhe,bkhe->bhqk", q, k) * scale).softmax(-1)
            return self.out(torch.einsum("bhqk,bkhe->bqhe", p, v).reshape(x.shape))
        q, k, v = (z.transpose(1, 2).reshape(batch * self.heads, tokens, -1) for z in (q, k, v))
        if self.style == "bmm":
            p = torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), dim=-1)
        else:
            slope = -0.1 * (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs().to(x)
            scores = torch.baddbmm(slope.expand(len(q), -1, -1), q, k.mT, alpha=scale)
            p = F.softmax(scores, dim=-1)
        mixed = torch.bmm(p, v).view(batch, self.heads, tokens, -1)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Switch(nn.Module):
    """A mixture of experts: softmax router times expert outputs, element-wise."""

    def __init__(self, width: int = WIDTH, experts: int = 3) -> None:
        super().__init__()
        self.choose = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.choose(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (weight.unsqueeze(-1) * outputs).sum(-2)


class Tower(nn.Module):
    """Pre-norm blocks from the parts above."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        blend: Callable[[], nn.Module] = Blend,
        mix: Callable[[], nn.Module] | None = None,
        probabilities: bool = False,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        mix = mix or (lambda: nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)))
        self.words = nn.Embedding(WORDS, WIDTH) if tokens else None
        self.firsts = nn.ModuleList(norm() for _ in range(2))
        self.blends = nn.ModuleList(blend() for _ in range(2))
        self.seconds = nn.ModuleList(norm() for _ in range(2))
        self.mixes = nn.ModuleList(mix() for _ in range(2))
        self.last = norm()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        if self.words is not None:
            x = self.words(x)
        parts = zip(self.firsts, self.blends, self.seconds, self.mixes, strict=True)
        for first, blend, second, mix in parts:
            x = x + blend(first(x))
            x = x + mix(second(x))
        logits = self.head(self.last(x).mean(1))
        return logits.softmax(-1) if self.probabilities else logits


def _tower(
    norm: Callable[[], nn.Module],
    tokens: bool = False,
    input_shape: tuple[int, ...] = (BATCH, TOKENS, WIDTH),
    **options: Any,
) -> Case:
    model = randomise(Tower(norm, tokens=tokens, **options))
    inputs = (token_ids(False)[0],) if tokens else (floats(*input_shape),)
    return Case("", model, "tokens" if tokens else "floats", inputs, 4, patterns=2, norms=5)


_STYLES = "rsqrt sqrt std power half length f.rms f.rms-plain f.layer-plain".split()
for _style in _STYLES:
    _norm = functools.partial(Leveller, _style)
    add(f"custom-norm-{_style}", "custom norm", "floats", _tower, _norm)
_layer_norm = functools.partial(nn.LayerNorm, WIDTH)
_rms_norm = functools.partial(nn.RMSNorm, WIDTH, eps=1e-5)
_two_dims = functools.partial(nn.LayerNorm, (TOKENS, WIDTH))
add("custom-norm-nn.rms", "custom norm", "floats", _tower, _rms_norm)
add("custom-norm-two-dims", "custom norm", "floats", _tower, _two_dims)
add("custom-ids", "custom", "tokens", _tower, functools.partial(Leveller, "rsqrt"), tokens=True)
for _style in ("bmm", "baddbmm"):
    add(
        f"custom-{_style}",
        "custom",
        "floats",
        _tower,
        _layer_norm,
        blend=functools.partial(Blend, _style),
    )
add(
    "custom-router",
    "custom router",
    "floats",
    _tower,
    functools.partial(Leveller, "rsqrt"),
    mix=Switch,
)
add("custom-output-softmax", "custom router", "floats", _tower, _layer_norm, probabilities=True)
add(
    "custom-router-output-softmax",
    "custom router",
    "floats",
    _tower,
    _layer_norm,
    mix=Switch,
    probabilities=True,
)


class Grain(nn.Module):
    """Convolutions with GroupNorm, then attention over the places of the feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.level = nn.GroupNorm(4, WIDTH)
        self.blend = Blend("bmm")
        self.again = nn.GroupNorm(1, WIDTH, affine=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.level(self.first(x)))
        x = x.flatten(2).transpose(1, 2)
        x = self.again((x + self.blend(x)).transpose(1, 2))
        return self.head(x.mean(-1))


def _grain() -> Case:
    model = randomise(Grain())
    return Case("", model, "floats", (floats(2, 3, 8, 8),), 1, patterns=1, norms=2)


add("custom-groupnorm", "custom norm", "floats", _grain)


class Kernel(nn.Module):
    """F.scaled_dot_product_attention with each of its options."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option
        self.few = HEADS // 2 if option.startswith("gqa") else HEADS
        self.wide = 6 if option == "wide-values" else WIDTH // HEADS
        self.level = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, self.few * (WIDTH // HEADS))
        self.v = nn.Linear(WIDTH, self.few * self.wide)
        self.out = nn.Linear(HEADS * self.wide, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def options(self, batch: int, tokens: int) -> dict[str, Any]:
        option, generator = self.option, torch.Generator().manual_seed(5)
        options: dict[str, Any] = {}
        if option in ("causal", "gqa-causal", "causal-scale", "causal-cross"):
            options["is_causal"] = True
        if option in ("scale", "causal-scale", "float-scale"):
            options["scale"] = 0.9
        if option in ("float", "float-scale"):
            options["attn_mask"] = torch.randn(
                batch, HEADS, tokens, tokens, generator=generator
            ).masked_fill(torch.ones(tokens, tokens).triu(3).bool(), -math.inf)
        if option in ("bool", "gqa-bool", "dead-rows", "dead-rows-float"):
            mask = torch.rand(batch, 1, tokens, tokens, generator=generator) > 0.4
            mask[..., 0] = True
            if option.startswith("dead-rows"):
                mask[0, :, 2] = False
                mask[1] = False
            if option == "dead-rows-float":
                mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
            options["attn_mask"] = mask
        if option == "key-padding":
            lengths = torch.tensor(LENGTHS)[:batch]
            options["attn_mask"] = (torch.arange(tokens) < lengths[:, None])[:, None, None, :]
        if option == "bias-2d":
            options["attn_mask"] = torch.randn(tokens, tokens, generator=generator)
        if option.startswith("gqa"):
            options["enable_gqa"] = True
        bias: Tensor | None = options.get("attn_mask")
        if bias is not None:
            weight = self.q.weight
            dtype = weight.dtype if bias.is_floating_point() else bias.dtype
            options["attn_mask"] = bias.to(weight.device, dtype)
        return options

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = self.level(x)
        queries = h[:, :4] if self.option == "causal-cross" else h
        q = self.q(queries).view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        k = self.k(h).view(batch, tokens, self.few, -1).transpose(1, 2)
        v = self.v(h).view(batch, tokens, self.few, -1).transpose(1, 2)
        if self.option == "flat":  # three dimensions
            q, k, v = (z.flatten(0, 1) for z in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, **self.options(batch, tokens))
        mixed = mixed.view(batch, HEADS, queries.shape[1], -1).transpose(1, 2).flatten(2)
        return self.head((queries + self.out(mixed)).mean(1))


def _kernel(option: str) -> Case:
    inputs = (floats(BATCH, TOKENS, WIDTH),)
    return Case("", randomise(Kernel(option)), "floats", inputs, 1, patterns=1, norms=1)


_OPTIONS = (
    "plain flat causal causal-scale causal-cross scale float float-scale bias-2d "
    "bool key-padding dead-rows dead-rows-float wide-values gqa gqa-causal gqa-bool"
).split()
for _option in _OPTIONS:
    add(
        f"kernel-{_option}",
        "custom kernel" + (" gqa" if _option.startswith("gqa") else ""),
        "floats",
        _kernel,
        _option,
    )
