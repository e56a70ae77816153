"""Attention maps, rollout, flow, GAE and Transformer Attribution against their papers' equations.

The references are plain loops over attention maps that the package has not read: those of Hugging
Face's eager attention, or of modules written out here.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx.attr.attention_alone import (
    AttentionFlow,
    AttentionLast,
    AttentionRollout,
    maximum_flows,
)
from captum_lrp_tx.attr.gradient_attention import GenericAttention
from captum_lrp_tx.attr.prefix_tokens import prefix_tokens
from captum_lrp_tx.attr.random import RandomAttribution
from captum_lrp_tx.attr.transformer_attribution import TransformerAttribution
from captum_lrp_tx.errors import InputError, TargetError, UnsupportedModelError
from closeness import close

pytestmark = pytest.mark.captum

MODELS = (
    "hf-BertForSequenceClassification-{}",
    "hf-ViTForImageClassification-{}",
    "hf-LlamaForSequenceClassification-{}",
    "hf-GPT2LMHeadModel-{}",
)


def recorded(name: str) -> tuple[list[Tensor], list[Tensor], int]:
    """Maps and gradients (layers of (batch, heads, queries, keys)) and the row explained."""
    case = zoo.case(name.format("eager"))
    output = case.model(*case.inputs, **case.kwargs, output_attentions=True)
    score = case.select(output.logits).sum()
    gradients = torch.autograd.grad(score, output.attentions)
    maps = [a.detach() for a in output.attentions]
    if "GPT2LM" in name:
        assert isinstance(case.target, tuple)
        return maps, list(gradients), case.target[0]
    return maps, list(gradients), maps[0].shape[-1] - 1 if "Llama" in name else 0


def attribute(method: Any, case: zoo.Case, **more: Any) -> Tensor:
    relevance = method.attribute(case.inputs[0], target=case.target, **more)
    assert isinstance(relevance, Tensor)
    return relevance


# ---- references: one example at a time, plain loops ------------------------------------------
def eye(n: int) -> Tensor:
    return torch.eye(n)


def row_normalised(m: Tensor) -> Tensor:
    return torch.stack([row / row.sum() for row in m])


def rollout(layers: list[Tensor]) -> Tensor:
    total = eye(len(layers[0]))
    for a in layers:
        total = row_normalised(0.5 * a + 0.5 * eye(len(a))) @ total
    return total


def positive_part(values: Tensor) -> Tensor:
    """Mean over heads of the positive part of (heads, n, m)."""
    heads = [head.clamp(min=0) for head in values]
    return sum(heads[1:], heads[0]) / len(heads)


def gae(maps: list[Tensor], gradients: list[Tensor]) -> Tensor:
    relevance = eye(maps[0].shape[-1])
    for a, g in zip(maps, gradients, strict=True):
        relevance = relevance + positive_part(a * g) @ relevance
    return relevance


def network_flow(layers: list[Tensor], row: int) -> Tensor:
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph()
    for level, a in enumerate(layers):
        capacities = 0.5 * a + 0.5 * eye(len(a))
        for i in range(len(a)):
            for j in range(len(a)):
                graph.add_edge((level + 1, i), (level, j), capacity=float(capacities[i, j]))
    top = (len(layers), row)
    values = [networkx.maximum_flow_value(graph, top, (0, j)) for j in range(len(layers[0]))]
    return torch.tensor(values)


# ---- each method on BERT, ViT and decoders -----------------------------------------------------
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
class TestAgreesWithThePaper:
    def test_last_attention(self, name: str, implementation: str) -> None:
        maps, _, row = recorded(name)
        case = zoo.case(name.format(implementation))
        close(attribute(AttentionLast(case.model), case), maps[-1].mean(1)[:, row])
        first = AttentionLast(case.model, query="mean", layer=0)
        close(attribute(first, case), maps[0].mean(1).mean(1))
        close(attribute(AttentionLast(case.model, query=2), case), maps[-1].mean(1)[:, 2])

    def test_rollout(self, name: str, implementation: str) -> None:
        maps, _, row = recorded(name)
        case = zoo.case(name.format(implementation))
        fusions: dict[str, Callable[[Tensor], Tensor]] = {
            "mean": lambda a: a.mean(0),
            "max": lambda a: a.max(0).values,
            "min": lambda a: a.min(0).values,
        }
        for fusion, fuse in fusions.items():
            expected = [rollout([fuse(a[i]) for a in maps])[row] for i in range(len(maps[0]))]
            method = AttentionRollout(case.model, head_fusion=fusion)  # type: ignore[arg-type]
            close(attribute(method, case), torch.stack(expected))
        expected = [rollout([maps[1][i].mean(0)])[row] for i in range(len(maps[0]))]
        close(attribute(AttentionRollout(case.model, start_layer=1), case), torch.stack(expected))

    def test_discarding(self, name: str, implementation: str) -> None:
        maps, _, row = recorded(name)
        case = zoo.case(name.format(implementation))
        expected = []
        for i in range(len(maps[0])):
            layers = []
            for a in maps:
                fused = a[i].mean(0).clone()
                smallest = fused.flatten().sort(stable=True).indices[: int(0.6 * fused.numel())]
                for place in smallest.tolist():
                    fused[place // len(fused), place % len(fused)] = 0
                layers.append(fused)
            expected.append(rollout(layers)[row])
        method = AttentionRollout(case.model, discard_ratio=0.6)
        close(attribute(method, case), torch.stack(expected))

    def test_flow(self, name: str, implementation: str) -> None:
        pytest.importorskip("scipy")
        maps, _, row = recorded(name)
        case = zoo.case(name.format(implementation))
        expected = [network_flow([a[i].mean(0) for a in maps], row) for i in range(len(maps[0]))]
        close(attribute(AttentionFlow(case.model), case), torch.stack(expected))

    def test_gae(self, name: str, implementation: str) -> None:
        maps, gradients, row = recorded(name)
        case = zoo.case(name.format(implementation))
        examples = range(len(maps[0]))
        expected = [gae([a[i] for a in maps], [g[i] for g in gradients])[row] for i in examples]
        close(attribute(GenericAttention(case.model), case), torch.stack(expected))
        assert not torch.allclose(torch.stack(expected), eye(len(expected[0]))[row], atol=1e-3)

    def test_gae_as_ali_et_al(self, name: str, implementation: str) -> None:
        maps, gradients, _ = recorded(name)
        case = zoo.case(name.format(implementation))
        expected = []
        for i in range(len(maps[0])):
            total = eye(maps[0].shape[-1])
            for a, g in zip(maps, gradients, strict=True):
                total = row_normalised(positive_part(a[i] * g[i]) + eye(len(total))) @ total
            total[0, 0] = 0
            expected.append(total.sum(0))
        close(attribute(GenericAttention(case.model, variant="ali"), case), torch.stack(expected))

    def test_baselines_of_transformer_attribution(self, name: str, implementation: str) -> None:
        maps, gradients, row = recorded(name)
        case = zoo.case(name.format(implementation))
        for form in ("bert", "vit"):
            rolled, cams = [], []
            for i in range(len(maps[0])):
                rolled.append(rollout([a[i].mean(0) for a in maps])[row].clone())
                a, g = maps[-1][i], gradients[-1][i]
                prefix = 1 if "ViT" in name else 0
                cam = torch.zeros(a.shape[-1])
                for head, slope in zip(a, g, strict=True):
                    mean = slope.mean() if form == "bert" else slope[row, prefix:].mean()
                    cam += mean * head[row] / len(a)
                cams.append(cam.clamp(min=0))
                if form == "bert":
                    rolled[-1][row] = cams[-1][row] = 0
            for variant, expected in (("rollout", rolled), ("attn_gradcam", cams)):
                method = TransformerAttribution(case.model, variant, form)  # type: ignore[arg-type]
                close(attribute(method, case), torch.stack(expected))


# ---- deep Taylor, against relevance propagated by hand -------------------------------------
class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.fused = fused

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], 2, 4).transpose(-3, -2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = self.heads(self.query(h)), self.heads(self.key(h)), self.heads(self.value(h))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Small(nn.Module):
    """Pre-norm transformer of two layers on embeddings; reads the first token."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(Block(fused) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, torch.zeros_like(b), a / torch.where(b == 0, 1.0, b))


