"""Invariance to spelling: one function, one relevance, however it is written."""

from __future__ import annotations

import functools
import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import spellings
from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.errors import UncoveredOperationError

#: The marks that the oracle freezes under the rules that are defined by them.
FROZEN = {"gi": "", "ah": "p", "ln": "n", "ah+ln": "pn"}
PRESETS = (*FROZEN, "lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma")
GAMMA = ("lrp-gamma", "attnlrp-gamma")
ATTNLRP = ("attnlrp", "attnlrp-gamma")
SCALING = "a product entry by entry with constants is a scaling, not a map with weights"
#: Where a rule is defined by the operations themselves, so that the spelling is a choice of rules.
DIFFERENT: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("sigmoid gate", "by its divisor"): (ATTNLRP, "a divisor is a constant, a gate shares"),
    ("sigmoid gate", "half a tanh"): (ATTNLRP, "the constant summand takes its relevance"),
    ("biased linear map", "product and sum"): (GAMMA, SCALING),
    ("memory slots", "product and sum"): (GAMMA, SCALING),
    ("memory slots", "fused"): (("attnlrp-gamma",), "the kernel holds no map with weights"),
}  # fmt: skip
#: What is refused by name instead.
REFUSED: dict[tuple[str, str], tuple[str, ...]] = {
    # an exponential alone has no softmax rule
    **{("attention", name): ATTNLRP for name in ("divided afterwards", "expm1")},
    ("attention", "chunks joined by their totals"): ATTNLRP,
    **{("attention", name): ATTNLRP for name in spellings.ATTENTION if " joined by s" in name},
    ("attention", "divided chunks joined with maxima"): ATTNLRP,
    ("attention", "divided afterwards, entry by entry"): ATTNLRP,
    **{
        ("attention", f"running maximum{start}"): ATTNLRP
        for start in ("", " from zero", " from a score")
    },
    ("memory slots", "fused"): ("lrp", "lrp-gamma"),
}
ALL = [(part, name) for part, table in spellings.PARTS.items() for name in table]


