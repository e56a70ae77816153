"""Heads are the same however attention is written, and ``None`` where they cannot be told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import EdgeRelevance, PartRelevance
from captum_lrp_tx.attr.parts.layouts import head_layouts, row_layout
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.operations import PatternProduct

HEADS, CHANNELS, WINDOW = 4, 3, 3

#: Spellings of "pattern times values" of shapes (batch, heads, queries, keys) and (..., channels).
SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda a, v: a @ v,
    "bmm": lambda a, v: torch.bmm(a.flatten(0, 1), v.flatten(0, 1)).view_as(v),
    "einsum": lambda a, v: torch.einsum("bhqk,bhkd->bhqd", a, v),
    "einsum, tokens first": lambda a, v: torch.einsum(
        "bhqk,bkhd->bqhd", a, v.transpose(1, 2)
    ).transpose(1, 2),
    "einsum, values first": lambda a, v: torch.einsum(
        "bkhd, bhqk -> qbhd", v.transpose(1, 2), a
    ).permute(1, 2, 0, 3),
}
#: Those from which nothing can be told.
UNTOLD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "einsum, dots": lambda a, v: torch.einsum("...qk,...kd->...qd", a, v),
    "values first": lambda a, v: (v.mT @ a.mT).mT,
}


class Block(nn.Module):
    """Attention in windows of three tokens, written in one way or another."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor], windows: str = "mask") -> None:
        super().__init__()
        self.mix, self.windows = mix, windows
        width = HEADS * CHANNELS
        self.into, self.out = nn.Linear(width, 3 * width).double(), nn.Linear(width, width).double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        y, mask = self.into(x), torch.zeros(1, dtype=x.dtype)
        if self.windows == "mask":
            number = torch.arange(tokens) // WINDOW
            mask = torch.zeros(tokens, tokens, dtype=x.dtype)
            mask[number[:, None] != number] = -torch.inf
        else:
            y = y.unflatten(1, (-1, WINDOW))
        if self.windows == "batch":
            y = y.flatten(0, 1)
        query, key, value = (t.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for t in y.chunk(3, -1))
        heads = self.mix((query @ key.mT + mask).softmax(-1), value)
        written = self.out(heads.transpose(-3, -2).reshape(x.shape))
        return (x + written).sum((1, 2))


def heads_of(
    mix: Callable[[Tensor, Tensor], Tensor], windows: str = "mask", examples: int = 2
) -> Any:
    torch.manual_seed(0)
    block, x = Block(mix, windows), torch.randn(2, 6, HEADS * CHANNELS).double()
    (part,) = PartRelevance(block).attribute(x[:examples]).parts
    assert part.kind == "attention"
    return part.heads


@pytest.mark.parametrize("examples", [1, 2])
@pytest.mark.parametrize("name", SPELLINGS)
def test_heads_do_not_depend_on_the_spelling(name: str, examples: int) -> None:
    expected = heads_of(SPELLINGS["matmul"])[:examples]
    torch.testing.assert_close(heads_of(SPELLINGS[name], examples=examples), expected)


@pytest.mark.parametrize("windows", ["batch", "axis"])
def test_windows_of_one_example_stand_behind_each_other(windows: str) -> None:
    """As one attention in which a mask keeps the windows apart."""
    expected = heads_of(SPELLINGS["matmul"])
    torch.testing.assert_close(heads_of(SPELLINGS["matmul"], windows), expected)


#: Where heads, examples and windows stand: from (batch, heads, windows, tokens, channels) and back.
PLACES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "heads first": (lambda x: x.transpose(0, 1), lambda y, _: y.transpose(0, 1)),
    "heads before examples": (
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda y, n: y.unflatten(0, (-1, n)).transpose(0, 1),
    ),
    "windows before examples": (
        lambda x: x.permute(2, 0, 1, 3, 4).flatten(0, 1),
        lambda y, n: y.unflatten(0, (-1, n)).permute(1, 2, 0, 3, 4),
    ),
    "windows before heads": (lambda x: x.transpose(1, 2), lambda y, _: y.transpose(1, 2)),
    "three in one axis": (
        lambda x: x.transpose(0, 1).flatten(0, 2),
        lambda y, n: y.unflatten(0, (HEADS, n, -1)).transpose(0, 1),
    ),
    "heads in two axes": (
        lambda x: x.unflatten(1, (2, 2)).squeeze(3),
        lambda y, _: y.reshape(len(y), HEADS, -1, *y.shape[-2:]),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [2, 6])
@pytest.mark.parametrize("examples", [1, 2, 4])
@pytest.mark.parametrize("name", PLACES)
def test_heads_do_not_depend_on_where_they_stand(
    name: str, examples: int, window: int, dtype: torch.dtype
) -> None:
    """Shapes cannot tell heads, examples and windows apart, but where they write to can."""
    into, back = PLACES[name]
    torch.manual_seed(0)
    width = HEADS * CHANNELS
    qkv, out = nn.Linear(width, 3 * width).to(dtype), nn.Linear(width, width).to(dtype)

    def forward(x: Tensor, moved: bool) -> Tensor:
        y = qkv(x).unflatten(1, (-1, window)).unflatten(-1, (3, HEADS, CHANNELS))
        query, key, value = y.permute(3, 0, 4, 1, 2, 5)
        if moved:
            query, key, value = map(into, (query, key, value))
        heads = (query @ key.mT).softmax(-1) @ value
        heads = back(heads, len(x)) if moved else heads
        return (x + out(heads.permute(0, 2, 3, 1, 4).reshape(x.shape))).sum((1, 2))

    x = torch.randn(examples, 6, width).to(dtype)
    found, expected = (
        PartRelevance(lambda x, m=m: forward(x, m)).attribute(x).parts[0].heads
        for m in (True, False)
    )
    if window == 2 and name in ("three in one axis", "heads in two axes"):
        assert found is None  # more axes than are looked at
        return
    assert found is not None and found.shape == (examples, HEADS, 6)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", UNTOLD)
