"""Constructions met in the wild: right against the oracle, or refused with the reason.

Each model here is small and written the way some published model is written. ``agrees`` compares
with the recorded constants of the oracle, of this model or of the same function spelled plainly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
import zoo
from blocks import (
    BATCH,
    CLASSES,
    HEADS,
    TOKENS,
    WIDTH,
    Block,
    agrees,
    block,
    floats,
    spelled,
)
from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from captum_lrp_tx.errors import UncoveredOperationError
from closeness import close_to_largest


# ---- calls by keyword ---------------------------------------------------------------------------
class ByKeyword(nn.Module):
    """Every argument by name, as generated code writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.level, self.layer = nn.RMSNorm(WIDTH, eps=1e-5), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (WIDTH,)
        x = F.linear(bias=self.first.bias, weight=self.first.weight, input=x)
        x = F.rms_norm(weight=self.level.weight, normalized_shape=shape, eps=1e-5, input=x)
        pattern = F.softmax(dim=-1, input=torch.matmul(input=x, other=x.mT))
        x = torch.matmul(other=x, input=pattern) + x
        x = F.layer_norm(
            bias=self.layer.bias, weight=self.layer.weight, normalized_shape=shape, input=x
        )
        x = F.scaled_dot_product_attention(value=x, key=x, query=x, is_causal=True)
        return F.linear(input=x.mean(1), weight=self.last.weight, bias=self.last.bias)


def test_calls_by_keyword() -> None:
    agrees(zoo.randomise(ByKeyword()), floats(BATCH, TOKENS, WIDTH))


