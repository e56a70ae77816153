"""The oracle itself: against hand-written references, plain autograd, Captum and conservation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient
from torch import Tensor, nn

import oracle
import zoo
from oracle import RULES, OracleError, Rules, oracle_relevance, oracle_token_relevance


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest expected value."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp_min(1e-12)
    assert ((actual - expected).abs().max() / scale).item() <= tolerance


# --------------------------------------------------------------------------- all models


@functools.cache
def built(entry: zoo.Entry) -> zoo.Case:
    """One case for all tests of a model, so that the oracle records it once."""
    return entry.build()


def _gradient_times_input(case: zoo.Case) -> tuple[Tensor, ...]:
    leaves = tuple(x.detach().clone().requires_grad_() for x in case.inputs)
    grads = torch.autograd.grad(case.select(case.forward(*leaves)).sum(), leaves)
    return tuple((g * x).detach() for g, x in zip(grads, leaves, strict=True))


def _parts(case: zoo.Case, rules: Rules, *, double: bool = False) -> tuple[Tensor, ...]:
    """The oracle's relevance, for ids of each lookup on its own. In the sum of all lookups plain
    gradient x input is zero but for rounding where a norm follows (it ignores the scale)."""
    if case.kind == "floats":
        return case.expected(rules, double=double)
    return oracle.oracle_lookup_relevance(
        case.forward, case.inputs[0], rules, case.select, double=double, trace=case.trace()
    )


def _replayed(case: zoo.Case, rules: Rules, *, double: bool = False) -> Tensor:
    """The output of the traced function under rules."""
    options: Any = {"double": double, "trace": case.trace()}
    return oracle.replay_output(case.forward, case.inputs, rules, **options)


def _token_gradient_times_input(case: zoo.Case) -> tuple[Tensor, ...]:
    """Plain gradient x input of the embedding modules, by hooks, one example at a time."""
    ids = case.inputs[0]
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        del module, args
        found.append(output.detach().clone().requires_grad_())
        return found[-1]

    rows = []
    for index in range(len(ids)):
        found.clear()
        embeddings = [m for m in case.model.modules() if isinstance(m, nn.Embedding)]
        handles = [m.register_forward_hook(keep) for m in embeddings]
        kwargs = {name: value[index : index + 1] for name, value in case.kwargs.items()}
        output = case.model(ids[index : index + 1], **kwargs)
        for handle in handles:
            handle.remove()
        logits = output if isinstance(output, Tensor) else output.logits
        grads = torch.autograd.grad(case.select(logits).sum(), found)
        rows.append(
            torch.stack(
                [(g * x).sum(-1).flatten() for g, x in zip(grads, found, strict=True)]
            ).detach()
        )
    return torch.stack(rows, 1).unbind(0)


@pytest.mark.parametrize("entry", zoo.cases(without=()), ids=str)
def test_plain_gradient_x_input(entry: zoo.Entry) -> None:
    case = built(entry)
    by_hand = _token_gradient_times_input if case.kind == "tokens" else _gradient_times_input
    for mine, autograd in zip(_parts(case, "gi"), by_hand(case), strict=True):
        _assert_close(mine, autograd)


@pytest.mark.parametrize("entry", zoo.cases(without=()), ids=str)
def test_second_forward_is_the_first(entry: zoo.Entry) -> None:
    case = built(entry)
    with torch.no_grad():
        expected = case.forward(*case.inputs)
    assert expected.std() > 1e-3, "an output without spread tests nothing"
    for rules in ("gi", "ah+ln") if "slow" in entry.tags else RULES:
        _assert_close(_replayed(case, rules), expected)
    replay = _replayed(case, "ah+ln", double=True)
    assert replay.dtype == torch.float64
    _assert_close(replay, expected.double(), 1e-4)


@pytest.mark.parametrize("entry", zoo.cases(without=()), ids=str)
def test_finds_every_pattern_and_norm(entry: zoo.Entry) -> None:
    case = built(entry)
    trace = case.trace()
    assert (len(trace.patterns), len(trace.normalisers)) == (case.patterns, case.norms)
    others = 2 * ("custom-router" in case.name) + case.name.endswith("output-softmax")
    assert len(trace.other_softmaxes) == others


@pytest.mark.parametrize("entry", zoo.cases(), ids=str)
def test_rules_change_the_result_and_double_agrees(entry: zoo.Entry) -> None:
    case = built(entry)
    plain = _parts(case, "gi")
    for rules in RULES[1:]:
        single = _parts(case, rules)
        if rules == "ah+ln":  # both together
            for one, two in zip(single, _parts(case, rules, double=True), strict=True):
                _assert_close(one.double(), two, 1e-4)
        for one, unchanged in zip(single, plain, strict=True):
            assert torch.isfinite(one).all()
            if rules != "ln" or case.norms:
                assert not torch.allclose(one, unchanged, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("entry", zoo.cases(kind="floats"), ids=str)
def test_gi_is_captums(entry: zoo.Entry) -> None:
    case = built(entry)
    captum = InputXGradient(case.forward).attribute(case.inputs, target=case.target)
    for mine, theirs in zip(case.expected("gi"), captum, strict=True):
        _assert_close(mine, theirs.detach())


# --------------------------------------------------------------------------- references by hand


def _freeze(x: Tensor, when: bool) -> Tensor:
    return x.detach() if when else x


def _weights(names: str, width: int, seed: int) -> dict[str, Tensor]:
    """A random matrix for each name; a vector for a name that ends in ``_``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(width, generator=generator, dtype=torch.float64) * 0.5
        if name.endswith("_")
        else torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        for name in names.split()
    }


