"""Sentences that say nothing but for one planted word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from experiments.language_models.items import Item

GOOD = """wonderful charming delightful superb brilliant touching gripping hilarious moving elegant
beautiful funny""".split()
BAD = """terrible dull awful boring tedious dreadful bland stupid clumsy pointless annoying
lifeless""".split()
#: What a word is replaced by: of the same kind, and without an opinion.
NEUTRAL = "german recent short early".split()
SUBJECTS = "film movie story drama sequel documentary comedy picture".split()
FRAMES = (
    "the {subject} that we saw on {day} is {word} and has two parts .",
    "on {day} they showed a {word} {subject} in the old hall by the river .",
    "it is a {word} {subject} of {count} minutes , shot in {place} last year .",
    "in {place} , where the {subject} was made , people call it {word} .",
    "a {word} {subject} about {count} people who live in {place} .",
)
DAYS = "monday tuesday friday sunday".split()
PLACES = "paris canada berlin texas".split()
COUNTS = "six ten ninety seventy".split()


class Classes(nn.Module):
    """Logits of the classes, for token ids alone.

    Args:
        model (nn.Module): A classifier of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, classes)`` of token ids ``(batch, tokens)``."""
        logits: Tensor = self.model(ids).logits
        return logits


def load(folder: Path) -> tuple[Classes, Any]:
    """The classifier in float32 and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    return Classes(model), AutoTokenizer.from_pretrained(folder)


def candidates(tokenizer: Any, seed: str = "planted words") -> Iterator[Item]:
    """Sentences in random order; class 1 is the good one.

    Args:
        tokenizer: Of the classifier.
        seed (str): The same seed gives the same sentences.
    """
    random = Random(seed)
    while True:
        is_good = random.random() < 0.5
        word, other = random.choice(GOOD if is_good else BAD), random.choice(NEUTRAL)
        frame = random.choice(FRAMES)
        filled = {
            "subject": random.choice(SUBJECTS), "day": random.choice(DAYS),
            "place": random.choice(PLACES), "count": random.choice(COUNTS),
        }  # fmt: skip
        text = frame.format(word=word, **filled)
        ids, corrupted = (
            tuple(tokenizer(frame.format(word=w, **filled))["input_ids"]) for w in (word, other)
        )
        differ = [i for i, (a, b) in enumerate(zip(ids, corrupted, strict=False)) if a != b]
        if len(ids) == len(corrupted) and len(differ) == 1:
            yield Item(
                "good words" if is_good else "bad words", ids, corrupted, tuple(differ),
                int(is_good), int(not is_good), text,
            )  # fmt: skip
