"""One block of a transformer with any function for its attention, compared with the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import oracle
import zoo
from captum_lrp_tx import ConservativeGI, audit
from closeness import close_to_largest

WIDTH, HEADS, BATCH, TOKENS, CLASSES = 8, 2, 2, 5, 3
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def agrees(
    model: Any, *inputs: Tensor, like: Any = None, target: int = 1, rules: Any = "ah+ln"
) -> None:
    """Relevance of every input is the oracle's, and nothing is left to a plain gradient."""
    given = inputs[0] if len(inputs) == 1 else inputs
    relevance = ConservativeGI(model, rules=rules).attribute(given, target=target, strict=True)
    got = relevance if isinstance(relevance, tuple) else (relevance,)
    expected = oracle.oracle_relevance(
        like or model, inputs, rules, lambda output: output[:, target]
    )
    for one, other in zip(got, expected, strict=True):
        close_to_largest(one, other, 1e-4)
    report = audit.explainability(model, given, target=target, file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale


def floats(*shape: int) -> Tensor:
    return zoo.floats(*shape)


def spelled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * 0.5).softmax(-1) @ value


class Block(nn.Module):
    """One pre-norm block with any function for the attention of its heads."""

    def __init__(self, attention: Attention = spelled) -> None:
        super().__init__()
        self.level = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.attention = attention

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(-2, -3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.level(x)
        mixed = self.attention(self.heads(self.q(h)), self.heads(self.k(h)), self.heads(self.v(h)))
        return self.head((x + self.out(mixed.transpose(-2, -3).flatten(-2))).mean(-2))


def block(attention: Attention = spelled) -> Block:
    model = Block(attention)
    zoo.randomise(model)
    return model
