"""Models of ``torch.nn`` in the zoo: encoders and attention alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo_cases import (
    BATCH,
    CLASSES,
    HEADS,
    TOKENS,
    WIDTH,
    WORDS,
    Case,
    add,
    floats,
    randomise,
    token_ids,
)


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
                add(
                    "torch-encoder"
                    + ("-pre" if _norm_first else "-post")
                    + ("-batchfirst" if _batch_first else "-seqfirst")
                    + ("-padded" if _padded else "")
                    + ("-ids" if _tokens else ""),
                    "torch encoder" + (" padded" if _padded else ""),
                    "tokens" if _tokens else "floats",
                    _encoder,
                    _norm_first,
                    _batch_first,
                    _padded,
                    _tokens,
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
        add(
            f"torch-mha{_kind}" + ("-weights" if _weights else ""),
            "torch mha",
            "floats",
            _multihead,
            _weights,
            _cross,
            _extra,
        )
