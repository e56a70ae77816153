"""Tiny causal language models of transformers with a tokenizer of whole words, in float64."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import closeness

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

#: Sharp enough for float64 but for the norms, which transformers computes in float32.
close = functools.partial(closeness.close, rtol=1e-5)
WORDS = "<pad> <s> </s> <unk> the cat dog sat ran on mat and a big red old house tree".split()
ANSWER = "and the dog ran"


@functools.cache
def tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


@functools.cache
def language_model(family: str, implementation: str = "sdpa") -> nn.Module:
    common: dict[str, Any] = {
        "vocab_size": len(WORDS), "attn_implementation": implementation, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(4)
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **common)
        model: nn.Module = transformers.GPT2LMHeadModel(config)
    else:
        name = {"llama": "Llama", "qwen2": "Qwen2"}[family]
        config = getattr(transformers, f"{name}Config")(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=32, **common,
        )  # fmt: skip
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval()


def answer(prompt: str) -> tuple[Tensor, Tensor, int]:
    """All token ids ``(1, tokens)``, those of the answer, and the length of the prompt."""
    start = tokenizer().encode(prompt, return_tensors="pt")
    rest = torch.tensor(tokenizer().encode(ANSWER, add_special_tokens=False))
    return torch.cat([start, rest[None]], 1), rest, start.shape[1]
