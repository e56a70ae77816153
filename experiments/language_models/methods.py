"""What the experiment compares: presets, gradients, and perturbation of single tokens.

A method is a function from the model to a function that gives a batch of token ids ``(items,
tokens)`` and one contrast each relevance of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from captum_lrp_tx import Composite, ConservativeLRP, LayerConservativeLRP
from captum_lrp_tx.attr.targets import Contrast
from captum_lrp_tx.rules import PRESETS
from experiments.language_models.network import NextToken

Pairs = Sequence[tuple[int, int]]
Explain = Callable[[Tensor, Pairs], Tensor]
Method = Callable[[NextToken], Explain]


def by_rules(rules: str | Composite) -> Method:
    """``ConservativeLRP`` under a preset or composite."""

    def make(model: NextToken) -> Explain:
        lrp = ConservativeLRP(model, rules)

        def explain(ids: Tensor, pairs: Pairs) -> Tensor:
            relevance = lrp.attribute(ids, target=[Contrast(a, b) for a, b in pairs])
            assert isinstance(relevance, Tensor)
            return relevance

        return explain

    return make


def over_layers(rules: str | Composite, count: int) -> Method:
    """Relevance at the inputs of the first blocks, summed over channels, the mean over the blocks.

    Args:
        rules (str or Composite): Of ``LayerConservativeLRP``.
        count (int): Of blocks, from the first.
    """

    def make(model: NextToken) -> Explain:
        inner = model.model.model
        layers = [inner.embed_tokens, *inner.layers[: count - 1]]  # type: ignore
        lrp = LayerConservativeLRP(model, layers, rules)

        def explain(ids: Tensor, pairs: Pairs) -> Tensor:
            found = lrp.attribute(ids, target=[Contrast(a, b) for a, b in pairs])
            parts = [part[0] if isinstance(part, tuple) else part for part in found]
            return torch.stack([part.detach().sum(-1) for part in parts]).mean(0)

        return explain

    return make


def integrated(steps: int, baseline: str) -> Method:
    """Integrated Gradients of embeddings, from zero or from the end token's.

    Args:
        steps (int): Of Captum's Gauss-Legendre quadrature.
        baseline (str): ``"zero"`` or ``"end"``.
    """

    def make(model: NextToken) -> Explain:
        embed = model.model.get_input_embeddings()  # type: ignore[operator]

        def forward(rows: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
            output = model.model(inputs_embeds=rows, logits_to_keep=1, use_cache=False)
            logits = output.logits[:, -1]
            return (logits.gather(1, answers) - logits.gather(1, foils)).squeeze(1)

        def explain(ids: Tensor, pairs: Pairs) -> Tensor:
            answers, foils = torch.tensor(pairs).split(1, dim=1)
            rows = embed(ids)
            start = torch.zeros_like(rows)
            if baseline == "end":
                start[:] = embed(torch.tensor(_end_of(model)))
            found = IntegratedGradients(forward).attribute(
                rows, start, n_steps=steps, additional_forward_args=(answers, foils),
                internal_batch_size=max(len(ids), 400 // ids.shape[1]),
            )  # fmt: skip
            relevance: Tensor = found.sum(-1)
            return relevance

        return explain

    return make


def _end_of(model: NextToken) -> int:
    end: int = model.model.config.eos_token_id  # type: ignore[union-attr, assignment]
    return end


def leave_one_out(model: NextToken) -> Explain:
    """By how much the contrast falls if a token is replaced by the end token."""

    @torch.no_grad()
    def explain(ids: Tensor, pairs: Pairs) -> Tensor:
        answers, foils = torch.tensor(pairs).split(1, dim=1)

        def contrast(ids: Tensor) -> Tensor:
            logits = model(ids)
            return (logits.gather(1, answers) - logits.gather(1, foils)).squeeze(1)

        whole = contrast(ids)
        columns = []
        for place in range(ids.shape[1]):
            without = ids.clone()
            without[:, place] = _end_of(model)
            columns.append(whole - contrast(without))
        return torch.stack(columns, 1)

    return explain


def at_random(model: NextToken) -> Explain:
    """Normally distributed numbers."""

    def explain(ids: Tensor, pairs: Pairs) -> Tensor:
        generator = torch.Generator().manual_seed(int(ids.sum()))
        return torch.randn(ids.shape, generator=generator)

    return explain


#: In the order of the tables.
METHODS: Mapping[str, Method] = {
    "random": at_random,
    "leave one out": leave_one_out,
    "IG, 5 steps": integrated(5, "zero"),
    "IG, 20 steps": integrated(20, "zero"),
    "IG, 20 steps from the end token": integrated(20, "end"),
    **{name: by_rules(name) for name in PRESETS},
    "attnlrp, mean of layers 0 to 5": over_layers("attnlrp", 6),
    "language, mean of layers 0 to 5": over_layers("language", 6),
}
#: Items of each task that slow methods see, and the longest prompt, in tokens, for some.
LIMITS = {"IG, 20 steps": 4, "IG, 20 steps from the end token": 4}
LONGEST = {"leave one out": 64, "IG, 20 steps": 64, "IG, 20 steps from the end token": 64}
#: Slow methods are not run on bare prompts.
WITH_START = ("leave one out", "IG, 5 steps", "IG, 20 steps", "IG, 20 steps from the end token")
