"""Models in bfloat16 and float16: close to the same weights in float64, and no overflow.

Tolerance: the largest error of a relevance, against float64 on the same (rounded) weights and
relative to the largest relevance, is below 0.06 in bfloat16 and 0.01 in float16, which is 8 and 10
times the spacing of numbers at one there.  Sums over features and parts are taken in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import state_space_models
import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeLRP, audit

TOLERANCE = {torch.bfloat16: 0.06, torch.float16: 0.01}
METHODS: dict[str, Any] = {
    "GI": ConservativeGI,
    "LRP": ConservativeLRP,
    "LRP-distribute": lambda model: ConservativeLRP(model, bias="distribute"),
    "LRP-gamma": lambda model: ConservativeLRP(model, "lrp-gamma"),
    "AttnLRP": lambda model: ConservativeLRP(model, "attnlrp"),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
CASES = [
    "hf-BertForSequenceClassification-eager",
    "hf-LlamaForCausalLM-sdpa",
    "hf-ViTForImageClassification-sdpa",
    "torch-encoder-pre-batchfirst-ids",
    "custom-groupnorm",
]


def compare(model: nn.Module, x: Tensor, target: Any, method: Any, dtype: torch.dtype) -> None:
    low = copy.deepcopy(model).to(dtype)
    high = copy.deepcopy(low).double()
    given, exact = (x.to(dtype), x.to(dtype).double()) if x.is_floating_point() else (x, x)
    got = method(low).attribute(given, target=target)
    expected = method(high).attribute(exact, target=target)
    assert got.dtype == (dtype if x.is_floating_point() else torch.float32)
    assert expected.abs().max() > 1e-4
    assert (got.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@DTYPES
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_relevance_is_that_of_float64(name: str, method: str, dtype: torch.dtype) -> None:
    case = zoo.case(name)
    compare(case.model, case.inputs[0], case.target, METHODS[method], dtype)


@DTYPES
@pytest.mark.parametrize("family", ["Mamba", "Mamba2"])
def test_scans(family: str, dtype: torch.dtype) -> None:
    model, ids = state_space_models.build(family), torch.randint(3, 40, (2, 7))
    compare(model, ids, (6, 1), ConservativeLRP, dtype)


# ---- range of float16 ---------------------------------------------------------------------------
class Steep(nn.Module):
    """Finite activations, and gradients beyond the range of float16."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False)
        nn.init.constant_(self.first.weight, 300.0)
        nn.init.constant_(self.last.weight, 300.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "norm":
            return self.last(F.layer_norm(x, (8,), eps=1e-12))
        if self.how == "softplus":
            return self.last(F.softplus(self.first(x)))
        return self.last(self.first(x))


def small(how: str) -> Tensor:
    """Inputs whose entries are small, so that the gradient is large."""
    x = zoo.floats(3, 8).abs() + 0.5
    if how == "norm":
        return (x * 1e-4).half()
    return (x * (1e-7 if how == "softplus" else 1e-3)).half()


@pytest.mark.parametrize("how", ["linear", "norm", "softplus"])
@pytest.mark.parametrize("method", ["GI", "LRP", "LRP-distribute"])
def test_gradients_beyond_float16(how: str, method: str) -> None:
    model, x = Steep(how).half(), small(how)
    output = model(x)
    assert torch.isfinite(output).all()
    got = METHODS[method](model).attribute(x, target=1)
    expected = METHODS[method](copy.deepcopy(model).double()).attribute(x.double(), target=1)
    assert torch.isfinite(got).all()
    assert got.dtype == torch.float16
    assert (got.double() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_plain_gradients_do_overflow_there() -> None:
    """What the test above is about: autograd's own gradient is infinite."""
    model, x = Steep("linear").half(), small("linear").requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.isinf(gradient).any()


def test_the_ledger_and_layers_beyond_float16() -> None:
    model, x = Steep("linear"), small("linear")
    model.last.bias = nn.Parameter(torch.tensor([0.0, 7.0]))
    model = model.half()
    report = audit.explainability(model, x, target=1, file=None)
    assert report.absorbed["last.bias"] == pytest.approx(21.0, rel=1e-3)
    assert abs(report.conservation_error) <= 0.01 * abs(report.output)
    relevance = LayerConservativeLRP(model, model.first).attribute(x, target=1)
    assert torch.isfinite(relevance).all()
    assert float(relevance.double().sum()) == pytest.approx(report.output - 21.0, rel=0.01)


def test_distributed_bias_of_large_activations() -> None:
    """Their squares exceed the range of float16."""
    model, x = nn.Linear(8, 2).half(), torch.full((1, 8), 400.0).half()
    got = ConservativeLRP(model, bias="distribute").attribute(x, target=1)
    assert float(got.double().sum()) == pytest.approx(float(model(x)[0, 1]), rel=0.01)
