"""A text classifier built as in the published code of Ali et al. 2022, and one step away from it.

Their model (``xai_transformer.py``) is no BERT: on top of BERT's embedding block it has three
attention blocks without MLPs.  Attention scores are not divided by the root of the head size, and
the norm has neither weight nor bias and divides by the (unbiased) standard deviation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlainNorm(nn.Module):
    """``(x - mean) / (std + eps)``, without weight and bias."""

    def __init__(self, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        centred: Tensor = x - x.mean(-1, keepdim=True)
        return centred / (x.std(-1, keepdim=True) + self.eps)


class AttentionBlock(nn.Module):
    """Attention, projection, residual connection, norm; then, if asked for, the same for an MLP.

    Args:
        size (int): Of the hidden states.
        heads (int): Attention heads.
        mlp (bool): Whether there is an MLP (4 times as wide, GELU).
        dropout (float): On attention weights and outputs.
    """

    def __init__(self, size: int, heads: int, mlp: bool, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.output = nn.Linear(size, size)
        self.norm = PlainNorm()
        self.dropout = nn.Dropout(dropout)
        self.mlp = (
            nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
            if mlp
            else None
        )
        self.mlp_norm = PlainNorm() if mlp else None

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shape ``(batch, tokens, size)``; ``mask`` is added to scores."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        pattern = torch.softmax(query @ key.transpose(-1, -2) + mask, dim=-1)
        mixed = (self.dropout(pattern) @ value).transpose(1, 2).flatten(2)
        x = self.norm(x + self.dropout(self.output(mixed)))
        if self.mlp is not None and self.mlp_norm is not None:
            x = self.mlp_norm(x + self.dropout(self.mlp(x)))
        return x


class AttentionClassifier(nn.Module):
    """Embedding block of a BERT, a few attention blocks, BERT's pooler and classifier.

    Args:
        embeddings (nn.Module): Of a Hugging Face BERT; not trained.
        size (int): Of the hidden states.
        heads (int): Attention heads.
        blocks (int): Attention blocks.
        classes (int): Outputs.
        mlp (bool): Whether blocks have an MLP.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        size: int,
        heads: int,
        blocks: int = 3,
        classes: int = 2,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings.requires_grad_(False)
        self.blocks = nn.ModuleList(AttentionBlock(size, heads, mlp) for _ in range(blocks))
        self.pooler = nn.Linear(size, size)
        self.classifier = nn.Linear(size, classes)

    @property
    def base_model(self) -> Any:
        """Itself: what holds ``embeddings``."""
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = self.embeddings(input_ids=input_ids)
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = torch.zeros(shown.shape).masked_fill(shown == 0, -1e9)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return logits
