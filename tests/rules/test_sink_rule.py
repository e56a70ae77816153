"""Attention sinks against loops over a frozen pattern and finite differences."""

from __future__ import annotations

import math
from dataclasses import astuple
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, RelevancePatching, audit
from captum_lrp_tx.errors import HiddenSinksWarning, RuleError, UncoveredOperationError
from captum_lrp_tx.rules import AHRule, ByDepthRule, LNRule, SinkRule, UniformAttentionRule
from captum_lrp_tx.rules.attention_sinks import sinks_of

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
            elif self.how == "entries":
                mixed = (scores.softmax(-1).unsqueeze(-1) * v.unsqueeze(2)).sum(3)
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


def is_sink(p: list[list[float]], i: int, j: int) -> bool:
    """Whether key j has half of the attention so far, of the queries 1 to i."""
    return i > 0 and sum(p[n][j] for n in range(1, i + 1)) / i >= 0.5


def make(how: str) -> Heads:
    torch.manual_seed(4)
    return Heads(how).double()


@pytest.mark.core
@pytest.mark.parametrize("how", ["fused", "product", "einsum", "entries"])
def test_against_loops(how: str) -> None:
    model, (q, k, v) = make(how), drawn()
    weight = model.read.weight.detach().view(HEADS, TOKENS, WIDTH)
    got = ConservativeLRP(model, Composite({"": SinkRule(AHRule(), sink="absorb")}, base="lrp"))
    relevance = got.attribute((q, k, v), target=0)[2]
    held = 0.0
    for h in range(HEADS):
        p = pattern_of(q, k, h)
        for j in range(TOKENS):
            expected = torch.zeros(WIDTH, dtype=torch.float64)
            for i in range(TOKENS):
                value = p[i][j] * v[0, h, j] * weight[h, i]
                if is_sink(p, i, j):
                    held += float(value.sum())
                else:
                    expected += value
            torch.testing.assert_close(relevance[0, h, j], expected, rtol=1e-6, atol=1e-9)
        assert all(is_sink(p, i, 0) for i in range(1, TOKENS)) or h == 1
    report = audit.explainability(model, (q, k, v), 0, rules=got.composite, file=None)
    assert report.absorbed[": attention sink"] == pytest.approx(held, rel=1e-6)
    assert abs(report.conservation_error) < 1e-8


@pytest.mark.parametrize("how", ["fused", "product", "einsum", "entries"])
def test_distributed_against_loops(how: str) -> None:
    model, (q, k, v) = make(how), drawn()
    weight = model.read.weight.detach().view(HEADS, TOKENS, WIDTH)
    rules = Composite({"": SinkRule(AHRule())}, base="lrp")
    relevance = ConservativeLRP(model, rules).attribute((q, k, v), target=0)[2]
    for h in range(HEADS):
        p = pattern_of(q, k, h)
        expected = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
        handed = [0.0] * TOKENS
        for i in range(TOKENS):
            others = [j for j in range(i + 1) if not is_sink(p, i, j)]
            for j in range(i + 1):
                value = p[i][j] * v[0, h, j] * weight[h, i]
                if j in others:
                    expected[j] += value
                    continue
                for other in others:
                    share = p[i][other] / sum(p[i][n] for n in others)
                    handed[other] += share * float(value.sum())
        for j in range(TOKENS):
            squares = v[0, h, j] ** 2
            expected[j] += handed[j] * squares / squares.sum()
        torch.testing.assert_close(relevance[0, h], expected, rtol=1e-6, atol=1e-9)
        assert any(handed) or h == 1
    report = audit.explainability(model, (q, k, v), 0, rules=rules, file=None)
    assert not report.absorbed
    assert float(relevance.sum()) == pytest.approx(report.output, rel=1e-9)


def test_a_query_that_sees_nothing_but_sinks_keeps_them() -> None:
    model, (q, k, v) = make("fused"), drawn()
    k[0, 0, 0] *= 1e4  # the others have an attention of zero
    given = [
        ConservativeLRP(model, Composite({"": rule}, base="lrp")).attribute((q, k, v), target=0)[2]
        for rule in (AHRule(), SinkRule(AHRule()))
    ]
    assert torch.equal(given[0][:, 0], given[1][:, 0])


