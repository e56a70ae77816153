"""Activation patching: what heads and MLPs of a Llama do to the contrast, measured one by one.

A node is the output of one attention head (before the projection that mixes heads) or of one MLP,
at all positions. Patched, it has the value that it has on the corrupted prompt. Its effect is the
fall of the contrast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experiments.language_models.items import Item
from experiments.language_models.network import NextToken

#: Prompts in one batch.
BATCH = 60


class Patching:
    """Runs a Llama with nodes patched.

    Nodes are counted layer by layer: the heads of a layer, then its MLP.

    Args:
        model (NextToken): A Llama of transformers inside.
    """

    def __init__(self, model: NextToken) -> None:
        self.model = model
        inner: Any = model.model
        self.layers: list[Any] = list(inner.model.layers)
        self.heads: int = inner.config.num_attention_heads

    @property
    def nodes(self) -> int:
        """Number of heads and MLPs."""
        return len(self.layers) * (self.heads + 1)

    def values(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Outputs of the heads, side by side, and of the MLP of every layer.

        Args:
            ids (Tensor): Token ids ``(1, tokens)``.
        """
        found: list[list[Tensor]] = [[] for _ in self.layers]

        def keep(layer: int, _: str, value: Tensor) -> Tensor:
            found[layer].append(value.detach())
            return value

        with self.hooked(keep), torch.no_grad():
            self.model(ids)
        return [(heads, mlp) for heads, mlp in found]

    def contrasts(self, item: Item, patched: Tensor) -> Tensor:
        """The contrast of an item with nodes patched.

        Args:
            item (Item): A prompt and its corrupted version.
            patched (Tensor): Boolean, ``(runs, nodes)``.

        Returns:
            Tensor: Logit of the answer minus logit of the foil, ``(runs,)``.
        """
        corrupted = self.values(torch.tensor([list(item.corrupted)]))
        ids = torch.tensor([list(item.ids)])
        found = []
        for rows in patched.split(BATCH):
            by_layer = rows.unflatten(1, (len(self.layers), self.heads + 1))

            def put(layer: int, kind: str, value: Tensor, by_layer: Tensor = by_layer) -> Tensor:
                heads, mlp = corrupted[layer]
                if kind == "mlp":
                    return torch.where(by_layer[:, layer, -1, None, None], mlp, value)
                width = value.shape[-1] // self.heads
                mask = by_layer[:, layer, :-1].repeat_interleave(width, 1)
                return torch.where(mask[:, None], heads, value)

            with self.hooked(put), torch.no_grad():
                logits = self.model(ids.expand(len(rows), -1))
            found.append(logits[:, item.answer] - logits[:, item.foil])
        return torch.cat(found)

    def effects(self, item: Item) -> Tensor:
        """By how much the contrast falls if one node is patched, ``(nodes,)``.

        Every layer adds a run for each of its nodes to the batch, so that nothing below a patched
        node is computed twice.
        """
        corrupted = self.values(torch.tensor([list(item.corrupted)]))

        def grow(layer: nn.Module, args: Any) -> Any:
            clean = args[0][:1].expand(self.heads + 1, -1, -1)
            return torch.cat([args[0], clean]), *args[1:]

        def put(layer: int, kind: str, value: Tensor) -> Tensor:
            heads, mlp = corrupted[layer]
            value = value.clone()
            if kind == "mlp":
                value[-1] = mlp[0]
                return value
            width = value.shape[-1] // self.heads
            for head in range(self.heads):
                place = slice(head * width, (head + 1) * width)
                value[head - self.heads - 1, :, place] = heads[0, :, place]
            return value

        growing = [layer.register_forward_pre_hook(grow) for layer in self.layers]
        try:
            with self.hooked(put), torch.no_grad():
                logits = self.model(torch.tensor([list(item.ids)]))
        finally:
            for handle in growing:
                handle.remove()
        found = logits[:, item.answer] - logits[:, item.foil]
        return found[0] - found[1:]

    @contextmanager
    def hooked(self, change: Callable[[int, str, Tensor], Tensor]) -> Iterator[None]:
        """Inside, outputs of nodes are changed.

        Args:
            change (callable): From number of the layer, ``"heads"`` or ``"mlp"``, and output to the
                output that is used. Heads stand side by side.
        """

        def before(layer: int) -> Callable[[nn.Module, Any], Any]:
            return lambda _, args: (change(layer, "heads", args[0]), *args[1:])

        def after(layer: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda _, __, output: change(layer, "mlp", output)

        handles = []
        for i, layer in enumerate(self.layers):
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(before(i)))
            handles.append(layer.mlp.register_forward_hook(after(i)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def kept(patching: Patching, item: Item, scores: Tensor, sizes: Sequence[int]) -> list[float]:
    """Share of the behaviour that circuits keep whose other nodes are all patched.

    Args:
        patching (Patching): The model.
        item (Item): A prompt.
        scores (Tensor): Of the nodes; the highest make the circuit.
        sizes (sequence of int): Numbers of nodes.

    Returns:
        list of float: For each size, 1 for the contrast of the clean prompt and 0 for that of the
        prompt with all nodes patched.
    """
    order = scores.argsort(descending=True)
    runs = torch.ones(len(sizes) + 2, patching.nodes, dtype=torch.bool)
    for row, size in zip(runs, (0, patching.nodes, *sizes), strict=True):
        row[order[:size]] = False
    none, everything, *found = patching.contrasts(item, runs).tolist()
    return [(value - none) / (everything - none) for value in found]
