"""Decoders as they are used: caches handed in, sliding windows, shared keys, adapters."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from closeness import close_to_largest

transformers = pytest.importorskip("transformers")

BOTH = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def build(family: str, implementation: str, **options: Any) -> Any:
    config = getattr(transformers, family + "Config")(
        vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, attn_implementation=implementation, **options,
    )  # fmt: skip
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return zoo.randomise(getattr(transformers, family + head)(config).eval())


def check(model: Any, ids: Tensor, token: int = 7, **more: Any) -> Tensor:
    """Relevance for the last position against the oracle; the sum of LRP closes."""
    target = (ids.shape[1] - 1, token)

    def arguments() -> dict[str, Any]:
        return {key: copy.deepcopy(value) for key, value in more.items()}

    given = {"input_ids": ids, **more} if more else ids
    got = ConservativeGI(model).attribute(given, target=target, strict=True)
    expected = oracle.oracle_token_relevance(
        lambda i: model(i, **arguments()).logits, ids, "ah+ln", lambda o: o[:, target[0], token]
    )
    close_to_largest(got, expected, 1e-4)
    report = audit.explainability(model, given, target=target, file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale
    return got


@BOTH
@pytest.mark.parametrize("heads", [4, 2, 1], ids=["mha", "gqa", "mqa"])
def test_shared_keys_and_values(heads: int, implementation: str) -> None:
    check(build("Llama", implementation, num_key_value_heads=heads), torch.randint(3, 40, (2, 6)))


@BOTH
@pytest.mark.parametrize("family", ["Mistral", "Gemma2"])
def test_sliding_windows(family: str, implementation: str) -> None:
    """What lies outside of every window receives nothing."""
    if family == "Gemma2" and implementation == "sdpa":
        pytest.skip("Gemma 2 caps its scores, which SDPA cannot")
    if family == "Gemma2" and transformers.__version__ < "5":
        pytest.skip("its cache cannot hold texts longer than the window")
    options = {"head_dim": 4} if family == "Gemma2" else {}
    model = build(family, implementation, num_key_value_heads=2, sliding_window=2, **options)
    relevance = check(model, torch.randint(3, 40, (2, 8)))
    if family == "Mistral":  # two layers of windows of two reach back two positions
        assert relevance[:, :5].abs().max() == 0
        assert relevance[:, 5:].abs().min() > 0


# ---- caches -------------------------------------------------------------------------------------
def cached(model: Any, ids: Tensor, with_graph: bool = False) -> Any:
    with torch.set_grad_enabled(with_graph):
        return model(ids, use_cache=True).past_key_values


def contents(cache: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for layer in range(2):
        if isinstance(cache, tuple):
            found += cache[layer]
        elif hasattr(cache, "layers"):
            found += [cache.layers[layer].keys, cache.layers[layer].values]
        else:
            found += [cache.key_cache[layer], cache.value_cache[layer]]
    return found


@BOTH
@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Mistral"])
def test_caches_handed_in(family: str, with_graph: bool, implementation: str) -> None:
    """The cache is a constant that absorbs its share, and stays as it was."""
    options = {} if family == "GPT2" else {"num_key_value_heads": 2}
    model = build(family, implementation, **options)
    past, more = torch.randint(3, 40, (2, 5)), torch.randint(3, 40, (2, 3))
    cache = cached(model, past, with_graph)
    before = [t.detach().clone() for t in contents(cache)]
    constant = cached(model, past)
    first = check(model, more, past_key_values=constant, use_cache=True)
    given = {"input_ids": more, "past_key_values": cache, "use_cache": True}
    again = [ConservativeGI(model).attribute(given, target=(2, 7), strict=True) for _ in range(2)]
    for relevance in again:
        torch.testing.assert_close(relevance, first)
    for kept, known in zip(contents(cache), before, strict=True):
        assert torch.equal(kept, known)
    # the same value as in one go, of which the cached tokens now have no relevance
    whole = model(torch.cat([past, more], 1)).logits[:, 7, 7].sum()
    report = audit.explainability(model, given, target=(2, 7), file=None)
    assert report.output == pytest.approx(float(whole), rel=1e-4)


# ---- adapters -----------------------------------------------------------------------------------
class LoRA(nn.Module):
    """``W x + scale * B A x`` around a frozen linear layer, written by hand."""

    def __init__(self, inner: nn.Linear, rank: int = 2, scale: float = 2.0) -> None:
        super().__init__()
        self.inner, self.scale = inner.requires_grad_(False), scale
        self.down = nn.Linear(inner.in_features, rank, bias=False)
        self.up = nn.Linear(rank, inner.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.scale * self.up(self.down(self.dropout(x)))

    def merged(self) -> nn.Linear:
        linear = copy.deepcopy(self.inner)
        with torch.no_grad():
            linear.weight += self.scale * self.up.weight @ self.down.weight
        return linear


def adapted(model: Any, merge: bool) -> Any:
    """The model with adapters at queries and values, or with these merged into the weights."""
    torch.manual_seed(5)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            adapter = LoRA(getattr(layer.self_attn, name))
            setattr(layer.self_attn, name, adapter.merged() if merge else adapter)
    return model.eval()


@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
def test_lora_by_hand(method: Any, untouched: Any) -> None:
    ids = torch.randint(3, 40, (2, 6))
    model = adapted(build("Llama", "sdpa"), merge=False)
    merged = adapted(build("Llama", "sdpa"), merge=True)
    with untouched(model):
        got = method(model).attribute(ids, target=(5, 7), strict=True)
    close_to_largest(got, method(merged).attribute(ids, target=(5, 7), strict=True), 1e-4)
    check(model, ids)


@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_peft(method: Any, options: dict[str, Any]) -> None:
    """A model wrapped by PEFT is the model with the adapters merged."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **options
    )
    torch.manual_seed(5)
    model = peft.get_peft_model(build("Llama", "sdpa"), config).eval()
    merged = copy.deepcopy(model).merge_and_unload()
    ids = torch.randint(3, 40, (2, 6))
    torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)
    got = method(model).attribute(ids, target=(5, 7), strict=True)
    close_to_largest(got, method(merged).attribute(ids, target=(5, 7), strict=True), 1e-4)


@pytest.mark.parametrize("kind", ["IA3Config", "PromptTuningConfig", "PrefixTuningConfig"])
def test_peft_other_adapters(kind: str) -> None:
    """Learned vectors and prompts are constants, which absorb their share."""
    peft = pytest.importorskip("peft")
    more: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if kind == "IA3Config":
        more |= {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    else:
        more |= {"num_virtual_tokens": 3}
    model = peft.get_peft_model(build("Llama", "sdpa"), getattr(peft, kind)(**more))
    zoo.randomise(model)
    ids = torch.randint(3, 40, (1, 6))
    position = model(ids).logits.shape[1] - 1  # prompts come first
    report = audit.explainability(model, ids, target=(position, 7), file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale
    assert math.isfinite(report.relevance)
    assert report.relevance != 0
