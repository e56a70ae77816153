"""Which embedding lookups belong to a token, in models that look up in different ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import ConservativeGI, ConservativeLRP

pytestmark = pytest.mark.core

TOKENS, WIDTH, WORDS = 6, 8, 20


class Net(nn.Module):
    """Words and positions, looked up as ``how`` says, mixed over tokens and read out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(TOKENS, WIDTH)
        self.mix = nn.Linear(TOKENS, TOKENS)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("table", torch.randn(TOKENS, WIDTH))

    def embed(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        if self.how == "positions first":
            return self.places(places) + self.words(ids)
        if self.how == "in place":
            x = self.words(ids)
            x += self.places(places)[None]
            return x
        if self.how == "indexing":
            return self.words.weight[ids] + self.places.weight[places[None]]
        if self.how == "index_select":
            flat = torch.index_select(self.words.weight, 0, ids.reshape(-1))
            return flat.view(*ids.shape, WIDTH) + self.places(places)
        if self.how == "flat":
            return self.words(ids.reshape(-1)).view(*ids.shape, WIDTH) + self.places(places)
        if self.how == "per example":
            return self.words(ids) + self.places(places.expand(len(ids), -1))
        if self.how == "scaled":
            return self.words(ids) * WIDTH**0.5 + self.places(places)
        if self.how == "functional":
            return F.embedding(ids, self.words.weight) + F.embedding(places, self.places.weight)
        if self.how == "buffer":
            return self.words(ids) + self.table[places[None]]
        raise AssertionError(self.how)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + torch.tanh(self.mix(x.mT)).mT
        return self.head(x.mean(1))


HOWS = [
    "positions first", "in place", "indexing", "index_select", "flat", "per example", "scaled",
    "functional",
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("how", HOWS)
def test_token_relevance_is_that_of_the_sum_of_embeddings(how: str, batch: int) -> None:
    net = Net(how).eval()
    ids = torch.randint(0, WORDS, (batch, TOKENS))
    with torch.no_grad():
        embedded = net.embed(ids)

    def from_embedded(x: Tensor) -> Tensor:
        x = x + torch.tanh(net.mix(x.mT)).mT
        return net.head(x.mean(1))

    expected = ConservativeLRP(from_embedded).attribute(embedded, target=1).sum(-1)
    got = ConservativeLRP(net).attribute(ids, target=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    parts = ConservativeLRP(net).attribute(ids, target=1, positions="separate")
    assert set(parts) == {"words", "places"}
    torch.testing.assert_close(parts["words"] + parts["places"], got)


def test_a_table_that_is_not_learned_is_a_constant() -> None:
    net = Net("buffer").eval()
    ids = torch.randint(0, WORDS, (2, TOKENS))
    parts = ConservativeLRP(net).attribute(ids, target=1, positions="separate")
    assert set(parts) == {"words"}


def test_a_table_that_is_looked_up_twice_has_the_relevance_of_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.first, self.second = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return (self.first(self.words(ids)) + self.second(self.words(ids)).tanh()).mean(1)

    net, ids = Twice().eval(), torch.randint(0, WORDS, (2, TOKENS))
    explainer = ConservativeLRP(net)
    parts = explainer.attribute(ids, target=1, positions="separate")
    assert set(parts) == {"words"}
    torch.testing.assert_close(parts["words"], explainer.attribute(ids, target=1))
    alone = ConservativeLRP(lambda x: net.first(x).mean(1)).attribute(net.words(ids), target=1)
    assert not torch.allclose(parts["words"], alone.sum(-1))


class Rotary(nn.Module):
    """One factor per position, looked up or sliced: no evidence in itself."""

    def __init__(self, looked_up: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.looked_up = looked_up
        self.register_buffer("cosines", torch.linspace(0, 3, TOKENS * WIDTH).cos().view(-1, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])[None]
        cosines = self.cosines[places] if self.looked_up else self.cosines[None]
        return self.head((self.words(ids) * cosines).mean(1))


@pytest.mark.parametrize("rules", ["gi", "lrp", "attnlrp"])
def test_rotary_tables_take_no_part(rules: str) -> None:
    one = Rotary(True).eval()
    other = Rotary(False).eval()
    other.load_state_dict(one.state_dict())
    ids = torch.randint(0, WORDS, (1, TOKENS))
    torch.testing.assert_close(
        ConservativeLRP(one, rules).attribute(ids, target=0),
        ConservativeLRP(other, rules).attribute(ids, target=0),
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_positions_that_are_not_added_to_tokens_are_constants(batch: int) -> None:
    class Concatenated(Net):
        def forward(self, ids: Tensor) -> Tensor:
            places = self.places(torch.arange(ids.shape[1])).expand(len(ids), -1, -1)
            x = torch.cat([self.words(ids), places], 1)
            return self.head(torch.tanh(x).mean(1))

    net = Concatenated("flat").eval()
    ids = torch.randint(0, WORDS, (batch, TOKENS))
    embedded = net.words(ids).detach().requires_grad_()
    places = net.places.weight.expand(batch, -1, -1)
    net.head(torch.tanh(torch.cat([embedded, places], 1)).mean(1))[:, 0].sum().backward()
    assert embedded.grad is not None
    expected = (embedded * embedded.grad).sum(-1).detach()
    got = ConservativeGI(net, rules="gi").attribute(ids, target=0)
    torch.testing.assert_close(got, expected)


def test_autocast() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, WORDS, (2, TOKENS))
    full = ConservativeLRP(model).attribute(ids, target=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(ids).logits[:, 0].detach().float()
        low, delta = ConservativeLRP(model, bias="distribute").attribute(
            ids, target=0, return_convergence_delta=True
        )
    assert torch.isfinite(low).all()
    assert float(delta.abs().max()) < 0.05 * float(plain.abs().max() + low.abs().sum(1).max())
    assert full.shape == low.shape
