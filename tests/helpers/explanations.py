"""What is asked of every explanation, and a tokenizer of word pieces for small models."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import torch
import transformers

import captum_lrp_tx as lrp

WORDS = "the a film is good bad who made it ? . Anna in Rome lives made by play ##s"
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split())]
    ids = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", mask_token="[MASK]",
    )  # fmt: skip


def conserved(made: Any) -> None:
    assert isinstance(made, lrp.Explanation)
    size = max(1.0, abs(made.value))
    assert made.sum + sum(made.absorbed.values()) == pytest.approx(made.value, abs=1e-4 * size)
    assert not made.warnings
    assert made.audit().is_covered


def alike(a: lrp.Explanation, b: lrp.Explanation) -> None:
    assert str(a) == str(b) and torch.equal(a.relevance, b.relevance)
    for name in ("task", "explains", "value", "tokens", "spans", "text", "warnings", "absorbed",
                 "probability", "tokenized"):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), name
    assert {k: v.tolist() for k, v in a.embeddings.items()} == {
        k: v.tolist() for k, v in b.embeddings.items()
    }
    assert (a.image is None) == (b.image is None)
    assert a.image is None or b.image is None or torch.equal(a.image, b.image)
