"""Quantised layers are the linear maps of their dequantised weights, or refused by name.

The oracle is the same model with plain ``nn.Linear`` layers of the dequantised weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantised
import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeLRP, audit, rules
from captum_lrp_tx.errors import UncoveredOperationError, UnsupportedModelError
from captum_lrp_tx.propagation.interception import quantised as quantised_maps
from captum_lrp_tx.propagation.interception.quantised import (
    check_wrapped,
    claim,
    constant_weight,
)

WIDTH = 32
PRESETS = "gi ah ln ah+ln lrp lrp-gamma mambalrp attnlrp attnlrp-gamma".split()
#: Presets with rules for linear layers, whose biases may be spread.
SPREADING = PRESETS[4:]
HAND_WRITTEN = ["function", "kernel without a derivative", "tensor"]


class Block(nn.Module):
    """An MLP on a residual stream, beside which a layer that loses relevance is not noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(x + self.down(F.gelu(self.up(x))))).mean(1)
        return result


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(Block().eval())


def bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=41, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return zoo.randomise(transformers.BertForSequenceClassification(config).eval())


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=2 * WIDTH, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return zoo.randomise(transformers.LlamaForCausalLM(config).eval())


def floats() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def ids() -> Tensor:
    return torch.randint(1, 41, (2, 6), generator=torch.Generator().manual_seed(1))


Make = Callable[[nn.Linear], quantised.Made]


def pair(build: Callable[[], nn.Module], make: Make) -> tuple[nn.Module, nn.Module]:
    """A quantised model, and the same with plain layers."""
    model, plain = build(), build()
    weights = quantised.replace(model, make)
    assert weights
    for name, weight in weights.items():
        plain.get_submodule(name).weight.data = weight.clone()
    return model, plain


