"""``RelevancePatching``: exact where the rest is linear, else differences times gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import LayerConservativeLRP, RelevancePatching
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from parts import CASES, by_head, explained, readers


class Block(nn.Module):
    """Attention, and above it nothing that is not linear; parts are patched from ``patch``."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.score = nn.Linear(16, 1)
        self.patch: tuple[str, Any, Tensor] | None = None
        self.kept: dict[str, Tensor] = {}

    def part(self, name: str, value: Tensor) -> Tensor:
        if self.patch is None:
            self.kept[name] = value.detach()
        elif self.patch[0] == name:
            value = value.clone()
            value[self.patch[1]] = self.patch[2][self.patch[1]]
        return value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.into(x).chunk(3, -1)
        )
        heads = self.part("heads", (query @ key.mT / 2).softmax(-1) @ value)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        x = x + self.part("mlp", self.down(self.part("neurons", self.up(x))))
        return self.score(x).sum((1, 2))


@pytest.mark.parametrize("preset", ("gi", "ah+ln", "lrp", "attnlrp"))
def test_effects_are_those_measured_where_the_rest_is_linear(preset: str) -> None:
    torch.manual_seed(0)
    block = Block().double()
    x, other = torch.randn(2, 2, 5, 16).double()
    found = RelevancePatching(block, preset, neurons=True).attribute(x, other)
    attention, mlp = found.parts
    assert attention.heads is not None and mlp.neurons is not None
    with torch.no_grad():
        block(other)
        corrupted = dict(block.kept)
        clean = block(x)

        def measured(name: str, place: Any) -> Tensor:
            block.patch = name, place, corrupted[name]
            fall = clean - block(x)
            block.patch = None
            return fall

        for head in range(4):
            place: Any = (slice(None), head)
            torch.testing.assert_close(attention.heads[:, head].sum(1), measured("heads", place))
        for token in range(5):
            place = (slice(None), slice(None), token)
            fall = measured("heads", place)
            torch.testing.assert_close(attention.heads[:, :, token].sum(1), fall)
            torch.testing.assert_close(attention.effect[:, token], fall)
            place = (slice(None), token)
            torch.testing.assert_close(mlp.effect[:, token], measured("mlp", place))
            place = (slice(None), token, 7)
            torch.testing.assert_close(mlp.neurons[:, token, 7], measured("neurons", place))
        torch.testing.assert_close(found.output, clean)
        torch.testing.assert_close(found.corrupted_output, block(other))


def other_inputs(inputs: Any) -> Any:
    """Other tokens or pixels in the same places; the mask stays."""
    if isinstance(inputs, Tensor):
        return inputs.flip(-1) * 0.7
    ids = inputs["input_ids"].clone()
    ids[:, 2] = (ids[:, 2] + 3) % 7 + 1
    return {**inputs, "input_ids": ids}


