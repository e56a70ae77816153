"""What the engine keeps between the passes: ledgers, packed factors, packs of targets, ratios."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from captum_lrp_tx import audit
from captum_lrp_tx.propagation.autograd import compact
from captum_lrp_tx.propagation.autograd.functions import (
    Stabilize,
    _true_entries,
    nonzero,
    safe_ratio,
)
from captum_lrp_tx.propagation.backward.packing import pack_size
from captum_lrp_tx.propagation.backward.seeds import _rescale
from captum_lrp_tx.propagation.recognition.degrees import Search
from captum_lrp_tx.propagation.state.ledger import Ledger, encloses

# ---- ledger -------------------------------------------------------------------------------------


def test_a_ledger_books_by_name_and_by_module() -> None:
    first, second, free = torch.randn(3), torch.randn(3), torch.randn(3)
    ledger = Ledger([("a.bias", first), ("b.bias", second), ("tied", first)])
    x = torch.randn(3, requires_grad=True)
    y = x * 1
    ledger.absorb(y, first, ledger.name_of(free, first), "a")
    ledger.absorb(y, second, ledger.name_of(second), "a.b")
    ledger.absorb(y, first, ledger.name_of(first), "")
    ledger.absorb(y, free, ledger.name_of(free), "c")
    ledger.absorb(y, free, None, "")
    ledger.absorb(y, torch.zeros(3), "nothing", "")
    ledger.absorb(torch.ones(3), first, "of a constant", "")
    arriving = torch.randn(3)
    y.backward(arriving)
    amounts = [float((t.double() * arriving.double()).sum()) for t in (first, second, free)]
    expected = {
        "a.bias": 2 * amounts[0],
        "b.bias": amounts[1],
        "c: constant": amounts[2],
        "constant": amounts[2],
    }
    booked = ledger.by_name()
    assert booked == pytest.approx(expected)
    assert [abs(v) for v in booked.values()] == sorted(map(abs, booked.values()), reverse=True)
    assert ledger.inside("a") == pytest.approx(amounts[0] + amounts[1])
    assert ledger.inside("a.b") == pytest.approx(amounts[1])
    assert ledger.inside("c") == pytest.approx(amounts[2])
    assert ledger.inside("") == pytest.approx(sum(expected.values()))


class Deep(torch.nn.Module):
    """Residual blocks, each of which subtracts a maximum that it has cut off."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            scores = block(x)
            x = x + (scores - scores.amax(-1, keepdim=True).detach()).exp() * 1e-2
        return x


