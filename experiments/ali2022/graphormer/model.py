"""Graphormer (Ying et al., "Do Transformers Really Perform Bad for Graph Representation?", 2021).

A pre-norm transformer over atoms that knows the graph by three encodings:

* *centrality* (eq. 5): a learned vector for the number of neighbours, added to the embedded atom;
* *spatial* (eq. 6): a learned scalar of each head for the shortest-path distance of two atoms,
  added to their attention score;
* *edge* (eq. 7): a learned scalar of each head for the bonds along the shortest path, added too.

A virtual node at the front, at a distance of its own to all atoms, is read out.  Nothing here knows
of explanations: distances and bonds act through attention scores only, so they are part of the
attention pattern, which the rules for attention heads hold constant.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.ali2022.graphormer.molecules import (
    ATOM_IDS,
    BONDS,
    DISTANCE_IDS,
    FEATURE_SIZES,
    MAX_DEGREE,
    MAX_HOPS,
)


@dataclass(frozen=True)
class Config:
    """Sizes of a :class:`Graphormer`.

    Attributes:
        width (int): Of the hidden states.
        heads (int): Of attention, in each layer.
        layers (int): How many.
        hidden (int): Width between the two linear layers of a block.
        dropout (float): After attention and feed-forward network, in training.
    """

    width: int = 64
    heads: int = 4
    layers: int = 4
    hidden: int = 128
    dropout: float = 0.2


class Attention(nn.Module):
    """Self-attention with a bias for each head and pair of tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.project = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Mixes the tokens; ``x`` is (batch, T, width), ``bias`` (batch, heads, T, T)."""
        parts = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward network, each on normalised input and added to it (eq. 8, 9)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.hidden)
        self.contract = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Next hidden states, shape (batch, T, width)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        hidden = F.gelu(self.expand(self.feed_forward_norm(x)))
        return x + self.dropout(self.contract(hidden))  # type: ignore[no-any-return]


class Graphormer(nn.Module):
    """Classifies molecules; inputs as in :class:`~.molecules.Graphs`.

    Args:
        config (Config): Sizes.

    Example::

        >>> graph = graph_of("CC(=O)Oc1ccccc1C(=O)O")
        >>> Graphormer(Config()).eval()(graph.atoms, *graph.structure).shape
        torch.Size([1, 2])
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.atom = nn.Embedding(ATOM_IDS, config.width)
        self.features = nn.ModuleList(nn.Embedding(size, config.width) for size in FEATURE_SIZES)
        self.degree = nn.Embedding(MAX_DEGREE + 2, config.width)
        self.distance = nn.Embedding(DISTANCE_IDS, config.heads)
        self.path = nn.Linear(MAX_HOPS * len(BONDS), config.heads, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.classify = nn.Linear(config.width, 2)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self,
        atoms: Tensor,
        features: Tensor,
        degrees: Tensor,
        distances: Tensor,
        paths: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """Logits of inactive and active, shape (batch, 2)."""
        embedded = self.embed(atoms, features, degrees)
        return self.read_out(embedded, distances, paths, attention_mask)

    def embed(self, atoms: Tensor, features: Tensor, degrees: Tensor) -> Tensor:
        """Embedded atoms with centrality encoding, shape (batch, T, width)."""
        embedded: Tensor = self.atom(atoms)
        for position, table in enumerate(self.features):
            embedded = embedded + table(features[..., position])
        return embedded + self.degree(degrees)  # type: ignore[no-any-return]

    def attention_bias(self, distances: Tensor, paths: Tensor, attention_mask: Tensor) -> Tensor:
        """Spatial and edge encoding, -inf towards padding; shape (batch, heads, T, T)."""
        bias: Tensor = self.distance(distances) + self.path(paths.flatten(3))
        return bias.permute(0, 3, 1, 2).masked_fill(~attention_mask[:, None, None], float("-inf"))

    def read_out(
        self, embedded: Tensor, distances: Tensor, paths: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Logits from embedded atoms, shape (batch, 2)."""
        bias = self.attention_bias(distances, paths, attention_mask)
        for block in self.blocks:
            embedded = block(embedded, bias)
        return self.classify(self.norm(embedded[:, 0]))  # type: ignore[no-any-return]


class FromEmbeddings(nn.Module):
    """The same model on embedded atoms, for methods that need float inputs.

    Args:
        model (Graphormer): The model.
    """

    def __init__(self, model: Graphormer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embedded: Tensor, distances: Tensor, paths: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Logits, shape (batch, 2)."""
        return self.model.read_out(embedded, distances, paths, attention_mask)


def save(model: Graphormer, path: Path) -> None:
    """Stores a model in half precision, with its sizes."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(asdict(model.config))})


def load(path: Path) -> Graphormer:
    """A stored model, in single precision and evaluation mode."""
    with safe_open(path, framework="pt") as stored:  # type: ignore[no-untyped-call,unused-ignore]
        config = Config(**json.loads(stored.metadata()["config"]))
        weights = {name: stored.get_tensor(name).to(torch.float32) for name in stored.keys()}  # noqa: SIM118
    model = Graphormer(config)
    model.load_state_dict(weights)
    return model.eval()
