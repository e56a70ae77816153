"""Attention maps are the same wherever heads and examples stand, and however heads are run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import (
    AttentionLast,
    AttentionRollout,
    GenericAttention,
    TransformerAttribution,
)
from captum_lrp_tx.errors import UnsupportedModelError

HEADS, WIDTH, TOKENS = 3, 12, 5
METHODS: dict[str, Any] = {
    "last": AttentionLast,
    "rollout": AttentionRollout,
    "gae": GenericAttention,
    "attribution": TransformerAttribution,
}


class Head(nn.Module):
    def forward(self, x: Tensor, weights: Tensor, number: int) -> Tensor:
        query, key, value = (y.chunk(HEADS, -1)[number] for y in (x @ weights).chunk(3, -1))
        return (query @ key.mT).softmax(-1) @ value


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weights = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 3)
        self.heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = (x @ self.weights).chunk(3, -1)
        if self.form == "examples first":
            query, key, value = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in parts)
            result = (query @ key.mT).softmax(-1) @ value
            return self.out(result.transpose(1, 2).flatten(2))
        if self.form in ("heads first", "heads before examples", "heads mixed up"):
            join: Any = torch.stack if self.form == "heads first" else torch.cat
            query, key, value = (join(y.chunk(HEADS, -1)) for y in parts)
            scores = query @ key.mT
            if self.form == "heads mixed up":
                scores = scores + scores.sum(0, keepdim=True)
            result = scores.softmax(-1) @ value
            rows = result.unbind() if self.form == "heads first" else result.chunk(HEADS)
        elif self.form == "one by one":
            split = zip(*(y.chunk(HEADS, -1) for y in parts), strict=True)
            rows = [(query @ key.mT).softmax(-1) @ value for query, key, value in split]
        else:
            rows = [head(x, self.weights, i) for i, head in enumerate(self.heads)]
        return self.out(torch.cat(list(rows), -1))


class Model(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(form) for _ in range(2))
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        result: Tensor = self.last(x[:, 0])
        return result


def relevance(form: str, method: str, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    model = Model(form).double().eval()
    found: Tensor = METHODS[method](model).attribute(x, target=1)
    return found


@pytest.mark.parametrize("examples", [1, 2, HEADS, TOKENS])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "form", ["heads first", "heads before examples", "one by one", "a module for each head"]
)
def test_maps_do_not_depend_on_the_order_of_heads(form: str, method: str, examples: int) -> None:
    """Heads before examples took part of other examples; one by one they were layers."""
    x = torch.randn(examples, TOKENS, WIDTH).double()
    expected = torch.cat([relevance("examples first", method, one[None]) for one in x])
    torch.testing.assert_close(relevance("examples first", method, x), expected)
    torch.testing.assert_close(relevance(form, method, x), expected)


def test_maps_of_several_examples_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="depends on several of them"):
        relevance("heads mixed up", "rollout", torch.randn(2, TOKENS, WIDTH).double())
