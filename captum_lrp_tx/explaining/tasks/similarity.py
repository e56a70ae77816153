"""Similarity of two texts, by models that embed each of them on its own (bi-encoders)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_lrp_tx.attr.bilrp import pooled
from captum_lrp_tx.errors import InputError, OutputError, TargetError
from captum_lrp_tx.explaining.tasks.base import Case, Choice, Task, Wish, of_texts, refuse_answer
from captum_lrp_tx.explaining.texts import Reader, encode, is_pair
from captum_lrp_tx.explaining.words import Tokens


def refuse_wishes(task: str, wish: Wish) -> None:
    """Complains about the choice of an output where there is one number.

    Raises:
        TargetError: With the task.
    """
    if wish.target is not None or wish.contrast is not False:
        raise TargetError(f"the {task} is one number, which needs neither target= nor contrast=")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of embeddings ``(batch, features)``."""
    of_both: Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return of_both


def whole(output: Tensor) -> Choice:
    """The similarity, which is all there is to explain."""
    return Choice(None, "similarity", "cosine similarity", f"similarity {float(output):+.4f}")


class Similarity(Task):
    """The cosine of the embeddings of two texts.

    An embedding is the mean over the tokens of what the model gives in ``last_hidden_state``, or
    what it calls ``sentence_embedding`` (sentence-transformers).
    """

    name = "similarity of two texts"

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        refuse_wishes(self.name, wish)
        if not is_pair(item):
            raise InputError(
                f"{type(reader.model).__name__} has no head that predicts something; give a pair "
                "of texts as a tuple, (first, second), to explain how similar they are to it"
            )
        first, second = (encode(text, reader) for text in item)
        model = reader.model
        inputs = {
            f"{part}_{key}": value
            for part, one in (("first", first), ("second", second))
            for key, value in one.inputs.items()
        }

        def forward(**given: Any) -> Tensor:
            a, b = (_embedding(model, _part(given, part)) for part in ("first", "second"))
            return cosine(a, b)

        tokens = _named(first.tokens, "first") + _named(second.tokens, "second")
        yield Case(
            self.name, forward, inputs, whole,
            of_texts(tokens, "first_input_ids", "second_input_ids"),
            warnings=tuple(dict.fromkeys(first.warnings + second.warnings)),
        )  # fmt: skip


def _part(given: Mapping[str, Any], part: str) -> dict[str, Any]:
    start = f"{part}_"
    return {key[len(start) :]: value for key, value in given.items() if key.startswith(start)}


def _embedding(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    if hasattr(model, "encode") and hasattr(model, "tokenize"):  # sentence-transformers
        embedded: Tensor = model(inputs)["sentence_embedding"]
        return embedded
    states = getattr(model(**inputs), "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise OutputError(
            f"{type(model).__name__} gives no last_hidden_state to make an embedding of"
        )
    return pooled(states, "mean", inputs.get("attention_mask"))


def _named(tokens: Tokens, part: str) -> Tokens:
    """The tokens of a text that is one of two."""
    parts = tuple(part if p else "" for p in tokens.parts)
    return replace(tokens, parts=parts, texts={part: "".join(tokens.texts.values())})
