"""Tiny models with random weights and fixed seeds, for the tests.

Building is lazy: collecting the tests imports neither transformers nor timm. Use it as::

    @pytest.mark.parametrize("entry", zoo.cases(), ids=str)
    def test_something(entry: zoo.Entry) -> None:
        case = entry.build()  # skips, with the reason, where a package is missing
        expected = case.expected("ah+ln")

All weights are random, the biases and the weights of norms included: libraries start biases at 0
and norms at 1, which would hide mistakes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracle import (
    OracleTrace,
    Rules,
    oracle_relevance,
    oracle_token_relevance,
    trace_function,
)

Kind = Literal["tokens", "floats"]

BATCH, TOKENS, WIDTH, HEADS, CLASSES, WORDS, PAD = 3, 7, 16, 4, 5, 41, 0
LENGTHS = (7, 5, 3)


@dataclass
class Case:
    """A model together with what to explain.

    ``model(*inputs, **kwargs)`` is the call; :meth:`forward` is the same, read at ``.logits``
    where the output is not a tensor. ``target`` has Captum's meaning. ``patterns`` and ``norms``
    say how many attention patterns and norms lie on the way from the inputs to the output.
    """

    name: str
    model: nn.Module
    kind: Kind
    inputs: tuple[Tensor, ...]
    target: int | tuple[int, ...]
    patterns: int
    norms: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    _traced: Any = None

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.model(*inputs, **self.kwargs)
        return output if isinstance(output, Tensor) else output.logits

    def select(self, output: Tensor) -> Tensor:
        for index in self.target if isinstance(self.target, tuple) else (self.target,):
            output = output[:, index]
        return output

    def expected(self, rules: Rules, *, double: bool = False) -> tuple[Tensor, ...]:
        """The oracle's relevance: one tensor for each input ((batch, tokens) for ids)."""
        options: Any = {"double": double, "trace": self.trace()}
        if self.kind == "tokens":
            ids = self.inputs[0]
            return (oracle_token_relevance(self.forward, ids, rules, self.select, **options),)
        return oracle_relevance(self.forward, self.inputs, rules, self.select, **options)

    def trace(self) -> OracleTrace:
        """What the oracle records of the model at these inputs, once for all rules and targets."""
        key = (id(self.model), *map(id, self.inputs))
        if self._traced is None or self._traced[0] != key:
            self._traced = key, trace_function(self.forward, self.inputs)
        return self._traced[1]


@dataclass(frozen=True)
class Entry:
    """A case that has not been built yet."""

    name: str
    kind: Kind
    builder: Callable[[], Case]
    needs: str | None = None
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str | None:
        """Why this case cannot be built here; None if it can."""
        if self.needs == "torch 2.5":
            return None if hasattr(torch, "_safe_softmax") else f"{self.name} needs {self.needs}"
        if self.needs is None or importlib.util.find_spec(self.needs) is not None:
            return None
        return f"{self.name} needs the package {self.needs}"

    def build(self) -> Case:
        reason = self.missing()
        if reason is not None:
            pytest.skip(reason)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = self.builder()
        case.name, case.needs = self.name, self.needs
        case.model.eval()
        return case


_ENTRIES: dict[str, Entry] = {}


def cases(
    *tags: str, kind: Kind | None = None, without: tuple[str, ...] = ("slow",)
) -> list[Entry]:
    """The entries that have all ``tags`` and none of ``without``.

    Tags: ``hf bert llama gpt2 vit lm eager sdpa padded torch encoder mha custom norm router
    kernel timm swin torchvision slow``.
    """
    return [
        entry
        for entry in _ENTRIES.values()
        if entry.tags.issuperset(tags)
        and not entry.tags.intersection(without)
        and (kind is None or entry.kind == kind)
    ]


def case(name: str) -> Case:
    """Build one case by its name."""
    return _ENTRIES[name].build()


