"""As many examples as tokens: no method takes one for the other, whatever axis comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import (
    AttentionFlow,
    AttentionLast,
    AttentionRollout,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeLRP,
    TransformerAttribution,
)


class Encoder(nn.Module):
    """Torch's own layers, with tokens or examples in the first axis."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.words = nn.Embedding(9, 8)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.words(x)
        x = self.layers(x if self.batch_first else x.transpose(0, 1))
        return self.head(x[:, 0] if self.batch_first else x[0])


class Turned(nn.Module):
    """Residual streams with the examples first around attention with the tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.attention = nn.ModuleList([nn.MultiheadAttention(8, 2) for _ in range(2)])
        self.maps = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.words(x)
        for attend, map_, norm in zip(self.attention, self.maps, self.norms, strict=True):
            y = norm(x).transpose(0, 1)
            x = x + attend(y, y, y, need_weights=False)[0].transpose(0, 1)
            x = x + map_(x).relu()
        return self.head(x[:, 0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "examples first": lambda: Encoder(True),
    "tokens first": lambda: Encoder(False),
    "turned": Turned,
}
METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "last": AttentionLast,
    "rollout": AttentionRollout,
    "flow": AttentionFlow,
    "gae": GenericAttention,
    "chefer": TransformerAttribution,
    "chefer full": lambda model: TransformerAttribution(model, variant="full_lrp"),
    "lrp": ConservativeLRP,
}


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_its_examples_give_alone(name: str, method: str, floats: bool) -> None:
    if method == "flow":
        pytest.importorskip("scipy")
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    inputs = torch.randn(4, 4, 8) if floats else torch.randint(9, (4, 4))
    target = {} if method in ("last", "rollout", "flow") else {"target": [1, 0, 2, 1]}
    together = METHODS[method](model).attribute(inputs, **target)
    for i in range(4):
        one = {"target": target["target"][i]} if target else {}
        alone = METHODS[method](model).attribute(inputs[i : i + 1], **one)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_whose_sum_has_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = MODELS[name]().eval()

    def model(ids: Tensor) -> Tensor:
        return network(ids).softmax(-1)

    ids = torch.randint(9, (4, 4))
    together = TransformerAttribution(model).attribute(ids, target=1)
    for i in range(4):
        alone = TransformerAttribution(model).attribute(ids[i : i + 1], target=1)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_deltas_of_layers(name: str) -> None:
    """By example where examples come first, else one number, as with fewer or more tokens."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    part = model.layers.layers[1] if isinstance(model, Encoder) else model.maps[1]
    layer = LayerConservativeLRP(model, part)
    for tokens in (4, 5):
        ids = torch.randint(9, (4, tokens))
        relevance, delta = layer.attribute(ids, target=1, return_convergence_delta=True)
        output = model(ids)[:, 1]
        if name == "tokens first":
            torch.testing.assert_close(delta, (output.sum() - relevance.sum())[None])
        else:
            torch.testing.assert_close(delta, output - relevance.sum((1, 2)))
        _, deltas = layer.attribute_targets(ids, [1, 0], return_convergence_delta=True)
        assert deltas.shape == (2, *delta.shape)
        torch.testing.assert_close(deltas[0], delta, atol=1e-5, rtol=1e-4)
