"""A model that writes residual sums into its branches is explained as one that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import EdgeRelevance, MaskedLRP, PartRelevance, TransformerAttribution

WIDTH = 8


class Block(nn.Module):
    """Attention and an MLP; ``in_place`` writes ``branch += stream``."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def added(self, branch: Tensor, stream: Tensor) -> Tensor:
        if not self.in_place:
            return branch + stream
        branch += stream
        return branch

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        x = self.added(self.attn(normed, normed, normed, need_weights=False)[0], x)
        return self.added(self.down(torch.relu(self.up(self.second(x)))), x)


class Model(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(Block(in_place), Block(in_place))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.blocks(self.embed(x)))).mean(1)
        return result


@pytest.fixture(scope="module")
def models() -> list[nn.Module]:
    torch.manual_seed(0)
    plain, writing = Model(False).double().eval(), Model(True).double().eval()
    for name, parameter in plain.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    writing.load_state_dict(plain.state_dict())
    return [plain, writing]


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def test_parts(models: list[nn.Module], inputs: Tensor) -> None:
    plain, writing = (PartRelevance(m).attribute(inputs, target=1).parts for m in models)
    assert [part.module for part in plain] == [part.module for part in writing]
    assert len(plain) == 4
    for one, other in zip(plain, writing, strict=True):
        torch.testing.assert_close(one.relevance, other.relevance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.stream, other.stream, rtol=1e-9, atol=1e-12)


def test_edges(models: list[nn.Module], inputs: Tensor) -> None:
    plain, writing = (EdgeRelevance(m).attribute(inputs, target=1) for m in models)
    assert [node.name for node in plain.nodes] == [node.name for node in writing.nodes]
    torch.testing.assert_close(plain.edges, writing.edges, rtol=1e-9, atol=1e-12)
    assert writing.unexplained <= 1e-9


@pytest.mark.parametrize(
    "explained",
    [lambda m, x: MaskedLRP(m).attribute(x, target=1, through={"blocks.1.attn": [0]}),
     lambda m, x: TransformerAttribution(m).attribute(x, target=1)],
    ids=["masked", "Chefer"],
)  # fmt: skip
def test_other_methods(explained: Any, models: list[nn.Module], inputs: Tensor) -> None:
    plain, writing = (explained(m, inputs) for m in models)
    torch.testing.assert_close(plain, writing, rtol=1e-9, atol=1e-12)