def agree(got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    error = (got - expected).abs().max() / expected.abs().max()
    assert expected.abs().max() > 0 and error <= tolerance, f"{error:.1e}"


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Any]] = {
    "mlp": (mlp, floats, 1),
    "bert": (bert, ids, 1),
    "llama": (llama, ids, (-1, 3)),
}


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layer", quantised.WEIGHT_ONLY)
def test_a_quantised_model_is_explained_as_the_dequantised_one(
    layer: str, kind: str, bias: Any
) -> None:
    build, inputs, target = MODELS[kind]
    model, plain = pair(build, quantised.WEIGHT_ONLY[layer])
    x = inputs()
    presets = PRESETS if bias == "absorb" else SPREADING
    if kind != "mlp":  # of the larger models half of the presets, in turns
        turn = list(quantised.WEIGHT_ONLY).index(layer) + (kind == "llama")
        presets = presets[turn % 2 :: 2]
    for preset in presets:
        options: Any = {"rules": preset, "bias": bias}
        given: Any = {"target": target, "strict": preset in ("lrp", "lrp-gamma", "mambalrp")}
        got = ConservativeLRP(model, **options).attribute(x, **given)
        expected = ConservativeLRP(plain, **options).attribute(x, **given)
        if kind == "bert" and preset in ("gi", "ah"):
            # a norm without a rule right behind the embeddings leaves rounding errors of them
            assert max(got.abs().max(), expected.abs().max()) < 1e-5
            (got, expected) = (
                LayerConservativeLRP(m, m.bert.encoder.layer[0], **options).attribute(x, **given)
                for m in (model, plain)
            )
        agree(got, expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layer", quantised.STRAIGHT_THROUGH)
def test_straight_through_derivatives_are_products(layer: str, kind: str) -> None:
    """What rounding adds to the forward pass is no part of the map: the oracle has none."""
    build, inputs, target = MODELS[kind]
    model, plain = pair(build, quantised.STRAIGHT_THROUGH[layer])
    for bias in ("absorb", "distribute"):
        options: Any = {"rules": "lrp", "bias": bias}
        got = ConservativeLRP(model, **options).attribute(inputs(), target=target, strict=True)
        expected = ConservativeLRP(plain, **options).attribute(inputs(), target=target)
        agree(got, expected, 0.1)


@pytest.mark.parametrize("preset", ["lrp", "lrp-gamma"])
@pytest.mark.parametrize("layer", [*quantised.WEIGHT_ONLY, *quantised.STRAIGHT_THROUGH])
def test_the_audit_accounts_for_quantised_layers(layer: str, preset: str, capsys: Any) -> None:
    make = {**quantised.WEIGHT_ONLY, **quantised.STRAIGHT_THROUGH}[layer]
    model, _ = pair(mlp, make)
    report = audit.explainability(model, floats(), target=1, rules=preset)
    assert report.is_covered, str(report)
    # what rounding adds is booked at the output: to first order in rules with signed parts, and
    # derivatives that are computed in 16 bits are rounded themselves
    allowed = 1e-5 if layer in quantised.WEIGHT_ONLY else 1e-4
    allowed = 5e-3 if allowed > 1e-5 and ("gamma" in preset or "int8" not in layer) else allowed
    assert abs(report.conservation_error) < allowed * abs(report.output), str(report)
    assert {"up.bias", "down.bias", "head.bias"} <= set(report.absorbed), str(report)
    told = [name for name in report.absorbed if "rounding of its activations" in name]
    assert bool(told) == (layer in quantised.STRAIGHT_THROUGH), str(report)


@pytest.mark.parametrize("preset", ["gi", "ah+ln", "lrp", "lrp-gamma", "attnlrp"])
@pytest.mark.parametrize("layer", quantised.DYNAMIC)
def test_quantised_activations_are_refused_by_the_name_of_the_layer(
    layer: str, preset: str
) -> None:
    """Beside a residual stream relevance would be lost without a word."""
    model = mlp()
    try:
        model.down = quantised.DYNAMIC[layer](model.down)[0]
        model(floats())
    except (RuntimeError, AssertionError, ImportError) as error:
        pytest.skip(f"does not run here: {error}")
    for strict in (False, True):
        with pytest.raises(UnsupportedModelError, match=r"Layer 'down'.*weight-only"):
            ConservativeLRP(model, rules=preset).attribute(floats(), target=1, strict=strict)
    with pytest.raises(UnsupportedModelError, match=r"Layer 'down'.*weight-only"):
        ConservativeLRP(model, rules=preset, bias="distribute").attribute(floats(), target=1)


def test_what_is_no_linear_map_is_no_linear_map() -> None:
    """Codes and a derivative that looks like a product's are no proof."""
    model = mlp()
    model.down = quantised.BySquare(model.down)
    with pytest.raises(UncoveredOperationError, match="Squared in down"):
        ConservativeLRP(model).attribute(floats(), target=1, strict=True)


class Off(torch.autograd.Function):
    """A product with weights whose results are off by a share of their size, each its own way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(weight)
        y = x @ weight.T
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        noise[-1] = 0.0  # what zeros are mapped to is the bias
        return y + share * y.square().mean().sqrt() * noise

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ ctx.saved_tensors[0], None, None


@pytest.mark.parametrize("outputs", [2, 32, 512])
def test_how_far_a_layer_may_be_off_does_not_depend_on_its_width(outputs: int) -> None:
    """Its derivative is that of a product; codes of 8 bits are off by less than a percent."""
    weight = torch.randn(outputs, WIDTH, generator=torch.Generator().manual_seed(0))
    like = floats()[0]
    for share in (0.0, 0.01, 0.02):
        found = claim(lambda x, s=share: Off.apply(x, weight, s), like)
        assert found is not None and found.has_derivative
        torch.testing.assert_close(found.weight(), weight)
    for share in (0.2, 0.5):
        assert claim(lambda x, s=share: Off.apply(x, weight, s), like) is None


@pytest.mark.parametrize(
    "run",
    [
        torch.Tensor.reciprocal, lambda x: x.sum(-1), lambda x: (x @ torch.ones(WIDTH, 3)).int(),
        torch.square, torch.abs, lambda x: x.detach().sin(),
    ],
    ids=["infinite at zero", "no rows", "codes", "square", "modulus", "sine, no derivative"],
)  # fmt: skip
def test_what_claims_to_be_a_linear_map_is_tried(run: Callable[[Tensor], Tensor]) -> None:
    assert claim(run, floats()[0]) is None
    scaled = claim(lambda x: x * 3.0 + 1.0, floats()[0])
    assert scaled is not None
    torch.testing.assert_close(scaled.weight(), 3.0 * torch.eye(WIDTH))
    torch.testing.assert_close(scaled.constant, torch.ones(WIDTH))


class WithDerivative(torch.autograd.Function):
    """The value of a product with weights of ones, and another derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return x @ torch.ones(WIDTH, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.back(grad) @ torch.ones(3, WIDTH), None


@pytest.mark.parametrize(
    ("back", "is_map"),
    [
        (lambda g: g, True),
        (lambda g: g.abs(), False),  # one for each row, but not linear
        (lambda g: g * torch.arange(1.0, len(g) + 1)[:, None], False),  # linear, but of its place
    ],
    ids=["product", "moduli", "places"],
)
def test_the_derivative_of_a_linear_map_is_one(back: Any, is_map: bool) -> None:
    found = claim(lambda x: WithDerivative.apply(x, back), floats()[0])
    assert (found is not None) is is_map


def test_what_differs_from_nothing_differs_without_bound() -> None:
    assert quantised_maps.differs(torch.full((3,), 0.1), torch.zeros(3)) == float("inf")
    assert quantised_maps.differs(torch.zeros(3), torch.zeros(3)) == 0.0


def test_a_call_with_a_wrapped_weight_is_tried() -> None:
    weight, probe = torch.randn(4, WIDTH), floats()[0]

    def check(share: float) -> None:
        check_wrapped(
            lambda x: Off.apply(x, weight, share), lambda x: x @ weight.T, probe, "up", "Codes"
        )

    check(0.0)
    check(0.02)  # rounded, with the derivative of the product
    with pytest.raises(UnsupportedModelError, match="by inf%"):
        check(float("inf"))
    with pytest.raises(UnsupportedModelError, match=r"'up' \(weight of class Codes\) differs"):
        check(0.5)


def test_weights_that_are_computed_anew_are_constants_if_parameters_alone_make_them() -> None:
    parameter, given = nn.Parameter(torch.randn(3, 3)), torch.randn(3, 3, requires_grad=True)
    assert constant_weight(parameter).grad_fn is None
    assert not constant_weight(parameter.round() * 2).requires_grad
    depending = parameter * given
    assert constant_weight(depending) is depending


def test_a_layer_that_is_called_twice_is_tried_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.up(F.relu(self.up(x))))).mean(1)

    model, plain = pair(Twice, quantised.WEIGHT_ONLY["tensor"])
    got = ConservativeLRP(model).attribute(floats(), target=1, strict=True)
    agree(got, ConservativeLRP(plain).attribute(floats(), target=1))


