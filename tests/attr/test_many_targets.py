"""``attribute_targets``: many targets of one forward pass equal as many calls of ``attribute``."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    LayerConservativeGI,
    LayerConservativeLRP,
    targets,
)
from captum_lrp_tx.errors import InputError, TargetError, UnreachedInputError
from captum_lrp_tx.propagation.backward import packing
from cases import dict_inputs, forward, scale

RULES = ("ah+ln", "lrp", "attnlrp")


def targets_of(case: Any) -> list[Any]:
    """Four targets for a case: other classes, or other positions and tokens."""
    if isinstance(case.target, tuple):
        position, token = case.target
        return [(position, token), (position, 3), (position - 1, 5), (0, 8)]
    return [0, 1, 4, 2]


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("entry, rules", [*zip(zoo.cases(), itertools.cycle(RULES))], ids=str)
def test_equal_to_repeated_calls(entry: Any, rules: str) -> None:
    case = entry.build()
    explainer = ConservativeGI(forward(case), rules=rules)
    inputs, wanted = dict_inputs(case), targets_of(case)
    alone = [as_tuple(explainer.attribute(inputs, target=t)) for t in wanted]
    single = as_tuple(explainer.attribute_targets(inputs, wanted, targets_per_pass=1))
    packed = as_tuple(explainer.attribute_targets(inputs, wanted, targets_per_pass=3))
    for i, tensor in enumerate(dict_inputs(case) if len(case.inputs) > 1 else [inputs]):
        expected = torch.stack([one[i] for one in alone])
        assert expected.shape == (4, *tensor.shape)
        assert torch.equal(single[i], expected)
        size = scale(case, "gi", expected) if case.kind == "tokens" else expected.abs().max()
        assert (packed[i] - expected).abs().max() <= 1e-6 * max(float(size), 1.0)


@pytest.mark.parametrize("entry", zoo.cases("hf"), ids=str)
def test_equal_to_the_oracle(entry: Any) -> None:
    case, rules = entry.build(), "ah+ln"
    wanted = targets_of(case)
    found = as_tuple(
        ConservativeGI(forward(case), rules=rules).attribute_targets(dict_inputs(case), wanted)
    )
    for i, target in enumerate(wanted):
        case.target = target
        for got, want in zip(found, case.expected(rules), strict=True):
            assert (got[i] - want).abs().max() <= 1e-5 * scale(case, rules, want)


class Counter:
    """Counts calls of ``torch.autograd.grad`` by whether they are batched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        grad = torch.autograd.grad

        def counting(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(inputs, list):  # down to the leaves, not from a target to the output
                self.sizes.append(len(args[0]) if kwargs.get("is_grads_batched") else 1)
            return grad(outputs, inputs, *args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", counting)


@pytest.mark.parametrize("bias", ("absorb", "distribute", "ignore"))
@pytest.mark.parametrize(
    "name",
    [
        "hf-BertForSequenceClassification-sdpa-padded",
        "hf-LlamaForCausalLM-sdpa",
        "hf-GPT2LMHeadModel-eager",
        "hf-ViTForImageClassification-sdpa",
    ],
)
def test_backward_passes_are_packed(
    name: str, bias: Any, monkeypatch: pytest.MonkeyPatch, untouched: Any
) -> None:
    case = zoo.case(name)
    explainer = ConservativeLRP(forward(case), bias=bias, epsilon=0.1)
    wanted = targets_of(case)
    alone = torch.stack([explainer.attribute(case.inputs[0], target=t) for t in wanted])
    counter = Counter(monkeypatch)
    with untouched(case.model):
        packed = explainer.attribute_targets(case.inputs[0], wanted, targets_per_pass=3)
    assert counter.sizes == [3, 1]
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=1e-6 * float(alone.abs().max()))
    counter.sizes.clear()
    explainer.attribute_targets(case.inputs[0], wanted)
    assert counter.sizes == [4]


class Refusing(torch.autograd.Function):
    """Doubles; its backward pass looks at values, which cannot be packed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return 2 * grad[0] if bool(grad[0].any()) else grad[0]


def test_what_cannot_be_packed_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear(4, 5)

    def model(x: Tensor) -> Tensor:
        return Refusing.apply(linear(x))

    x = torch.randn(3, 4)
    explainer = ConservativeGI(model, rules="gi")
    counter = Counter(monkeypatch)
    found = explainer.attribute_targets(x, "all", targets_per_pass=2)
    assert counter.sizes == [2, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found, 2 * x * linear.weight.detach()[:, None])


def test_all_kinds_of_targets() -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    ids = case.inputs[0]
    explainer = ConservativeLRP(case.model)
    per_class, delta = explainer.attribute_targets(ids, "all", return_convergence_delta=True)
    assert per_class.shape == (zoo.CLASSES, *ids.shape) and delta.shape == (zoo.CLASSES, len(ids))
    logits = case.model(ids).logits.detach().T
    torch.testing.assert_close(per_class.sum(-1) + delta, logits, rtol=1e-5, atol=1e-5)
    mixed = [
        [2, 0, 1], torch.tensor([1, 1, 3]), targets.Contrast(4, 2), targets.LogProbability(0)
    ]  # fmt: skip
    found = explainer.attribute_targets(ids, mixed)
    rows = torch.arange(3)
    torch.testing.assert_close(found[0], per_class[torch.tensor([2, 0, 1]), rows])
    torch.testing.assert_close(found[1], per_class[torch.tensor([1, 1, 3]), rows])
    torch.testing.assert_close(found[2], per_class[4] - per_class[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[3], explainer.attribute(ids, target=mixed[3]))


def test_inputs_that_are_tuples_or_mappings() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)

    def model(a: Tensor, b: Tensor, scale: float) -> Tensor:
        return linear(torch.cat([a, b], -1)) * scale

    a, b = torch.randn(2, 4), torch.randn(2, 2)
    weight = 2.0 * linear.weight.detach()
    found = ConservativeGI(model, "gi").attribute_targets((a, b), [2, 0], 2.0)
    torch.testing.assert_close(found[0], a * weight[[2, 0], None, :4])
    torch.testing.assert_close(found[1], b * weight[[2, 0], None, 4:])
    case = zoo.case("hf-BertForSequenceClassification-sdpa-padded")
    inputs = {"input_ids": case.inputs[0], **case.kwargs}
    got = ConservativeGI(case.model).attribute_targets(inputs, [1])
    torch.testing.assert_close(got[0], ConservativeGI(case.model).attribute(inputs, target=1))


def test_layers() -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    ids, layers = case.inputs[0], list(case.model.bert.encoder.layer)
    one = LayerConservativeGI(case.model, case.model.bert.embeddings)
    found = one.attribute_targets(ids, "all")
    assert found.shape == (zoo.CLASSES, *ids.shape, zoo.WIDTH)
    expected = torch.stack([one.attribute(ids, target=t) for t in range(zoo.CLASSES)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    several = LayerConservativeLRP(case.model, layers)
    options = {"attribute_to_layer_input": True, "return_convergence_delta": True}
    both, deltas = several.attribute_targets(ids, [3, 1], **options)
    for i, target in enumerate([3, 1]):
        values, rest = several.attribute(ids, target=target, **options)
        for k in range(len(layers)):
            torch.testing.assert_close(both[k][i], values[k], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(deltas[k][i], rest[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_pass", [1, 2])
def test_an_input_that_is_not_used(per_pass: int) -> None:
    def model(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a.sum(-1), a.square().sum(-1)], 1)

    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    explainer = ConservativeGI(model, "gi")
    with pytest.raises(UnreachedInputError, match="number 1"):
        explainer.attribute(inputs, target=0)
    with pytest.raises(UnreachedInputError, match="number 1"):
        explainer.attribute_targets(inputs, [1, 0], targets_per_pass=per_pass)


def test_zero_relevance_is_not_mistaken_for_no_connection() -> None:
    gates = torch.tensor([0.0, 1.0])

    def model(a: Tensor) -> Tensor:
        return a.sum(-1, keepdim=True) * gates

    x = torch.randn(2, 3)
    found = ConservativeGI(model, "gi").attribute_targets(x, "all")
    torch.testing.assert_close(found, torch.stack([torch.zeros_like(x), x]))


@pytest.mark.parametrize("wrong", [[], 3, "every", torch.tensor([1, 2]), None])
def test_targets_that_are_none(wrong: Any) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    with pytest.raises(TargetError, match="targets"):
        ConservativeGI(case.model).attribute_targets(case.inputs[0], wrong)


def test_all_needs_classes_and_indices_must_fit() -> None:
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    with pytest.raises(TargetError, match=r"\(position, token\)"):
        ConservativeGI(case.model).attribute_targets(case.inputs[0], "all")
    with pytest.raises(TargetError, match="does not fit"):
        ConservativeGI(case.model).attribute_targets(case.inputs[0], [(0, 1), (99, 1)])
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError, match="targets_per_pass"):
            ConservativeGI(case.model).attribute_targets(
                case.inputs[0], [(0, 1)], targets_per_pass=wrong
            )


def test_large_outputs_are_not_packed_unasked() -> None:
    leaf = torch.zeros(1, 8)
    assert packing.pack_size(torch.zeros(1, 2), [leaf], 3) == 3
    assert packing.pack_size(torch.zeros(1, 2), [leaf], 1000) == 8
    assert packing.pack_size(torch.zeros(1, 1 << 12, 1 << 12), [leaf], 1000) == 1