def relevance(part: str, name: str, preset: str, **options: Any) -> Tensor:
    model = spellings.Model(spellings.PARTS[part][name]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ConservativeLRP(model, preset).attribute(spellings.inputs(), target=1, **options)


def first_of(part: str) -> str:
    return next(iter(spellings.PARTS[part]))


@functools.cache
def of_the_first(part: str, preset: str) -> Tensor:
    """What every other spelling of a part is compared with."""
    return relevance(part, first_of(part), preset)


@pytest.mark.parametrize("part, name", ALL)
def test_the_spellings_of_a_part_are_one_function(part: str, name: str) -> None:
    values = [
        spellings.Model(spellings.PARTS[part][n]).eval()(spellings.inputs())
        for n in (name, first_of(part))
    ]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("part, name", ALL)
def test_one_function_has_one_relevance(part: str, name: str, preset: str) -> None:
    if preset in REFUSED.get((part, name), ()):
        with pytest.raises(UncoveredOperationError):
            relevance(part, name, preset, strict=True)
        return
    got, expected = relevance(part, name, preset), of_the_first(part, preset)
    error = float((got - expected).abs().max() / expected.abs().max())
    if preset in DIFFERENT.get((part, name), ((), ""))[0]:
        assert error > 1e-3, "equal by now: take it off the list"
    else:
        assert error < 1e-6


class ByKeyword(TorchFunctionMode):
    """Passes the second operand of every sum and product by keyword, or both."""

    SECOND = {  # noqa: RUF012
        "matmul": "other", "bmm": "mat2", "mul": "other", "div": "other", "truediv": "other",
        "add": "other", "sub": "other",
    }  # fmt: skip

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both, self.count = both, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = getattr(func, "__name__", "")
        name = called.strip("_")
        is_inplace = called.endswith("_") and not called.endswith("__")
        if name not in self.SECOND or len(args) != 2 or is_inplace:
            return func(*args, **(kwargs or {}))
        self.count += 1
        function = getattr(torch, name.replace("truediv", "div"))
        first = ((), {"input": args[0]}) if self.both else (args[:1], {})
        return function(*first[0], **first[1], **{self.SECOND[name]: args[1]}, **(kwargs or {}))


@pytest.mark.parametrize("preset, both", [("ah+ln", False), ("lrp-gamma", False), ("lrp", True)])
@pytest.mark.parametrize("part, name", ALL)
def test_operands_by_keyword_are_the_same_operands(
    part: str, name: str, preset: str, both: bool
) -> None:
    model = spellings.Model(spellings.PARTS[part][name]).eval()
    mode = ByKeyword(both)

    def forward(x: Tensor) -> Tensor:
        with mode:
            return model(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ConservativeLRP(forward, preset).attribute(spellings.inputs(), target=1)
    assert mode.count
    expected = relevance(part, name, preset)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", FROZEN)
@pytest.mark.parametrize("part, name", ALL)
def test_it_is_the_gradient_of_the_frozen_function(part: str, name: str, preset: str) -> None:
    """The plain meaning of ``ah`` and ``ln``: patterns and divisors of norms are constants."""
    model = spellings.Model(spellings.PARTS[part][name], FROZEN[preset]).eval()
    x = spellings.inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    expected = x.detach() * gradient
    if preset in REFUSED.get((part, name), ()):
        pytest.skip("refused by name, as the test above shows")
    got = relevance(part, name, preset)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize("preset", ["ah", "ln", "ah+ln"])
@pytest.mark.parametrize("part, name", ALL)
def test_no_false_alarm(part: str, name: str, preset: str) -> None:
    """What is right is not refused, unless the rules had nothing to act on."""
    if preset not in REFUSED.get((part, name), ()):
        try:
            relevance(part, name, preset, strict=True)
        except UncoveredOperationError as error:
            assert not error.operations
            assert (relevance(part, name, preset) == relevance(part, name, "gi")).all()


def test_every_part_has_at_least_four_spellings_and_most_have_six() -> None:
    counts = sorted(len(table) for table in spellings.PARTS.values())
    assert counts[0] >= 4 and sum(c >= 6 for c in counts) >= len(counts) - 1


@pytest.mark.parametrize("preset", ["ah", "lrp"])
@pytest.mark.parametrize(
    "part, name",
    [("pooling", "product and sum"), ("pooling", "loop"), ("linear attention", "einsum"),
     ("linear attention", "pattern first"), ("two towers", "product and sum")],
)  # fmt: skip
def test_what_is_noted_on_the_graph_goes_with_it(part: str, name: str, preset: str) -> None:
    """A note that leads back to its own node is a cycle that no collector sees."""
    model = spellings.Model(spellings.PARTS[part][name]).eval()
    explainer = ConservativeLRP(model, preset)

    def tensors() -> int:
        for _ in range(4):
            explainer.attribute(spellings.inputs(), target=1)
        gc.collect()
        return sum(type(o) is Tensor for o in gc.get_objects())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors()
        gc.freeze()  # only what comes now is looked at
        try:
            assert tensors() - tensors() == 0
        finally:
            gc.unfreeze()


class Blocks(nn.Module):
    """Two blocks with attention in one spelling, and a head that looks at their mean."""

    class Block(nn.Module):
        def __init__(self, spelling: spellings.Spelling) -> None:
            super().__init__()
            self.weights, self.spelling = spellings.Weights(), spelling

        def forward(self, x: Tensor) -> Tensor:
            return x + self.spelling(self.weights, x, spellings.live, spellings.live)

    def __init__(self, spelling: spellings.Spelling) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(spelling) for _ in range(2))
        self.head = nn.Linear(spellings.WIDTH, 2).double()
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(torch.tanh(x).mean(1))


#: Attention whose sums the graph does not tell by name.
UNNAMED = (
    "product with ones", "a summand inside the sum", "written entry by entry", "pooled",
    "running maximum",
)  # fmt: skip


@pytest.mark.parametrize("name", UNNAMED)
def test_what_the_numbers_tell_holds_in_blocks(name: str) -> None:
    """Also with blocks that run twice, for many targets at once, and in the ledger."""
    written, plain = (Blocks(spellings.ATTENTION[n]).eval() for n in (name, "matmul"))
    written.load_state_dict(plain.state_dict())
    x = spellings.inputs()
    expected = ConservativeLRP(plain, "ah").attribute(x, target=1)
    explainer = ConservativeLRP(written, "ah")
    low = ConservativeLRP(written, "ah", memory="low").attribute(x, target=1)
    _, second = explainer.attribute_targets(x, [0, 1])
    for got in (explainer.attribute(x, target=1, strict=True), low, second):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    told, right = (
        audit.explainability(m, x, target=1, rules="ah", file=None) for m in (written, plain)
    )
    assert sum(told.absorbed.values()) == pytest.approx(sum(right.absorbed.values()))
    assert told.is_covered


#: What a result of attention is multiplied by, from weights, inputs and its scores.
FACTORS: dict[str, Any] = {
    "another sum": lambda w, x, s: w.b(x).exp().sum(-1, keepdim=True),
    "the largest": lambda w, x, s: (s.amax(-1, keepdim=True) - x[..., :1]).exp(),
}


@pytest.mark.parametrize("factor", FACTORS)
def test_what_is_not_summed_of_the_own_scores_is_no_share_of_a_pattern(factor: str) -> None:
    w, leaf = spellings.Weights(), spellings.inputs().requires_grad_()

    def function(x: Tensor, hold: bool = False) -> Tensor:
        s = spellings.scores(w, x)
        p = s.softmax(-1)
        read = (p.detach() if hold else p) @ w.c(x)
        return (read * FACTORS[factor](w, x, s)).sum((1, 2))

    (gradient,) = torch.autograd.grad(function(leaf, True).sum(), leaf)
    got = ConservativeLRP(function, "ah").attribute(leaf.detach())
    torch.testing.assert_close(got, (leaf * gradient).detach(), rtol=1e-8, atol=1e-10)


def test_a_softmax_that_scales_tokens_is_no_attention() -> None:
    """Nothing sums the products up: the gradient differs from token to token."""

    def scaled(w: spellings.Weights, x: Tensor, *_: Any) -> Tensor:
        return spellings.pooling(w, x)[..., None] * w.b(x)

    model, x = Blocks(scaled).eval(), spellings.inputs()
    model.head.register_forward_pre_hook(lambda _, args: (args[0] ** 2,))
    got = ConservativeLRP(model, "ah").attribute(x, target=1)
    torch.testing.assert_close(got, ConservativeLRP(model, "gi").attribute(x, target=1))


@pytest.mark.parametrize("preset", ["ah", "ah+ln"])
def test_gates_in_units_of_their_mean_and_complex_exponentials_are_plain(preset: str) -> None:
    def gated(w: spellings.Weights, x: Tensor, *_: Any) -> Tensor:
        gate = torch.sigmoid(w.a(x))
        return gate * w.b(x) / gate.mean(-1, keepdim=True)

    def turned(w: spellings.Weights, x: Tensor, *_: Any) -> Tensor:
        return torch.exp(1j * w.a(x) - 1j * w.b(x)).real

    for spelling in (gated, turned):
        model, x = Blocks(spelling).eval(), spellings.inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = ConservativeLRP(model, preset).attribute(x, target=1)
            plain = ConservativeLRP(model, "gi").attribute(x, target=1)
        torch.testing.assert_close(got, plain)
        report = audit.explainability(model, x, 1, rules=preset, file=None)
        assert not any(finding.is_fault for finding in report.findings)
