"""Estimates of the effects of all nodes of a Llama, each from few passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from captum_lrp_tx import RelevancePatching
from captum_lrp_tx.attr.targets import Contrast
from experiments.language_models.items import Item
from experiments.patching.measured import Patching

Estimate = Callable[[Patching, Item], Tensor]


def by_rules(rules: str) -> Estimate:
    """``RelevancePatching`` under a preset, ``(nodes,)``."""

    def estimate(patching: Patching, item: Item) -> Tensor:
        found = RelevancePatching(patching.model, rules).attribute(
            torch.tensor([list(item.ids)]), torch.tensor([list(item.corrupted)]),
            Contrast(item.answer, item.foil),
        )  # fmt: skip
        return torch.stack([value.sum() for part in found.parts for *_, value in part.units()])

    return estimate


def integrated(steps: int) -> Estimate:
    """Differences times plain gradients, whose mean is taken on the way between the prompts.

    The embeddings of the prompt go to those of the corrupted prompt in a straight line.

    Source: Hanna et al., "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding
    Model Mechanisms", COLM 2024 (EAP-IG, for nodes instead of edges).

    Args:
        steps (int): Places on the way, each in the middle of its part.
    """

    def estimate(patching: Patching, item: Item) -> Tensor:
        ids, other = (torch.tensor([list(x)]) for x in (item.ids, item.corrupted))
        clean, corrupted = patching.values(ids), patching.values(other)
        gradients: dict[tuple[int, str], Tensor] = {}

        def watch(layer: int, kind: str, value: Tensor) -> Tensor:
            if value.requires_grad:
                value.register_hook(  # type: ignore[no-untyped-call]
                    lambda grad: gradients.update({(layer, kind): grad.mean(0)})
                )
            return value

        embed = patching.model.model.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            start, end = embed(other), embed(ids)
        ways = ((torch.arange(steps) + 0.5) / steps)[:, None, None]
        rows = (start + ways * (end - start)).requires_grad_()
        handle = embed.register_forward_hook(lambda *_: rows)
        try:
            with patching.hooked(watch):
                logits = patching.model(ids.expand(steps, -1))
        finally:
            handle.remove()
        (logits[:, item.answer] - logits[:, item.foil]).sum().backward()
        found = []
        for layer, ((heads, mlp), (old_heads, old_mlp)) in enumerate(
            zip(clean, corrupted, strict=True)
        ):
            products = (heads - old_heads)[0] * gradients[layer, "heads"]
            found.append(products.unflatten(-1, (patching.heads, -1)).sum((0, 2)))
            found.append(((mlp - old_mlp)[0] * gradients[layer, "mlp"]).sum()[None])
        return torch.cat(found)

    return estimate


def at_random(patching: Patching, item: Item) -> Tensor:
    """Normally distributed numbers."""
    generator = torch.Generator().manual_seed(sum(item.ids))
    return torch.randn(patching.nodes, generator=generator)


#: ``"gi"`` is plain attribution patching, ``"lrp"`` on a Llama the rules of RelP.
PRESETS = ("gi", "ah+ln", "lrp", "lrp-gated", "lrp-gamma", "attnlrp", "language")
#: In the order of the tables.
METHODS: Mapping[str, Estimate] = {
    "random": at_random,
    **{name: by_rules(name) for name in PRESETS},
    "IG, 10 steps": integrated(10),
}
