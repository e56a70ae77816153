"""Tiny models with random weights, and a tokenizer of whole words, as Hugging Face saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<cls>", "<sep>"]
_WORDS = "a charming and funny film that is never dull slow bad good very long story with no end"
VOCABULARY = [*_SPECIAL, *_WORDS.split()]
#: Of very different lengths; the last is long enough for sparse attention.
TEXTS = [
    "a charming film", "never dull and very funny film with no end", "bad",
    "a slow story that is very long and a bad film that is slow and very very dull",
]  # fmt: skip
#: What tokenizers put around a text.
AROUND = {
    "bert": "<cls> $A <sep>", "bart": "<s> $A </s>", "mbart": "$A </s> <s>", "t5": "$A </s>",
    "xlnet": "$A <sep> <cls>",
}  # fmt: skip
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40,
    "num_labels": 3, "sep_token_id": 6, **_IDS,
}  # fmt: skip
_BART = {
    "vocab_size": len(VOCABULARY), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "num_labels": 3, "max_position_embeddings": 40,
    "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40,
    "decoder_start_token_id": 2, **_IDS,
}  # fmt: skip
_T5 = {
    "vocab_size": len(VOCABULARY), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1,
    "num_heads": 2, "num_labels": 3, "decoder_start_token_id": 0, **_IDS,
}  # fmt: skip
_XLNET = {
    "vocab_size": len(VOCABULARY), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32,
    "num_labels": 3, **_IDS,
}  # fmt: skip
_GPT2 = {
    "vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40,
    **_IDS,
}  # fmt: skip
_REFORMER = {
    **_BERT, "attention_head_size": 8, "axial_pos_embds": False, "feed_forward_size": 32,
    "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 4, "hash_seed": 0,
    "attn_layers": ["local", "local"], "is_decoder": False,
}  # fmt: skip
_TEXT = {k: v for k, v in _BERT.items() if k not in ("num_labels", "sep_token_id")}
_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
_CLIP = {"text_config": _TEXT, "vision_config": _VISION}
_VILT = {**_BERT, "image_size": 8, "patch_size": 4}
#: Classifiers of texts: model type, configuration, what the tokenizer puts around a text.
CLASSIFIERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BART": ("Bart", _BART, "bart"),
    "mBART": ("MBart", _BART, "mbart"),
    "PLBART": ("PLBart", _BART, "bart"),
    "LED": ("LED", {**_BART, "attention_window": 4}, "bart"),
    "T5": ("T5", _T5, "t5"),
    "Longformer": ("Longformer", {**_BERT, "attention_window": [4, 4]}, "bert"),
    "BigBird": ("BigBird", {**_BERT, "block_size": 2, "num_random_blocks": 1}, "bert"),
    "XLNet": ("XLNet", _XLNET, "xlnet"),
}
#: Other models: class, configuration.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "multiple choice": ("BertForMultipleChoice", _BERT),
    "bi-encoder": ("BertModel", _BERT),
    "language model": ("GPT2LMHeadModel", _GPT2),
    "Reformer": ("ReformerForSequenceClassification", _REFORMER),
    "CLIP": ("CLIPModel", {**_CLIP, "projection_dim": 8}),
    "SigLIP": ("SiglipModel", _CLIP),
    "CLIP images": ("CLIPForImageClassification", {**_CLIP, "num_labels": 3}),
    "SigLIP images": ("SiglipForImageClassification", {**_CLIP, "num_labels": 3}),
    "ViLT": ("ViltForQuestionAnswering", _VILT),
}


def randomized(model: Any, scale: float = 0.3) -> Any:
    """A model in evaluation mode whose weights are all drawn anew."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def tokenizer(around: str = "bert") -> Any:
    """A tokenizer of whole words."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(w, VOCABULARY.index(w)) for w in ("<s>", "</s>", "<cls>", "<sep>")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=AROUND[around], special_tokens=special
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<cls>", sep_token="<sep>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def classifier(name: str) -> Any:
    """A classifier of texts; None if this version of transformers has none of the kind."""
    kind, options, _ = CLASSIFIERS[name]
    made: Any = getattr(transformers, f"{kind}ForSequenceClassification", None)
    if made is None:
        return None
    return randomized(made(getattr(transformers, f"{kind}Config")(**options)))


def other(name: str) -> Any:
    """One of the other models."""
    made, options = OTHERS[name]
    model_class: Any = getattr(transformers, made)
    return randomized(model_class(model_class.config_class(**options)))


def saved(folder: Path, model: Any, around: str = "bert") -> Path:
    """The folder, with a model and its tokenizer in it."""
    model.save_pretrained(folder)
    tokenizer(around).save_pretrained(folder)
    return folder
