"""Relevance equals an independent computation on every model of the zoo.

The oracle replays a recording of the plain forward pass with attention patterns and normalisers
held at their recorded values, and differentiates it with plain autograd.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP
from captum_lrp_tx.propagation.autograd import functions, pattern_product
from cases import dict_inputs, forward, scale
from oracle import RULES

pytestmark = [pytest.mark.core, pytest.mark.image_models]


def attribute(case: Any, rules: str, **options: Any) -> tuple[Tensor, ...]:
    inputs = dict_inputs(case)
    result = ConservativeGI(forward(case), rules=rules).attribute(
        inputs, target=case.target, **options
    )
    return result if isinstance(result, tuple) else (result,)


@functools.lru_cache(maxsize=1)
def built(entry: zoo.Entry) -> zoo.Case:
    """One case for all rule sets, so that the oracle records it once."""
    return entry.build()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("entry", zoo.cases(), ids=str)
def test_relevance_equals_oracle(entry: Any, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = built(entry)
    expected = case.expected(rules)
    tolerances = [1e-5 * scale(case, rules, want) for want in expected]
    for is_long in (False, True):
        if is_long:  # the models are small: go the ways of long inputs as well
            monkeypatch.setattr(pattern_product, "SHORT", 0)
            monkeypatch.setattr(functions.Stabilize, "SMALL", 0)
        result = attribute(case, rules)
        assert len(result) == len(expected)
        for got, want, tolerance in zip(result, expected, tolerances, strict=True):
            assert got.shape == want.shape
            error = (got - want).abs().max()
            assert error <= tolerance, f"{error:.2e} > {tolerance:.2e}"


@pytest.mark.parametrize("entry", zoo.cases(), ids=str)
def test_forward_is_bit_identical_and_model_untouched(entry: Any, untouched: Any) -> None:
    case = entry.build()
    plain = case.forward(*case.inputs).detach()
    seen: list[Tensor] = []

    def recording(*args: Any) -> Any:
        returned = case.forward(*args)
        seen.append(returned.detach().clone())
        return returned

    for rules in ("ah+ln", "lrp", "attnlrp"):
        with untouched(case.model):
            ConservativeLRP(recording, rules=rules).attribute(dict_inputs(case), target=case.target)
        assert torch.equal(seen[-1], plain), rules


@pytest.mark.parametrize(
    # the kernel cases hold one mask for each example of their batch in the model itself
    "entry",
    zoo.cases(without=("slow", "kernel")),
    ids=str,
)
def test_batch_equals_one_by_one(entry: Any) -> None:
    case = entry.build()
    if case.kwargs or not isinstance(case.target, int) or len(case.inputs) > 1:
        pytest.skip("needs per-example arguments; covered by the padding test")
    whole = ConservativeLRP(case.model).attribute(case.inputs[0], target=case.target)
    for i in range(case.inputs[0].shape[0]):
        one = ConservativeLRP(case.model).attribute(case.inputs[0][i : i + 1], target=case.target)
        torch.testing.assert_close(
            whole[i : i + 1], one, rtol=1e-3, atol=1e-5 * float(whole.abs().max())
        )


class WeightFirst(torch.nn.Module):
    """``weight @ x``: torch folds this product for trainable weights only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x).sum(-1)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_on_the_left_keeps_its_value_and_gradient(frozen: bool) -> None:
    model = WeightFirst().requires_grad_(not frozen)
    x = torch.randn(3, 5, 6)
    seen: list[Tensor] = []

    def forward(v: Tensor) -> Tensor:
        seen.append(model(v))
        return seen[-1]

    relevance = ConservativeLRP(forward).attribute(x, target=2)
    leaf = x.clone().requires_grad_()
    plain = model(leaf)
    assert torch.equal(seen[0], plain)
    (grad,) = torch.autograd.grad(plain[:, 2].sum(), leaf)
    torch.testing.assert_close(relevance, x * grad, rtol=1e-5, atol=1e-6)


def test_residual_in_place_with_distributed_bias() -> None:
    class Inplace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
            torch.nn.init.normal_(self.norm.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            x += self.up(self.norm(x))
            x += torch.nn.functional.relu_(self.up(x))
            return x

    model, x = Inplace(), torch.randn(2, 6)
    _, delta = ConservativeLRP(model, bias="distribute").attribute(
        x, target=0, return_convergence_delta=True
    )
    torch.testing.assert_close(delta, torch.zeros(2), atol=1e-5, rtol=0)


def test_batch_norm_before_a_transposition() -> None:
    """Torch's own gradient of this is wrong on the CPU, where the arriving gradient has strides."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(4))
        norm.bias.copy_(torch.randn(4))
        norm.running_mean.copy_(torch.randn(4))
        norm.running_var.copy_(torch.rand(4) + 0.5)
    x, readout = torch.randn(2, 4, 3, 3), torch.randn(2, 9, 4)

    def forward(v: Tensor) -> Tensor:
        return (norm(v).flatten(2).transpose(1, 2) * readout).sum((1, 2))

    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = x * factor.detach()[:, None, None] * readout.transpose(1, 2).reshape(2, 4, 3, 3)
    for rules in ("gi", "lrp"):
        got = ConservativeGI(forward, rules=rules).attribute(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


class Latents(nn.Module):
    """Learned rows that look at the inputs: a batch of one, or expanded."""

    def __init__(self, expand: bool) -> None:
        super().__init__()
        self.rows, self.expand = nn.Parameter(torch.randn(1, 3, 8)), expand
        self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows.expand(len(x), 3, 8) if self.expand else self.rows
        scores = self.query(rows) @ self.key(x).mT
        result: Tensor = self.out(scores.softmax(-1) @ x).mean(1)
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.layer(x)[0]).mean(1)
        return result


@pytest.mark.parametrize("rules", ["gi", "ah+ln", "lrp"])
@pytest.mark.parametrize("kind", ["latents", "expanded latents", "GRU"])
def test_forward_is_bit_identical_where_torch_picks_kernels(kind: str, rules: str) -> None:
    """Which matrix product torch takes depends on what requires a gradient, and on layouts."""
    for seed in range(10):
        torch.manual_seed(seed)
        model = (Recurrent() if kind == "GRU" else Latents(kind != "latents")).eval()
        x, seen = torch.randn(2, 6, 8), list[Tensor]()
        plain = model(x).detach()

        def recording(i: Tensor, model: nn.Module = model, seen: list[Tensor] = seen) -> Tensor:
            result: Tensor = model(i)
            seen.append(result.detach().clone())
            return result

        ConservativeLRP(recording, rules=rules).attribute(x, target=1)
        assert torch.equal(seen[-1], plain), seed
