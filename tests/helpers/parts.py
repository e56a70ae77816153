"""Heads and neurons of the models of the zoo."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import zoo

#: Blocks, and in a block what reads the heads and what reads the neurons.
CASES = {
    "hf-BertForSequenceClassification-sdpa-padded":
        ("bert.encoder.layer", "attention.output.dense", "output.dense"),
    "hf-BertForSequenceClassification-eager":
        ("bert.encoder.layer", "attention.output.dense", "output.dense"),
    "hf-LlamaForCausalLM-sdpa": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "hf-LlamaForSequenceClassification-eager":
        ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "hf-GPT2LMHeadModel-sdpa": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "hf-ViTForImageClassification-eager": ("", "", ""),
}  # fmt: skip


def readers(case: zoo.Case, name: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """What reads the heads and the neurons, layer by layer."""
    blocks, heads, neurons = CASES[name]
    if not blocks:  # names of ViT differ between versions of transformers
        square = [m for m in case.model.modules() if isinstance(m, nn.Linear)]
        down = [m for m in square if m.in_features == 32]
        up = [i for i, m in enumerate(square) if m.out_features == 32]
        return [square[i - 1] for i in up], list(down)
    layers = list(case.model.get_submodule(blocks).children())
    return ([layer.get_submodule(heads) for layer in layers],
            [layer.get_submodule(neurons) for layer in layers])  # fmt: skip


def explained(case: zoo.Case) -> tuple[Any, Any]:
    x = case.inputs[0]
    if case.kind == "floats":
        return x.double(), case.target
    return {"input_ids": x, **case.kwargs}, case.target


def by_head(x: Tensor) -> Tensor:
    """``(batch, tokens, heads * channels)`` to ``(batch, heads, tokens)``."""
    return x.unflatten(-1, (zoo.HEADS, -1)).sum(-1).transpose(1, 2)