def test_heads_that_cannot_be_told_are_none(name: str) -> None:
    assert heads_of(UNTOLD[name]) is None


def product(equation: Any, *patterns: int) -> PatternProduct:
    func = torch.einsum if isinstance(equation, str) else torch.matmul
    return PatternProduct(func, (equation,), {}, patterns=patterns, operands=(0, 1))


@pytest.mark.parametrize(
    ("equation", "patterns", "shape"),
    [
        ("qk,kd", (1,), (2, 3)),  # no result is named
        ("ak,kb,bd->ad", (1,), (2, 3)),  # of three factors
        ("qk,kd->qd", (1, 2), (2, 3)),  # both weigh
        ("pqk,kd->pqd", (1,), (2, 3, 4)),  # two axes of queries
        ("abchqk,abchkd->abchqd", (1,), (1,) * 6),  # more axes than examples and heads
        (None, (0, 1), (2, 3)),
        (None, (0,), (3,)),
        (None, (0,), (1,) * 6),
    ],
)
def test_products_without_heads(equation: Any, patterns: Any, shape: tuple[int, ...]) -> None:
    assert head_layouts(product(equation, *patterns), torch.ones(shape), 2, 3) == []


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [
        ((5, 3), 1, {(1, 1, 5, 3)}),  # one head of one example
        ((8, 5, 3), 2, {(2, 4, 5, 3), (2, 1, 20, 3)}),
        ((3, 5, 3), 2, {(1, 3, 5, 3), (1, 1, 15, 3)}),  # heads that all examples share
        ((2, 3, 5, 3), 2, {(2, 3, 5, 3), (2, 1, 15, 3)}),
        ((6, 1, 5, 3), 2, {(2, 3, 5, 3), (2, 1, 15, 3)}),
        ((2, 3, 3, 5, 3), 2, {(2, 9, 5, 3), (2, 3, 15, 3), (2, 1, 45, 3)}),
    ],
)
def test_shapes_of_heads(shape: Any, batch: int, expected: Any) -> None:
    """Entries move only, and the channels of a token stay together."""
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    found = [shaped(values) for shaped in head_layouts(product(None, 0), values, batch, 15)]
    assert {tuple(x.shape) for x in found} == expected
    for x in found:
        moved = {tuple(row) for row in x.flatten(0, -2).tolist()}
        assert moved == {tuple(row) for row in values.flatten(0, -2).tolist()}


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [
        ((4,), 1, (1, 1, 4)),
        ((2, 4), 2, (2, 1, 4)),
        ((6, 4), 2, (2, 3, 4)),
        ((3, 2, 4), 2, (2, 3, 4)),
        ((2, 3, 5, 4), 2, (2, 15, 4)),
    ],
)
def test_shapes_of_streams(shape: Any, batch: int, expected: Any) -> None:
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    rows = row_layout(values.shape, batch)(values)
    assert rows.shape == expected
    if shape == (3, 2, 4):  # tokens come first
        assert torch.equal(rows[1, 2], values[2, 1])
    else:
        assert torch.equal(rows.flatten(), values.flatten())


class Encoder(nn.Module):
    """Layers of torch, whose tokens come first, flattened or not, or after the examples."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=place == "examples first")
        self.layers = nn.ModuleList([layer, copy.deepcopy(layer)]).eval()
        self.head = nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        first = self.place != "examples first"
        x = x.transpose(0, 1) if first else x
        for layer in self.layers:
            if self.place == "flattened":
                flat = x.reshape(-1, 8)
                x = (flat + layer.linear2(layer.linear1(flat).relu())).view_as(x)
            else:
                x = layer(x)
        return self.head((x.transpose(0, 1) if first else x).mean(1))


@pytest.mark.parametrize("tokens", [3, 4])
@pytest.mark.parametrize("place", ["examples first", "tokens first", "flattened"])
@pytest.mark.parametrize("method", [PartRelevance, EdgeRelevance])
def test_examples_that_shapes_do_not_tell_are_looked_for(
    method: Any, place: str, tokens: int
) -> None:
    """With as many tokens as examples the first dimension may be either."""
    torch.manual_seed(0)
    model, x = Encoder(place), torch.randn(4, tokens, 8).double()
    parts = method(model)

    def relevance(inputs: Tensor) -> Tensor:
        found = parts.attribute(inputs, target=0)
        if method is EdgeRelevance:
            kept = [i for i, node in enumerate(found.nodes) if node.kind != "constants"]
            return found.edges[:, kept][:, :, kept]
        return torch.stack([part.relevance for part in found.parts])

    axis = 0 if method is EdgeRelevance else 1
    one_by_one = torch.cat([relevance(one[None]) for one in x], axis)
    if place == "flattened" or (place, tokens) == ("tokens first", 4):
        with pytest.raises(InputError, match="4 examples cannot be told"):
            relevance(x)
    else:
        torch.testing.assert_close(relevance(x), one_by_one)


def test_windows_are_not_taken_for_tokens_before_examples() -> None:
    """Two windows of two tokens for each of two examples: the second dimension is no batch."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8).double(), torch.randn(2, 4, 8).double()

    def model(inputs: Tensor) -> Tensor:
        y = inputs.unflatten(1, (2, 2)).flatten(0, 1)
        return (y + layer(y)).reshape(len(inputs), -1).sum(1)

    with pytest.raises(InputError, match="2 examples cannot be told"):
        PartRelevance(model).attribute(x)
