"""Layers with nested or packed results, and layers that run several times."""

from __future__ import annotations

import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from captum_lrp_tx import ConservativeLRP, LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.errors import InputError, RepeatedLayerWarning
from captum_lrp_tx.propagation.model.nested import mapped

pytestmark = pytest.mark.captum

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Frozen:
    states: tuple[Tensor, Tensor]
    name: str = "kept"


def gi(model: nn.Module, layer: nn.Module, x: Any, **more: Any) -> Any:
    """Gradient x activation, which needs no rule: what Captum and autograd give as well."""
    return LayerConservativeGI(model, layer, rules="gi").attribute(x, target=1, **more)


# ---- recurrent layers -------------------------------------------------------------------------
class Recurrent(nn.Module):
    """Reads the last state, the packed output, or both."""

    def __init__(self, read: str, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn, self.head, self.read = cell(5, 6, batch_first=True), nn.Linear(6, 2), read

    def forward(self, x: Tensor) -> Tensor:
        if self.read == "packed":
            packed = pack_padded_sequence(x, [4, 2], batch_first=True)
            outputs, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            y: Tensor = self.head(outputs.sum(1))
            return y
        outputs, state = self.rnn(x)
        hidden = state[0] if isinstance(state, tuple) else state
        last = {"hidden": hidden[-1], "both": hidden[-1] + outputs[:, 0], "out": outputs[:, -1]}
        y = self.head(last[self.read])
        return y


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("read", ["hidden", "both", "out"])
def test_states_of_a_recurrent_layer(read: str, cell: type[nn.RNNBase]) -> None:
    model, x = Recurrent(read, cell).eval(), torch.randn(2, 4, 5)
    relevance = LayerConservativeLRP(model, model.rnn).attribute(x, target=1)
    output, state = model.rnn(x)
    states = state if isinstance(state, tuple) else (state,)
    assert [r.shape for r in relevance] == [output.shape, *(s.shape for s in states)]
    weight, explained = model.head.weight[1], model(x)[:, 1]
    if read == "hidden":  # one linear map: its relevance has a closed form
        torch.testing.assert_close(relevance[1][0], (states[0][0] * weight).detach())
        assert not relevance[0].any()
    total = sum(r.sum() for r in relevance) + 2 * model.head.bias[1]
    torch.testing.assert_close(total, explained.sum())


def test_packed_sequences() -> None:
    model, x = Recurrent("packed").eval(), torch.randn(2, 4, 5)
    relevance, delta = LayerConservativeLRP(model, model.rnn).attribute(
        x, target=1, return_convergence_delta=True
    )
    packed = model.rnn(pack_padded_sequence(x, [4, 2], batch_first=True))[0]
    torch.testing.assert_close(relevance[0], (packed.data * model.head.weight[1]).detach())
    torch.testing.assert_close(delta, 2 * model.head.bias[1:].detach())
    at_input = gi(model, model.rnn, x, attribute_to_layer_input=True)
    plain = ConservativeLRP(model, rules="gi").attribute(x, target=1)
    expected = pack_padded_sequence(plain, [4, 2], batch_first=True).data
    torch.testing.assert_close(at_input, expected)


# ---- nested results ---------------------------------------------------------------------------
class Nested(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(4, 3), nn.Linear(4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.a(x), self.b(x).tanh())


STRUCTURES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "tuple in tuple": (lambda a, b: (a, (b, None)), lambda o: (o[0], o[1][0])),
    "dictionary of tuples": (lambda a, b: {"s": (a, b), "n": 3}, lambda o: o["s"]),
    "ordered": (lambda a, b: OrderedDict(a=a, s=[b]), lambda o: (o["a"], o["s"][0])),
    "named": (lambda a, b: Pair(a, Pair(b, "text")), lambda o: (o.first, o.second.first)),
    "dataclass": (lambda a, b: Frozen((a, b)), lambda o: o.states),
    "list of dictionaries": (lambda a, b: [{"a": a}, {"b": b}], lambda o: (o[0]["a"], o[1]["b"])),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_tensor_of_a_nested_result(structure: str) -> None:
    wrap, unwrap = STRUCTURES[structure]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Nested(wrap), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second = unwrap(self.inner(x))
            y: Tensor = self.head(first * second)
            return y

    model, x = Model().eval(), torch.randn(2, 4)
    a, b = (t.detach().requires_grad_() for t in unwrap(model.inner(x)))
    grads = torch.autograd.grad(model.head(a * b)[:, 1].sum(), (a, b))
    found = gi(model, model.inner, x)
    assert len(found) == 2
    for relevance, value, grad in zip(found, (a, b), grads, strict=True):
        torch.testing.assert_close(relevance, (value * grad).detach())


def test_structures_without_tensors_stay_the_objects_they_are() -> None:
    for value in (("a", (1, None)), {"a": ("b",)}, torch.Size([2]), "text", None, {1, 2}):
        assert mapped(value, lambda t: t) is value
    packed = pack_padded_sequence(torch.ones(2, 3, 1), [3, 1], batch_first=True)
    twice = mapped((packed,), lambda t: t * 2 if t.is_floating_point() else t)[0]
    assert isinstance(twice, PackedSequence)
    assert torch.equal(twice.data, packed.data * 2)
    assert twice.batch_sizes is packed.batch_sizes


# ---- several calls ----------------------------------------------------------------------------
class Twins(nn.Module):
    """One encoder for two texts, or one layer applied again and again."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.act, self.way = nn.Linear(4, 4), nn.ReLU(), way
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "side by side":
            h = self.layer(x[:, :4]) + 2 * self.layer(x[:, 4:])
        elif self.way == "chain":
            h = self.layer(self.act(self.layer(self.act(self.layer(x[:, :4])))))
        elif self.way == "chains side by side":
            first, second = (self.layer(self.layer(part)) for part in x.chunk(2, 1))
            h = first + 2 * second
        else:
            h = self.layer(x[:, :4]) + self.layer(x[:3].reshape(6, 4)).sum(0)
        y: Tensor = self.head(h)
        return y


def calls_of(model: nn.Module, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradient x activation of each call, by autograd alone."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _a, output: seen.append(output))
    grads = torch.autograd.grad(model(x)[:, 1].sum(), seen)
    handle.remove()
    return [(value * grad).detach() for value, grad in zip(seen, grads, strict=True)]


def test_calls_side_by_side_are_added_up() -> None:
    model, x = Twins("side by side").eval(), torch.randn(3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer = LayerConservativeLRP(model, model.layer)
        relevance, delta = explainer.attribute(x, target=1, return_convergence_delta=True)
    torch.testing.assert_close(relevance, sum(calls_of(model, model.layer, x)))
    torch.testing.assert_close(delta, model.head.bias[1].detach().expand(3))
    stacked = explainer.attribute_targets(x, [0, 1])
    torch.testing.assert_close(stacked[1], relevance)
    at_input = gi(model, model.layer, x, attribute_to_layer_input=True)
    plain = ConservativeLRP(model, rules="gi").attribute(x, target=1)
    torch.testing.assert_close(at_input, plain[:, :4] + plain[:, 4:])


def test_of_a_chain_the_last_call_counts_as_in_captum() -> None:
    model, x = Twins("chain").eval(), torch.randn(3, 8)
    expected = LayerGradientXActivation(model, model.layer).attribute(x, target=1)
    with pytest.warns(RepeatedLayerWarning, match="Linear runs 3 times .* last call"):
        relevance = gi(model, model.layer, x)
    torch.testing.assert_close(relevance, expected.detach())
    torch.testing.assert_close(relevance, calls_of(model, model.layer, x)[-1])


def test_chains_side_by_side_give_the_sum_of_their_last_calls() -> None:
    model, x = Twins("chains side by side").eval(), torch.randn(3, 8)
    with pytest.warns(RepeatedLayerWarning, match="2 of 4 calls"):
        relevance = gi(model, model.layer, x)
    _, first, _, second = calls_of(model, model.layer, x)
    torch.testing.assert_close(relevance, first + second)


def test_calls_of_different_shapes_have_no_sum() -> None:
    model, x = Twins("other shapes").eval(), torch.randn(3, 8)
    with pytest.raises(InputError, match=r"\(3, 4\) and \(6, 4\)"):
        gi(model, model.layer, x)


def test_an_activation_of_many_shapes_in_a_chain() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3), act, nn.Linear(3, 2)).eval()
    x = torch.randn(2, 4)
    with pytest.warns(RepeatedLayerWarning):
        relevance = gi(model, act, x)
    expected = LayerGradientXActivation(model, act).attribute(x, target=1)
    torch.testing.assert_close(relevance, expected.detach())


def test_several_layers_of_which_one_repeats() -> None:
    model, x = Twins("side by side").eval(), torch.randn(3, 8)
    explainer = LayerConservativeGI(model, [model.head, model.layer], rules="gi")
    (_, twice), deltas = explainer.attribute(x, target=1, return_convergence_delta=True)
    torch.testing.assert_close(twice, sum(calls_of(model, model.layer, x)))
    assert [d.shape for d in deltas] == [(3,), (3,)]
