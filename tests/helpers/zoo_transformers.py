"""Models of transformers in the zoo: BERT, Llama, GPT-2, ViT."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from zoo_cases import (
    BATCH,
    CLASSES,
    HEADS,
    LENGTHS,
    PAD,
    TOKENS,
    WIDTH,
    WORDS,
    Case,
    add,
    floats,
    randomise,
    token_ids,
)


def _hf(family: str, head: str, implementation: str, padded: bool) -> Case:
    transformers = importlib.import_module("transformers")
    common: dict[str, Any] = {"attn_implementation": implementation, "vocab_size": WORDS}
    layers = 2
    if family == "Bert":
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
        norms=2 * layers + 1,
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
            add(
                f"hf-{_family}{_head}-{_impl}" + ("-padded" if _padded else ""),
                f"hf {_tags} {_impl}" + (" padded" if _padded else ""),
                "tokens",
                _hf,
                _family,
                _head,
                _impl,
                _padded,
                needs="transformers",
            )
for _impl in ("eager", "sdpa"):
    add(
        f"hf-ViTForImageClassification-{_impl}",
        f"hf vit {_impl}",
        "floats",
        _hf_vit,
        _impl,
        needs="transformers",
    )
    add(
        f"hf-Bert-embeds-{_impl}",
        f"hf bert {_impl}",
        "floats",
        _hf_bert_embeds,
        _impl,
        needs="transformers",
    )
