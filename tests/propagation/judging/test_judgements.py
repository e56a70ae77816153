"""What the engine takes an operation for: which factor is a gate, and what the audit complains of.

Both are told by values: relevance of the factors of a product, and findings per rule set.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, audit
from captum_lrp_tx.errors import UncoveredOperationError, UnsupportedModelError
from captum_lrp_tx.rules import EpsilonRule, GateRule, GradientRule

N, WIDTH = 2, 6

# ---- gates --------------------------------------------------------------------------------------
#: Functions by how clearly they make gates: bounded to (0, 1), otherwise bounded, self-gated.
GATES: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "switch": [lambda x: x.softmax(-1), torch.sigmoid, F.hardsigmoid],
    "bounded": [torch.tanh, torch.erf, torch.special.ndtr, F.hardtanh, F.softplus],
    "self-gated": [F.silu, F.gelu, F.leaky_relu, F.elu, F.mish, F.hardswish, torch.exp, F.relu],
    "signal": [lambda x: x * 2, lambda x: x.flip(-1)],
}
PAIRS = [
    (kinds, first, second)
    for kinds in itertools.product(GATES, GATES)
    for first, second in [
        *itertools.product(GATES[kinds[0]], GATES[kinds[1]][:1]),
        *itertools.product(GATES[kinds[0]][:1], GATES[kinds[1]][1:]),
    ]
]


@pytest.mark.parametrize("kinds, first, second", PAIRS)
def test_the_factor_that_is_more_of_a_gate_is_a_constant(
    kinds: tuple[str, str], first: Any, second: Any
) -> None:
    """The plain gradient of the other factor is left; of two alike each gets half."""
    x, y = zoo.floats(N, WIDTH), zoo.floats(N, WIDTH) / 2 + 0.1
    rank = [list(GATES).index(kind) for kind in kinds]
    share = (0.5, 0.5) if rank[0] == rank[1] else (0.0, 1.0) if rank[0] < rank[1] else (1.0, 0.0)

    class Model(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (first(a) * second(b)).sum(1)

    # activations are left to the plain gradient, so that only the rule for products is at work
    rules = Composite({Model: GateRule()}, base="gi")
    got = ConservativeGI(Model(), rules=rules).attribute((x, y))
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    plain = torch.autograd.grad((first(leaves[0]) * second(leaves[1])).sum(), leaves)
    for one, leaf, gradient, part in zip(got, (x, y), plain, share, strict=True):
        torch.testing.assert_close(one, part * leaf * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", [*GATES["switch"], *GATES["bounded"], *GATES["self-gated"]])
@pytest.mark.parametrize("preset", ["lrp", "lrp-gated"])
def test_a_divisor_is_a_constant_whatever_it_divides(preset: str, gate: Any) -> None:
    """Also where the numerator is more of a gate than the divisor."""
    x, y = zoo.floats(N, WIDTH), zoo.floats(N, WIDTH).abs() + 0.5

    class Model(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (gate(a) / b).sum(1)

    rules = Composite({Model: GateRule()}, base="gi")
    of_gate, of_divisor = ConservativeGI(Model(), rules=rules).attribute((x, y))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((gate(leaf) / y).sum(), leaf)
    torch.testing.assert_close(of_gate, x * gradient, rtol=1e-4, atol=1e-6)
    assert not of_divisor.any()


def test_the_factors_of_a_matrix_product_share_it_whatever_they_are() -> None:
    x, y = zoo.floats(N, 3, WIDTH), zoo.floats(N, WIDTH, 3)

    class Model(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (torch.sigmoid(a) @ b).sum((1, 2))

    rules = Composite({Model: GateRule()}, base="gi")
    got = ConservativeGI(Model(), rules=rules).attribute((x, y))
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    plain = torch.autograd.grad((torch.sigmoid(leaves[0]) @ leaves[1]).sum(), leaves)
    for one, leaf, gradient in zip(got, (x, y), plain, strict=True):
        torch.testing.assert_close(one, leaf * gradient / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", [*GATES["switch"], *GATES["bounded"], *GATES["self-gated"]])
@pytest.mark.parametrize("preset", ["lrp", "lrp-gated"])
def test_gates_stay_gates_where_activations_have_a_rule(preset: str, gate: Any) -> None:
    """All relevance of a product is the signal's, although the rule replaced the activation.

    Under the default half is that of an activation without bounds.
    """
    x, y, weight = zoo.floats(N, WIDTH), zoo.floats(N, WIDTH) / 2 + 0.1, torch.randn(WIDTH)
    lrp = ConservativeLRP(lambda a, b: (gate(a) * b) @ weight, preset)
    of_gate, of_signal = lrp.attribute((x, y))
    product = gate(x) * y * weight
    if preset == "lrp" and gate in GATES["self-gated"] and gate is not torch.exp:
        torch.testing.assert_close(of_signal, product / 2, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(of_gate, product / 2, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(of_signal, product, rtol=1e-4, atol=1e-6)
        assert not of_gate.any()


def test_a_product_of_patterns_is_their_product() -> None:
    """Neither pattern is the values of the other: both are constants of what they weigh."""

    def forward(x: Tensor) -> Tensor:
        first, second = (x @ x.mT).softmax(-1), (x @ x.mT * 0.5).softmax(-1)
        return (first @ second).sum((1, 2))

    x = zoo.floats(N, 4, WIDTH)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    torch.testing.assert_close(
        ConservativeGI(forward, rules="ah").attribute(x), x * gradient, rtol=1e-4, atol=1e-5
    )


# ---- the audit ----------------------------------------------------------------------------------
LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "views": lambda x: x.view(N, 2, 3).transpose(1, 2).reshape(N, WIDTH)[:, 1:],
    "sums": lambda x: x.cumsum(-1) + x.mean(-1, keepdim=True) - x.flip(-1),
    "largest": lambda x: x.max(-1, keepdim=True).values + x.topk(2).values + x.sort().values[:, :2],
    "relu": lambda x: F.relu(x) + F.leaky_relu(x) + x.abs(),
    "largest of two": lambda x: torch.maximum(x, x.flip(-1)),
    "pooling": lambda x: F.max_pool1d(x[:, None], 2) + F.avg_pool1d(x[:, None], 2),
    "constant factor": lambda x: x * torch.linspace(1, 2, WIDTH) / 3,
    "scatter": lambda x: torch.zeros(N, 3).scatter_reduce(
        1, torch.arange(WIDTH).expand(N, WIDTH) % 3, x, "sum"
    ),
    "complex": lambda x: torch.fft.rfft(x).real,
    "padding": lambda x: F.pad(x[:, None], (1, 1), mode="reflect"),
    "weight of a lerp": lambda x: torch.lerp(torch.zeros(WIDTH), torch.linspace(1, 2, WIDTH), x),
    "unused deviation": lambda x: x - torch.std_mean(x, -1, keepdim=True)[1],
    "bias of a convolution": lambda x: F.conv1d(x[None], torch.ones(2, N, 3), x[0, :2]),
}
FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str, set[str]]] = {
    # what is computed: part of the complaint, rule sets for which it is a fault
    "cosine": (lambda x: x.cos(), "non-linear function", {"lrp", "attnlrp"}),
    "exponential": (lambda x: x.exp(), "non-linear function", {"lrp", "attnlrp"}),
    "logarithm": (lambda x: x.abs().log(), "non-linear function", {"lrp", "attnlrp"}),
    "reciprocal": (lambda x: 1 / (x.abs() + 1), "", {"lrp", "attnlrp"}),
    "bare softmax": (lambda x: x.softmax(-1), "softmax that is no attention", {"lrp"}),
    "lonely deviation": (
        lambda x: x.std(-1, keepdim=True), "norm or statistic", {"lrp", "attnlrp"},
    ),
    "deviation that multiplies": (
        lambda x: x.tanh() * x.std(-1, keepdim=True), "norm or statistic", {"lrp", "attnlrp"},
    ),
    "scatter prod": (
        lambda x: torch.ones(N, 3).scatter_reduce(
            1, torch.arange(WIDTH).expand(N, WIDTH) % 3, x, "prod"
        ),
        "non-linear function", {"lrp", "attnlrp"},
    ),
    "kernel of a convolution": (
        lambda x: F.conv1d(x[None], x[None, :, :3]), "product", {"lrp", "attnlrp"},
    ),
    "rounded norm": (
        lambda x: x + torch.div(x, x.norm(dim=-1, keepdim=True), rounding_mode="floor"),
        "norm or statistic", {"lrp", "attnlrp", "ah+ln", "ln"},
    ),
    "system": (
        lambda x: torch.linalg.solve_triangular(
            torch.eye(3) + torch.diag_embed(x[:, :3].exp()), torch.ones(N, 3, 1), upper=True
        ),
        "system of input-dependent equations", {"lrp", "attnlrp", "ah+ln", "ah"},
    ),
}  # fmt: skip
PRESETS = ("lrp", "attnlrp", "ah+ln", "ah", "ln")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LINEAR)
def test_nothing_is_said_of_what_conserves(name: str, preset: str) -> None:
    function = LINEAR[name]
    report = audit.explainability(
        lambda x: function(x).flatten(1).sum(1), zoo.floats(N, WIDTH), rules=preset, file=None
    )
    assert report.is_covered and not report.findings, report
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", FAULTS)
def test_what_no_rule_covers_is_said_and_is_a_fault_where_it_was_promised(
    name: str, preset: str
) -> None:
    function, what, faulty = FAULTS[name]
    report = audit.explainability(
        lambda x: (function(x) * 1.0).flatten(1).sum(1), zoo.floats(N, WIDTH), rules=preset,
        file=None,
    )  # fmt: skip
    told = [f for f in report.findings if what in f.what]
    if name == "bare softmax" and preset == "attnlrp":
        assert report.is_covered  # its gradient is the rule
        return
    assert told, report
    assert report.is_covered is (preset not in faulty), report
    assert str(report).count("  ! ") == sum(f.is_fault for f in report.findings)


#: Start and end of an interpolation.
ENDS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "both": lambda x: (x, x.flip(-1)),
    "start": lambda x: (x, torch.ones(WIDTH)),
    "end": lambda x: (torch.ones(WIDTH), x),
}


@pytest.mark.parametrize("preset", ["lrp", "attnlrp"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_lerp_is_the_sum_that_it_stands_for(ends: str, preset: str) -> None:
    """Its weights may depend on the inputs; with one gradient under presets that have no gates."""

    def model(x: Tensor, lerp: Callable[..., Tensor]) -> Tensor:
        return lerp(*ENDS[ends](x), x.roll(1, -1).sigmoid()).square().sum(1)

    x = zoo.floats(N, WIDTH)
    fused, spelled = (
        functools.partial(model, lerp=lerp)
        for lerp in (torch.lerp, lambda start, end, weight: start + weight * (end - start))
    )
    explainer = ConservativeLRP(fused, preset)
    torch.testing.assert_close(
        explainer.attribute(x), ConservativeLRP(spelled, preset).attribute(x)
    )
    report = audit.explainability(fused, x, rules=preset, file=None)
    assert report.is_covered and not report.findings, report
    assert report.output == float(fused(x).double().sum())
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)
    told = audit.explainability(fused, x, rules="ah+ln", file=None).findings
    assert any("product of two" in f.what for f in told)


PARTIAL: dict[str, tuple[Any, str, set[str]]] = {
    "divided by the deviation of something else": (
        lambda x: x.tanh() / (x.std(-1, keepdim=True) + 1e-3), "norm or statistic",
        {"ah+ln", "ln"},
    ),
    "pattern times scores": (
        lambda x: ((x @ x.mT).softmax(-1) * (x @ x.mT)) @ x, "not recognised", {"ah+ln", "ah"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["ah", "ln", "ah+ln"])
@pytest.mark.parametrize("name", PARTIAL)
def test_what_attention_and_norms_without_a_rule_are_under_their_presets(
    name: str, preset: str
) -> None:
    function, what, faulty = PARTIAL[name]
    report = audit.explainability(
        lambda x: function(x).flatten(1).sum(1), zoo.floats(N, 3, WIDTH), rules=preset, file=None
    )
    told = [f for f in report.findings if what in f.what and f.is_fault]
    assert bool(told) is (preset in faulty) is not report.is_covered


def test_the_plain_gradient_promises_nothing() -> None:
    x = zoo.floats(N, WIDTH)
    for function, *_ in FAULTS.values():
        report = audit.explainability(
            lambda t, f=function: f(t).flatten(1).sum(1), x, rules="gi", file=None
        )
        assert report.is_covered


def test_a_report_names_many_constants_and_modules() -> None:
    class Lossy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).tanh()  # no rule for it under the plain gradient

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(Lossy() for _ in range(14))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return x.sum(1)

    model = zoo.randomise(Model())
    report = audit.explainability(model, zoo.floats(N, WIDTH), rules="gi", file=None)
    text = str(report)
    assert f"{len(report.absorbed) - 8} other constants" in text
    total = sum(report.absorbed.values())
    assert f"absorbed by constants  {total:+.6f}" in text
    assert f"unaccounted for        {report.conservation_error:+.2e}" in text
    assert "none: plain gradient x input" in text
    lossy = [m for m in report.layers if abs(m.error) > 1e-4 * abs(report.output)]
    kept = len(report.layers) - len(lossy)
    assert f"By layer: {kept} of {len(report.layers)} modules conserve" in text
    assert len(lossy) > 12 and f"... and {len(lossy) - 12} more in report.layers" in text
    worst = max(lossy, key=lambda layer: abs(layer.error))
    assert text.index(f"{worst.error:+11.2e}  {worst.module or '(model)'}") > 0


def test_a_report_is_printed_where_standard_output_goes_at_the_time() -> None:
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with contextlib.redirect_stdout(io.StringIO()) as taken:
        report = audit.explainability(layer, x, 0)
        audit.explainability(layer, x, 0, file=None)
    assert taken.getvalue() == f"{report}\n"
    into = io.StringIO()
    assert str(audit.explainability(layer, x, 0, file=into)) + "\n" == into.getvalue()


def test_findings_are_not_lost_when_the_explanation_is_strict() -> None:
    x = zoo.floats(N, WIDTH)
    with pytest.raises(UncoveredOperationError, match="Cos"):
        audit.explainability(lambda t: t.cos().sum(1), x, strict=True, file=None)
    with pytest.raises(UncoveredOperationError, match="Cos"):
        ConservativeLRP(lambda t: t.cos().sum(1)).attribute(x, strict=True)


@pytest.mark.parametrize("place", range(3))
def test_a_kernel_is_linear_in_its_values(place: int) -> None:
    """Called by its own name no rule sees it; under a pattern that is given none is needed."""
    torch.manual_seed(0)
    others = list(torch.randn(3, 1, 2, 4, 8))

    def kernel(x: torch.Tensor) -> torch.Tensor:
        given = [x if i == place else other for i, other in enumerate(others)]
        mixed = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given)[0]
        return mixed.flatten(1).sum(1)

    report = audit.explainability(kernel, torch.randn(1, 2, 4, 8), file=None)
    assert report.is_covered == (place == 2)
    if place == 2:
        assert abs(report.conservation_error) <= 1e-5 * abs(report.output)


@pytest.mark.parametrize("place", range(3))
def test_a_batch_norm_is_affine_in_its_weight_and_bias(place: int) -> None:
    """Called by its own name, with statistics that are given."""
    torch.manual_seed(0)
    others = list(torch.randn(3, 5))
    others[0] = others[0][None]

    def norm(x: torch.Tensor) -> torch.Tensor:
        given = [x.sum(0) if i == place else other for i, other in enumerate(others)]
        given[0] = given[0].reshape(1, 5)
        size = torch.zeros(5), torch.ones(5)
        return torch.ops.aten.native_batch_norm(*given, *size, False, 0.1, 1e-5)[0].sum(1)

    report = audit.explainability(norm, torch.randn(1, 5), file=None)
    assert report.is_covered
    assert abs(report.conservation_error) <= 1e-5 * (abs(report.output) + 1)


def one_relevance(spellings: dict[str, Any], x: Tensor, **options: Any) -> None:
    """What all ways to write a function have in common."""
    found = {
        name: ConservativeLRP(way, **options).attribute(x, target=1)
        for name, way in spellings.items()
    }
    first, *others = found
    for other in others:
        torch.testing.assert_close(found[other], found[first], msg=f"{other}, not as {first}")


@pytest.mark.parametrize("preset", ["lrp", "lrp-gated", "attnlrp"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_a_gate_may_be_written_in_place(name: str, preset: str) -> None:
    """Of three dimensions: what a linear layer gives then is a view."""
    torch.manual_seed(0)
    a, b = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    function = getattr(torch, name)
    spellings: dict[str, Any] = {
        "plain": lambda t: (function(a(t)) * b(t)).sum(1),
        "in place": lambda t: (getattr(a(t), name + "_")() * b(t)).sum(1),
        "by function": lambda t: (getattr(torch, name + "_")(a(t)) * b(t)).sum(1),
    }
    one_relevance(spellings, torch.randn(2, 3, 6), rules=preset)


@pytest.mark.parametrize("preset", ["lrp", "lrp-gated", "lrp-gamma", "attnlrp"])
def test_a_gate_that_weighs_tokens_is_one_in_a_matrix_product(preset: str) -> None:
    torch.manual_seed(0)
    score, values = torch.nn.Linear(6, 1), torch.nn.Linear(6, 4)
    spellings: dict[str, Any] = {
        "entry by entry": lambda t: (score(t).sigmoid() * values(t)).sum(1),
        "matrix product": lambda t: (score(t).sigmoid().mT @ values(t))[:, 0],
        "einsum": lambda t: torch.einsum("bt,btd->bd", score(t).sigmoid()[..., 0], values(t)),
    }
    one_relevance(spellings, torch.randn(2, 5, 6), rules=preset)


@pytest.mark.parametrize("preset", ["lrp", "lrp-gated", "attnlrp"])
def test_bounds_are_gates_and_activations(preset: str) -> None:
    torch.manual_seed(0)
    a, b = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    functional, zero = F, torch.zeros(())
    x = torch.randn(2, 6)
    gates: dict[str, Any] = {
        "hardsigmoid": lambda t: functional.hardsigmoid(a(t)) * b(t),
        "clamp": lambda t: (a(t) + 3).clamp(0, 6) / 6 * b(t),
        "relu6": lambda t: functional.relu6(a(t) + 3) / 6 * b(t),
        "maximum": lambda t: (
            torch.minimum(torch.maximum(a(t) + 3, zero), 6 * zero.exp()) / 6 * b(t)
        ),
    }
    rectified: dict[str, Any] = {
        "relu": lambda t: functional.relu(a(t)) * b(t),
        "clamp": lambda t: a(t).clamp(min=0) * b(t),
        "clamp_min": lambda t: a(t).clamp_min(0) * b(t),
        "maximum": lambda t: torch.maximum(zero, a(t)) * b(t),
        "max": lambda t: torch.max(a(t), torch.zeros_like(b(t))) * b(t),
    }

    def hardswish(t: Tensor) -> Tensor:
        y = a(t)
        return y * (y + 3).clamp(0, 6) / 6

    def fast_gelu(t: Tensor) -> Tensor:
        y = a(t)
        return 0.5 * y * (1 + torch.tanh(y * 0.7978845608 * (1 + 0.044715 * y * y)))

    activations: dict[str, Any] = {
        "hardswish": lambda t: functional.hardswish(a(t)),
        "clamp": hardswish,
    }
    clipped: dict[str, Any] = {
        "clamp": lambda t: a(t).clamp(-0.4, 0.5),
        "maximum": lambda t: torch.minimum(torch.maximum(a(t), zero - 0.4), zero + 0.5),
    }
    gelus: dict[str, Any] = {
        "gelu": lambda t: functional.gelu(a(t), approximate="tanh"),
        "fast": fast_gelu,
    }
    if preset == "attnlrp":  # the three of ``a + 3`` has a share of its own there
        gates.pop("hardsigmoid")
    for spellings in (gates, rectified, activations, clipped, gelus):
        one_relevance(spellings, x, rules=preset)


@pytest.mark.parametrize("bound", ["of each entry", "trained", "wider"])
def test_other_bounds_stay_what_they_are(bound: str) -> None:
    """One that differs from entry to entry, one that is learned, one that spreads the signal."""
    bounds = {
        "of each entry": torch.linspace(0, 1, 4),
        "trained": torch.nn.Parameter(torch.tensor(0.2)),
        "wider": torch.zeros(2, 3, 4),
    }
    torch.manual_seed(0)
    a, x = torch.nn.Linear(6, 4), torch.randn(2, 3, 6)

    def run(t: Tensor) -> Tensor:
        y = a(t[:, :1]) if bound == "wider" else a(t)
        return torch.maximum(y, bounds[bound]).sum(1)

    leaf = x.clone().requires_grad_()
    kept = a(leaf[:, :1] if bound == "wider" else leaf)
    taken = (kept > bounds[bound].detach()) * kept.detach()
    (grad,) = torch.autograd.grad((taken * kept / kept.detach()).sum(1)[:, 2].sum(), leaf)
    found = ConservativeLRP(run, "lrp").attribute(x, target=2)
    torch.testing.assert_close(found, x * grad, rtol=1e-4, atol=1e-5)


def test_a_bound_for_each_example_is_one_for_one_example_too() -> None:
    torch.manual_seed(0)
    a, x, bounds = torch.nn.Linear(6, 4), torch.randn(2, 6), torch.tensor([[0.3], [0.4]])

    def explained(rows: Tensor, least: Tensor) -> Tensor:
        run = ConservativeLRP(lambda t, m: torch.maximum(a(t), m))
        result: Tensor = run.attribute(rows, target=2, additional_forward_args=least)
        return result

    one_by_one = [explained(x[i : i + 1], bounds[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(torch.cat(one_by_one), explained(x, bounds))


def test_signs_of_complex_numbers_are_refused() -> None:
    """A layer of a Fourier neural operator has none; a rule without signs takes it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 5, dtype=torch.cfloat)

    class Spectral(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(self.map(torch.fft.rfft(x)), n=8)

    model, x = Spectral(), torch.randn(2, 8)
    with pytest.raises(UnsupportedModelError, match="which complex numbers do not have; give the"):
        ConservativeLRP(model, "lrp-gamma").attribute(x, target=1)
    taken = Composite({torch.nn.Linear: EpsilonRule()}, base="lrp-gamma")
    torch.testing.assert_close(
        ConservativeLRP(model, taken).attribute(x, target=1),
        ConservativeLRP(model, "lrp").attribute(x, target=1),
    )


class RunningProduct(torch.nn.Module):
    """A linear map, and behind it a function that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(zoo.floats(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(F.linear(x, self.weight), -1)


def test_what_was_left_to_the_gradient_by_choice_is_no_fault() -> None:
    """And nothing else is excused: without the choice the same module is one."""
    model, x = (
        torch.nn.Sequential(RunningProduct(), torch.nn.Linear(WIDTH, 2)),
        zoo.floats(N, WIDTH),
    )
    with pytest.raises(UncoveredOperationError, match="Cumprod in 0"):
        ConservativeLRP(model).attribute(x, target=0, strict=True)
    chosen = Composite({RunningProduct: GradientRule()}, base="lrp")
    ConservativeLRP(model, rules=chosen).attribute(x, target=0, strict=True)
    report = audit.explainability(model, x, target=0, rules=chosen, file=None)
    assert report.is_covered
    assert ["plain gradient was chosen" in finding.what for finding in report.findings] == [True]
