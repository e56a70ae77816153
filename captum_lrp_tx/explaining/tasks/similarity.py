"""Similarity of two texts, by models that embed each of them on its own (bi-encoders)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
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


def whole(output: Tensor, of: str = "") -> Choice:
    """The similarity, which is all there is to explain."""
    return Choice(None, "similarity", f"cosine similarity{of}", f"similarity {float(output):+.4f}")


class Similarity(Task):
    """The cosine of the embeddings of two texts.

    An embedding is the mean over the tokens of what the model gives in ``last_hidden_state``, or
    what it calls ``sentence_embedding`` (sentence-transformers). A plain model is refused if it
    lies in a folder of sentence-transformers that says otherwise.
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
        of = ""
        if not _embeds_itself(model):
            _refuse_other_embeddings(model)
            of = " of the means over tokens"
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
            self.name, forward, inputs, partial(whole, of=of),
            of_texts(tokens, "first_input_ids", "second_input_ids"),
            warnings=tuple(dict.fromkeys((*first.warnings, *second.warnings, *_prompts(model)))),
        )  # fmt: skip


def _part(given: Mapping[str, Any], part: str) -> dict[str, Any]:
    start = f"{part}_"
    return {key[len(start) :]: value for key, value in given.items() if key.startswith(start)}


def _embeds_itself(model: Callable[..., Any]) -> bool:
    """Whether it is a model of sentence-transformers."""
    return hasattr(model, "encode") and hasattr(model, "tokenize")


def _prompts(model: Any) -> list[str]:
    """What to know of the prompt that a model of sentence-transformers puts before every text."""
    name = getattr(model, "default_prompt_name", None)
    prompt = (getattr(model, "prompts", None) or {}).get(name)
    if not _embeds_itself(model) or not prompt:
        return []
    return [
        f"encode() of this model puts the prompt {prompt!r} before every text, explain() does not; "
        "write it before both texts to explain what encode() compares"
    ]


def _refuse_other_embeddings(model: Callable[..., Any]) -> None:
    """Complains about a folder of sentence-transformers whose embeddings are no means over tokens.

    Raises:
        InputError: With the part that says so.
    """
    folder = Path(str(getattr(getattr(model, "config", None), "_name_or_path", "")))
    if not (folder / "modules.json").is_file():
        return
    for part in _json(folder / "modules.json")[1:]:
        kind, path = str(part["type"]).rpartition(".")[2], folder / part["path"] / "config.json"
        says = _json(path) if kind == "Pooling" else {}
        # one name, or before version 6 a flag for each
        modes = {key for key, value in says.items() if key.startswith("pooling_mode_") and value}
        modes |= {str(says["pooling_mode"])} if "pooling_mode" in says else set()
        if kind == "Normalize" or (modes and modes <= {"mean", "pooling_mode_mean_tokens"}):
            continue
        raise InputError(
            f"a plain {type(model).__name__} is explained by the means of its states over tokens, "
            f"but {folder} makes its embeddings another way: {part['path']} is a "
            f"{' '.join([kind, *sorted(modes)])}; give "
            f"sentence_transformers.SentenceTransformer({str(folder)!r}) as the model"
        )


def _json(path: Path) -> Any:
    """What a file of a folder of sentence-transformers holds.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} says how embeddings are made, and cannot be read ({error}); download the "
            "model again"
        ) from error


def _embedding(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    if _embeds_itself(model):
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
