"""Activations and norms in every spelling of torch, against their rules by hand.

Identity rule: the relevance of an activation's input is that of its output, ``f(x) w``.
Norm rule: the gradient times the input with the divisor constant.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from captum_lrp_tx.errors import TrainingModeWarning, UncoveredOperationError

N, WIDTH = 3, 8
WEIGHT = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
SHIFT = torch.randn(WIDTH, generator=torch.Generator().manual_seed(6))
Function = Callable[[Tensor], Tensor]


def explain(function: Function, x: Tensor, rules: str, strict: bool = True) -> Tensor:
    weight = torch.linspace(-1, 2, WIDTH)
    result = ConservativeLRP(lambda t: function(t) @ weight, rules).attribute(x, strict=strict)
    assert isinstance(result, Tensor)
    return result


# ---- activations --------------------------------------------------------------------------------
FUNCTIONAL = """relu relu6 gelu silu mish tanh sigmoid elu selu celu leaky_relu hardtanh hardswish
    hardsigmoid softplus softsign logsigmoid tanhshrink hardshrink softshrink""".split()
IN_PLACE = "relu relu6 silu mish elu selu celu leaky_relu hardtanh hardswish hardsigmoid".split()
METHODS = """relu tanh sigmoid erf square expm1 log1p sin atan arctan asinh clip
    clamp_min""".split()
ARGUMENTS: dict[str, tuple[float, ...]] = {"clip": (-0.3, 0.4), "clamp_min": (-0.2,)}


def method(name: str) -> Function:
    return lambda x: getattr(x, name)(*ARGUMENTS.get(name, ()))


def scaled(function: Function) -> Function:
    return lambda x: function(x * 1.5)


def in_place(name: str) -> Function:
    return lambda x: getattr(x * 1.5, name + "_")(*ARGUMENTS.get(name, ()))


def statement(name: str) -> Function:
    """The result is not assigned: what the model goes on with is the argument."""

    def function(x: Tensor) -> Tensor:
        x = x * 1.5
        getattr(x, name + "_")(*ARGUMENTS.get(name, ()))
        return x

    return function


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    # the call, and what its value is
    **{f"F.{name}": (getattr(F, name), getattr(F, name)) for name in FUNCTIONAL},
    **{
        f"F.{name}, inplace": (
            scaled(functools.partial(getattr(F, name), inplace=True)),
            scaled(getattr(F, name)),
        )
        for name in IN_PLACE
    },
    **{f"x.{name}()": (method(name), method(name)) for name in METHODS},
    **{
        f"x.{name}_()": (in_place(name), scaled(method(name)))
        for name in METHODS
    },
    **{
        f"x.{name}_() as a statement": (statement(name), scaled(method(name)))
        for name in METHODS
    },
    "F.gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"),) * 2,
    "F.softplus, beta": (lambda x: F.softplus(x, beta=3, threshold=2),) * 2,
    "F.leaky_relu, slope": (lambda x: F.leaky_relu(x, 0.3),) * 2,
    "F.threshold": (lambda x: F.threshold(x, 0.1, -0.7),) * 2,
    "F.prelu": (lambda x: F.prelu(x, torch.tensor([0.2])),) * 2,
    "by keyword": (lambda x: F.silu(input=x), F.silu),
    "by keyword, in place": (lambda x: torch.tanh_(input=x * 1.5), scaled(torch.tanh)),
    "clamp_ by keyword": (
        lambda x: torch.clamp_(input=x * 1.5, min=-0.2, max=0.5),
        scaled(lambda x: x.clamp(-0.2, 0.5)),
    ),
    "x ** 2": (lambda x: x**2, torch.square),
    "x.pow(3)": (lambda x: x.pow(3), lambda x: x**3),
    "pow by keyword": (lambda x: torch.pow(x, exponent=2), torch.square),
    "pow_": (lambda x: (x * 1.5).pow_(2), lambda x: (x * 1.5) ** 2),
    "torch.clamp": (lambda x: torch.clamp(x, min=-0.2, max=0.5),) * 2,
}  # fmt: skip


@pytest.mark.parametrize("call", ACTIVATIONS)
def test_relevance_passes_an_activation_place_by_place(call: str) -> None:
    function, value = ACTIVATIONS[call]
    x = zoo.floats(N, WIDTH) * 0.6  # no entry is zero
    if "log1p" in call:
        x = x.abs()
    torch.testing.assert_close(function(x.clone()), value(x))
    expected = value(x) * torch.linspace(-1, 2, WIDTH)
    torch.testing.assert_close(explain(function, x, "lrp"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, -1, -0.5, 0.9])
def test_powers_below_one_are_no_activations(exponent: float) -> None:
    x = zoo.floats(N, WIDTH).abs() + 0.1
    with pytest.raises(UncoveredOperationError, match="Pow"):
        explain(lambda t: t**exponent, x, "lrp")


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "softplus"])
@pytest.mark.parametrize("rules", ["ah+ln", "gi"])
def test_other_rule_sets_leave_activations_to_the_gradient(name: str, rules: str) -> None:
    x = zoo.floats(N, WIDTH)
    leaf = x.clone().requires_grad_()
    output = getattr(F, name)(leaf) @ torch.linspace(-1, 2, WIDTH)
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    got = explain(getattr(F, name), x, rules, strict=False)
    torch.testing.assert_close(got, x * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spelling", ["function", "keyword", "tanh", "inplace"])
def test_large_activations_have_their_slope_in_less_memory(spelling: str) -> None:
    """From 2^18 entries on, exact to rounding all the same."""
    calls: dict[str, Function] = {
        "function": F.gelu,
        "keyword": lambda t: F.silu(input=t),
        "tanh": lambda t: F.gelu(t, approximate="tanh"),
        "inplace": lambda t: F.silu(t * 1.0, inplace=True),
    }
    x = torch.randn(1 << 15, WIDTH) * 2
    leaf = x.clone().requires_grad_()
    output = calls[spelling](leaf) @ torch.linspace(-1, 2, WIDTH)
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    got = explain(calls[spelling], x, "ah+ln", strict=False)
    torch.testing.assert_close(got, x * gradient, rtol=1e-5, atol=2e-6)


# ---- norms --------------------------------------------------------------------------------------
def by_hand(
    x: Tensor, dims: tuple[int, ...], center: bool, eps: float, constant: bool = True
) -> Tensor:
    middle = x - x.mean(dims, keepdim=True) if center else x
    size = (middle.square().mean(dims, keepdim=True) + eps).sqrt()
    return middle / (size.detach() if constant else size)


TINY = torch.finfo(torch.float32).eps
NORMS: dict[str, tuple[Function, Function]] = {
    "layer": (
        lambda x: F.layer_norm(x, (WIDTH,), WEIGHT, SHIFT, 0.1),
        lambda x: by_hand(x, (-1,), True, 0.1) * WEIGHT + SHIFT,
    ),
    "layer, bare": (
        lambda x: F.layer_norm(x, (WIDTH,)), lambda x: by_hand(x, (-1,), True, 1e-5),
    ),
    "layer, scaled": (
        lambda x: F.layer_norm(x, (WIDTH,), weight=WEIGHT),
        lambda x: by_hand(x, (-1,), True, 1e-5) * WEIGHT,
    ),
    "layer, shifted": (
        lambda x: F.layer_norm(x, (WIDTH,), bias=SHIFT, eps=0.3),
        lambda x: by_hand(x, (-1,), True, 0.3) + SHIFT,
    ),
    "layer of two dimensions": (
        lambda x: F.layer_norm(x.view(N, 2, 4), (2, 4), WEIGHT.view(2, 4)).flatten(1),
        lambda x: by_hand(x, (-1,), True, 1e-5) * WEIGHT,
    ),
    "rms": (
        lambda x: F.rms_norm(x, (WIDTH,), WEIGHT, 0.1),
        lambda x: by_hand(x, (-1,), False, 0.1) * WEIGHT,
    ),
    "rms, bare": (lambda x: F.rms_norm(x, (WIDTH,)), lambda x: by_hand(x, (-1,), False, TINY)),
    "rms of two dimensions": (
        lambda x: F.rms_norm(x.view(N, 2, 4), (2, 4), None, 0.2).flatten(1),
        lambda x: by_hand(x, (-1,), False, 0.2),
    ),
    "group": (
        lambda x: F.group_norm(x.view(N, 4, 2), 2, WEIGHT[:4], SHIFT[:4], 0.1).flatten(1),
        lambda x: (
            by_hand(x.view(N, 2, 4), (-1,), True, 0.1).view(N, 4, 2) * WEIGHT[:4, None]
            + SHIFT[:4, None]
        ).flatten(1),
    ),
    "group, bare": (
        lambda x: F.group_norm(x, 4),
        lambda x: by_hand(x.view(N, 4, 2), (-1,), True, 1e-5).flatten(1),
    ),
    "instance": (
        lambda x: F.instance_norm(x.view(N, 2, 4), weight=WEIGHT[:2], bias=SHIFT[:2], eps=0.1)
        .flatten(1),
        lambda x: (
            by_hand(x.view(N, 2, 4), (-1,), True, 0.1) * WEIGHT[:2, None] + SHIFT[:2, None]
        ).flatten(1),
    ),
    "instance, torch's own": (
        lambda x: torch.instance_norm(
            x.view(N, 2, 4), None, None, None, None, True, 0.1, 0.2, False
        ).flatten(1),
        lambda x: by_hand(x.view(N, 2, 4), (-1,), True, 0.2).flatten(1),
    ),
    "batch": (
        lambda x: F.batch_norm(
            x.view(N, 2, 4), None, None, WEIGHT[:2], SHIFT[:2], training=True
        ).flatten(1),
        lambda x: (
            by_hand(x.view(N, 2, 4), (0, 2), True, 1e-5) * WEIGHT[:2, None] + SHIFT[:2, None]
        ).flatten(1),
    ),
    "batch of vectors, torch's own": (
        # the sum over the batch is zero otherwise
        lambda x: torch.batch_norm(x, WEIGHT, SHIFT, None, None, True, 0.1, 0.1, False)
        * torch.arange(1.0, N + 1)[:, None],
        lambda x: (by_hand(x, (0,), True, 0.1) * WEIGHT + SHIFT)
        * torch.arange(1.0, N + 1)[:, None],
    ),
    "normalize": (
        lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    ),
    "written out": (
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 0.1).sqrt(),
        lambda x: (x - x.mean(-1, keepdim=True))
        / (x.var(-1, keepdim=True) + 0.1).sqrt().detach(),
    ),
    "rsqrt": (
        lambda x: torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * x,
        lambda x: by_hand(x, (-1,), False, 0.1),
    ),
    "divided in place": (
        lambda x: (x * 1.0).div_(x.std(-1, keepdim=True)),
        lambda x: x / x.std(-1, keepdim=True).detach(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", NORMS)
@pytest.mark.parametrize("rules", ["ln", "lrp"])
def test_the_divisor_of_a_norm_is_a_constant(call: str, rules: str) -> None:
    function, spelled = NORMS[call]
    x = zoo.floats(N, WIDTH) + 0.3
    weight = torch.linspace(-1, 2, WIDTH)
    leaf = x.clone().requires_grad_()
    output = spelled(leaf)
    torch.testing.assert_close(function(x), output.detach(), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad((output @ weight).sum(), leaf)
    got = explain(function, x, rules)
    torch.testing.assert_close(got, x * gradient, rtol=1e-4, atol=1e-5)
    report = audit.explainability(
        lambda t: function(t) @ weight, x, rules=rules, file=None, strict=True
    )
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)
    plain = explain(function, x, "gi", strict=False)
    assert not torch.allclose(plain, got, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(WIDTH), nn.GroupNorm(1, WIDTH), nn.GroupNorm(2, WIDTH)]
)
def test_the_bias_of_a_norm_of_zeros_is_booked_where_it_cannot_be_spread(norm: nn.Module) -> None:
    """A masked token is a row of zeros in ESM."""
    torch.manual_seed(0)
    norm, x = zoo.randomise(norm), zoo.floats(N, WIDTH)
    x[0] = 0.0
    options: Any = {"bias": "distribute"}
    report = audit.explainability(lambda t: norm(t).sum(-1), x, file=None, **options)
    assert abs(report.absorbed["bias"]) > 0.1
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)
    report = audit.explainability(lambda t: norm(t).sum(-1), x + 0.1, file=None, **options)
    assert not report.absorbed


def test_a_norm_without_a_rule_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0]

    with pytest.raises(UncoveredOperationError, match="NativeBatchNorm"):
        explain(function, zoo.floats(N, WIDTH), "ln")


PRESETS = ("gi", "ah", "ln", "ah+ln", "lrp", "attnlrp")


@pytest.mark.parametrize("rules", PRESETS)
@pytest.mark.parametrize("dim, eps", [(1, 1e-8), (-1, 2.5)])
@pytest.mark.parametrize("both", [True, False])
def test_cosine_similarity_is_the_product_of_two_normalised_vectors(
    rules: str, dim: int, eps: float, both: bool
) -> None:
    """By each preset's own rules for the product and the divisors; a bounded norm included."""
    x, y = zoo.floats(N, 4, 5) + 0.2, zoo.floats(1, 4, 5) - 0.4
    weight = torch.randn(5 if dim == 1 else 4)
    module = nn.CosineSimilarity(dim, eps)

    def bounded(t: Tensor) -> Tensor:
        norm = t.norm(dim=dim, keepdim=True)
        norm = norm + (norm.clamp(min=eps) - norm).detach()
        return t / (norm if rules in ("gi", "ah") else norm.detach())

    def spelled(a: Tensor, b: Tensor) -> Tensor:
        first, second = bounded(a), bounded(b)
        if both and rules in ("lrp", "attnlrp"):  # half the relevance to each factor
            first, second = ((t + t.detach()) / 2 for t in (first, second))
        return (first * second).sum(dim) @ weight

    leaves = [x.clone().requires_grad_(), y.expand(N, -1, -1).clone().requires_grad_(both)]
    wanted = leaves if both else leaves[:1]
    grads = torch.autograd.grad(spelled(*leaves).sum(), wanted)
    inputs = (x, y.expand(N, -1, -1).clone()) if both else (x,)

    def function(a: Tensor, b: Tensor = y) -> Tensor:
        return module(a, x2=b) @ weight

    got = ConservativeLRP(function, rules).attribute(inputs, strict=rules != "ah")
    for one, leaf, gradient in zip(got, wanted, grads, strict=True):
        torch.testing.assert_close(one, (leaf * gradient).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shapes", [((3, 5), (3, 5)), ((2, 1, 6), (3, 6)), ((4,), (4,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_similarities_and_distances_keep_their_value(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> None:
    x, y = (zoo.floats(*shape).to(dtype) for shape in shapes)
    for name, stock in {
        "cosine": lambda a: F.cosine_similarity(a, y, dim=-1),
        "distance": lambda a: F.pairwise_distance(a, y, p=3.0, keepdim=True),
    }.items():
        seen: list[Tensor] = []

        def function(a: Tensor, stock: Function = stock, seen: list[Tensor] = seen) -> Tensor:
            seen.append(stock(a).detach())
            return stock(a).sum().reshape(1)

        ConservativeLRP(function, "ah+ln").attribute(x)
        assert torch.equal(seen[0], stock(x)), name


@pytest.mark.parametrize("rules", ["gi", "lrp"])
@pytest.mark.parametrize("p", [2.0, 3.0])
def test_distances_are_the_norms_of_differences(p: float, rules: Any) -> None:
    x, y = zoo.floats(N, 5), zoo.floats(N, 5).flip(0)
    leaf = x.clone().requires_grad_()
    distance = F.pairwise_distance(leaf, y, p=p)
    (gradient,) = torch.autograd.grad(distance.sum(), leaf)
    got = ConservativeLRP(lambda a: F.pairwise_distance(a, y, p=p), rules).attribute(x)
    torch.testing.assert_close(got, x * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [nn.InstanceNorm1d, nn.BatchNorm1d])
def test_running_statistics_make_a_linear_map(make: Any) -> None:
    norm, x = make(4, affine=True, track_running_stats=True), zoo.floats(N, 4, 6)
    zoo.randomise(norm)
    norm.running_var.uniform_(0.5, 2)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = x * scale[:, None] * torch.linspace(-1, 2, 6)
    got = ConservativeLRP(lambda t: (norm(t) @ torch.linspace(-1, 2, 6)).sum(1)).attribute(x)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)