def linear_back(layer: nn.Linear, x: Tensor, r: Tensor) -> Tensor:
    """Eq. 4: only contributions x_j w_ji > 0 count."""
    contributions = (x.unsqueeze(-2) * layer.weight).clamp(min=0)  # (..., out, in)
    return (divided(r, contributions.sum(-1)).unsqueeze(-1) * contributions).sum(-2)


def sum_back(u: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8 and 9 on one example."""
    ru, rv = u * divided(r, u + v), v * divided(r, u + v)
    sizes = ru.sum().abs() + rv.sum().abs()
    return (
        ru * ru.sum().abs() / sizes * r.sum() / ru.sum(),
        rv * rv.sum().abs() / sizes * r.sum() / rv.sum(),
    )


def product_back(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """``a @ b``: half of the relevance to each factor, in proportion to contributions."""
    s = divided(r, a @ b)
    return a * (s @ b.transpose(-2, -1)) / 2, b * (a.transpose(-2, -1) @ s) / 2


def by_hand(model: Small, ids: Tensor, target: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Relevance and gradient of each map and relevance of the embeddings, for one example."""
    x = model.words(ids)
    states, patterns = [], []
    for block in model.blocks:
        h = block.norm1(x)
        q, k, v = (block.heads(f(h)) for f in (block.query, block.key, block.value))
        scores = q @ k.transpose(-2, -1) * 0.5
        pattern = scores.softmax(-1)
        mixed = (pattern @ v).transpose(-3, -2).flatten(-2)
        attended = block.out(mixed)
        middle = x + attended
        h2 = block.norm2(middle)
        inner = block.up(h2)
        added = block.down(F.gelu(inner))
        states.append((x, h, q, k, v, pattern, mixed, attended, middle, h2, inner, added))
        patterns.append(pattern)
        x = middle + added
    last = model.norm(x)
    logit = model.head(last[0])[target]
    gradients = list(torch.autograd.grad(logit, patterns))
    start = torch.zeros(3)
    start[target] = 1.0
    r = torch.zeros_like(last)
    r[0] = linear_back(model.head, last[0], start)  # the norm hands it on
    relevances = []
    for block, state in zip(reversed(model.blocks), reversed(states), strict=True):
        x, h, q, k, v, pattern, mixed, attended, middle, h2, inner, added = (
            s.detach() for s in state
        )
        skip, branch = sum_back(middle, added, r)
        r = linear_back(block.down, F.gelu(inner), branch)
        r = skip + linear_back(block.up, h2, r)
        skip, branch = sum_back(x, attended, r)
        r = linear_back(block.out, mixed, branch)
        r = r.reshape(len(r), 2, 4).transpose(0, 1)
        r_pattern, r_value = product_back(pattern, v, r)
        relevances.insert(0, r_pattern)
        r_query, r_key = product_back(q, k.transpose(-2, -1), r_pattern)
        parts = (r_query, r_key.transpose(-2, -1), r_value)
        layers = (block.query, block.key, block.value)
        r = skip + sum(
            linear_back(layer, h, part.transpose(0, 1).flatten(-2))
            for layer, part in zip(layers, parts, strict=True)
        )
    return relevances, gradients, r


@pytest.fixture(params=[False, True], ids=["explicit", "fused"])
def small(request: pytest.FixtureRequest) -> Small:
    model = zoo.randomise(Small(request.param))
    assert isinstance(model, Small)
    return model


IDS = torch.tensor([[3, 7, 1, 12, 5], [9, 2, 2, 15, 19], [1, 4, 8, 6, 11]])


@pytest.mark.parametrize("target", [0, 2])
def test_transformer_attribution_by_hand(small: Small, target: int) -> None:
    # in double precision: z+ relevance through random weights reaches large numbers that cancel
    small = copy.deepcopy(small).double()
    torch.set_default_dtype(torch.float64)
    try:
        bert, vit, last, full = [], [], [], []
        for ids in IDS:
            relevances, gradients, entering = by_hand(small, ids, target)
            layers = [
                positive_part(r * g) + eye(5) for r, g in zip(relevances, gradients, strict=True)
            ]
            normalised = row_normalised(layers[1]) @ row_normalised(layers[0])
            normalised[0, 0] = 0
            bert.append(normalised[0])
            vit.append((layers[1] @ layers[0])[0])
            last.append(positive_part(relevances[-1])[0])
            full.append(entering.sum(-1))
        for variant, form, expected in (
            ("transformer_attribution", "bert", bert),
            ("transformer_attribution", "vit", vit),
            ("last_layer", "vit", last),
            ("full_lrp", "vit", full),
        ):
            method = TransformerAttribution(small, variant, form)  # type: ignore[arg-type]
            close(method.attribute(IDS, target=target), torch.stack(expected).detach(), rtol=1e-5)
        start = TransformerAttribution(small, form="vit", start_layer=1)
        relevances, gradients, _ = by_hand(small, IDS[0], target)
        only_last = (positive_part(relevances[1] * gradients[1]) + eye(5))[0]
        close(start.attribute(IDS[:1], target=target), only_last[None].detach(), rtol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_deep_taylor_conserves_from_logit_to_maps(small: Small) -> None:
    """Relevance one at the logit arrives at the embeddings."""
    full = TransformerAttribution(small.double(), "full_lrp", "vit").attribute(IDS, target=1)
    torch.testing.assert_close(full.sum(1), torch.ones(3).double(), atol=1e-6, rtol=0)


def test_last_layer_in_bert_form_hides_the_query(small: Small) -> None:
    vit = TransformerAttribution(small, "last_layer", "vit").attribute(IDS, target=1)
    bert = TransformerAttribution(small, "last_layer", "bert").attribute(IDS, target=1)
    close(bert[:, 1:], vit[:, 1:])
    assert not bert[:, 0].any() and vit[:, 0].any()


# ---- two sequences -----------------------------------------------------------------------------
def hat_normalised(relevance: Tensor) -> Tensor:
    added = relevance - eye(len(relevance))
    rows = [row / row.sum() if row.sum() else torch.zeros_like(row) for row in added]
    return torch.stack(rows) + eye(len(added))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("tokens", [4, 6])
def test_gae_on_an_encoder_decoder(implementation: str, tokens: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None, attn_implementation=implementation,
    )  # fmt: skip
    model = zoo.randomise(transformers.BartForConditionalGeneration(config))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (2, 6), generator=generator)
    decoder_ids = torch.randint(3, 30, (2, tokens), generator=generator)
    inputs = {"input_ids": ids, "decoder_input_ids": decoder_ids}
    target = (tokens - 2, 5)

    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True, use_cache=False)
    parts = (output.encoder_attentions, output.decoder_attentions, output.cross_attentions)
    score = output.logits[:, target[0], target[1]].sum()
    slopes = torch.autograd.grad(score, [a for part in parts for a in part])
    encoder, decoder, cross = (
        [(a.detach(), g) for a, g in zip(part, slopes[2 * i : 2 * i + 2], strict=True)]
        for i, part in enumerate(parts)
    )
    model.set_attn_implementation(implementation)

    relevance = GenericAttention(model).attribute({**inputs, "use_cache": False}, target=target)
    assert isinstance(relevance, tuple)
    for example in range(2):
        bar = [
            [positive_part(a[example] * g[example]) for a, g in part]
            for part in (encoder, decoder, cross)
        ]
        r_ii, r_qq, r_qi = eye(6), eye(tokens), torch.zeros(tokens, 6)
        for a in bar[0]:
            r_ii = r_ii + a @ r_ii
        for own, other in zip(bar[1], bar[2], strict=True):
            r_qq, r_qi = r_qq + own @ r_qq, r_qi + own @ r_qi
            r_qi = r_qi + hat_normalised(r_qq).T @ other @ hat_normalised(r_ii)
        close(relevance[0][example], r_qi[target[0]])
        close(relevance[1][example], r_qq[target[0]])
    for method in (AttentionLast, AttentionRollout, TransformerAttribution):
        with pytest.raises(UnsupportedModelError, match="cross-attention"):
            method(model).attribute({**inputs, "use_cache": False}, target=target)
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        GenericAttention(model, variant="ali").attribute(
            {**inputs, "use_cache": False}, target=target
        )