def test_against_finite_differences_of_the_frozen_function() -> None:
    model, (q, k, v) = make("fused"), drawn()
    rules = Composite({"": SinkRule(AHRule(), sink="absorb")}, base="lrp")
    relevance = ConservativeLRP(model, rules).attribute((q, k, v), target=0)[2]
    pattern = torch.tensor([[pattern_of(q, k, h) for h in range(HEADS)]], dtype=torch.float64)

    sinks = torch.tensor([[[[is_sink(p, i, j) for j in range(TOKENS)] for i in range(TOKENS)]
                           for p in pattern[0].tolist()]])  # fmt: skip

    def frozen(values: Tensor) -> float:
        free, held = pattern * ~sinks, pattern * sinks
        return float(model.read((free @ values + held @ v).flatten(1)))

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
    rules = Composite({"": SinkRule(inner, sink="absorb")}, base="lrp")
    got = ConservativeLRP(model, rules).attribute(inputs, target=0)
    for a, b in zip(plain[:2], got[:2]):  # queries and keys
        torch.testing.assert_close(a, b)
    lost = float((plain[2] - got[2]).sum())
    report = audit.explainability(model, inputs, 0, rules=rules, file=None)
    before = audit.explainability(model, inputs, 0, rules=base, file=None)
    assert abs(lost) > 1e-3
    assert report.absorbed[": attention sink"] == pytest.approx(lost, rel=1e-6)
    assert abs(report.conservation_error) < 1e-8 and abs(before.conservation_error) < 1e-8


#: One function of a pattern and of values that all heads share, in the spellings of models.
SHARED = {
    "repeated": lambda p, v: p @ v.repeat(1, p.shape[1], 1, 1),
    "broadcast": lambda p, v: p @ v,
    "einsum": lambda p, v: torch.einsum("bhij,bjc->bhic", p, v[:, 0]),
    "positions first": lambda p, v: torch.einsum("bhij,bjc->bihc", p, v[:, 0]).transpose(1, 2),
    "values first": lambda p, v: (v.mT @ p.mT).mT,
    "batched": lambda p, v: torch.bmm(p.flatten(0, 1), v.expand_as(p @ v).flatten(0, 1)).view_as(
        p @ v),
    "grouped": lambda p, v: torch.einsum(
        "bkgqs,bskd->bkgqd", p.unflatten(1, (1, -1)), v.transpose(1, 2)).flatten(1, 2),
    "channels in two axes": lambda p, v: torch.einsum(
        "bhij,bjxy->bihxy", p, v[:, 0].unflatten(-1, (3, 1))).flatten(3).transpose(1, 2),
    "added": lambda p, v: torch.baddbmm(
        torch.zeros_like(p @ v).flatten(0, 1), p.flatten(0, 1), v.expand_as(p @ v).flatten(0, 1),
        ).view_as(p @ v),
    "by entries": lambda p, v: (p[..., None] * v[:, :, None]).sum(-2),
    "by entries, values first": lambda p, v: (v.mT[:, :, None] * p[..., None, :]).sum(-1),
    "by entries, keys first": lambda p, v: torch.mul(
        p.permute(3, 0, 1, 2)[..., None], v[:, 0].transpose(0, 1)[:, :, None, None]).sum(0),
    "by entries, einsum": lambda p, v: torch.einsum("bhij,bjc->bhijc", p, v[:, 0]).sum(3),
}  # fmt: skip


@pytest.mark.parametrize("sink", ["absorb", "distribute"])
@pytest.mark.parametrize("inner", [AHRule(), UniformAttentionRule()])
@pytest.mark.parametrize("heads", [HEADS, TOKENS])
@pytest.mark.parametrize("how", sorted(SHARED.keys() - {"repeated"}))
def test_every_order_of_axes_has_the_same_sinks(
    how: str, heads: int, inner: Any, sink: Any
) -> None:
    torch.manual_seed(heads)
    scores = torch.randn(2, heads, TOKENS, TOKENS, dtype=torch.float64)
    scores[:, 0, :, 0] += 3.0
    seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    values = torch.randn(2, 1, TOKENS, WIDTH, dtype=torch.float64)
    weight = torch.randn(heads * TOKENS * WIDTH, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self, spelling: str) -> None:
            super().__init__()
            self.mixed = SHARED[spelling]

        def forward(self, scores: Tensor, values: Tensor) -> Tensor:
            pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            return self.mixed(pattern, values).flatten(1) @ weight

    rules = Composite({"": SinkRule(inner, sink=sink)}, base="lrp")
    plain = ConservativeLRP(Model(how), Composite({"": inner}, base="lrp"))
    got, expected = (
        ConservativeLRP(Model(spelling), rules).attribute((scores, values))
        for spelling in (how, "repeated")
    )
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(got[1], plain.attribute((scores, values))[1])