# ---- norms --------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["method", "function", "operator", "in place", "float32"])
def test_rms_norm_by_a_power(how: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            square = x.pow(2).mean(-1, keepdim=True) + 1e-6
            if how == "method":
                x = x * square.pow(-0.5)
            elif how == "function":
                x = torch.pow(square, -0.5) * x
            elif how == "operator":
                x = x * square**-0.5
            elif how == "in place":
                x = x * square.pow_(-0.5)
            else:
                x = (x.float() * torch.pow(square.float(), -0.5)).type_as(x)
            return self.head(x)

    agrees(zoo.randomise(Model()), floats(4, WIDTH))


# ---- attention whose class does not say so ------------------------------------------------------
class Latent(Block):
    """Keys and values from one low-rank latent, and a rotary part of the key for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.level_latent = nn.Linear(WIDTH, 4), nn.RMSNorm(4, eps=1e-6)
        self.up_k, self.up_v = nn.Linear(4, WIDTH, bias=False), nn.Linear(4, WIDTH, bias=False)
        self.rope = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.level(x)
        latent = self.level_latent(self.down(h))
        shared = self.rope(h).unsqueeze(1).expand(-1, HEADS, -1, -1)
        q = torch.cat([self.heads(self.q(h)), self.heads(self.q(h))[..., :2]], -1)
        k = torch.cat([self.heads(self.up_k(latent)), shared], -1)
        v = self.heads(self.up_v(latent))
        mixed = spelled(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).mean(1))


class CrossCovariance(Block):
    """Channels attend to channels, with l2-normalised queries and keys (XCiT)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.level(x)
        q, k, v = (self.heads(p(h)).mT for p in (self.q, self.k, self.v))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        mixed = ((q @ k.mT * 1.3).softmax(-1) @ v).mT
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


class Parallel(Block):
    """Attention and MLP beside each other, from one projection (PaLM, ViT-22B)."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(WIDTH, 5 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, wide = self.all(self.level(x)).split([WIDTH] * 3 + [2 * WIDTH], -1)
        mixed = spelled(self.heads(q), self.heads(k), self.heads(v)).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed) + self.down(F.relu(wide))).mean(1))


def _anonymous() -> nn.Module:
    model = Block()
    model.__class__ = type("", (Block,), {})
    return model


@pytest.mark.parametrize(
    "build", [Latent, CrossCovariance, Parallel, _anonymous], ids=lambda b: b.__name__
)
def test_attention_without_the_name(build: Callable[[], nn.Module]) -> None:
    agrees(zoo.randomise(build()), floats(BATCH, TOKENS, WIDTH))


class AttentionWithRouter(Block):
    """A class named attention that holds a mixture of experts: its softmax is no pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.level(x)
        weights = self.router(h).softmax(-1)
        v = sum(weights[..., i, None] * e(h) for i, e in enumerate(self.experts))
        mixed = spelled(self.heads(self.q(h)), self.heads(self.k(h)), self.heads(v))
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_a_router_inside_attention_is_no_pattern() -> None:
    model, x = zoo.randomise(AttentionWithRouter()), floats(BATCH, TOKENS, WIDTH)
    relevance = ConservativeGI(model).attribute(x, target=1, strict=True)
    (expected,) = oracle.oracle_relevance(model, (x,), "ah+ln", lambda output: output[:, 1])
    close_to_largest(relevance, expected, 1e-4)
    # the full rules hold the router constant, and conserve
    report = audit.explainability(model, x, target=1, file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale


class AttentionNorm(nn.LayerNorm):
    """Both words in the name: what it does decides."""


class NormedAttention(Block):
    def __init__(self) -> None:
        super().__init__()
        self.level = AttentionNorm(WIDTH)


def test_names_with_both_words() -> None:
    model = zoo.randomise(NormedAttention())
    agrees(model, floats(BATCH, TOKENS, WIDTH))
    agrees(model, floats(BATCH, TOKENS, WIDTH), rules="ln")
    agrees(model, floats(BATCH, TOKENS, WIDTH), rules="ah")


def test_fused_attention_outside_any_attention_module() -> None:
    weights = [torch.randn(WIDTH, WIDTH) for _ in range(3)]
    head = torch.randn(WIDTH, CLASSES)

    def forward(x: Tensor) -> Tensor:
        q, k, v = (x @ w for w in weights)
        return F.scaled_dot_product_attention(q, k, v).mean(1) @ head

    agrees(forward, floats(BATCH, TOKENS, WIDTH))


# ---- torch's own attention ----------------------------------------------------------------------
@pytest.mark.parametrize("mask", ["bool per head", "float per head", "bool shared", "padding"])
@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention_with_masks(mask: str, weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            generator, options = torch.Generator().manual_seed(3), {}
            hidden = torch.rand(BATCH * HEADS, TOKENS, TOKENS, generator=generator) > 0.7
            hidden[..., 0] = False
            if mask == "bool per head":
                options["attn_mask"] = hidden
            elif mask == "float per head":
                options["attn_mask"] = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
            elif mask == "bool shared":
                options["attn_mask"] = hidden[0]
            else:
                options["key_padding_mask"] = torch.arange(TOKENS) >= torch.tensor([[5], [3]])
            mixed, _ = self.inner(x, x, x, need_weights=weights, **options)
            return self.head(mixed.mean(1))

    agrees(zoo.randomise(Model()), floats(BATCH, TOKENS, WIDTH))


@pytest.mark.parametrize("layers", ["attention", "encoder"])
def test_the_fast_path_is_the_same_function(layers: str) -> None:
    """Without gradients torch takes another kernel; the explained value is that of the model."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
            self.inner = (
                nn.TransformerEncoder(layer, 2)
                if layers == "encoder"
                else nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            )
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.inner(x) if layers == "encoder" else self.inner(x, x, x)[0]
            return self.head(mixed.mean(1))

    model, x = zoo.randomise(Model()), floats(BATCH, TOKENS, WIDTH)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        fast = model(x)
    report = audit.explainability(model, x, target=1, file=None, strict=True)
    assert report.output == pytest.approx(float(fast[:, 1].sum()), rel=1e-4)
    agrees(model, x)


def test_bare_multi_head_attention_forward() -> None:
    weight, bias = torch.randn(3 * WIDTH, WIDTH) / 3, torch.randn(3 * WIDTH)
    out, head = torch.randn(WIDTH, WIDTH) / 3, torch.randn(WIDTH, CLASSES)

    def forward(x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        mixed, _ = F.multi_head_attention_forward(
            y, y, y, WIDTH, HEADS, weight, bias, None, None, False, 0.0, out, None, training=False
        )
        return mixed.mean(0) @ head

    agrees(forward, floats(BATCH, TOKENS, WIDTH))


# ---- softmaxes by other means -------------------------------------------------------------------
class StableSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pattern = x.softmax(-1)
        ctx.save_for_backward(pattern)
        return pattern

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (pattern,) = ctx.saved_tensors
        return pattern * (grads[0] - (pattern * grads[0]).sum(-1, keepdim=True))


class Normalise(StableSoftmax):
    """The same, and the name does not tell."""


def test_softmax_as_a_custom_autograd_function() -> None:
    model = block(lambda q, k, v: StableSoftmax.apply(q @ k.mT * 0.5) @ v)
    agrees(model, floats(BATCH, TOKENS, WIDTH))


@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
def test_a_softmax_that_only_its_values_tell(method: Any) -> None:
    """A custom function of any name whose rows sum to one, as sparsemax of a library."""
    model = block(lambda q, k, v: Normalise.apply(q @ k.mT * 0.5) @ v)
    same = block(lambda q, k, v: (q @ k.mT * 0.5).softmax(-1) @ v)
    x = floats(BATCH, TOKENS, WIDTH)
    relevance = method(model).attribute(x, target=1, strict=True)
    close_to_largest(relevance, method(same).attribute(x, target=1, strict=True), 1e-5)


@pytest.mark.parametrize("one", [0.0, 1.0])
@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
def test_softmax_by_hand(one: float, method: Any) -> None:
    """``exp / sum(exp)``, also with a one in the sum (a head may attend to nothing)."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT * 0.5
        shifted = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        return (shifted / (shifted.sum(-1, keepdim=True) + one)) @ value

    def same(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT * 0.5
        if not one:
            return scores.softmax(-1) @ value
        nothing = scores.amax(-1, keepdim=True).detach()
        return torch.cat([scores, nothing], -1).softmax(-1)[..., :-1] @ value

    x = floats(BATCH, TOKENS, WIDTH)
    relevance = method(block(attention)).attribute(x, target=1, strict=True)
    (expected,) = oracle.oracle_relevance(block(same), (x,), "ah+ln", lambda output: output[:, 1])
    close_to_largest(relevance, expected, 1e-4)


@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
def test_a_softmax_divided_late(method: Any) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.mT * 0.5).exp()
        return (weights @ value) / weights.sum(-1, keepdim=True)

    def same(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT * 0.5).softmax(-1) @ value

    x = floats(BATCH, TOKENS, WIDTH)
    relevance = method(block(attention)).attribute(x, target=1, strict=True)
    (expected,) = oracle.oracle_relevance(block(same), (x,), "ah+ln", lambda output: output[:, 1])
    close_to_largest(relevance, expected, 1e-4)


@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
@pytest.mark.parametrize("how", ["multiplied later", "first factor"])
def test_sinks_as_a_sigmoid_of_the_logsumexp(how: str, method: Any) -> None:
    sink = torch.tensor([0.3, -0.8]).view(HEADS, 1, 1)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT * 0.5
        kept = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - sink)
        mixed = scores.softmax(-1) @ value
        return mixed * kept if how == "multiplied later" else kept * mixed

    def same(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT * 0.5
        scores = torch.cat([scores, sink.expand(len(scores), HEADS, TOKENS, 1)], -1)
        return scores.softmax(-1)[..., :-1] @ value

    x = floats(BATCH, TOKENS, WIDTH)
    relevance = method(block(attention)).attribute(x, target=1, strict=True)
    (expected,) = oracle.oracle_relevance(block(same), (x,), "ah+ln", lambda output: output[:, 1])
    close_to_largest(relevance, expected, 1e-4)


# ---- inputs -------------------------------------------------------------------------------------
class TwoInputs(nn.Module):
    """An encoder and a decoder that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
        self.write = nn.TransformerDecoderLayer(WIDTH, HEADS, 16, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.write(target, self.read(source)).mean(1))


def test_two_inputs() -> None:
    model = zoo.randomise(TwoInputs())
    agrees(model, floats(BATCH, TOKENS, WIDTH), zoo.floats(BATCH, 3, WIDTH, seed=9))


def test_two_inputs_of_token_ids() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=41, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_decoder_layers=1,
        num_heads=4, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForConditionalGeneration(config).eval())
    ids, later = torch.randint(3, 40, (2, 7)), torch.randint(3, 40, (2, 4))
    given = {"input_ids": ids, "decoder_input_ids": later}
    got = ConservativeGI(model).attribute(given, target=(3, 5), strict=True)

    def logits(source: Tensor, target: Tensor) -> Tensor:
        returned = model(inputs_embeds=source, decoder_inputs_embeds=target, use_cache=False)
        return returned.logits[:, 3, 5]

    embeds = (model.shared(ids).detach(), model.shared(later).detach())
    expected = oracle.oracle_relevance(logits, embeds, "ah+ln", lambda output: output)
    for one, other in zip(got, expected, strict=True):
        assert (one - other.sum(-1)).abs().max() <= 1e-4 * other.abs().max()


class Embedded(nn.Module):
    """Embeddings changed in place, and an id path that differs from the embedding path."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(31, 6 if how == "factorised" else WIDTH)
        self.wider = nn.Linear(6, WIDTH)
        self.places = nn.Embedding(16, WIDTH)
        self.block = Block()

    def forward(self, ids: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        if ids is not None:
            embeds = self.words(ids)
            if self.how == "scaled in place":
                embeds *= WIDTH**0.5
                embeds += self.places(torch.arange(ids.shape[1]))
            elif self.how == "scaled by mul_":
                embeds.mul_(3.0).add_(self.places(torch.arange(ids.shape[1]).expand_as(ids)))
            elif self.how == "factorised":
                embeds = self.wider(embeds)
            elif self.how == "only ids are scaled":
                embeds = embeds * 2.5
            elif self.how == "padding zeroed in place":
                embeds[ids == 0] = 0.0
        return self.block(embeds)


@pytest.mark.parametrize(
    "how",
    [
        "scaled in place",
        "scaled by mul_",
        "factorised",
        "only ids are scaled",
        "padding zeroed in place",
    ],
)
def test_embeddings_on_the_way_into_the_model(how: str, untouched: Any) -> None:
    model, ids = zoo.randomise(Embedded(how)), torch.randint(0, 31, (BATCH, TOKENS))
    ids[0, 2] = 0
    with untouched(model):
        relevance = ConservativeGI(model).attribute(ids, target=1, strict=True)
    expected = oracle.oracle_token_relevance(model, ids, "ah+ln", lambda output: output[:, 1])
    close_to_largest(relevance, expected, 1e-4)


# ---- rows that attend to nothing ----------------------------------------------------------------
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_on_the_left(implementation: str) -> None:
    """Rows of padding attend to nothing; real tokens get what they get without the padding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, max_position_embeddings=32,
        attn_implementation=implementation,
    )  # fmt: skip
    model = zoo.randomise(transformers.LlamaForCausalLM(config).eval())
    ids = torch.randint(3, 40, (1, 5))
    alone = ConservativeLRP(model).attribute(ids, target=(4, 7), strict=True)
    padded = {
        "input_ids": F.pad(ids, (3, 0)),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]]),
    }
    got = ConservativeLRP(model).attribute(padded, target=(7, 7), strict=True)
    assert got[:, :3].abs().max() == 0
    assert (got[:, 3:] - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_fully_masked_rows() -> None:
    """SDPA gives zeros where a softmax over nothing would give NaN."""
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    mask[1, :, :, :3] = False  # the first three rows of the second example see nothing
    model = block(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    agrees(model, floats(BATCH, TOKENS, WIDTH))


# ---- parts under no_grad ------------------------------------------------------------------------
def test_a_part_under_no_grad_is_refused() -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.no_grad():
            return spelled(query, key, value)

    x = floats(BATCH, TOKENS, WIDTH)
    for method in (ConservativeGI, ConservativeLRP):
        with pytest.raises(UncoveredOperationError, match=r"torch\.no_grad\(\)"):
            method(block(attention)).attribute(x, target=1, strict=True)


def test_masks_and_positions_under_no_grad_are_fine() -> None:
    """What carries no relevance may be computed without gradients: masks, tables, indices."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
            best = (query @ key.mT).argmax(-1)
            table = torch.arange(TOKENS).float().cos().unsqueeze(-1)
        scores = (query * table @ (key * table).mT).masked_fill(hidden, -math.inf)
        scores = scores + F.one_hot(best, TOKENS)
        return scores.softmax(-1) @ value

    agrees(block(attention), floats(BATCH, TOKENS, WIDTH))
