"""Relevance at a layer is that of its tensor in the whole model: alone, in a list, as in Captum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers

from captum_lrp_tx import ConservativeLRP, LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.errors import (
    CaptumLRPWarning,
    UncoveredOperationError,
    UncoveredOperationWarning,
    UnreachedInputError,
)
from captum_lrp_tx.models import sentiment

pytestmark = pytest.mark.captum


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptumLRPWarning)
        yield


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Block(nn.Module):
    """What goes into ``inner`` is read by others, too: later, before, or in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.inner, self.other = (nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(4, 2)
        self.same, self.twice = nn.Dropout(0.1), Twice()

    def rest(self, round_it: Tensor, through: Tensor) -> Tensor:
        """From what goes round the layer, and what goes through it, to the output."""
        inner = torch.tanh(self.inner(through))
        if self.kind == "read before":
            result: Tensor = self.last(torch.tanh(self.other(round_it)) + inner)
        else:
            result = self.last(round_it + inner)
        return result

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        if self.kind == "read before":
            before = torch.tanh(self.other(h))
            result: Tensor = self.last(before + torch.tanh(self.inner(h)))
        elif self.kind == "unchanged":
            result = self.last(h + torch.tanh(self.inner(self.same(h))))
        elif self.kind == "twice":
            a, b = self.twice(h)
            result = self.last(a + torch.tanh(self.inner(b)))
        elif self.kind == "written":
            h += torch.tanh(self.inner(h))
            result = self.last(h)
        else:
            result = self.last(h + torch.tanh(self.inner(h)))
        return result


CASES = [
    ("residual", "inner", True), ("read before", "inner", True), ("unchanged", "same", True),
    ("unchanged", "same", False), ("twice", "twice", True), ("twice", "twice", False),
    ("written", "inner", True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "at_input"), CASES)
@pytest.mark.parametrize("layers", ["alone", "behind another", "before another"])
def test_a_layer_has_its_whole_tensor(kind: str, name: str, at_input: bool, layers: str) -> None:
    model = Block(kind).double().eval()
    x, layer = torch.randn(3, 4).double(), model.get_submodule(name)
    h = model.first(x).detach()
    a, b = h.clone().requires_grad_(), h.clone().requires_grad_()
    round_it, through = torch.autograd.grad(model.rest(a, b)[:, 1].sum(), (a, b))
    # of a tensor that is written into later, the layer's part: torch tells no more
    expected = h * (through if kind == "written" else round_it + through)
    given: Any = {
        "alone": layer, "behind another": [model.first, layer],
        "before another": [layer, model.last],
    }[layers]  # fmt: skip
    call: Any = {"target": 1, "attribute_to_layer_input": at_input}

    def found(method: Any) -> tuple[Tensor, ...]:
        got = method.attribute(x, **call)
        if isinstance(given, list):
            got = got[given.index(layer)]
        return got if isinstance(got, tuple) else (got,)

    ours = found(LayerConservativeGI(model, given, rules="gi"))
    assert len(ours) == (2 if kind == "twice" and not at_input else 1)
    for part in ours:
        torch.testing.assert_close(part, expected)
    if kind != "written":  # where Captum's takes the values from after the write
        for part in found(LayerGradientXActivation(model, given)):
            torch.testing.assert_close(part.detach(), expected)


def test_every_place_on_the_way_through_a_bert_holds_the_whole_logit() -> None:
    model, tokenizer = sentiment()
    inputs = tokenizer("a charming film", return_tensors="pt")
    logit = float(model(**inputs).logits[0, 1])
    blocks = model.bert.encoder.layer
    call: Any = {"target": 1, "attribute_to_layer_input": True}
    for layer in (blocks[0].attention, blocks[1].attention.self, blocks[1].intermediate, blocks[1]):
        alone = LayerConservativeLRP(model, layer, bias="distribute").attribute(inputs, **call)
        hidden = alone[0] if isinstance(alone, tuple) else alone
        assert float(hidden.sum()) == pytest.approx(logit, rel=1e-4)
        listed = LayerConservativeLRP(model, [blocks[0].intermediate, layer], bias="distribute")
        other = listed.attribute(inputs, **call)[1]
        torch.testing.assert_close(other[0] if isinstance(other, tuple) else other, hidden)


@pytest.mark.parametrize("name", ["up_proj", "gate_proj", "act_fn", "down_proj"])
def test_a_factor_of_a_product_has_its_share_alone_too(name: str) -> None:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 20, (1, 5))
    mlp = model.model.layers[1].mlp

    def at(layer: nn.Module, *before: nn.Module) -> Tensor:
        got = LayerConservativeLRP(model, [*before, layer]).attribute(ids, target=(-1, 3))
        return torch.as_tensor(got[-1])

    alone, whole = at(mlp.get_submodule(name)), at(mlp)
    torch.testing.assert_close(alone, at(mlp.get_submodule(name), model.get_input_embeddings()))
    share = 1 if name == "down_proj" else 0.5  # gate and signal have half each
    torch.testing.assert_close(alone.sum(), share * whole.sum(), rtol=1e-4, atol=1e-7)


def test_what_is_cut_off_before_a_layer_is_no_fault_behind_it() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = h + torch.relu(h).detach() + h.data + h * float(h.sum())
            result: Tensor = self.c(torch.relu(self.b(h)))
            return result

    model, x = Cut(), torch.randn(2, 4)
    for layers in (model.b, [model.c, model.b]):
        for at_input in (False, True):
            LayerConservativeLRP(model, layers).attribute(
                x, target=1, attribute_to_layer_input=at_input, strict=True
            )
    with pytest.warns(UncoveredOperationWarning, match="cut off"):
        LayerConservativeLRP(model, [model.a, model.b]).attribute(x, target=1)
    with pytest.raises(UncoveredOperationError, match="cut off"):
        ConservativeLRP(model).attribute(x, target=1, strict=True)


@pytest.mark.parametrize("at_input", [False, True])
def test_calls_where_the_model_switches_gradients_off_do_not_count(at_input: bool) -> None:
    class Cycles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
            self.cycles = 2

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                state = self.block(x)
            if self.cycles > 1:
                state = self.block(x + state)
            result: Tensor = self.last(state + x)
            return result

    model, x = Cycles().double().eval(), torch.randn(3, 4).double()
    layer = LayerConservativeLRP(model, model.block)
    call: Any = {"target": 1, "attribute_to_layer_input": at_input}
    with torch.no_grad():
        hidden = x + model.block(x)
        expected = model.block(hidden) * model.last.weight[1]
    found = layer.attribute(x, **call)
    if at_input:
        expected = hidden * (model.last.weight[1] @ model.block.weight).detach()
    torch.testing.assert_close(found, expected)
    model.cycles = 1
    with pytest.raises(UnreachedInputError, match="only where the model itself switches gradients"):
        layer.attribute(x, **call)