def test_a_kernel_without_a_derivative_whose_result_is_not_used() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.coded = nn.LayerNorm(WIDTH), quantised.ByKernel(nn.Linear(WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            self.coded.forward(x)
            return self.norm(x)[:, :, 0].sum(1)

    model = Aside().eval()
    got = ConservativeLRP(model).attribute(floats(), strict=True)
    agree(got, ConservativeLRP(lambda x: model.norm(x)[:, :, 0].sum(1)).attribute(floats()))


class WithCodedBias(quantised.ByKernel):
    """Its bias is no tensor that it stores; others have the bias's shape, or one of their own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.register_module("adapter", None)
        self.register_buffer("table", torch.ones(3 * WIDTH, 3))
        self.register_buffer("half_bias", linear.bias.detach() / 2)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 2 * self.half_bias


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_a_bias_that_is_no_tensor_of_the_layer(bias: Any) -> None:
    model, plain = pair(mlp, lambda linear: (made := WithCodedBias(linear), made.weight()))
    got = ConservativeLRP(model, bias=bias).attribute(floats(), target=1, strict=True)
    agree(got, ConservativeLRP(plain, bias=bias).attribute(floats(), target=1))
    reports = [
        audit.explainability(m, floats(), target=1, bias=bias, file=None) for m in (model, plain)
    ]
    sums = [sum(report.absorbed.values()) for report in reports]
    assert sums[0] == pytest.approx(sums[1], abs=1e-3)


def test_a_layer_that_makes_codes_is_a_constant_of_what_they_multiply() -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("levels", torch.tensor([-1, 1], dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return self.levels[(x > 0).long()]

    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.signs = Signs()

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.signs(x)).sum((1, 2))

    x = floats()
    torch.testing.assert_close(ConservativeLRP(Signed()).attribute(x), x.abs())


def test_a_kernel_without_a_derivative_among_other_operations() -> None:
    """It cannot be tried by itself there; torch would name no layer, in the backward pass."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.coded = nn.LayerNorm(WIDTH), quantised.ByKernel(nn.Linear(WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.coded.forward(self.norm(x))  # the module itself does not run

    model = nn.Sequential(Mixed(), nn.Flatten(), nn.Linear(5 * WIDTH, 4)).eval()
    with pytest.raises(UnsupportedModelError, match=r"Layer '0' runs .*int8pack_mm.*own run it"):
        ConservativeLRP(model).attribute(floats(), target=1)


RULES = {
    "gamma": rules.GammaRule(gamma=0.3),
    "z+": rules.ZPlusRule(),
    "alpha-beta": rules.AlphaBetaRule(alpha=2.0, beta=1.0),
    "flat": rules.FlatRule(),
    "positive weights": rules.PositiveWeightRule(),
    "ignored bias": rules.EpsilonRule(epsilon=0.1, bias="ignore"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", [*HAND_WRITTEN, "bitsandbytes nf4", "quanto int8"])
def test_rules_with_signed_parts_get_the_dequantised_weight(layer: str, rule: str) -> None:
    from captum_lrp_tx import Composite

    model, plain = pair(mlp, quantised.WEIGHT_ONLY[layer])
    composite = Composite({"up": RULES[rule], "down": RULES[rule]}, base="lrp")
    got = ConservativeLRP(model, rules=composite).attribute(floats(), target=1, strict=True)
    agree(got, ConservativeLRP(plain, rules=composite).attribute(floats(), target=1), 1e-4)


@pytest.mark.parametrize("layer", HAND_WRITTEN)
def test_layers_targets_and_memory(layer: str) -> None:
    model, plain = pair(mlp, quantised.WEIGHT_ONLY[layer])
    for name in ("up", "down"):
        got = LayerConservativeLRP(model, model.get_submodule(name)).attribute(floats(), target=1)
        expected = LayerConservativeLRP(plain, plain.get_submodule(name)).attribute(
            floats(), target=1
        )
        agree(got, expected)
    explainer, reference = ConservativeLRP(model, memory="low"), ConservativeLRP(plain)
    agree(explainer.attribute(floats(), target=1), reference.attribute(floats(), target=1))
    agree(
        ConservativeLRP(model).attribute_targets(floats(), "all"),
        reference.attribute_targets(floats(), "all"),
    )


def test_memory_low_with_blocks_of_quantised_layers() -> None:
    model, plain = pair(bert, quantised.WEIGHT_ONLY["function"])
    got = ConservativeLRP(model, memory="low", rules="lrp-gamma").attribute(ids(), target=1)
    agree(got, ConservativeLRP(plain, rules="lrp-gamma").attribute(ids(), target=1))


@pytest.mark.parametrize("layer", ["function", "tensor", "bitsandbytes nf4", "torchao int8"])
def test_models_in_bfloat16(layer: str) -> None:
    def build() -> nn.Module:
        return mlp().bfloat16()

    def make(linear: nn.Linear) -> quantised.Made:
        made, weight = quantised.WEIGHT_ONLY[layer](linear)
        return made, weight.bfloat16()

    model, plain = pair(build, make)
    x = floats().bfloat16()
    got = ConservativeLRP(model, bias="distribute").attribute(x, target=1, strict=True).float()
    expected = ConservativeLRP(plain, bias="distribute").attribute(x, target=1).float()
    agree(got, expected, 0.1)


@pytest.mark.parametrize("layer", [*HAND_WRITTEN, "bitsandbytes nf4", "quanto int8"])
def test_the_forward_result_stays_and_so_does_the_model(layer: str, untouched: Any) -> None:
    model, _ = pair(mlp, quantised.WEIGHT_ONLY[layer])
    x, seen = floats(), []
    plain = model(x.clone().requires_grad_()).detach()

    def forward(i: Tensor) -> Tensor:
        result: Tensor = model(i)
        seen.append(result.detach().clone())
        return result

    before = {k: copy.deepcopy(v) for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    ConservativeGI(forward).attribute(x, target=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen[-1], plain)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for key, value in model.state_dict().items():
        if type(value) is Tensor:
            assert torch.equal(value, before[key]), key


def test_convolutions_with_weights_of_another_class() -> None:
    quanto = pytest.importorskip("optimum.quanto")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    plain = copy.deepcopy(model)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    for i in (0, 3):
        plain[i].weight.data = model[i].weight.dequantize().detach().clone()
    x = torch.randn(2, 3, 8, 8)
    for preset in ("gi", "lrp", "lrp-gamma"):
        for bias in ("absorb", "distribute"):
            options: Any = {"rules": preset, "bias": bias}
            got = ConservativeLRP(model, **options).attribute(x, target=1, strict=True)
            agree(got, ConservativeLRP(plain, **options).attribute(x, target=1))


def test_quantised_embeddings_are_looked_up() -> None:
    quanto = pytest.importorskip("optimum.quanto")
    model = bert()
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    plain = bert()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
            plain.get_submodule(name).weight.data = weight.dequantize().detach().clone()
    got = ConservativeLRP(model).attribute(ids(), target=1, strict=True)
    agree(got, ConservativeLRP(plain).attribute(ids(), target=1))


def test_weights_quantised_in_every_call() -> None:
    """Before ``quanto.freeze`` codes are computed from the parameters each time."""
    quanto = pytest.importorskip("optimum.quanto")
    model = mlp()
    quanto.quantize(model, weights=quanto.qint8)
    got = ConservativeLRP(model).attribute(floats(), target=1, strict=True)
    quanto.freeze(model)
    agree(got, ConservativeLRP(model).attribute(floats(), target=1, strict=True))