@contextmanager
def before(modules: list[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """What modules read is changed first."""
    handles = [
        m.register_forward_pre_hook(lambda _, args, i=i: (change(i, args[0]), *args[1:]))
        for i, m in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(case: zoo.Case, inputs: Any) -> Tensor:
    output = case.model(**inputs) if isinstance(inputs, dict) else case.model(inputs)
    return case.select(output.logits)


def read_by(case: zoo.Case, modules: list[nn.Module], inputs: Any) -> list[Tensor]:
    kept: dict[int, Tensor] = {}

    def keep(i: int, x: Tensor) -> Tensor:
        kept[i] = x.detach()
        return x

    with before(modules, keep), torch.no_grad():
        run(case, inputs)
    return [kept[i] for i in range(len(modules))]


@pytest.mark.parametrize("preset", ("gi", "lrp", "attnlrp", "lrp-gamma"))
@pytest.mark.parametrize("name", CASES)
def test_effects_are_differences_times_gradients_at_named_layers(name: str, preset: str) -> None:
    """Activations from plain hooks, gradients from the layer class."""
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    others = other_inputs(inputs)
    found = RelevancePatching(case.model, preset, neurons=True).attribute(inputs, others, target)
    heads, neurons = readers(case, name)
    modules = [*heads, *neurons]
    layers = LayerConservativeLRP(case.model, modules, preset, multiply_by_inputs=False)
    gradients: Any = layers.attribute(inputs, target, attribute_to_layer_input=True)
    pairs = zip(read_by(case, modules, inputs), read_by(case, modules, others), strict=True)
    want = [(a - b) * g for (a, b), g in zip(pairs, gradients, strict=True)]
    attention = [part for part in found.parts if part.kind == "attention"]
    mlps = [part for part in found.parts if part.kind == "mlp"]
    for part, x in zip(attention, want[: len(heads)], strict=True):
        torch.testing.assert_close(part.heads, by_head(x), rtol=1e-5, atol=1e-8)
    for part, x in zip(mlps, want[len(heads) :], strict=True):
        assert part.neurons is not None
        x = x.reshape(part.neurons.shape)
        torch.testing.assert_close(part.neurons, x, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ("hf-LlamaForCausalLM-sdpa", "hf-ViTForImageClassification-eager"))
def test_plain_gradients_give_attribution_patching(name: str) -> None:
    """The slope of the output, by autograd, along a step of each head to its corrupted value."""
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    others = other_inputs(inputs)
    found = RelevancePatching(case.model, "gi").attribute(inputs, others, target)
    heads = readers(case, name)[0]
    corrupted = read_by(case, heads, others)
    steps = torch.zeros(len(heads), len(corrupted[0]), 1, zoo.HEADS, 1).double().requires_grad_()

    def move(i: int, x: Tensor) -> Tensor:
        way = (corrupted[i] - x).detach().unflatten(-1, (zoo.HEADS, -1))
        return x + (steps[i] * way).flatten(-2)

    with before(heads, move):
        run(case, inputs).sum().backward()
    assert steps.grad is not None
    parts = [part for part in found.parts if part.kind == "attention"]
    for part, slope in zip(parts, steps.grad, strict=True):
        assert part.heads is not None
        fall = -slope.flatten(1)
        torch.testing.assert_close(part.heads.sum(-1), fall, rtol=1e-5, atol=1e-8)


def test_equal_inputs_have_no_effect_and_the_model_is_left_alone(untouched: Any) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa-padded")
    inputs, target = explained(case)
    with untouched(case.model):
        found = RelevancePatching(case.model).attribute(inputs, inputs, target)
    assert all(not part.effect.any() for part in found.parts)
    torch.testing.assert_close(found.output, found.corrupted_output)


def test_table_and_picture() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    inputs, target = explained(case)
    found = RelevancePatching(case.model).attribute(inputs, other_inputs(inputs), target)
    table = found.table()
    assert len(table) == zoo.BATCH * 2 * (zoo.HEADS + 1)
    sums = table.groupby(["module", "example"])["effect"].sum()
    for part in found.parts:
        assert sums[part.module, 0] == pytest.approx(float(part.effect[0].sum()), abs=1e-5)
    assert len(found.table(by_token=True)) == len(table) * zoo.TOKENS
    assert len(found.figure().axes[0].patches) == 2 * (zoo.HEADS + 1)
    assert len(found.figure(by="token").axes[0].patches) == 4 * zoo.TOKENS


def test_corrupted_inputs_may_come_with_arguments_of_their_own() -> None:
    """Effects are exact: nothing but a sum is above the neurons."""
    first, second = nn.Linear(4, 6).double(), nn.Linear(6, 4).double()

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return (x + second(first(x * scale).relu())).sum((1, 2))

    x, y, half = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double(), torch.tensor(0.5)
    method = RelevancePatching(forward, neurons=True)
    found = method.attribute(x, y, None, torch.tensor(1.0), half)
    differ = first(x).relu() - first(y * half).relu()
    expected = (differ * second.weight.sum(0)).detach()
    assert found.parts[0].neurons is not None
    torch.testing.assert_close(found.parts[0].neurons, expected)
    torch.testing.assert_close(found.parts[0].effect, expected.sum(2))
    torch.testing.assert_close(found.corrupted_output, forward(y, half).detach())
    for number, (kind, unit, effect) in enumerate(found.parts[0].units()):
        assert (kind, unit) == ("neuron", number)
        torch.testing.assert_close(effect, expected[..., number])
    edges = method.attribute_edges(x, y, None, torch.tensor(1.0), half)
    names = [node.name for node in edges.nodes]
    effect = edges.edges[:, names.index("m0"), names.index("output")]
    torch.testing.assert_close(effect, expected.sum((1, 2)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="residual"):
        RelevancePatching(nn.Linear(4, 2)).attribute(torch.randn(2, 4), torch.randn(2, 4), 1)
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    ids = case.inputs[0]
    with pytest.raises(InputError, match="same tokens place by place"):
        RelevancePatching(case.model).attribute(ids, ids[:, 1:], (-1, 2))

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (x + (self.one if x.sum() > 0 else self.two)(x)).sum(1)

    x = torch.ones(2, 4)
    with pytest.raises(InputError, match="different ways"):
        RelevancePatching(Either()).attribute(x, -x)


@pytest.mark.parametrize("preset", ("gi", "ah+ln", "lrp", "attnlrp"))
def test_edges_are_those_of_the_weights_where_the_rest_is_linear(preset: str) -> None:
    """A head patched for the MLP alone, and for the output alone, by products of weights."""
    torch.manual_seed(0)
    block = Block().double()
    x, other = torch.randn(2, 2, 5, 16).double()
    found = RelevancePatching(block, preset).attribute_edges(x, other)
    with torch.no_grad():
        block(other)
        corrupted = block.kept["heads"]
        mlp = block.kept["mlp"]
        block(x)
        for head in range(4):
            changed = block.kept["heads"] - corrupted
            changed[:, [i for i in range(4) if i != head]] = 0
            added = changed.transpose(1, 2).flatten(2) @ block.out.weight.T
            at_output = (added @ block.score.weight.T).sum((1, 2))
            through = added @ block.up.weight.T @ block.down.weight.T @ block.score.weight.T
            torch.testing.assert_close(found.edge(f"a0.h{head}", "output"), at_output)
            torch.testing.assert_close(found.edge(f"a0.h{head}", "m0"), through.sum((1, 2)))
        of_mlp = ((block.kept["mlp"] - mlp) @ block.score.weight.T).sum((1, 2))
    torch.testing.assert_close(found.edge("m0", "output"), of_mlp)
    assert found.measure == "effect" and not any(n.kind == "constants" for n in found.nodes)


@pytest.mark.parametrize("name", CASES)
def test_edges_add_up_to_the_effects_of_parts(name: str) -> None:
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    if isinstance(inputs, dict):
        other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    else:
        other = inputs.flip(0)
    method = RelevancePatching(case.model)
    edges = method.attribute_edges(inputs, other, target)
    for part in method.attribute(inputs, other, target).parts:
        units = [effect.sum(1) for *_, effect in part.units()]
        own = [i for i, node in enumerate(edges.nodes) if node.module == part.module]
        for i, effect in zip(own, units, strict=True):
            torch.testing.assert_close(edges.written[:, i], effect, rtol=1e-6, atol=1e-9)
    nothing = method.attribute_edges(inputs, inputs, target)
    assert not nothing.edges.any()
    if isinstance(inputs, dict):
        short = {k: v[:-1] for k, v in other.items()}
        with pytest.raises(InputError, match="place by place"):
            method.attribute_edges(inputs, short, target)