def test_the_forward_result_is_untouched() -> None:
    for how in ("fused", "product", "shared"):
        model, inputs = make(how), drawn()
        seen: list[Tensor] = []
        model.register_forward_hook(lambda *a, seen=seen: seen.append(a[2].detach().clone()))
        expected = model(*inputs)
        rules = Composite({"": SinkRule(AHRule(), sink="absorb")}, base="lrp")
        ConservativeLRP(model, rules).attribute(inputs, target=0)
        assert torch.equal(seen[-1], expected)


@pytest.mark.parametrize("how", ["fused", "product"])
def test_a_query_without_a_choice_makes_no_sink(how: str) -> None:
    model, (q, k, v) = make(how), drawn()
    # heads look evenly at what they see: of the queries with a choice no key has more than a half
    rules = Composite({"": SinkRule(AHRule(), share=0.51, sink="absorb")}, base="lrp")
    report = audit.explainability(model, (0 * q, k, v), 0, rules=rules, file=None)
    assert not report.absorbed


@pytest.mark.parametrize("sink", ["absorb", "distribute"])
def test_blocks_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch, sink: Any) -> None:
    model, inputs = make("fused"), drawn()
    rule = SinkRule(UniformAttentionRule(), sink=sink)
    lrp = ConservativeLRP(model, Composite({"": rule}, base="lrp"))
    whole = lrp.attribute(inputs, target=0)
    monkeypatch.setattr("captum_lrp_tx.rules.attention_sinks.BLOCK_ENTRIES", 2 * HEADS * TOKENS)
    for a, b in zip(whole, lrp.attribute(inputs, target=0), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_sinks_of_blocks_are_those_of_the_whole_pattern(rows: int) -> None:
    """Also of keys that become sinks in a later block."""
    torch.manual_seed(0)
    seen = torch.ones(8, 8, dtype=torch.bool).tril()
    for _ in range(30):
        scores = 4 * torch.randn(1, HEADS, 8, 8, dtype=torch.float64)
        pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        whole, parts = (sinks_of(partial(pattern.split, n, -2), 0.5) for n in (8, rows))
        assert whole is not None and parts is not None
        for a, b in zip(astuple(whole), astuple(parts), strict=True):
            torch.testing.assert_close(a, b)


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
def test_only_causal_attention_has_sinks(fused: bool, mask: Tensor | None, is_causal: bool) -> None:
    torch.manual_seed(4)
    model, inputs = Seeing(mask, fused).double(), drawn()
    given = [
        ConservativeLRP(model, Composite({"": rule}, base="lrp")).attribute(inputs, target=0)[2]
        for rule in (AHRule(), SinkRule(AHRule()))
    ]
    assert torch.equal(given[0], given[1]) != is_causal


def in_parts(how: str, scores: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a few queries or keys at a time."""
    seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    if how == "queries, growing":
        rows = [scores[..., i : i + 1, : i + 1].softmax(-1) @ v[:, :, : i + 1]
                for i in range(TOKENS)]  # fmt: skip
        return torch.cat(rows, 2)
    if how == "queries, fused":
        one = torch.eye(TOKENS).to(v).expand(1, HEADS, -1, -1)
        rows = [F.scaled_dot_product_attention(
            scores[:, :, i : i + 1], one[:, :, : i + 1], v[:, :, : i + 1], scale=1.0,
        ) for i in range(TOKENS)]  # fmt: skip
        return torch.cat(rows, 2)
    if how == "blocks, fused":  # heads without an axis of their own; keys wider than they are many
        one = torch.eye(TOKENS, TOKENS + 2).to(v).expand(HEADS, -1, -1)
        rows = [F.scaled_dot_product_attention(
            F.pad(scores[0, :, part], (0, 2)), one, v[0], seen[part], scale=1.0,
        ) for part in (slice(2), slice(2, None))]  # fmt: skip
        return torch.cat(rows, 1)[None]
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    if how == "queries":
        return torch.stack([p[:, :, i : i + 1] @ v for i in range(TOKENS)], 2).squeeze(3)
    if how == "queries, einsum":
        rows = [torch.einsum("bhj,bhjc->bhc", p[:, :, i], v) for i in range(TOKENS)]
        return torch.stack(rows, 2)
    if how == "blocks":
        return torch.cat([p[:, :, :2] @ v, p[:, :, 2:] @ v], 2)
    if how == "keys":
        mixed = torch.zeros_like(v)
        for j in range(TOKENS):
            mixed = mixed + p[..., j : j + 1] * v[:, :, j : j + 1]
        return mixed
    if how == "queries and heads":  # in one axis: values that heads share, as multi-query models
        return (p.transpose(1, 2).flatten(1, 2) @ v[:, 0]).unflatten(1, (-1, HEADS)).transpose(1, 2)
    if how == "heads and queries":
        return (p.flatten(1, 2) @ v[:, 0]).unflatten(1, (HEADS, -1))
    if how == "sparse":
        rows = [torch.sparse.mm(one.to_sparse(), other) for one, other in zip(p[0], v[0])]
        return torch.stack(rows)[None]
    return torch.einsum("bhij,bhjc,c->bhic", p, v, torch.ones(WIDTH).to(v))


@pytest.mark.parametrize(
    "how",
    ["queries", "queries, growing", "queries, fused", "queries, einsum", "blocks",
     "blocks, fused", "keys", "three", "queries and heads", "heads and queries", "sparse"],
)  # fmt: skip
def test_sinks_that_cannot_be_told_are_warned_of(how: str) -> None:
    class Model(nn.Module):
        def forward(self, scores: Tensor, v: Tensor) -> Tensor:
            return (in_parts(how, scores, v) * weight).flatten(1).sum(1)

    torch.manual_seed(5)
    weight = torch.randn(HEADS, TOKENS, WIDTH, dtype=torch.float64)
    inputs = tuple(torch.randn(1, HEADS, TOKENS, n, dtype=torch.float64) for n in (TOKENS, WIDTH))
    model = Model()
    plain = ConservativeLRP(model, Composite({"": AHRule()}, base="lrp")).attribute(inputs)
    with pytest.warns(HiddenSinksWarning, match="runs in parts"):
        found = ConservativeLRP(model, SPREAD).attribute(inputs)
    with pytest.raises(UncoveredOperationError, match="cannot tell attention sinks: refused"):
        ConservativeLRP(model, SPREAD).attribute(inputs, strict=True)
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)


def test_heads_need_no_axis_of_their_own(recwarn: Any) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = make("fused")

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows = (x.flatten(0, 1) for x in (q, k, v))
            mixed = F.scaled_dot_product_attention(*rows, is_causal=True)
            return self.whole.read(mixed.flatten()[None])

    found, expected = (
        ConservativeLRP(model, SPREAD).attribute(drawn(), target=0)
        for model in (Flat(), make("fused"))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not [w for w in recwarn if issubclass(w.category, HiddenSinksWarning)]


def test_a_cache_is_warned_of_and_whole_texts_are_not(recwarn: Any) -> None:
    model = llama("sdpa")
    text = torch.tensor([[3, 9, 4, 7, 21, 11]])
    for rows in (text, text[:, :1]):
        ConservativeLRP(model, SPREAD).attribute(rows, target=(-1, 5))
    assert not [w for w in recwarn if issubclass(w.category, HiddenSinksWarning)]
    with torch.no_grad():
        cache = model(text, use_cache=True).past_key_values
    with pytest.warns(HiddenSinksWarning, match="on a cache of earlier tokens"):
        ConservativeLRP(model, SPREAD).attribute(
            {"input_ids": text[:, 3:], "past_key_values": cache}, target=(-1, 5)
        )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_is_not_causal_is_not_warned_of(implementation: str, recwarn: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    )
    t5 = transformers.T5ForConditionalGeneration(config).eval()
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2,
                                num_attention_heads=4, intermediate_size=24,
                                attn_implementation=implementation)).eval()  # fmt: skip
    text = torch.tensor([[3, 9, 4, 7, 21, 11], [5, 6, 4, 4, 0, 0]])
    for side in (text, text.flip(1)):
        batch = {"input_ids": side, "attention_mask": (side > 0).long()}
        ConservativeLRP(bert, "language").attribute(batch, target=0)
        ConservativeLRP(bert, "language").attribute({k: v[:1] for k, v in batch.items()}, target=0)
        for length in (1, 3):
            decoded = {**batch, "decoder_input_ids": text[:, :length]}
            for rows in (decoded, {k: v[1:] for k, v in decoded.items()}):
                ConservativeLRP(t5, "language").attribute(rows, target=(-1, 5))
    assert not [w for w in recwarn if issubclass(w.category, HiddenSinksWarning)]


def llama(implementation: str) -> Any:
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
    return model


LOWER = SinkRule(UniformAttentionRule(), 0.4, "absorb")
RULES = Composite({"": ByDepthRule(LOWER, SinkRule(AHRule(), 0.4, "absorb"))}, base="attnlrp")
SPREAD = Composite({"": SinkRule(AHRule(), 0.4)}, base="lrp")


@pytest.mark.core
@pytest.mark.parametrize("rules", [RULES, SPREAD], ids=["absorb", "distribute"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_language_models_with_padding(implementation: str, side: str, rules: Composite) -> None:
    model = llama(implementation)
    lrp = ConservativeLRP(model, rules)
    text = torch.tensor([[3, 9, 4, 7, 21, 11]])
    alone = lrp.attribute(text, target=(-1, 5))
    report = audit.explainability(model, text, target=(-1, 5), rules=rules, file=None)
    assert abs(report.conservation_error) < 1e-4 * abs(report.output) and report.is_covered
    has_booked = any(name.endswith("attention sink") for name in report.absorbed)
    assert has_booked == (rules is RULES)
    padding = torch.zeros(1, 3, dtype=torch.long)
    parts = (padding, text) if side == "left" else (text, padding)
    mask = torch.cat([torch.full_like(p, i == (side == "left")) for i, p in enumerate(parts)], 1)
    ids, place = torch.cat(parts, 1), -1 if side == "left" else 5
    batch = {"input_ids": ids, "attention_mask": mask,
             "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}  # fmt: skip
    padded = lrp.attribute(batch, target=(place, 5))
    kept = padded[:, 3:] if side == "left" else padded[:, :6]
    torch.testing.assert_close(kept, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("rules", [RULES, SPREAD], ids=["absorb", "distribute"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_what_comes_later_changes_nothing(implementation: str, rules: Composite) -> None:
    lrp = ConservativeLRP(llama(implementation), rules)
    text = torch.tensor([[3, 9, 4, 7, 21, 11, 8, 8, 2], [5, 6, 4, 4, 12, 13, 1, 7, 9]])
    for length in range(2, text.shape[1]):
        whole = lrp.attribute(text, target=(length - 1, 5))
        prefix = lrp.attribute(text[:, :length], target=(length - 1, 5))
        assert not whole[:, length:].any()
        scale = float(prefix.abs().max())
        torch.testing.assert_close(whole[:, :length], prefix, rtol=1e-3, atol=1e-4 * scale)
        one = torch.cat([lrp.attribute(row[None, :length], target=(-1, 5)) for row in text])
        torch.testing.assert_close(prefix, one, rtol=1e-3, atol=1e-4 * scale)


def test_many_targets_of_distributed_sinks_are_those_of_one() -> None:
    lrp = ConservativeLRP(llama("sdpa"), SPREAD)
    text = torch.tensor([[3, 9, 4, 7, 21, 11]])
    targets = [(-1, 5), (-1, 6), (4, 2)]
    for target, found in zip(targets, lrp.attribute_targets(text, targets), strict=True):
        torch.testing.assert_close(found, lrp.attribute(text, target=target), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_low_memory_hand_on_the_same(dtype: torch.dtype) -> None:
    model, text = llama("sdpa"), torch.tensor([[3, 9, 4, 7, 21, 11, 8, 8, 2]])
    expected = ConservativeLRP(model, SPREAD).attribute(text, target=(-1, 5))
    low = ConservativeLRP(model, SPREAD, memory="low").attribute(text, target=(-1, 5))
    assert torch.equal(low, expected)
    half = ConservativeLRP(model.to(dtype), SPREAD).attribute(text, target=(-1, 5))
    worst = float((half - expected).abs().max() / expected.abs().max())
    assert worst < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_estimates_of_patching_have_nothing_handed_over() -> None:
    model = llama("sdpa")
    text, other = torch.tensor([[3, 9, 4, 7, 21, 11]]), torch.tensor([[3, 9, 5, 7, 21, 11]])
    absorbs = Composite({"": ByDepthRule(LOWER, SinkRule(AHRule(), 0.4, "absorb"))}, base="lrp")
    hands_on = Composite(
        {"": ByDepthRule(SinkRule(UniformAttentionRule(), 0.4), SinkRule(AHRule(), 0.4))},
        base="lrp",
    )
    one, same = (
        RelevancePatching(model, rules).attribute(text, other, (-1, 5))
        for rules in (hands_on, absorbs)
    )
    assert any(part.effect.any() for part in one.parts)
    for part, expected in zip(one.parts, same.parts, strict=True):
        assert torch.equal(part.effect, expected.effect)
    relevance, kept = (
        ConservativeLRP(model, rules).attribute(text, target=(-1, 5))
        for rules in (hands_on, absorbs)
    )
    assert not torch.allclose(relevance, kept)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((LNRule(),), "SinkRule takes AHRule"),
        ((AHRule(), 0.0), "share must be"),
        ((AHRule(), 1.5), "share must be"),
        ((AHRule(), 0.5, "keep"), "sink must be"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        SinkRule(*arguments)
