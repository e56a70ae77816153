"""What a token does to the contrast, measured by patching its embedding.

A reason becomes the token of the corrupted prompt.  Any other token becomes one that the model
itself thinks likely in its place: drawn from the twenty likeliest but the token.  The effect of a
token is the fall of the contrast, the mean over the draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.language_models.items import Item, contrasts
from experiments.language_models.network import NextToken

#: Replacements of each token that is no reason.
DRAWS = 2
#: Effects are measured for so many items of each task, and not of longer prompts.
COUNT = 10
LONGEST = 64
_LIKELIEST = 20


def measure(model: NextToken, items: Sequence[Item]) -> list[list[float] | None]:
    """Effects of the tokens of each item, without that of the start token.

    Args:
        model (NextToken): The language model.
        items (sequence of Item): Prompts.

    Returns:
        list: One number for each token behind the start token; ``None`` where nothing was
        measured.
    """
    found: list[list[float] | None] = []
    seen: dict[str, int] = {}
    for item in items:
        seen[item.task] = seen.get(item.task, 0) + 1
        if len(item.ids) > LONGEST or seen[item.task] > COUNT:
            found.append(None)
            continue
        texts: list[tuple[int, ...]] = [item.ids]
        owners = [0]
        for place, token in _replacements(model, item):
            texts.append((*item.ids[:place], token, *item.ids[place + 1 :]))
            owners.append(place)
        clean, *patched = contrasts(model, texts, [item] * len(texts))
        effects: list[list[float]] = [[] for _ in item.ids]
        for place, value in zip(owners[1:], patched, strict=True):
            effects[place].append(clean - value)
        found.append([sum(e) / len(e) for e in effects[1:]])
    return found


def _replacements(model: NextToken, item: Item) -> list[tuple[int, int]]:
    """Places with the tokens that are put there."""
    ids = torch.tensor([list(item.ids)])
    with torch.no_grad():
        logits = model.model(ids, use_cache=False).logits[0]
    generator = torch.Generator().manual_seed(sum(item.ids))
    found: list[tuple[int, int]] = []
    for place in range(1, len(item.ids)):
        if place in item.reasons:
            # of a reason of several tokens one at a time
            found.append((place, item.corrupted[place]))
            continue
        scores = logits[place - 1].clone()
        scores[item.ids[place]] = -torch.inf
        best = scores.topk(min(_LIKELIEST, len(scores) - 1))
        drawn = torch.multinomial(best.values.softmax(0), DRAWS, generator=generator)
        found += [(place, int(best.indices[i])) for i in drawn]
    return found
