"""The models that ``python benchmarks/rivals.py`` gives to every tool.

Small and random, made by configuration, in evaluation mode and float64.  All are called with
floats, embeddings or pixels, because that is what all tools explain, and return one row of logits
for each example: language models those behind the last token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, TOKENS, CLASSES = 32, 4, 2, 7, 5
_SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 48, "vocab_size": 40, "num_labels": CLASSES, "pad_token_id": 0,
}  # fmt: skip
_CAUSAL = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
#: Parameters that add something: without them all relevance can reach the inputs.
ADDED = ("bias", "position", "pos_embed", "token_type", "cls_token", "class_token", "wpe")


class Called(nn.Module):
    """A model of transformers, called with one tensor."""

    def __init__(self, inner: nn.Module, keyword: str = "inputs_embeds") -> None:
        super().__init__()
        self.inner, self.keyword = inner, keyword

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) or, of a language model, (batch, words)."""
        logits: Tensor = self.inner(**{self.keyword: x}).logits
        return logits if logits.dim() == 2 else logits[:, -1]


class Encoded(nn.Module):
    """The encoder of T5, and a linear head on its mean."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.head(self.inner(inputs_embeds=x).last_hidden_state.mean(1))


class Block(nn.Module):
    """Attention and an MLP behind norms, written with torch.nn and ``@``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The stream behind both parts."""
        h = self.norm1(x)
        q, k, v = (
            p(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        pattern = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        x = x + self.o((pattern @ v).transpose(1, 2).flatten(2))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Written(nn.Module):
    """A transformer written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes), of the first token."""
        return self.head(self.norm(self.blocks(x))[:, 0])


class Convolutions(nn.Module):
    """A CNN of modules that Captum's LRP and zennit know, every one used once."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.classifier(torch.flatten(self.features(x), 1))


#: Operations that no tool has a rule for, or not every one.
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "division by the vector's own length": lambda h: h / (1 + h.square().sum(-1, True).sqrt()),
    "a softmax summed up by `cumsum`": lambda h: h * h.softmax(-1).cumsum(-1),
    "`torch.linalg.solve`": lambda h: torch.linalg.solve(
        torch.diag_embed(h.square() + 1) + 0.1 * h.unsqueeze(-1), h
    ),
    "`torch.fft.rfft`": lambda h: torch.fft.rfft(h).abs(),
}


class Odd(nn.Module):
    """Two layers with an unusual operation between them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.relu, self.name = nn.Linear(6, 8), nn.ReLU(), name
        self.last = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.last(ODD[self.name](self.relu(self.first(x))))


def _transformers(config: str, model: str, **more: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**more))


def _encoder(family: str, **more: Any) -> nn.Module:
    sizes = {**_SIZES, "max_position_embeddings": 16, **more}
    return Called(_transformers(f"{family}Config", f"{family}ForSequenceClassification", **sizes))


def _decoder(family: str, config: str = "", **more: Any) -> nn.Module:
    sizes = {**_CAUSAL, **more}
    return Called(_transformers(f"{config or family}Config", f"{family}ForCausalLM", **sizes))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 16}
    return Called(_transformers("GPT2Config", "GPT2LMHeadModel", vocab_size=40, **sizes))


def _distilbert() -> nn.Module:
    sizes = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48}
    sizes |= {"vocab_size": 40, "max_position_embeddings": 16, "num_labels": CLASSES}
    return Called(_transformers("DistilBertConfig", "DistilBertForSequenceClassification", **sizes))


def _vit() -> nn.Module:
    sizes = {**_SIZES, "image_size": 8, "patch_size": 4}
    return Called(_transformers("ViTConfig", "ViTForImageClassification", **sizes), "pixel_values")


def _torchvision_vit() -> nn.Module:
    from torchvision.models import vision_transformer

    return vision_transformer.VisionTransformer(
        image_size=8, patch_size=4, num_layers=LAYERS, num_heads=HEADS, hidden_dim=WIDTH,
        mlp_dim=48, num_classes=CLASSES,
    )  # fmt: skip


def _t5() -> nn.Module:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": HEADS}
    return Encoded(_transformers("T5Config", "T5EncoderModel", vocab_size=40, **sizes))


def _mamba() -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "expand": 2}
    sizes |= {"state_size": 4, "conv_kernel": 3, "time_step_rank": 3, "use_cache": False}
    return Called(_transformers("MambaConfig", "MambaForCausalLM", **sizes))


#: What the page lists, and how it is made.
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: _encoder("Bert"),
    "RoBERTa": lambda: _encoder("Roberta"),
    "DistilBERT": _distilbert,
    "ALBERT": lambda: _encoder("Albert", embedding_size=WIDTH),
    "GPT-2": _gpt2,
    "Llama": lambda: _decoder("Llama"),
    "Qwen2": lambda: _decoder("Qwen2"),
    "Gemma 3": lambda: _decoder("Gemma3", "Gemma3Text", sliding_window=4),
    "ViT (transformers)": _vit,
    "ViT (torchvision)": _torchvision_vit,
    "T5 encoder": _t5,
    "Mamba": _mamba,
    "transformer of torch.nn": Written,
    "CNN": Convolutions,
    **{f"odd: {name}": lambda name=name: Odd(name) for name in ODD},
}
#: Those with coverage, exactness and conservation.
LISTED = [name for name in FAMILIES if not name.startswith("odd: ")]
#: Those that take images.
_IMAGES = ("ViT (transformers)", "ViT (torchvision)", "CNN")


def build(family: str, biases: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model of this family: the same weights at every call.

    Args:
        family: A key of :data:`FAMILIES`.
        biases: ``False`` puts 0 into all parameters that only add something.
        dtype: Of the parameters.
    """
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    if family.startswith("odd: "):
        model(torch.zeros(1, 6))
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # of Mamba: what it starts from keeps the scan stable
            continue
        is_added = any(part in name for part in ADDED)
        if is_added and not biases:
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1 and not is_added:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, 0.0 if is_added else 1.0, 0.2)
    return model


def inputs(family: str, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random embeddings, pixels, or features."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, 8, 8) if family in _IMAGES else (TOKENS, WIDTH)
    shape = (6,) if family.startswith("odd: ") else shape
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
