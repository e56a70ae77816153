"""A modelling file that the package has never seen, in the style of transformers.

Grouped-query attention with rotary positions and normalised queries and keys, an RMS norm of its
own, a gated MLP, logits capped softly. No name says what a class does.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

WIDTH, HEADS, GROUPS, HEAD, WORDS = 32, 4, 2, 8, 64


class Leveller(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).pow(-0.5)
        return self.gain * wide.to(x.dtype)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class Exchange(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.wanted = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.offered = nn.Linear(WIDTH, 2 * GROUPS * HEAD, bias=False)
        self.result = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.levels = nn.ModuleList(Leveller(HEAD) for _ in range(2))

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, hidden: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.wanted(x).view(batch, tokens, HEADS, HEAD).transpose(1, 2)
        k, v = self.offered(x).view(batch, tokens, 2 * GROUPS, HEAD).transpose(1, 2).chunk(2, 1)
        q, k = turned(self.levels[0](q), cosine, sine), turned(self.levels[1](k), cosine, sine)
        k, v = (z.repeat_interleave(HEADS // GROUPS, 1) for z in (k, v))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
        else:
            scores = (q @ k.transpose(2, 3)) * HEAD**-0.5
            scores = 30.0 * torch.tanh(scores / 30.0)
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            mixed = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
        return self.result(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Bend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.back = nn.Linear(WIDTH, 128, bias=False), nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, signal = self.both(x).chunk(2, -1)
        return self.back(nn.functional.silu(gate) * signal)


class Storey(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.a, self.b = Leveller(WIDTH), Leveller(WIDTH)
        self.exchange, self.bend = Exchange(fused), Bend()

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = x + self.exchange(self.a(x), *more)
        return x + self.bend(self.b(x))


class TowerForCausalLM(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.storeys = nn.ModuleList(Storey(fused) for _ in range(2))
        self.top = Leveller(WIDTH)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        tokens = input_ids.shape[1]
        x = self.words(input_ids) * WIDTH**0.5
        rates = 10000.0 ** -(torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.outer(torch.arange(tokens), rates).repeat(1, 2)
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        for storey in self.storeys:
            x = storey(x, angles.cos(), angles.sin(), hidden)
        logits = nn.functional.linear(self.top(x), self.words.weight)
        return SimpleNamespace(logits=20.0 * torch.tanh(logits / 20.0))
