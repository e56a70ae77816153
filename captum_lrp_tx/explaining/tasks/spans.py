"""Question answering: where the answer begins and ends in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets import Sum
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.explaining.tasks.base import (
    Case,
    Choice,
    Task,
    Wish,
    of_texts,
    refuse_answer,
)
from captum_lrp_tx.explaining.texts import Reader, encode, is_pair
from captum_lrp_tx.explaining.words import Tokens

#: The longest answer that is looked for, in tokens.
_LONGEST = 30


class QuestionAnswering(Task):
    """Where an answer begins and ends."""

    name = "question answering"

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        if wish.contrast is not False:
            raise TargetError(
                "question answering has no contrast; explain one answer with target='the answer'"
            )
        if not is_pair(item):
            raise InputError("question answering takes a pair of texts: (question, context)")
        encoded = encode(item, reader, ("question", "context"))
        tokens, model = encoded.tokens, reader.model
        inside = [i for i, part in enumerate(tokens.parts) if part == "context"]
        if not inside or tokens.spans[inside[0]] is None:
            raise InputError(
                "question answering needs a fast tokenizer (use_fast=True), which knows where the "
                "tokens stand in the text"
            )

        def forward(**inputs: Any) -> Tensor:
            output = model(**inputs)
            return torch.stack([output.start_logits, output.end_logits], -1)

        def of(output: Tensor) -> Choice:
            return _answer(output[0], wish.target, tokens, inside)

        yield Case(
            self.name, forward, encoded.inputs, of, of_texts(tokens), warnings=encoded.warnings
        )


def _answer(scores: Tensor, wanted: Any, tokens: Tokens, inside: list[int]) -> Choice:
    """The answer that is explained; ``scores`` of shape ``(tokens, 2)``."""
    first, last = _best(scores, inside)
    odds = scores[inside].double().softmax(0)
    probability = float(odds[inside.index(first), 0] * odds[inside.index(last), 1])
    predicted = _text(tokens, first, last)
    which = wanted if wanted in ("start", "end") else "both"
    if isinstance(wanted, str) and which == "both":
        first, last = _found(wanted, tokens, inside, scores)
    elif wanted is not None and which == "both":
        raise TargetError(
            f"target={wanted!r} is no answer; give words of the context, 'start' or 'end'"
        )
    name = repr(_text(tokens, first, last))
    if which == "start":
        return Choice((first, 0), name, f"start logit of {name}", predicted, probability)
    if which == "end":
        return Choice((last, 1), name, f"end logit of {name}", predicted, probability)
    both = Sum((first, 0), (last, 1))
    return Choice(both, name, f"start and end logit of {name}", predicted, probability)


def _best(scores: Tensor, inside: list[int]) -> tuple[int, int]:
    """The best answer that ends behind its beginning."""
    start, end = scores[inside].unbind(-1)
    total = (start[:, None] + end[None, :]).float()
    allowed = torch.ones_like(total).triu().tril(_LONGEST - 1).bool()
    place = int(total.masked_fill(~allowed, -torch.inf).argmax())
    return inside[place // len(inside)], inside[place % len(inside)]


def _found(wanted: str, tokens: Tokens, inside: list[int], scores: Tensor) -> tuple[int, int]:
    """The tokens of some words of the context; of several places the one the model likes best."""
    places = []
    for match in re.finditer(re.escape(wanted), tokens.texts["context"]):
        hit = [
            i for i in inside
            if (span := tokens.spans[i]) and span[0] < match.end() and span[1] > match.start()
        ]  # fmt: skip
        if hit:
            places.append((hit[0], hit[-1]))
    if not places:
        raise TargetError(f"the context, as the model got it, does not contain {wanted!r}")

    def worth(place: tuple[int, int]) -> tuple[bool, float]:
        first, last = place  # "art" as a word goes before "art" in "party"
        total = float(scores[first, 0]) + float(scores[last, 1])
        return _text(tokens, first, last) == wanted.strip(), total

    return max(places, key=worth)


def _text(tokens: Tokens, first: int, last: int) -> str:
    begin, end = tokens.spans[first], tokens.spans[last]
    assert begin is not None and end is not None
    return tokens.texts["context"][begin[0] : end[1]]