def test_what_is_looked_at_grows_with_the_depth_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every node of the graph once, also for what is cut off and what crosses modules."""
    looked_at = [0]
    edges = Search._edges

    def counted(self: Search, node: Any) -> Any:
        looked_at[0] += 1
        return edges(self, node)

    monkeypatch.setattr(Search, "_edges", counted)
    counts = []
    for blocks in (10, 20):
        looked_at[0] = 0
        audit.explainability(Deep(blocks), torch.randn(1, 3, 4), (0, 0), file=None)
        counts.append(looked_at[0])
    assert 0 < counts[1] <= 2.2 * counts[0]


def test_an_infinity_behind_a_mask_takes_nothing() -> None:
    ledger = Ledger([])
    y = torch.ones(3, requires_grad=True) * 1
    ledger.absorb(y, torch.tensor([-math.inf, 2.0, math.inf]), "mask", "")
    y.backward(torch.tensor([0.0, 3.0, 0.0]))
    assert ledger.by_name() == {"mask": 6.0}


def test_names_are_handed_on() -> None:
    weight = torch.randn(3)
    ledger = Ledger([("weight", weight)])
    doubled, other = weight * 2, torch.randn(3)
    ledger.inherit(doubled, other, weight)
    ledger.inherit(other, torch.randn(3))
    ledger.inherit(3.0, weight)
    assert ledger.name_of(doubled) == "weight" and ledger.name_of(other) is None
    ledger.inherit(weight, doubled)
    assert ledger.name_of(3.0) is None and ledger.name_of() is None


@pytest.mark.parametrize(
    "outer, inner, expected",
    [("", "a", True), ("", "", True), ("a", "a", True), ("a", "a.b", True), ("a", "ab", False),
     ("a.b", "a", False), ("a", "", False)],
)  # fmt: skip
def test_enclosing_modules(outer: str, inner: str, expected: bool) -> None:
    assert encloses(outer, inner) is expected


# ---- packed factors -----------------------------------------------------------------------------
def slope(name: str, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    function = F.gelu if name == "Gelu" else F.silu
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return gradient


RATIOS = {"Gelu": F.gelu, "Silu": F.silu, "Tanh": torch.tanh, "Mish": F.mish,
          "Hardswish": F.hardswish}  # fmt: skip


@pytest.mark.parametrize("what, name", [
    *(("slope", name) for name in sorted(compact.SLOPES)),
    *(("ratio", name) for name in sorted(compact.RATIOS)),
])  # fmt: skip
def test_packed_factors_are_exact_to_rounding_everywhere(what: str, name: str) -> None:
    x = torch.linspace(-30, 30, compact.LARGE + 1)
    factor = slope(name, x) if what == "slope" else (RATIOS[name](x) / x).masked_fill(x == 0, 0.5)
    assert compact.packs(compact.SLOPES if what == "slope" else compact.RATIOS, name, x)
    low, high = compact.pack(factor.clone())
    assert (low.element_size(), high.element_size()) == (2, 1)
    grad = torch.randn_like(x)
    got = compact.times(grad, low, high)
    assert ((got - grad * factor).abs() <= 3e-7 * grad.abs()).all()


def test_what_is_small_unknown_or_of_another_precision_is_not_packed() -> None:
    large = torch.zeros(compact.LARGE)
    assert compact.packs(compact.RATIOS, "Tanh", large)
    assert not compact.packs(compact.RATIOS, "Tanh", large[1:])
    assert not compact.packs(compact.RATIOS, "Relu", large)
    assert not compact.packs(compact.RATIOS, "Tanh", large.half())


# ---- packs of targets ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "output, leaves, targets, expected",
    [
        ((1, 2), [(1, 10)], 1, 1),
        ((1, 2), [(1, 10)], 5, 5),
        ((1, 2), [(1, 10)], 100, 8),
        ((1, 2), [(1 << 22,)], 100, 2),
        ((1, 2), [(1 << 21,), (1 << 21,)], 100, 2),
        ((1 << 22,), [(1, 1)], 100, 2),
        ((1, 2), [(1 << 24,)], 100, 1),
        ((1, 2), [(1 << 20,)], 100, 8),
        ((0,), [], 3, 3),
    ],
)
def test_how_many_targets_share_a_pass(
    output: tuple[int, ...], leaves: list[tuple[int, ...]], targets: int, expected: int
) -> None:
    tensors = [torch.empty(shape, device="meta") for shape in leaves]
    assert pack_size(torch.empty(output, device="meta"), tensors, targets) == expected


# ---- ratios -------------------------------------------------------------------------------------
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ratios_are_finite_and_right(dtype: torch.dtype, epsilon: float) -> None:
    top = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0], dtype=dtype)
    bottom = torch.tensor([2.0, -4.0, -1.5, 0.0, 0.0], dtype=dtype)
    got = safe_ratio(top, bottom, epsilon)
    assert got.dtype == dtype
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    below = bottom.double() + epsilon * signs
    expected = torch.where(below == 0, 0.0, top.double() / below)
    torch.testing.assert_close(got.double(), expected.to(dtype).double(), rtol=1e-6, atol=0)
    wide = safe_ratio(top, bottom, epsilon, wide=True)
    assert wide.dtype == (torch.float32 if got.element_size() == 2 else dtype)
    torch.testing.assert_close(wide.double(), expected, rtol=1e-6, atol=0)


def test_what_is_below_the_smallest_normal_number_counts_as_zero() -> None:
    tiny = torch.finfo(torch.float32).tiny
    ones = torch.ones(3)
    assert safe_ratio(ones, torch.tensor([tiny / 2, -tiny / 2, tiny])).tolist() == [0, 0, 1 / tiny]
    # of large tensors the smallest entry is asked for first
    many = torch.linspace(-2, 3, 1 << 19).where(torch.arange(1 << 19) % 2 == 0, 1.0)
    assert many.abs().min() > 0 and torch.equal(safe_ratio(many + 1, many), (many + 1) / many)
    for few in (0.0, tiny / 2, math.nan):
        many[12345] = few
        got, plain = safe_ratio(many + 1, many), (many + 1) / many
        plain[12345] = few if math.isnan(few) else 0.0
        assert torch.equal(got.nan_to_num(-7.0), plain.nan_to_num(-7.0))


def test_zeros_become_something_to_divide_by() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.tensor([0.0, 1.0, -2.0], dtype=dtype)
        got = nonzero(x)
        assert got[0] > 0 and torch.equal(got[1:], x[1:])
        assert torch.isfinite(1 / got).all() and got[0] < 1e-3


@pytest.mark.parametrize("dtype, rounding", [
    (torch.float64, 2.0**-52), (torch.float32, 2.0**-22), (torch.bfloat16, 2.0**-7),
    (torch.float16, 2.0**-10),
])  # fmt: skip
@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 0.5])
def test_the_epsilon_rule_at_every_magnitude(
    dtype: torch.dtype, rounding: float, epsilon: float
) -> None:
    """``z / (z + epsilon sign z)``, wherever it differs from one by more than rounding."""
    z = torch.logspace(-4, 4, 2000, dtype=torch.float64).to(dtype)
    for values in (z, -z, torch.cat([z, torch.full((40_000,), 1e4, dtype=dtype)])):
        leaf = values.clone().requires_grad_()
        output = Stabilize.call(leaf, epsilon)
        assert torch.equal(output, values)
        (gradient,) = torch.autograd.grad(output.double().sum(), leaf)
        wide = values.double()
        expected = wide / (wide + epsilon * wide.sign())
        torch.testing.assert_close(gradient.double(), expected, rtol=2 * rounding, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 12) | st.integers(0, 12).map(lambda n: 8 * n),
    st.lists(st.integers(0, 99), max_size=30),
    st.integers(1, 2),
    st.integers(0, 9),
)
def test_true_entries_of_a_mask(size: int, true: list[int], stride: int, offset: int) -> None:
    mask = torch.zeros(offset + size * stride, dtype=torch.bool)[offset::stride]
    mask[[i for i in true if i < size]] = True
    assert torch.equal(_true_entries(mask), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("few, part", [(2**12, 1 / 4), (2**15, 1.0)])
def test_few_factors_of_the_epsilon_rule_are_all_that_is_kept(few: int, part: float) -> None:
    kept: list[Tensor] = []
    z = torch.ones(2**16, requires_grad=True)
    with torch.no_grad():
        z[:few] = 1e-6
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Stabilize.call(z, 1e-9)
    size = sum(t.numel() * t.element_size() for t in kept)
    assert size <= part * z.numel() * z.element_size()


def test_the_epsilon_rule_at_zero() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(Stabilize.call(leaf, 1e-9).sum(), leaf)
    assert not gradient.any()


def test_what_was_booked_is_scaled_with_the_seed() -> None:
    """A backward pass in float16 that overflowed starts over from a smaller seed."""

    def booked(*values: float) -> Any:
        one, two, three = values
        return SimpleNamespace(
            ledger=SimpleNamespace(entries=[SimpleNamespace(relevance=one)]),
            boundaries=[SimpleNamespace(at_output=two, at_input=three)],
        )

    scope = booked(3.0, -2.0, 4.0)
    _rescale(scope, 0.5)
    assert scope == booked(1.5, -1.0, 2.0)
    scope = booked(math.inf, math.nan, -math.inf)
    _rescale(scope, 0.0)
    assert scope == booked(0.0, 0.0, 0.0)
    scope = SimpleNamespace(ledger=None, boundaries=[])
    _rescale(scope, 0.5)  # nothing is booked without an audit