def _add(
    name: str, tags: str, kind: Kind, builder: Callable[[], Case], needs: str | None = None
) -> None:
    assert name not in _ENTRIES, name
    _ENTRIES[name] = Entry(name, kind, builder, needs, frozenset(tags.split()))


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random values for every parameter, such that activations are of the order of one."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(0.7 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(max(1, math.prod(parameter.shape[1:]))))
            elif name.rsplit(".", 1)[-1] in ("weight", "gain", "gamma"):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def token_ids(padded: bool, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Ids (batch, tokens) and their attention mask; padded on the right where asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(PAD + 1, WORDS, (BATCH, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
        ids = ids.masked_fill(mask == 0, PAD)
    return ids, mask


def floats(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- transformers


def _hf(family: str, head: str, implementation: str, padded: bool) -> Case:
    transformers = importlib.import_module("transformers")
    common: dict[str, Any] = {"attn_implementation": implementation, "vocab_size": WORDS}
    layers = 2
    if family == "Bert":
        norms = 2 * layers + 1
        config = transformers.BertConfig(
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=CLASSES,
            pad_token_id=PAD,
            **common,
        )
    elif family == "Llama":
        norms = 2 * layers + 1
        biased = head == "ForCausalLM"
        config = transformers.LlamaConfig(
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=CLASSES,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
            attention_bias=biased,
            mlp_bias=biased,
            **common,
        )
    else:
        norms = 2 * layers + 1
        config = transformers.GPT2Config(
            n_embd=WIDTH,
            n_layer=layers,
            n_head=HEADS,
            n_positions=16,
            num_labels=CLASSES,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
            **common,
        )
    model = randomise(getattr(transformers, f"{family}{head}")(config))
    ids, mask = token_ids(padded)
    causal = head in ("ForCausalLM", "LMHeadModel")
    return Case(
        name="",
        model=model,
        kind="tokens",
        inputs=(ids,),
        kwargs={"attention_mask": mask} if padded else {},
        # The last position that is real in every example of the padded batch.
        target=((min(LENGTHS) if padded else TOKENS) - 1, 17) if causal else 1,
        patterns=layers,
        norms=norms,
    )


def _hf_vit(implementation: str) -> Case:
    transformers = importlib.import_module("transformers")
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=CLASSES,
        attn_implementation=implementation,
    )
    model = randomise(transformers.ViTForImageClassification(config))
    pixels = floats(2, 3, 16, 16)
    return Case("", model, "floats", (pixels,), 3, patterns=2, norms=5)


def _hf_bert_embeds(implementation: str) -> Case:
    base = _hf("Bert", "ForSequenceClassification", implementation, False)

    class Embedded(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, embeds: Tensor) -> Tensor:
            return self.inner(inputs_embeds=embeds).logits

    base.model, base.kind = Embedded(base.model), "floats"
    base.inputs = (floats(BATCH, TOKENS, WIDTH),)
    return base


for _family, _head, _tags in (
    ("Bert", "ForSequenceClassification", "bert"),
    ("Llama", "ForSequenceClassification", "llama"),
    ("Llama", "ForCausalLM", "llama lm"),
    ("GPT2", "ForSequenceClassification", "gpt2"),
    ("GPT2", "LMHeadModel", "gpt2 lm"),
):
    for _impl in ("eager", "sdpa"):
        for _padded in (False, True):
            _add(
                f"hf-{_family}{_head}-{_impl}" + ("-padded" if _padded else ""),
                f"hf {_tags} {_impl}" + (" padded" if _padded else ""),
                "tokens",
                functools.partial(_hf, _family, _head, _impl, _padded),
                "transformers",
            )
for _impl in ("eager", "sdpa"):
    _add(
        f"hf-ViTForImageClassification-{_impl}",
        f"hf vit {_impl}",
        "floats",
        functools.partial(_hf_vit, _impl),
        "transformers",
    )
    _add(
        f"hf-Bert-embeds-{_impl}",
        f"hf bert {_impl}",
        "floats",
        functools.partial(_hf_bert_embeds, _impl),
        "transformers",
    )


# --------------------------------------------------------------------------- torch.nn


class EncoderClassifier(nn.Module):
    """torch.nn.TransformerEncoder on (batch, tokens, dim) or on ids, mean over real tokens."""

    def __init__(self, norm_first: bool, batch_first: bool, tokens: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            dim_feedforward=32,
            activation="gelu",
            norm_first=norm_first,
            batch_first=batch_first,
        )
        self.words = nn.Embedding(WORDS, WIDTH) if tokens else None
        self.places = nn.Embedding(16, WIDTH) if tokens else None
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, CLASSES)
        self.batch_first = batch_first

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if self.words is not None and self.places is not None:
            # The lookup of the positions has no batch dimension.
            x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        if not self.batch_first:
            x = x.transpose(0, 1)
        if padding is None:
            return self.head(x.mean(1))
        keep = (~padding).to(x.dtype).unsqueeze(-1)
        return self.head((x * keep).sum(1) / keep.sum(1))


def _encoder(norm_first: bool, batch_first: bool, padded: bool, tokens: bool) -> Case:
    model = randomise(EncoderClassifier(norm_first, batch_first, tokens))
    ids, mask = token_ids(padded)
    return Case(
        name="",
        model=model,
        kind="tokens" if tokens else "floats",
        inputs=(ids,) if tokens else (floats(BATCH, TOKENS, WIDTH),),
        kwargs={"padding": mask == 0} if padded else {},
        target=2,
        patterns=2,
        norms=5,
    )


for _norm_first in (False, True):
    for _batch_first in (False, True):
        for _padded in (False, True):
            for _tokens in (False, True):
                _add(
                    "torch-encoder"
                    + ("-pre" if _norm_first else "-post")
                    + ("-batchfirst" if _batch_first else "-seqfirst")
                    + ("-padded" if _padded else "")
                    + ("-ids" if _tokens else ""),
                    "torch encoder" + (" padded" if _padded else ""),
                    "tokens" if _tokens else "floats",
                    functools.partial(_encoder, _norm_first, _batch_first, _padded, _tokens),
                )


class BareMultihead(nn.Module):
    """nn.MultiheadAttention alone; ``cross`` reads keys and values from a second input."""

    def __init__(self, need_weights: bool, cross: bool, extra: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"add_bias_kv": True, "add_zero_attn": True} if extra else {}
        if cross:
            options |= {"kdim": 12, "vdim": 12}
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.need_weights = need_weights

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        mixed, _ = self.inner(x, memory, memory, need_weights=self.need_weights)
        return self.head(mixed.mean(1))


def _multihead(need_weights: bool, cross: bool, extra: bool) -> Case:
    model = randomise(BareMultihead(need_weights, cross, extra))
    inputs: tuple[Tensor, ...] = (floats(BATCH, TOKENS, WIDTH),)
    if cross:
        inputs += (floats(BATCH, 4, 12, seed=4),)
    return Case("", model, "floats", inputs, 0, patterns=1, norms=0)


for _weights in (False, True):
    for _kind, _cross, _extra in (
        ("", False, False),
        ("-cross", True, False),
        ("-extra", False, True),
    ):
        _add(
            f"torch-mha{_kind}" + ("-weights" if _weights else ""),
            "torch mha",
            "floats",
            functools.partial(_multihead, _weights, _cross, _extra),
        )


# --------------------------------------------------------------------------- custom models
# The names of these classes say nothing about what they do, on purpose.


class Leveller(nn.Module):
    """A norm written by hand, in several styles."""

    def __init__(self, style: str, width: int = WIDTH) -> None:
        super().__init__()
        self.style = style
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5
        if self.style == "rsqrt":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.gain
        if self.style == "sqrt":
            centred = x - x.mean(-1, keepdim=True)
            var = x.var(-1, unbiased=False, keepdim=True)
            return centred / torch.sqrt(var + eps) * self.gain + self.shift
        if self.style == "std":
            centred = x - x.mean(-1, keepdim=True)
            return self.gain * centred / (x.std(-1, keepdim=True) + eps) + self.shift
        if self.style == "power":
            centred = x - x.mean(-1, keepdim=True)
            return centred * (centred.square().mean(-1, keepdim=True) + eps) ** -0.5 * self.gain
        if self.style == "half":
            var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
            return (x - mean) / (var + eps) ** 0.5 * self.gain + self.shift
        if self.style == "length":
            return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + eps) * self.gain
        if self.style == "f.rms":
            return F.rms_norm(x, (x.shape[-1],), self.gain, eps)
        if self.style == "f.rms-plain":
            return F.rms_norm(x, (x.shape[-1],))
        if self.style == "f.layer-plain":
            return F.layer_norm(x, (x.shape[-1],))
        raise ValueError(self.style)


class Blend(nn.Module):
    """Self-attention with one fused projection, by einsum, bmm or baddbmm."""

    def __init__(self, style: str = "einsum", width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.style, self.heads = style, heads
        self.fused = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        scale = (width // self.heads) ** -0.5
        q, k, v = self.fused(x).view(batch, tokens, 3, self.heads, -1).unbind(2)
        if self.style == "einsum":
            p = (torch.einsum("bqhe,bkhe->bhqk", q, k) * scale).softmax(-1)
            return self.out(torch.einsum("bhqk,bkhe->bqhe", p, v).reshape(x.shape))
        q, k, v = (z.transpose(1, 2).reshape(batch * self.heads, tokens, -1) for z in (q, k, v))
        if self.style == "bmm":
            p = torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), dim=-1)
        else:
            slope = -0.1 * (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs().to(x)
            scores = torch.baddbmm(slope.expand(len(q), -1, -1), q, k.mT, alpha=scale)
            p = F.softmax(scores, dim=-1)
        mixed = torch.bmm(p, v).view(batch, self.heads, tokens, -1)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Switch(nn.Module):
    """A mixture of experts: softmax router times expert outputs, element-wise."""

    def __init__(self, width: int = WIDTH, experts: int = 3) -> None:
        super().__init__()
        self.choose = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.choose(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (weight.unsqueeze(-1) * outputs).sum(-2)


class Tower(nn.Module):
    """Pre-norm blocks from the parts above."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        blend: Callable[[], nn.Module] = Blend,
        mix: Callable[[], nn.Module] | None = None,
        probabilities: bool = False,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        mix = mix or (lambda: nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)))
        self.words = nn.Embedding(WORDS, WIDTH) if tokens else None
        self.firsts = nn.ModuleList(norm() for _ in range(2))
        self.blends = nn.ModuleList(blend() for _ in range(2))
        self.seconds = nn.ModuleList(norm() for _ in range(2))
        self.mixes = nn.ModuleList(mix() for _ in range(2))
        self.last = norm()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        if self.words is not None:
            x = self.words(x)
        parts = zip(self.firsts, self.blends, self.seconds, self.mixes, strict=True)
        for first, blend, second, mix in parts:
            x = x + blend(first(x))
            x = x + mix(second(x))
        logits = self.head(self.last(x).mean(1))
        return logits.softmax(-1) if self.probabilities else logits


def _tower(
    norm: Callable[[], nn.Module],
    tokens: bool = False,
    input_shape: tuple[int, ...] = (BATCH, TOKENS, WIDTH),
    **options: Any,
) -> Case:
    model = randomise(Tower(norm, tokens=tokens, **options))
    inputs = (token_ids(False)[0],) if tokens else (floats(*input_shape),)
    return Case("", model, "tokens" if tokens else "floats", inputs, 4, patterns=2, norms=5)


_STYLES = (
    "rsqrt",
    "sqrt",
    "std",
    "power",
    "half",
    "length",
    "f.rms",
    "f.rms-plain",
    "f.layer-plain",
)
for _style in _STYLES:
    _norm = functools.partial(Leveller, _style)
    _add(f"custom-norm-{_style}", "custom norm", "floats", functools.partial(_tower, _norm))
_layer_norm = functools.partial(nn.LayerNorm, WIDTH)
_rms_norm = functools.partial(nn.RMSNorm, WIDTH, eps=1e-5)
_two_dims = functools.partial(nn.LayerNorm, (TOKENS, WIDTH))
_add("custom-norm-nn.rms", "custom norm", "floats", functools.partial(_tower, _rms_norm))
_add("custom-norm-two-dims", "custom norm", "floats", functools.partial(_tower, _two_dims))
_add(
    "custom-ids",
    "custom",
    "tokens",
    functools.partial(_tower, functools.partial(Leveller, "rsqrt"), tokens=True),
)
for _style in ("bmm", "baddbmm"):
    _add(
        f"custom-{_style}",
        "custom",
        "floats",
        functools.partial(_tower, _layer_norm, blend=functools.partial(Blend, _style)),
    )
_add(
    "custom-router",
    "custom router",
    "floats",
    functools.partial(_tower, functools.partial(Leveller, "rsqrt"), mix=Switch),
)
_add(
    "custom-output-softmax",
    "custom router",
    "floats",
    functools.partial(_tower, _layer_norm, probabilities=True),
)
_add(
    "custom-router-output-softmax",
    "custom router",
    "floats",
    functools.partial(_tower, _layer_norm, mix=Switch, probabilities=True),
)


class Grain(nn.Module):
    """Convolutions with GroupNorm, then attention over the places of the feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.level = nn.GroupNorm(4, WIDTH)
        self.blend = Blend("bmm")
        self.again = nn.GroupNorm(1, WIDTH, affine=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.level(self.first(x)))
        x = x.flatten(2).transpose(1, 2)
        x = self.again((x + self.blend(x)).transpose(1, 2))
        return self.head(x.mean(-1))


def _grain() -> Case:
    model = randomise(Grain())
    return Case("", model, "floats", (floats(2, 3, 8, 8),), 1, patterns=1, norms=2)


_add("custom-groupnorm", "custom norm", "floats", _grain)


class Kernel(nn.Module):
    """F.scaled_dot_product_attention with each of its options."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option
        self.few = HEADS // 2 if option.startswith("gqa") else HEADS
        self.wide = 6 if option == "wide-values" else WIDTH // HEADS
        self.level = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, self.few * (WIDTH // HEADS))
        self.v = nn.Linear(WIDTH, self.few * self.wide)
        self.out = nn.Linear(HEADS * self.wide, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def options(self, batch: int, tokens: int) -> dict[str, Any]:
        option, generator = self.option, torch.Generator().manual_seed(5)
        options: dict[str, Any] = {}
        if option in ("causal", "gqa-causal", "causal-scale", "causal-cross"):
            options["is_causal"] = True
        if option in ("scale", "causal-scale", "float-scale"):
            options["scale"] = 0.9
        if option in ("float", "float-scale"):
            options["attn_mask"] = torch.randn(
                batch, HEADS, tokens, tokens, generator=generator
            ).masked_fill(torch.ones(tokens, tokens).triu(3).bool(), -math.inf)
        if option in ("bool", "gqa-bool", "dead-rows", "dead-rows-float"):
            mask = torch.rand(batch, 1, tokens, tokens, generator=generator) > 0.4
            mask[..., 0] = True
            if option.startswith("dead-rows"):
                mask[0, :, 2] = False
                mask[1] = False
            if option == "dead-rows-float":
                mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
            options["attn_mask"] = mask
        if option == "key-padding":
            lengths = torch.tensor(LENGTHS)[:batch]
            options["attn_mask"] = (torch.arange(tokens) < lengths[:, None])[:, None, None, :]
        if option == "bias-2d":
            options["attn_mask"] = torch.randn(tokens, tokens, generator=generator)
        if option.startswith("gqa"):
            options["enable_gqa"] = True
        bias: Tensor | None = options.get("attn_mask")
        if bias is not None:
            weight = self.q.weight
            dtype = weight.dtype if bias.is_floating_point() else bias.dtype
            options["attn_mask"] = bias.to(weight.device, dtype)
        return options

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = self.level(x)
        queries = h[:, :4] if self.option == "causal-cross" else h
        q = self.q(queries).view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        k = self.k(h).view(batch, tokens, self.few, -1).transpose(1, 2)
        v = self.v(h).view(batch, tokens, self.few, -1).transpose(1, 2)
        if self.option == "flat":  # three dimensions
            q, k, v = (z.flatten(0, 1) for z in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, **self.options(batch, tokens))
        mixed = mixed.view(batch, HEADS, queries.shape[1], -1).transpose(1, 2).flatten(2)
        return self.head((queries + self.out(mixed)).mean(1))


def _kernel(option: str) -> Case:
    inputs = (floats(BATCH, TOKENS, WIDTH),)
    return Case("", randomise(Kernel(option)), "floats", inputs, 1, patterns=1, norms=1)


for _option in (
    "plain",
    "flat",
    "causal",
    "causal-scale",
    "causal-cross",
    "scale",
    "float",
    "float-scale",
    "bias-2d",
    "bool",
    "key-padding",
    "dead-rows",
    "dead-rows-float",
    "wide-values",
    "gqa",
    "gqa-causal",
    "gqa-bool",
):
    _add(
        f"kernel-{_option}",
        "custom kernel" + (" gqa" if _option.startswith("gqa") else ""),
        "floats",
        functools.partial(_kernel, _option),
        # Before 2.5 there was no enable_gqa, and a fully masked row gave NaN.
        "torch 2.5" if _option.startswith(("gqa", "dead")) else None,
    )


# --------------------------------------------------------------------------- timm, torchvision


def _fused(model: nn.Module, fused: bool) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
    return model


def _timm_vit(fused: bool, variant: str) -> Case:
    models = importlib.import_module("timm.models")
    options: dict[str, Any] = {}
    if variant == "scaled":
        options = {"init_values": 0.5, "qk_norm": True}
    if variant == "pooled":
        options = {"global_pool": "avg"}
    model = models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=CLASSES,
        **options,
    )
    norms = 5 + (4 if variant == "scaled" else 0)
    inputs = (floats(2, 3, 32, 32),)
    return Case("", _fused(randomise(model), fused), "floats", inputs, 2, 2, norms)


def _timm_swin(fused: bool) -> Case:
    models = importlib.import_module("timm.models")
    model = models.SwinTransformer(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=CLASSES,
    )
    inputs = (floats(2, 3, 32, 32),)
    # Patch embedding, two in each of four blocks, patch merging, the last one.
    return Case("", _fused(randomise(model), fused), "floats", inputs, 2, patterns=4, norms=11)


def _torchvision_vit(real: bool) -> Case:
    if real:
        models = importlib.import_module("torchvision.models")
        inputs = (floats(1, 3, 224, 224),)
        model = randomise(models.vit_b_16(weights=None))
        return Case("", model, "floats", inputs, 7, patterns=12, norms=25)
    vision = importlib.import_module("torchvision.models.vision_transformer")
    model = vision.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=48,
        num_classes=CLASSES,
    )
    return Case("", randomise(model), "floats", (floats(2, 3, 32, 32),), 2, patterns=2, norms=5)


for _is_fused in (True, False):
    _suffix = "-fused" if _is_fused else "-explicit"
    for _variant in ("plain", "scaled", "pooled"):
        _add(
            f"timm-vit-{_variant}{_suffix}",
            "timm vit",
            "floats",
            functools.partial(_timm_vit, _is_fused, _variant),
            "timm",
        )
    _add(
        f"timm-swin{_suffix}",
        "timm swin",
        "floats",
        functools.partial(_timm_swin, _is_fused),
        "timm",
    )
_add(
    "torchvision-vit",
    "torchvision vit",
    "floats",
    functools.partial(_torchvision_vit, False),
    "torchvision",
)
_add(
    "torchvision-vit_b_16",
    "torchvision vit slow",
    "floats",
    functools.partial(_torchvision_vit, True),
    "torchvision",
)
