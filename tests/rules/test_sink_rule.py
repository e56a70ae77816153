"""Attention sinks as constants, against loops over a frozen pattern and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.rules import AHRule, ByDepthRule, LNRule, SinkRule, UniformAttentionRule

HEADS, TOKENS, WIDTH = 2, 5, 3


class Heads(nn.Module):
    """Causal attention of two heads on given queries, keys and values, read out linearly."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.read = nn.Linear(HEADS * TOKENS * WIDTH, 1, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "shared":
            mixed = F.scaled_dot_product_attention(
                q, k[:, :1], v[:, :1], is_causal=True, enable_gqa=True
            )
        else:
            seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
            scores = (q @ k.mT / math.sqrt(WIDTH)).masked_fill(~seen, -torch.inf)
            if self.how == "einsum":
                mixed = torch.einsum("bhij,bhjc->bhic", scores.softmax(-1), v)
            else:
                mixed = scores.softmax(-1) @ v
        return self.read(mixed.flatten(1))


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """All queries of the first head look at the first token, those of the second all around."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, HEADS, TOKENS, WIDTH, dtype=torch.float64) for _ in range(3))
    q[0, 0], k[0, 0] = 1.0, -1.0
    k[0, 0, 0] = 1.5
    return q, k, v


def pattern_of(q: Tensor, k: Tensor, h: int) -> list[list[float]]:
    rows = []
    for i in range(TOKENS):
        s = [math.exp(float(q[0, h, i] @ k[0, h, j]) / math.sqrt(WIDTH)) for j in range(i + 1)]
        rows.append([a / sum(s) for a in s] + [0.0] * (TOKENS - i - 1))
    return rows


def make(how: str) -> Heads:
    torch.manual_seed(4)
    return Heads(how).double()


@pytest.mark.parametrize("how", ["fused", "product", "einsum"])
def test_against_loops(how: str) -> None:
    model, (q, k, v) = make(how), drawn()
    weight = model.read.weight.detach().view(HEADS, TOKENS, WIDTH)
    got = ConservativeLRP(model, Composite({"": SinkRule(AHRule())}, base="lrp"))
    relevance = got.attribute((q, k, v), target=0)[2]
    held = 0.0
    for h in range(HEADS):
        p = pattern_of(q, k, h)
        for j in range(TOKENS):
            value = [
                sum(p[i][j] * float(v[0, h, j, c] * weight[h, i, c]) for i in range(TOKENS))
                for c in range(WIDTH)
            ]
            is_sink = sum(p[i][j] for i in range(1, TOKENS)) / (TOKENS - 1) >= 0.5
            assert is_sink == ((h, j) == (0, 0))
            held += sum(value) * is_sink
            expected = torch.tensor(value, dtype=torch.float64) * (not is_sink)
            torch.testing.assert_close(relevance[0, h, j], expected, rtol=1e-6, atol=1e-9)
    report = audit.explainability(model, (q, k, v), 0, rules=got.composite, file=None)
    assert report.absorbed[": attention sink"] == pytest.approx(held, rel=1e-6)
    assert abs(report.conservation_error) < 1e-8


def test_against_finite_differences_of_the_frozen_function() -> None:
    model, (q, k, v) = make("fused"), drawn()
    rules = Composite({"": SinkRule(AHRule())}, base="lrp")
    relevance = ConservativeLRP(model, rules).attribute((q, k, v), target=0)[2]
    pattern = torch.tensor([[pattern_of(q, k, h) for h in range(HEADS)]], dtype=torch.float64)

    def frozen(values: Tensor) -> float:
        free = values.clone()
        free[0, 0, 0] = v[0, 0, 0]  # the sink
        return float(model.read((pattern @ free).flatten(1)))

    step = 1e-4
    for place in torch.cartesian_prod(*map(torch.arange, v.shape)).tolist():
        moved = v.clone()
        moved[tuple(place)] += step
        back = v.clone()
        back[tuple(place)] -= step
        slope = (frozen(moved) - frozen(back)) / (2 * step)
        value = float(v[tuple(place)])
        assert float(relevance[tuple(place)]) == pytest.approx(slope * value, abs=1e-7)


@pytest.mark.parametrize("inner", [AHRule(), UniformAttentionRule()])
@pytest.mark.parametrize("how", ["fused", "product", "shared"])
def test_everything_else_is_the_inner_rule_and_adds_up(how: str, inner: Any) -> None:
    model, inputs = make(how), drawn()
    base = Composite({"": inner}, base="lrp")
    plain = ConservativeLRP(model, base).attribute(inputs, target=0)
    rules = Composite({"": SinkRule(inner)}, base="lrp")
    got = ConservativeLRP(model, rules).attribute(inputs, target=0)
    for a, b in zip(plain[:2], got[:2]):  # queries and keys
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(plain[2][:, :, 1:], got[2][:, :, 1:])
    lost = float((plain[2] - got[2]).sum())
    report = audit.explainability(model, inputs, 0, rules=rules, file=None)
    before = audit.explainability(model, inputs, 0, rules=base, file=None)
    assert abs(lost) > 1e-3
    assert report.absorbed[": attention sink"] == pytest.approx(lost, rel=1e-6)
    assert abs(report.conservation_error) < 1e-8 and abs(before.conservation_error) < 1e-8


def test_the_forward_result_is_untouched() -> None:
    for how in ("fused", "product", "shared"):
        model, inputs = make(how), drawn()
        seen: list[Tensor] = []
        model.register_forward_hook(lambda *a, seen=seen: seen.append(a[2].detach().clone()))
        expected = model(*inputs)
        rules = Composite({"": SinkRule(AHRule())}, base="lrp")
        ConservativeLRP(model, rules).attribute(inputs, target=0)
        assert torch.equal(seen[-1], expected)


@pytest.mark.parametrize("how", ["fused", "product"])
def test_a_query_without_a_choice_makes_no_sink(how: str) -> None:
    model, (q, k, v) = make(how), drawn()
    # heads look evenly at what they see: the first key takes .46 of the mean over all queries, but
    # .32 of that over those with a choice
    lower = Composite({"": SinkRule(AHRule(), share=0.4)}, base="lrp")
    assert (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / TOKENS > 0.4 > (1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4
    report = audit.explainability(model, (0 * q, k, v), 0, rules=lower, file=None)
    assert not report.absorbed


class Seeing(nn.Module):
    """Attention under a mask, fused or spelled out, read out linearly."""

    def __init__(self, mask: Tensor | None, fused: bool) -> None:
        super().__init__()
        self.mask, self.fused = mask, fused
        self.read = nn.Linear(HEADS * TOKENS * WIDTH, 1, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, self.mask)
        else:
            scores = q @ k.mT / math.sqrt(WIDTH)
            if self.mask is not None:
                scores = scores.masked_fill(~self.mask, -torch.inf) if (
                    self.mask.dtype == torch.bool) else scores + self.mask  # fmt: skip
            mixed = scores.softmax(-1) @ v
        return self.read(mixed.flatten(1))


SEEN = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
FINITE = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).masked_fill(~SEEN, -1e9)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "mask, is_causal",
    [(None, False), (SEEN, True), (FINITE, True), (SEEN[None, None], True),
     (torch.ones_like(SEEN), False), (SEEN | SEEN.T.roll(1, 0), False)],
)  # fmt: skip
def test_causal_only(fused: bool, mask: Tensor | None, is_causal: bool) -> None:
    torch.manual_seed(4)
    model, inputs = Seeing(mask, fused).double(), drawn()
    given = [
        ConservativeLRP(model, Composite({"": rule}, base="lrp")).attribute(inputs, target=0)[2]
        for rule in (AHRule(), SinkRule(AHRule()), SinkRule(AHRule(), causal_only=True))
    ]
    assert not torch.equal(given[0], given[1])  # there is a sink
    torch.testing.assert_close(given[2], given[1] if is_causal else given[0], rtol=0, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_language_models_with_padding(implementation: str, side: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, attn_implementation=implementation,
        pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    rules = Composite(
        {"": ByDepthRule(SinkRule(UniformAttentionRule(), 0.4), SinkRule(AHRule(), 0.4))},
        base="attnlrp",
    )
    lrp = ConservativeLRP(model, rules)
    text = torch.tensor([[3, 9, 4, 7, 21, 11]])
    alone = lrp.attribute(text, target=(-1, 5))
    report = audit.explainability(model, text, target=(-1, 5), rules=rules, file=None)
    assert abs(report.conservation_error) < 1e-4 * abs(report.output) and report.is_covered
    assert any(name.endswith("attention sink") for name in report.absorbed)
    padding = torch.zeros(1, 3, dtype=torch.long)
    parts = (padding, text) if side == "left" else (text, padding)
    mask = torch.cat([torch.full_like(p, i == (side == "left")) for i, p in enumerate(parts)], 1)
    ids, place = torch.cat(parts, 1), -1 if side == "left" else 5
    batch = {"input_ids": ids, "attention_mask": mask,
             "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}  # fmt: skip
    padded = lrp.attribute(batch, target=(place, 5))
    kept = padded[:, 3:] if side == "left" else padded[:, :6]
    torch.testing.assert_close(kept, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((LNRule(),), "SinkRule takes AHRule"),
        ((AHRule(), 0.0), "share must be"),
        ((AHRule(), 1.5), "share must be"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        SinkRule(*arguments)