def test_gae_of_a_decoder_that_reads_the_ids_again() -> None:
    """Classifiers of BART and T5 shift the ids for it, and read it where the text ends."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, num_labels=3,
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForSequenceClassification(config).eval())
    gae = GenericAttention(model)
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 4, 1, 0, 0]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with pytest.raises(UnsupportedModelError, match=r"a second time, shifted.*decoder_input_ids"):
        gae.attribute(given, target=1)
    shifted = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
    given["decoder_input_ids"] = shifted
    with pytest.raises(InputError, match=r"example 1 does not depend on row 4.*decoder_attention"):
        gae.attribute(given, target=1)
    given["decoder_attention_mask"] = given["attention_mask"]  # as the message says
    batch = gae.attribute(given, target=1)
    alone = gae.attribute({k: v[1:, :3] for k, v in given.items()}, target=1)
    for together, one in zip(batch, alone, strict=True):
        close(together[1:, :3], one)
        assert one.any() and not together[1, 3:].any()


class Attend(nn.Module):
    """Residual attention of x to ``memory`` that keeps its pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.kept = torch.zeros(0)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (2, 4)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        self.kept = (q @ k.mT * 0.5).softmax(-1)
        return x + (self.kept @ v).transpose(1, 2).flatten(2)


class CoAttention(nn.Module):
    """Two streams; both directions of the cross-attention read the states before either."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Attend() for _ in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        own_a, own_b, to_a, to_b, again = self.parts
        a, b = own_a(a, a), own_b(b, b)
        a, b = to_a(a, b), to_b(b, a)
        return self.head(again(a, b)[:, 0])


def test_gae_on_co_attention() -> None:
    model: Any = zoo.randomise(CoAttention())
    a, b = zoo.floats(2, 4, 8), zoo.floats(2, 3, 8, seed=9)
    score = model(a, b)[:, 1].sum()
    kept = [part.kept for part in model.parts]
    slopes = torch.autograd.grad(score, kept)
    kept = [w.detach() for w in kept]
    relevance = GenericAttention(model).attribute((a, b), target=1)
    assert isinstance(relevance, tuple)
    for example in range(2):
        own_a, own_b, ab, ba, last = (
            positive_part(w[example] * g[example]) for w, g in zip(kept, slopes, strict=True)
        )
        raa, rbb = eye(4) + own_a, eye(3) + own_b
        rab, rba = torch.zeros(4, 3), torch.zeros(3, 4)
        new_ab = hat_normalised(raa).T @ ab @ hat_normalised(rbb)
        new_ba = hat_normalised(rbb).T @ ba @ hat_normalised(raa)
        raa, rbb = raa + ab @ rba, rbb + ba @ rab
        rab, rba = rab + new_ab, rba + new_ba
        through = hat_normalised(raa).T @ last @ hat_normalised(rbb)
        raa = raa + last @ rba
        rab = rab + through
        close(relevance[0][example], raa[0])
        close(relevance[1][example], rab[0])


# ---- conventions -------------------------------------------------------------------------------
METHODS: dict[str, Callable[[Any], Any]] = {
    "random": RandomAttribution,
    "last": AttentionLast,
    "rollout": AttentionRollout,
    "rollout-discard": lambda m: AttentionRollout(m, discard_ratio=0.5),
    "rollout-mean": lambda m: AttentionRollout(m, query="mean"),
    "flow": AttentionFlow,
    "gae": GenericAttention,
    "gae-ali": lambda m: GenericAttention(m, variant="ali"),
    "chefer": TransformerAttribution,
    "chefer-vit": lambda m: TransformerAttribution(m, form="vit"),
    "last-lrp": lambda m: TransformerAttribution(m, "last_layer"),
    "full-lrp": lambda m: TransformerAttribution(m, "full_lrp"),
    "gradcam": lambda m: TransformerAttribution(m, "attn_gradcam"),
    "gradcam-vit": lambda m: TransformerAttribution(m, "attn_gradcam", "vit"),
}
ALL = pytest.mark.parametrize("name", METHODS)


def build(name: str, model: Any) -> Any:
    if name == "flow":
        pytest.importorskip("scipy")
    return METHODS[name](model)


@ALL
@pytest.mark.parametrize(
    "model",
    [
        "hf-BertForSequenceClassification-eager-padded",
        "hf-BertForSequenceClassification-sdpa-padded",
        "hf-LlamaForSequenceClassification-sdpa-padded",
        "hf-GPT2LMHeadModel-eager-padded",
    ],
)
def test_padding_and_batches(name: str, model: str) -> None:
    """Padding gets 0, and a batch gives what its examples give alone and unpadded."""
    case = zoo.case(model)
    method = build(name, case.model)
    encoding = {"input_ids": case.inputs[0], **case.kwargs}
    together = method.attribute(encoding, target=case.target)
    assert together.shape == case.inputs[0].shape
    for example, length in enumerate(zoo.LENGTHS):
        alone = {k: v[example : example + 1, :length] for k, v in encoding.items()}
        expected = method.attribute(alone, target=case.target)[0]
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            together[example, :length] / scale, expected / scale, atol=2e-5, rtol=1e-4
        )
        assert not together[example, length:].any()


@ALL
def test_padding_is_found_without_a_mapping(name: str) -> None:
    if name == "random":
        pytest.skip("does not run the model")
    case = zoo.case("hf-BertForSequenceClassification-sdpa-padded")
    encoding = {"input_ids": case.inputs[0], **case.kwargs}
    expected = build(name, case.model).attribute(encoding, target=1)
    close(build(name, case.forward).attribute(case.inputs[0], target=1), expected)
    close(
        build(name, case.model).attribute(
            case.inputs[0], target=1, additional_forward_args=(case.kwargs["attention_mask"],)
        ),
        expected,
    )


@ALL
def test_input_kinds(name: str, untouched: Any) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    method = build(name, case.model)
    ids = case.inputs[0]
    with untouched(case.model):
        relevance = method.attribute(ids, target=1)
        as_tuple = method.attribute((ids,), target=1)
    assert relevance.shape == ids.shape and relevance.dtype == torch.float32
    assert not relevance.requires_grad
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    close(as_tuple[0], relevance)
    with torch.no_grad():
        close(method.attribute(ids, target=1), relevance)
    embeds = zoo.case("hf-Bert-embeds-sdpa")
    other = build(name, embeds.model).attribute(embeds.inputs[0], target=1)
    expected = embeds.inputs[0].shape if name == "random" else embeds.inputs[0].shape[:2]
    assert other.shape == expected
    image = zoo.case("hf-ViTForImageClassification-sdpa")
    pixels = build(name, image.model).attribute({"pixel_values": image.inputs[0]}, target=1)
    assert pixels.shape == (image.inputs[0].shape if name == "random" else (2, 17))
    assert type(method).get_name()
    assert method.attribute.__wrapped__  # Captum Insights calls it


@ALL
def test_threads(name: str) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    method = build(name, case.model)
    batches = [zoo.token_ids(False, seed=s)[0] for s in range(4)]
    expected = [method.attribute(ids, target=1) for ids in batches]
    found: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = method.attribute(batches[i], target=1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(expected):
        close(found[i], wanted)


@pytest.mark.parametrize("entry", zoo.cases(kind="floats", without=("slow", "swin")), ids=str)
def test_same_maps_however_attention_is_spelled(entry: zoo.Entry) -> None:
    """Runs on every model of the zoo that has maps of one size; rows of rollout sum to one."""
    case = entry.build()
    if len(case.inputs) > 1 or "causal-cross" in entry.name:
        pytest.skip("two sequences")
    tokens = AttentionRollout(case.forward, query="mean").attribute(case.inputs[0])
    dead = "dead-rows" in entry.name or "extra" in entry.name  # keys that are no tokens
    sums = tokens.sum(1)
    assert bool((sums <= 1 + 1e-5).all())
    if not dead:
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


def test_random_depends_on_seed_and_content() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    first = RandomAttribution(None).attribute(ids)  # type: ignore[arg-type]
    again = RandomAttribution(None).attribute(ids)  # type: ignore[arg-type]
    of_another_type = RandomAttribution(None).attribute(ids.int())  # type: ignore[arg-type]
    assert torch.equal(torch.as_tensor(of_another_type), torch.as_tensor(first))
    other = RandomAttribution(None, seed=1).attribute(ids)  # type: ignore[arg-type]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    swapped = RandomAttribution(None).attribute(ids.flip(0))  # type: ignore[arg-type]
    assert torch.equal(swapped, first.flip(0))


# ---- tokens and patches ------------------------------------------------------------------------
def test_patches_only_drops_the_prefix() -> None:
    case = zoo.case("hf-ViTForImageClassification-sdpa")
    everything = AttentionRollout(case.model).attribute(case.inputs[0])
    patches = AttentionRollout(case.model, patches_only=True).attribute(case.inputs[0])
    close(patches, everything[:, 1:])


def test_prefix_tokens_are_counted() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {**small, "image_size": 8, "patch_size": 4, "intermediate_size": 8}
    vit = transformers.ViTModel(transformers.ViTConfig(**options))
    deit = transformers.DeiTModel(transformers.DeiTConfig(**options))
    assert prefix_tokens(vit) == 1
    assert prefix_tokens(deit) == 2
    options.pop("intermediate_size")
    config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=3, mlp_ratio=1)
    assert prefix_tokens(transformers.Dinov2WithRegistersModel(config)) == 4
    assert prefix_tokens(nn.Linear(2, 2)) == 0


def test_registers_are_no_patches() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        num_register_tokens=3, mlp_ratio=2, num_labels=3,
    )  # fmt: skip
    model = zoo.randomise(transformers.Dinov2WithRegistersForImageClassification(config))
    pixels = zoo.floats(2, 3, 8, 8)
    for method in (AttentionLast, AttentionRollout, GenericAttention, TransformerAttribution):
        assert method(model, patches_only=True).attribute(pixels, target=1).shape == (2, 4)
        assert method(model).attribute(pixels, target=1).shape == (2, 8)


def seen_by(kind: str) -> tuple[nn.Module, Tensor, tuple[int, ...], list[int]]:
    """A model, its inputs, a target, and the rows that it reads this output from."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen = {**small, "intermediate_size": 8, "image_size": 8, "patch_size": 4, "num_labels": 3}
    if kind == "averaged patches":  # BEiT has a class token and does not read it
        config = transformers.BeitConfig(**seen, out_indices=[1, 2])
        model = transformers.BeitForImageClassification(config)
        return model, zoo.floats(2, 3, 8, 8), (1,), [1, 2, 3, 4]
    if kind == "video":
        config = transformers.VideoMAEConfig(**seen, num_frames=4)
        model = transformers.VideoMAEForVideoClassification(config)
        return model, zoo.floats(2, 4, 3, 8, 8), (1,), [*range(8)]
    if kind == "sound":
        config = transformers.WhisperConfig(
            d_model=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=8,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, num_mel_bins=4,
            max_source_positions=5, vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, num_labels=3, classifier_proj_size=8,
        )  # fmt: skip
        model = transformers.WhisperForAudioClassification(config)
        return model, zoo.floats(2, 4, 10), (1,), [*range(5)]
    config = transformers.YolosConfig(**{**seen, "image_size": [8, 8]}, num_detection_tokens=3)
    return transformers.YolosForObjectDetection(config), zoo.floats(2, 3, 8, 8), (2, 1), [7]