_BERT = _weights("q k v o up down head bq_ bk_ bv_ bo_ bu_ bd_ g1_ b1_ g2_ b2_", 8, seed=11)
_LLAMA = _weights("q k v o gate up down head g1_ g2_", 8, seed=12)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _bert_model(x: Tensor) -> Tensor:
    """A post-norm block as models write it."""
    w = _BERT
    q, k, v = (_heads(x @ w[n] + w[f"b{n}_"], 2) for n in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = F.layer_norm(x + mixed @ w["o"] + w["bo_"], (8,), w["g1_"], w["b1_"])
    hidden = F.gelu(x @ w["up"] + w["bu_"]) @ w["down"] + w["bd_"]
    return F.layer_norm(x + hidden, (8,), w["g2_"], w["b2_"])[:, 0] @ w["head"]


def _bert_reference(x: Tensor, ah: bool, ln: bool) -> Tensor:
    """The same block with the constants of the rules written out."""
    w = _BERT

    def level(z: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        mean = z.sum(-1, keepdim=True) / 8
        var = ((z - mean) ** 2).sum(-1, keepdim=True) / 8
        return (z - mean) * _freeze((var + 1e-5) ** -0.5, ln) * gain + shift

    q, k, v = (_heads(x @ w[n] + w[f"b{n}_"], 2) for n in "qkv")
    scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) / 2.0
    weight = (scores - scores.max(-1, keepdim=True).values).exp()
    pattern = _freeze(weight / weight.sum(-1, keepdim=True), ah)
    mixed = (pattern.unsqueeze(-1) * v.unsqueeze(2)).sum(3).transpose(1, 2).flatten(2)
    x = level(x + mixed @ w["o"] + w["bo_"], w["g1_"], w["b1_"])
    z = x @ w["up"] + w["bu_"]
    hidden = 0.5 * z * (1 + torch.erf(z / 2**0.5)) @ w["down"] + w["bd_"]
    return level(x + hidden, w["g2_"], w["b2_"])[:, 0] @ w["head"]


def _turn(x: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, tokens, dim)."""
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1]).to(x)
    angle = torch.cat([angle, angle], -1)
    half = torch.cat([-x[..., 2:], x[..., :2]], -1)
    return x * angle.cos() + half * angle.sin()


def _llama_model(x: Tensor) -> Tensor:
    """A pre-norm block with grouped queries, rotary positions and SwiGLU as models write it."""
    w = _LLAMA

    def level(z: Tensor, gain: Tensor) -> Tensor:
        return gain * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6))

    h = level(x, w["g1_"])
    q, k = _turn(_heads(h @ w["q"], 2)), _turn(_heads(h @ w["k"][:, :4], 1))
    k, v = (z.repeat_interleave(2, 1) for z in (k, _heads(h @ w["v"][:, :4], 1)))
    scores = torch.matmul(q, k.transpose(2, 3)) / 2.0
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    x = x + torch.matmul(pattern, v).transpose(1, 2).flatten(2) @ w["o"]
    h = level(x, w["g2_"])
    return (x + (F.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"])[:, -1] @ w["head"]


def _llama_reference(x: Tensor, ah: bool, ln: bool) -> Tensor:
    """The same block with the constants of the rules written out, query by query."""
    w = _LLAMA

    def level(z: Tensor, gain: Tensor) -> Tensor:
        return gain * z / _freeze(((z * z).sum(-1, keepdim=True) / 8 + 1e-6) ** 0.5, ln)

    h = level(x, w["g1_"])
    q, k = _turn(_heads(h @ w["q"], 2)), _turn(_heads(h @ w["k"][:, :4], 1))[:, 0]
    v = h @ w["v"][:, :4]
    places = []
    for t in range(x.shape[1]):
        parts = []
        for head in range(2):
            scores = torch.einsum("be,bke->bk", q[:, head, t], k[:, : t + 1]) / 2.0
            pattern = _freeze(scores.exp() / scores.exp().sum(-1, keepdim=True), ah)
            parts.append(torch.einsum("bk,bke->be", pattern, v[:, : t + 1]))
        places.append(torch.cat(parts, -1))
    x = x + torch.stack(places, 1) @ w["o"]
    h = level(x, w["g2_"])
    z = h @ w["gate"]
    return (x + (z * torch.sigmoid(z) * (h @ w["up"])) @ w["down"])[:, -1] @ w["head"]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    ("model", "reference"), [(_bert_model, _bert_reference), (_llama_model, _llama_reference)]
)
def test_against_references_by_hand(
    model: Callable[[Tensor], Tensor], reference: Callable[..., Tensor], rules: Rules
) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    output = reference(leaf, "ah" in rules, "ln" in rules)
    _assert_close(output.detach(), model(x), 1e-10)
    (grad,) = torch.autograd.grad(output[:, 3].sum(), leaf)
    (mine,) = oracle_relevance(model, (x,), rules, lambda out: out[:, 3])
    _assert_close(mine, grad * x, 1e-10)


# --------------------------------------------------------------------------- conservation


class _Linear(nn.Module):
    """Attention, norms and residuals, but no bias and no activation."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        make = (lambda: nn.LayerNorm(8, bias=False)) if mean else (lambda: nn.RMSNorm(8))
        self.words = nn.Embedding(20, 8)
        self.places = nn.Embedding(9, 8)
        self.first, self.second = make(), make()
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            x = self.words(x) + self.places(torch.arange(x.shape[1]))
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(self.second(x)[:, 0])


@pytest.mark.parametrize("mean", [False, True])
def test_conserves_where_all_else_is_linear(mean: bool) -> None:
    model = zoo.randomise(_Linear(mean))
    x, ids = torch.randn(3, 6, 8), torch.randint(0, 20, (3, 6))

    def select(out: Tensor) -> Tensor:
        return out[:, 1]

    (relevance,) = oracle_relevance(model, (x,), "ah+ln", select)
    _assert_close(relevance.sum((1, 2)), model(x)[:, 1].detach())
    (plain,) = oracle_relevance(model, (x,), "gi", select)
    assert not torch.allclose(plain.sum((1, 2)), model(x)[:, 1], atol=1e-2)
    tokens = oracle_token_relevance(model, ids, "ah+ln", select)
    _assert_close(tokens.sum(1), model(ids)[:, 1].detach())


# --------------------------------------------------------------------------- the rest of the API


def test_lookups_are_word_segment_and_position() -> None:
    case = zoo.case("hf-BertForSequenceClassification-eager-padded")
    ids = case.inputs[0]
    leaves = oracle.embedding_inputs(case.forward, ids)
    parts = oracle.oracle_lookup_relevance(case.forward, ids, "ah+ln", case.select)
    assert [leaf.shape for leaf in leaves] == [(*ids.shape, zoo.WIDTH)] * 3
    assert [part.shape for part in parts] == [ids.shape] * 3
    _assert_close(sum(parts, torch.zeros(())), case.expected("ah+ln")[0])
    words = case.model.get_input_embeddings()(ids)  # type: ignore[operator]
    assert any(torch.equal(leaf, words) for leaf in leaves)


def test_examples_of_a_batch_do_not_mix() -> None:
    case = zoo.case("torch-encoder-pre-seqfirst-ids")
    whole = case.expected("ah+ln")[0]
    for index, ids in enumerate(case.inputs[0]):
        alone = oracle_token_relevance(case.forward, ids[None], "ah+ln", case.select)
        _assert_close(whole[index], alone[0])


def test_nothing_of_the_model_is_changed() -> None:
    case = zoo.case("torch-encoder-post-batchfirst")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    inputs = case.inputs[0].clone()
    case.expected("ah+ln")
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert torch.equal(inputs, case.inputs[0])
    assert all(torch.equal(before[n], v) for n, v in case.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


def test_in_place_operations_and_data_dependent_branches() -> None:
    weight = torch.randn(8, 8)

    def function(x: Tensor) -> Tensor:
        h = x @ weight
        if bool((h.sum() > -1e9).item()):
            h.mul_(2.0)
        buffer = torch.zeros_like(h)
        buffer[:, 1:] = h[:, 1:]
        buffer[:, :1] += h[:, :1].relu_()
        return (buffer.softmax(-1) @ buffer.transpose(1, 2)).sum((1, 2))[:, None]

    x = torch.randn(2, 8, 8)
    assert len(oracle.trace_function(function, (x,)).patterns) == 1
    (mine,) = oracle_relevance(function, (x,), "gi", lambda out: out[:, 0])
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
    _assert_close(mine, grad * x)


def test_leaves_other_roots_and_softmaxes_alone() -> None:
    weight = torch.randn(8, 8)

    def function(x: Tensor) -> Tensor:
        gate = (x @ weight).softmax(-1)  # mixes with weights only: no pattern
        return (gate @ weight * x.abs().sqrt() + x / 8**0.5).sum(1)

    trace = oracle.trace_function(function, (torch.randn(2, 4, 8),))
    assert not trace.patterns
    assert not trace.normalisers
    assert len(trace.other_softmaxes) == 1


def test_says_what_it_cannot_judge() -> None:
    ids = torch.randint(0, 9, (2, 4))
    with pytest.raises(OracleError, match="no embedding lookup"):
        oracle_token_relevance(lambda i: i.float() * 2.0, ids, "gi", lambda out: out[:, 0])
    with pytest.raises(OracleError, match="randomness"):
        oracle_relevance(
            lambda x: x * torch.rand_like(x), (torch.randn(2, 3),), "gi", lambda out: out[:, 0]
        )
    with pytest.raises(OracleError, match="must return a tensor"):
        oracle.trace_function(lambda x: (x,), (torch.randn(2),))  # type: ignore[arg-type,return-value]


def test_shared_folder_is_optional(shared: object) -> None:
    assert shared
