"""The constant of AttnLRP's softmax expansion in the ledger, against the equations in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import Composite, audit
from captum_lrp_tx.rules import AHRule, GeneralizedGammaRule

TOKENS, WIDTH = 4, 3


class Head(nn.Module):
    """One attention head on given queries, keys and values, read out with fixed weights."""

    def __init__(self, how: str, masked: bool) -> None:
        super().__init__()
        self.how, self.masked = how, masked
        self.read = nn.Linear(TOKENS * WIDTH, 1, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(TOKENS, TOKENS, dtype=q.dtype)
        if self.masked:
            mask = mask.masked_fill(~torch.ones_like(mask, dtype=torch.bool).tril(), -torch.inf)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask)[:, 0]
        else:
            mixed = (q @ k.mT / math.sqrt(WIDTH) + mask).softmax(-1) @ v
        return self.read(mixed.flatten(1))


def constant_by_hand(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, masked: bool) -> float:
    """Achtibat et al.: half to the pattern (eq. 13), and what eq. 11 does not pass on of it."""
    total = 0.0
    for i in range(TOKENS):
        seen = range(i + 1 if masked else TOKENS)
        s = [float(q[i] @ k[j]) / math.sqrt(WIDTH) for j in seen]
        p = [math.exp(a) / sum(map(math.exp, s)) for a in s]
        to_pattern = [0.5 * p[j] * float(v[j] @ weight[i]) for j in seen]
        passed = sum(s[j] * (to_pattern[j] - p[j] * sum(to_pattern)) for j in seen)
        total += sum(to_pattern) - passed
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("how", ["fused", "spelled out"])
def test_against_the_equations(how: str, masked: bool) -> None:
    torch.manual_seed(1)
    head = Head(how, masked).double()
    qkv = tuple(torch.randn(1, TOKENS, WIDTH, dtype=torch.float64) for _ in range(3))
    report = audit.explainability(head, qkv, target=0, rules="attnlrp", file=None)
    weight = head.read.weight.detach().view(TOKENS, WIDTH)
    expected = constant_by_hand(*(t[0] for t in qkv), weight, masked)
    (name,) = report.absorbed
    assert name.endswith("constant of the softmax")
    assert report.absorbed[name] == pytest.approx(expected, rel=1e-6)
    assert abs(report.conservation_error) < 1e-8


@pytest.mark.parametrize("rules", ["attnlrp", "attnlrp-gamma", "above"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_relevance_and_named_constants_are_the_logit(
    family: str, implementation: str, rules: Any
) -> None:
    pytest.importorskip("transformers")
    from language_models import language_model

    if rules == "above":
        rules = Composite({"*.1": [AHRule(), GeneralizedGammaRule(0.1)]}, base="attnlrp")
    model = language_model(family, implementation)
    ids = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 9, 4, 4, 12, 3]])
    report = audit.explainability(model, ids, target=(-1, 3), rules=rules, file=None)
    assert report.is_covered
    assert abs(report.conservation_error) < 1e-4 * abs(report.output)
    assert any("constant of the softmax" in name for name in report.absorbed)
    assert max(abs(layer.error) for layer in report.layers) < 1e-4 * abs(report.output)


def test_rules_that_hold_the_pattern_have_no_such_constant() -> None:
    torch.manual_seed(1)
    qkv = tuple(torch.randn(1, TOKENS, WIDTH, dtype=torch.float64) for _ in range(3))
    for rules in ("lrp", "ah+ln", "gi"):
        report = audit.explainability(Head("fused", True).double(), qkv, 0, rules=rules, file=None)
        assert not report.absorbed