@pytest.mark.parametrize("kind", ["averaged patches", "video", "sound", "queries"])
def test_the_row_is_one_that_the_output_is_read_from(kind: str) -> None:
    model, inputs, target, read = seen_by(kind)
    zoo.randomise(model)
    method = AttentionLast(model)
    last = method._maps(inputs, target, None, gradients=True).maps[-1]
    assert last.gradient is not None
    slopes = last.gradient.abs().sum((0, 1, 3))
    assert (slopes > 1e-6 * slopes.max()).nonzero().flatten().tolist() == read
    found, expected = method.attribute(inputs, target), last.pattern.mean(1)[:, read].mean(1)
    close(found, expected)
    patches = AttentionLast(model, patches_only=True).attribute(inputs, target)
    prefix = prefix_tokens(model)
    close(patches, expected[:, prefix : prefix + 4 if kind == "queries" else None])


# ---- refusals ----------------------------------------------------------------------------------
class NoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(5, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.mix(x.transpose(1, 2)).transpose(1, 2)).mean(1))


class ChannelAttention(nn.Module):
    """Attention between channels, as in XCiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).permute(0, 2, 3, 1) for t in self.qkv(x).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head((x + mixed.permute(0, 3, 1, 2).flatten(2)).mean(1))


class Windows(nn.Module):
    """Attention within windows of two tokens, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(-1, 2, 8)
        mixed = self.inner(parts, parts, parts, need_weights=False)[0]
        return self.head((x + mixed.reshape(x.shape)).mean(1))


