"""What the benchmarks of time and memory run: models of published sizes with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn


@dataclass
class Workload:
    """A model, how it is called, and what is asked of it.

    Args:
        name (str): The row.
        build (callable): The model and a float input of it.
        forward (callable): From the model and the input to ``(batch, classes)``.
        goals (dict): Method to the greatest allowed ratio of time and of memory.
        turns (int): How often every method is measured by default.
        ig_steps (int): How many of the 50 steps of integrated gradients are measured.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Tensor]]
    goals: dict[str, tuple[float, float | None]]
    turns: int
    ig_steps: int = 2


class FromEmbeddings(nn.Module):
    """A text model called with embeddings, its first tensor the output of the last position."""

    def __init__(self, model: nn.Module, last: bool) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, embeddings: Tensor) -> Tensor:
        if self.last:
            return self.model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[
                :, -1
            ]
        result: Tensor = self.model(inputs_embeds=embeddings).logits
        return result


class Pixels(nn.Module):
    """An image classifier whose output is its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def bert(batch: int, tokens: int, layers: int = 12) -> tuple[nn.Module, Tensor]:
    """BERT-base: 12 layers, 768 wide, 12 heads."""
    config = transformers.BertConfig(
        max_position_embeddings=max(512, tokens), num_labels=2, num_hidden_layers=layers
    )
    model = transformers.BertForSequenceClassification(config).eval()
    return FromEmbeddings(model, last=False), torch.randn(batch, tokens, config.hidden_size)


def llama(batch: int, tokens: int) -> tuple[nn.Module, Tensor]:
    """Llama's parts: 8 layers, 1,024 wide, SwiGLU, 16 query heads on 4 key and value heads."""
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=1024, max_position_embeddings=max(4096, tokens),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return FromEmbeddings(model, last=True), torch.randn(batch, tokens, config.hidden_size)


def vit(batch: int) -> tuple[nn.Module, Tensor]:
    """ViT-B/16 at 224 x 224."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10)).eval()
    return Pixels(model), torch.randn(batch, 3, 224, 224)


#: Greatest ratio of time to gradient x input, of the methods by their names in ``methods.py``.
_TIMES = {
    "ah+ln": 1.00, "lrp": 1.05, "lrp, bias='distribute'": 1.15, "attnlrp": 1.00, "lrp-gamma": 2.1,
    "lrp-gamma, bias='distribute'": 2.2, "attnlrp-gamma": 2.2,
}  # fmt: skip


def goals(times: float, memory: dict[str, float]) -> dict[str, tuple[float, float | None]]:
    """Goals of time, multiplied, and of memory."""
    return {name: (goal * times, memory.get(name)) for name, goal in _TIMES.items()}


WORKLOADS = {
    "bert6-8x128": Workload(
        "BERT-base, 6 layers, 8 x 128",
        functools.partial(bert, 8, 128, 6),
        goals(1.0, {"ah+ln": 0.40}),
        turns=5,
    ),
    "bert6-1x24": Workload(
        "BERT-base, 6 layers, 1 x 24",
        functools.partial(bert, 1, 24, 6),
        goals(1.25, {"ah+ln": 1.0}),
        turns=25,
        ig_steps=50,
    ),
    "llama-1x512": Workload(
        "Llama-shaped, 1 x 512",
        functools.partial(llama, 1, 512),
        goals(1.0, {"ah+ln": 0.60, "lrp": 0.45}),
        turns=5,
    ),
    "bert-8x128": Workload(
        "BERT-base, 8 x 128", functools.partial(bert, 8, 128), goals(1.0, {}), turns=3
    ),
    "bert-2x512": Workload(
        "BERT-base, 2 x 512", functools.partial(bert, 2, 512), goals(1.0, {}), turns=3
    ),
    "bert-1x2048": Workload(
        "BERT-base, 1 x 2,048", functools.partial(bert, 1, 2048), goals(1.0, {}), turns=1
    ),
    "bert-1x16": Workload(
        "BERT-base, 1 x 16", functools.partial(bert, 1, 16), goals(1.25, {}), turns=25, ig_steps=50
    ),
    "llama-1x4096": Workload(
        "Llama-shaped, 1 x 4,096", functools.partial(llama, 1, 4096), goals(1.0, {}), turns=1
    ),
    "vit-8x224": Workload("ViT-B/16, 8 x 224", functools.partial(vit, 8), goals(1.0, {}), turns=2),
}
