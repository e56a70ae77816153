"""Tasks whose outputs are classes: of texts, pairs, words and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.class_names import labels_of
from captum_lrp_tx.errors import InputError, OutputError, TargetError
from captum_lrp_tx.explaining.names import ClassNames
from captum_lrp_tx.explaining.tasks.base import (
    Case,
    Choice,
    Task,
    Wish,
    choose,
    of_texts,
    refuse_answer,
)
from captum_lrp_tx.explaining.texts import Encoded, Reader, encode
from captum_lrp_tx.explaining.words import Tokens
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.runs.padding import is_alike
from captum_lrp_tx.runs.subject import device_of


def class_choice(
    wish: Wish, config: Any, several: bool | None = None
) -> Callable[[Tensor], Choice]:
    """Chooses among the classes of an output of shape ``(1, classes)``.

    Args:
        wish (Wish): What the user wants to know.
        config (PretrainedConfig): Of the model, with the names of the classes.
        several (bool, optional): Whether several classes can be true at once; as the configuration
            says unless given.
    """

    def of(output: Tensor) -> Choice:
        if output.dim() == 1 and wish.target is None:
            return Choice(None, "the output", "output")
        if output.dim() != 2:
            raise OutputError(
                f"the output has the shape {tuple(output.shape)}, not (examples, classes); pass a "
                "function that returns the scores of classes, or use ConservativeLRP"
            )
        kind = getattr(config, "problem_type", None)
        labels = labels_of(config, output.shape[1])
        if labels == ["0"] or labels == ["LABEL_0"]:
            labels = ["the score"]
        if kind == "regression" and len(labels) > 1:
            return _number(output[0], wish, labels)
        both = kind == "multi_label_classification" if several is None else several
        choice = choose(output[0], wish, ClassNames(labels), several=both)
        if output.shape[1] == 1 and choice.target == 0:
            number = float(output[0, 0])
            return replace(choice, explains=labels[0], prediction=f"{labels[0]} {number:+.4f}")
        return choice

    return of


def _number(values: Tensor, wish: Wish, labels: list[str]) -> Choice:
    """One of the numbers of a regression: none of them is a prediction before the others."""
    if wish.target is None:
        raise TargetError(
            f"the model is a regression with {len(labels)} numbers; name one as target: "
            f"{', '.join(labels)}"
        )
    if wish.contrast is True:
        raise TargetError("a regression has no runner-up; name the number to contrast with")
    choice = choose(values, wish, ClassNames(labels))
    explains = choice.explains.removeprefix("logit of ")
    return replace(choice, explains=explains, prediction="", probability=None)


def _together(rows: list[Encoded], reader: Reader) -> dict[str, Tensor]:
    """The choices as one example, filled up where the model does not see it.

    Models that read the first place, or count places from there, see padding on the left, and those
    that read the last one on the right.

    Raises:
        InputError: If there is no mask, or the model sees padding on both sides.
    """
    columns = {key: [row.inputs[key][0].tolist() for row in rows] for key in rows[0].inputs}
    lengths = {row.inputs["input_ids"].shape[1] for row in rows}
    is_told = len(lengths) > 1 and not getattr(reader.model, "training", False)  # of no dropout
    with torch.no_grad():
        alone = [
            output_tensor(reader.model(**{key: value[None] for key, value in row.inputs.items()}))
            for row in (rows if is_told else ())
        ]
        for side in ("right", "left"):
            padded = reader.tokenizer.pad(columns, return_tensors="pt", padding_side=side)
            if "attention_mask" not in padded:
                raise InputError(
                    "the tokenizer gives no attention mask, so choices cannot be padded"
                )
            inputs = {key: value[None].to(device_of(reader.model)) for key, value in padded.items()}
            if not alone or is_alike(output_tensor(reader.model(**inputs)), torch.cat(alone, 1)):
                return inputs
    raise InputError(
        "the model gives choices that are filled up to one length other scores than alone; give "
        "choices of the same number of tokens"
    )


def each_class(wish: Wish, model: Any, inputs: Mapping[str, Tensor] | Tensor) -> Iterator[Wish]:
    """The wish itself, or for ``target="all"`` one for each class that the model gives.

    Args:
        wish (Wish): What the user wants to know.
        model (callable): Its configuration may name other classes than it has.
        inputs (mapping or Tensor): What it is called with.
    """
    if not (isinstance(wish.target, str) and wish.target == "all"):
        yield wish
        return
    with torch.no_grad():
        output = output_tensor(model(inputs) if isinstance(inputs, Tensor) else model(**inputs))
    for index in range(output.shape[1]) if output.dim() > 1 else (None,):
        yield replace(wish, target=index)


class SequenceClassification(Task):
    """Classes, a score, or labels of a text or of a pair of texts (cross-encoders)."""

    name = "sequence classification"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        encoded = encode(item, reader)
        for one in each_class(wish, reader.model, encoded.inputs):
            yield Case(
                self.name, reader.model, encoded.inputs, class_choice(one, reader.config),
                of_texts(encoded.tokens), warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip


class TokenClassification(Task):
    """The label of a word, or of every word."""

    name = "token classification"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        encoded = encode(item, reader)
        tokens = encoded.tokens
        words = [word for word in tokens.words if not tokens.special[word[0]]]
        if not words:
            raise InputError("the text has no words; give some")
        every = isinstance(wish.target, str) and wish.target == "all"
        for number in range(len(words)) if every else (None,):
            one = wish if number is None else replace(wish, target=number)
            yield Case(
                self.name, reader.model, encoded.inputs,
                _label_of_word(one, reader.config, tokens, words), of_texts(tokens),
                warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip


def _label_of_word(
    wish: Wish, config: Any, tokens: Tokens, words: list[tuple[int, ...]]
) -> Callable[[Tensor], Choice]:
    texts = [text_of_word(tokens, word) for word in words]

    def of(output: Tensor) -> Choice:
        word, label = wish.target, None
        if isinstance(word, tuple) and len(word) == 2:
            word, label = word
        names = labels_of(config, output.shape[-1])
        # a word is labelled where it begins
        scores = output[0, [members[0] for members in words]]
        if word is None:
            number = _most_certain(scores, names)
        elif isinstance(word, str):
            if word not in texts:
                raise TargetError(f"there is no word {word!r}; the words are: {' '.join(texts)}")
            number = texts.index(word)
        elif isinstance(word, Integral) and -len(words) <= int(word) < len(words):
            number = int(word) % len(words)
        else:
            raise TargetError(
                f"target={wish.target!r} is no word; give its text, its number from 0 to "
                f"{len(words) - 1}, a pair (word, label), or 'all'"
            )
        where, count = f" for the word {texts[number]!r}", texts.count(texts[number])
        if count > 1:
            where += f" ({texts[: number + 1].count(texts[number])} of {count})"
        return choose(
            scores[number], replace(wish, target=label), ClassNames(names), (words[number][0],),
            where=where,
        )  # fmt: skip

    return of


def _most_certain(scores: Tensor, names: list[str]) -> int:
    """The word whose label is most certain, of those that have one other than "O"."""
    found = scores.double().softmax(-1).max(-1)
    outside = torch.tensor([names[i].upper() == "O" for i in found.indices.tolist()])
    certain = found.values.cpu()
    if not bool(outside.all()):
        certain = certain.masked_fill(outside, -1.0)
    return int(certain.argmax())


def text_of_word(tokens: Tokens, word: tuple[int, ...]) -> str:
    """A word as it stands in its text, or as its tokens are named."""
    spans = [span for i in word if (span := tokens.spans[i]) is not None]
    if not spans:
        return "".join(tokens.names[i].replace("##", "").strip("\u2581\u0120") for i in word)
    text = tokens.texts[tokens.parts[word[0]]]
    return text[min(s for s, _ in spans) : max(e for _, e in spans)]


class MultipleChoice(Task):
    """The choice that goes best with a text."""

    name = "multiple choice"

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        if not (
            isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            and isinstance(item[1], (list, tuple)) and all(isinstance(c, str) for c in item[1])
        ):  # fmt: skip
            raise InputError(
                "multiple choice takes a text and its choices: (text, [choice, choice, ...])"
            )
        text, choices = item[0], list(item[1])
        rows = [
            encode((text, choice), reader, ("text", f"choice {number}"))
            for number, choice in enumerate(choices)
        ]
        inputs = _together(rows, reader)
        mask = inputs["attention_mask"][0].cpu().bool()

        def of(output: Tensor) -> Choice:
            choice = choose(output[0], wish, ClassNames(choices))
            shown = [choice.target] if isinstance(choice.target, int) else range(len(choices))
            return replace(choice, rows=tuple(shown))

        def arrange(relevances: Mapping[str, Tensor], choice: Choice) -> tuple[Tokens, Tensor]:
            relevance = relevances["input_ids"][0].cpu()
            tokens = rows[choice.rows[0]].tokens
            for row in choice.rows[1:]:
                tokens = tokens + rows[row].tokens
            return tokens, torch.cat([relevance[row][mask[row]] for row in choice.rows])

        warnings = tuple(dict.fromkeys(w for row in rows for w in row.warnings))
        yield Case(self.name, reader.model, inputs, of, arrange, warnings=warnings)