class Staged(nn.Module):
    """Tokens are pooled in pairs; attention acts before, or behind only."""

    def __init__(self, before: bool, ids: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8) if ids else nn.Identity()
        self.before, self.behind = Attend() if before else None, Attend()

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        if self.before is not None:
            x = self.before(x, x)
        x = x.unflatten(1, (-1, 2)).mean(2)
        return self.behind(x, x).mean(1)


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (Staged(True, False), torch.randn(2, 6, 8), r"needs attention maps of one size.*\[3, 6\]"),
        (Staged(False, True), torch.ones(2, 6).long(), "maps have 3 rows, the input has 6 tokens"),
    ],
)
def test_maps_that_are_not_from_token_to_token_are_refused(
    model: nn.Module, inputs: Tensor, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        AttentionRollout(model).attribute(inputs)


class Patches(nn.Module):
    """Four patches without a class token; their mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).mT
        return self.head((x + (x @ x.mT).softmax(-1) @ x).mean(1))


class PooledByQueries(nn.Module):
    """Learned queries read four patches, or what these are given as."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 3)
        self.inner, self.across = Attend(), Attend()
        self.queries = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = self.patches(x).flatten(2).mT
        x = self.inner(x, x)
        return self.head(self.across(self.queries.expand(len(x), -1, -1), x).mean(1))


def test_images_are_the_keys_of_learned_queries() -> None:
    """Pixels do not say how many tokens they are; queries that are learned are no input."""
    model, pixels = PooledByQueries().eval(), torch.randn(2, 1, 4, 4)
    explainer = GenericAttention(model, query="mean")
    tokens = model.patches(pixels).flatten(2).mT.detach()
    expected = explainer.attribute(tokens, target=1)
    torch.testing.assert_close(explainer.attribute(pixels, target=1), expected)
    assert expected.shape == (2, 4) and bool(expected.any(1).all())


def test_what_is_read_where_nothing_is_chosen(small: Small) -> None:
    """The mean of the patches without a class token; one row if the target names none."""
    pixels = torch.randn(2, 1, 4, 4)
    model = zoo.randomise(Patches())
    close(
        AttentionRollout(model).attribute(pixels),
        AttentionRollout(model, query="mean").attribute(pixels),
    )
    x = torch.randn(2, 5, 8)
    each = lambda x: (x @ x.mT).softmax(-1) @ x  # noqa: E731
    close(AttentionRollout(each).attribute(x), AttentionRollout(each, query="cls").attribute(x))
    one = AttentionRollout(lambda ids: small(ids[None])).attribute(IDS[0])
    close(one, AttentionRollout(small).attribute(IDS[:1])[0])


def test_co_attention_of_equal_lengths_cannot_be_told_apart() -> None:
    model: Any = zoo.randomise(CoAttention())
    with pytest.raises(UnsupportedModelError, match=r"same number of tokens .* another length"):
        GenericAttention(model).attribute((zoo.floats(2, 4, 8), zoo.floats(2, 4, 8)), target=1)


@pytest.mark.parametrize(
    "method", [AttentionLast, AttentionRollout, GenericAttention, TransformerAttribution]
)
@pytest.mark.parametrize(
    ("model", "reason", "tokens"),
    [
        (NoAttention, "No softmax attention", 5),
        (ChannelAttention, "between channels", 7),
        (Windows, "windows", 6),
    ],
)
def test_unsupported_models_say_why(
    method: Any, model: Any, reason: str, tokens: int, untouched: Any
) -> None:
    instance = zoo.randomise(model())
    with untouched(instance), pytest.raises(UnsupportedModelError, match=reason):
        method(instance).attribute(zoo.floats(2, tokens, 8), target=0)


@pytest.mark.parametrize("fused", [True, False])
def test_swin_is_refused(fused: bool) -> None:
    pytest.importorskip("timm")
    case = zoo.case("timm-swin-fused" if fused else "timm-swin-explicit")
    with pytest.raises(UnsupportedModelError, match="windows"):
        AttentionRollout(case.model).attribute(case.inputs[0])


def test_mistakes_are_explained(small: Small) -> None:
    for mistake in (
        lambda: AttentionLast(small, query="first"),  # type: ignore[arg-type]
        lambda: AttentionRollout(small, head_fusion="sum"),  # type: ignore[arg-type]
        lambda: AttentionRollout(small, discard_ratio=1.0),
        lambda: GenericAttention(small, variant="chef"),  # type: ignore[arg-type]
        lambda: TransformerAttribution(small, form="gpt"),  # type: ignore[arg-type]
        lambda: RandomAttribution(small, seed=0.5),  # type: ignore[arg-type]
        lambda: AttentionLast(small, query=5).attribute(IDS),
        lambda: AttentionLast(small, layer=2).attribute(IDS),
        lambda: AttentionRollout(small, start_layer=2).attribute(IDS),
        lambda: AttentionLast(small).attribute("text"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            mistake()
    with pytest.raises(TargetError):
        GenericAttention(small).attribute(IDS)
    with pytest.raises(TargetError):
        TransformerAttribution(small).attribute(IDS, target=9)


def test_an_error_in_the_model_leaves_it_untouched(small: Small, untouched: Any) -> None:
    with untouched(small), pytest.raises(InputError, match="token id 99"):
        AttentionRollout(small).attribute(torch.tensor([[99]]))
    close(AttentionRollout(small).attribute(IDS), AttentionRollout(small).attribute(IDS))


# ---- flow --------------------------------------------------------------------------------------
def test_flow_where_a_middle_layer_is_the_bottleneck() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(0)
    layers = [(6 * torch.randn(6, 6, generator=generator)).softmax(-1) for _ in range(4)]
    capacities = [0.5 * a + 0.5 * eye(6) for a in layers]
    close(maximum_flows(capacities[:1], 3), capacities[0][3].double(), atol=1e-8)  # one layer
    capacities[2] = capacities[2] * (torch.rand(6, 6, generator=generator) > 0.7)
    networkx = pytest.importorskip("networkx")
    for row in (0, 3):
        graph = networkx.DiGraph()
        for level, a in enumerate(capacities):
            for i in range(6):
                for j in range(6):
                    graph.add_edge((level + 1, i), (level, j), capacity=float(a[i, j]))
        expected = [networkx.maximum_flow_value(graph, (4, row), (0, j)) for j in range(6)]
        close(maximum_flows(capacities, row).float(), torch.tensor(expected))
        assert min(expected) < 0.9 * max(expected)


def test_flow_is_bounded_by_one_and_by_what_reaches_the_token(small: Small) -> None:
    pytest.importorskip("scipy")
    flow = AttentionFlow(small).attribute(IDS)
    assert bool((flow <= 1 + 1e-6).all()) and bool((flow > 0).all())
    mean = AttentionFlow(small, query="mean").attribute(IDS)
    rows = torch.stack([AttentionFlow(small, query=i).attribute(IDS) for i in range(5)])
    close(mean, rows.mean(0))
    assert math.isfinite(float(mean.sum()))