def test_statistics_of_a_batch_are_said_to_mix_its_examples() -> None:
    norm = nn.BatchNorm1d(WIDTH, track_running_stats=False).eval()
    with pytest.warns(TrainingModeWarning, match="one at a time"):
        ConservativeLRP(lambda t: norm(t).sum(1)).attribute(zoo.floats(N, WIDTH))
    with warnings.catch_warnings():  # one example is mixed with none
        warnings.simplefilter("error")
        ConservativeLRP(lambda t: norm(t).square().sum((1, 2))).attribute(zoo.floats(1, WIDTH, 3))
    train = nn.BatchNorm1d(WIDTH).train()
    with pytest.warns(TrainingModeWarning, match=r"model.eval\(\)"):
        ConservativeLRP(lambda t: train(t).sum(1)).attribute(zoo.floats(N, WIDTH))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("call", ["layer, bare", "rms, bare", "rms of two dimensions"])
def test_norms_of_half_precision_divide_in_single(call: str, dtype: torch.dtype) -> None:
    x = zoo.floats(N, WIDTH) * 200  # squares are beyond float16
    exact = explain(NORMS[call][0], x.to(dtype).float(), "ln")
    weight = torch.linspace(-1, 2, WIDTH).to(dtype)
    got = ConservativeGI(lambda t: NORMS[call][0](t) @ weight, rules="ln").attribute(x.to(dtype))
    assert got.dtype == dtype
    error = (got.float() - exact).abs().max() / exact.abs().max()
    assert error < (0.005 if dtype == torch.float16 else 0.04)


@pytest.mark.parametrize("name", ["mean only", "both"])
def test_var_mean_and_std_mean(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, -1, keepdim=True)
        return x - mean if name == "mean only" else (x - mean) / deviation

    x = zoo.floats(N, WIDTH)
    leaf = x.clone().requires_grad_()
    divisor = 1.0 if name == "mean only" else x.std(-1, keepdim=True)
    output = (leaf - leaf.mean(-1, keepdim=True)) / divisor
    (gradient,) = torch.autograd.grad((output @ torch.linspace(-1, 2, WIDTH)).sum(), leaf)
    torch.testing.assert_close(explain(function, x, "lrp"), x * gradient, rtol=1e-4, atol=1e-5)


def test_modules_and_functions_agree(untouched: Any) -> None:
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
    zoo.randomise(model)
    x = zoo.floats(N, WIDTH)
    norm, head = model[0], model[2]

    def functional(t: Tensor) -> Tensor:
        t = F.layer_norm(t, (WIDTH,), norm.weight, norm.bias, norm.eps)
        return F.linear(F.gelu(t), head.weight, head.bias)

    with untouched(model):
        expected = ConservativeLRP(model).attribute(x)
    torch.testing.assert_close(ConservativeLRP(functional).attribute(x), expected)
