"""Tasks whose outputs are tokens: the next one, a masked one, an answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets import Target
from captum_lrp_tx.attr.targets.generated_tokens import GeneratedTokens
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.explaining.names import TokenNames
from captum_lrp_tx.explaining.tasks.base import (
    Case,
    Choice,
    Task,
    Wish,
    Written,
    choose,
    of_texts,
    refuse_answer,
)
from captum_lrp_tx.explaining.texts import Encoded, Reader, encode, is_chat, is_pair
from captum_lrp_tx.explaining.words import common_start, tokens_of_ids

#: The longest answer of a model that reads one text and writes another, unless told otherwise.
_ANSWER = 20
_ANSWERED = (
    "the chat ends with a message of the assistant, and what follows this message is explained; to "
    "explain the message, leave it out of the chat and give it as answer="
)


def token_choice(wish: Wish, tokenizer: Any, place: int, where: str = "") -> Callable[..., Choice]:
    """Chooses among the tokens at one place of an output ``(1, tokens, vocabulary)``."""

    def of(output: Tensor) -> Choice:
        if output.dim() != 3:
            raise InputError(
                f"the output has the shape {tuple(output.shape)}, not (1, tokens, vocabulary)"
            )
        return choose(output[0, place], wish, TokenNames(tokenizer), (place,), where=where)

    return of


class NextToken(Task):
    """The next token of a text, or each token of an answer."""

    name = "next token"
    rules = "language-ah"  # by the evidence of experiments/language_models

    def asks_for_many(self, wish: Wish) -> bool:
        return wish.answer is not None and wish.hops is None

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        if is_pair(item):
            raise InputError(
                "a language model goes on with one text; several texts are a list, not a tuple"
            )
        _check_answer(wish.answer)
        encoded = encode(item, reader)
        if is_chat(item) and item[-1]["role"] == "assistant":
            encoded = replace(encoded, warnings=(*encoded.warnings, _ANSWERED))
        if wish.answer is None:
            yield Case(
                self.name, reader.model, encoded.inputs,
                token_choice(wish, reader.tokenizer, encoded.last()), of_texts(encoded.tokens),
                warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip
            return
        prompt = encoded.inputs["input_ids"]
        if encoded.last() + 1 != prompt.shape[1]:
            raise InputError("an answer goes on behind the text; give it without padding")
        answer = self._answer(encoded.inputs, reader, wish)
        if not answer:
            raise InputError("the model answered nothing: it predicts the end of the text")
        if wish.hops is not None:
            yield self._whole(encoded, answer, reader, wish)
            return
        for count, token in enumerate(answer):
            before = answer[:count]
            inputs = _continued(encoded.inputs, before)
            written = tokens_of_ids(before, reader.tokenizer, "answer")
            yield Case(
                self.name, reader.model, inputs,
                token_choice(
                    _token_of(wish, token), reader.tokenizer, prompt.shape[1] + count - 1,
                    f" as token {count + 1} of the answer",
                ),
                of_texts(encoded.tokens + written if before else encoded.tokens),
                warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip

    def _whole(self, encoded: Encoded, answer: list[int], reader: Reader, wish: Wish) -> Case:
        """All tokens of an answer at once, or those of a piece of it."""
        if wish.contrast is not False:
            raise TargetError(
                "contrast= is for single tokens; with hops= give target=targets.Contrast(a, b)"
            )
        inputs, start = _continued(encoded.inputs, answer), encoded.last() + 1
        text = "".join(pieces_of(answer, reader.tokenizer))
        weights = torch.ones(1, len(answer))
        target: Any = wish.target
        explains = f"preference for the answer {text!r}"
        if isinstance(target, str):
            weights = piece_of_answer(target, answer, reader.tokenizer)
            explains, text = f"preference for {target!r} in the answer {text!r}", target
        elif target is not None and not isinstance(target, Target):
            raise TargetError(
                f"of a whole answer target= names a piece of it as text, or is a target of "
                f"captum_lrp_tx.targets, not {target!r}"
            )
        if isinstance(target, Target):
            explains, text = f"{target!r} of the output", repr(target)
        else:
            target = GeneratedTokens(inputs["input_ids"], start, weights)
        written = tokens_of_ids(answer, reader.tokenizer, "answer")
        return Case(
            self.name, reader.model, inputs, lambda _: Choice(target, text, explains),
            of_texts(encoded.tokens + written), warnings=encoded.warnings,
            tokens=encoded.tokens + written, written=Written(start, _hops(wish.hops)),
        )  # fmt: skip

    def _answer(self, inputs: Mapping[str, Tensor], reader: Reader, wish: Wish) -> list[int]:
        if isinstance(wish.answer, str):
            if reader.tokenizer is None:
                raise InputError("an answer in words needs the tokenizer of the model")
            made: list[int] = reader.tokenizer(wish.answer, add_special_tokens=False)["input_ids"]
            _check_room(len(made), inputs, reader)
            return made
        _check_room(_count(wish), inputs, reader)
        written = _generated(reader, inputs, _count(wish))
        return _without_end(written[inputs["input_ids"].shape[1] :], reader)


class MaskedToken(Task):
    """The token that is hidden by the mask."""

    name = "masked token"

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        encoded = encode(item, reader)
        mask = getattr(reader.tokenizer, "mask_token_id", None)
        ids = encoded.inputs["input_ids"][0].tolist()
        places = [place for place, token in enumerate(ids) if token == mask]
        if not places:
            name = getattr(reader.tokenizer, "mask_token", None)
            raise InputError(
                f"the text has no mask; write {name or 'the mask token'} in the place of the word "
                "that the model is to guess"
            )
        for number, place in enumerate(places):
            where = "" if len(places) == 1 else f" at mask {number + 1} of {len(places)}"
            yield Case(
                self.name, reader.model, encoded.inputs,
                token_choice(wish, reader.tokenizer, place, where), of_texts(encoded.tokens),
                warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip


class SequenceToSequence(Task):
    """Each token of the text that a model writes about another one."""

    name = "sequence to sequence"

    def asks_for_many(self, wish: Wish) -> bool:
        return wish.answer is not None or wish.target is None  # what the model writes

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        if wish.hops is not None:
            raise TargetError(
                "hops= is for models that go on with the text; an encoder-decoder writes another, "
                "whose tokens are explained one by one"
            )
        _check_answer(wish.answer)
        encoded = encode(item, reader)
        start, answer = self._answer(encoded.inputs, reader, wish)
        if answer and answer[0] == _forced(reader):
            start, answer = [*start, answer[0]], answer[1:]
        if not answer:
            raise InputError("the model answered nothing: it predicts the end of the text at once")
        if wish.target is not None and len(answer) > 1 and wish.answer is None:
            answer = answer[:1]
        for count, token in enumerate(answer):
            ids = [*start, *answer[:count]]
            written = tokens_of_ids(ids, reader.tokenizer, "answer")
            decoder = torch.tensor([ids], device=encoded.inputs["input_ids"].device)
            wanted = wish if wish.target is not None else _token_of(wish, token)
            yield Case(
                self.name, reader.model, {**encoded.inputs, "decoder_input_ids": decoder},
                token_choice(
                    wanted, reader.tokenizer, len(ids) - 1, f" as token {count + 1} of the answer"
                ),
                of_texts(encoded.tokens + written, "input_ids", "decoder_input_ids"),
                warnings=encoded.warnings, tokens=encoded.tokens,
            )  # fmt: skip

    def _answer(
        self, inputs: Mapping[str, Tensor], reader: Reader, wish: Wish
    ) -> tuple[list[int], list[int]]:
        """What the decoder begins with, and what it writes."""
        if isinstance(wish.answer, str):
            if reader.tokenizer is None:
                raise InputError("an answer in words needs the tokenizer of the model")
            labels = reader.tokenizer(text_target=wish.answer, return_tensors="pt")["input_ids"]
            try:
                shifted = reader.model.prepare_decoder_input_ids_from_labels(
                    labels.to(inputs["input_ids"].device)
                )[0]
            except (ValueError, AttributeError) as error:
                raise InputError(
                    f"the model cannot tell what an answer begins with: {error}; set "
                    "model.config.decoder_start_token_id"
                ) from error
            return [int(shifted[0])], _without_end(labels[0].tolist(), reader)
        forced = 0 if _forced(reader) is None else 1
        written = _generated(reader, inputs, _count(wish) + forced)
        return written[:1], _without_end(written[1:], reader)


def _continued(inputs: Mapping[str, Tensor], answer: list[int]) -> dict[str, Tensor]:
    """Inputs of a text with tokens behind it; masks and segments go on as they end."""
    ids = inputs["input_ids"]
    made = {
        key: torch.cat([value, value[:, -1:].expand(1, len(answer))], 1)
        for key, value in inputs.items()
    }
    made["input_ids"] = torch.cat([ids, ids.new_tensor([answer]).long()], 1)
    if "position_ids" in made:  # positions count on
        made["position_ids"][:, ids.shape[1] :] += torch.arange(1, len(answer) + 1).to(ids)
    return made


def pieces_of(ids: list[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; of a character of several tokens, the last one all of it.

    Args:
        ids (list of int): Of an answer.
        tokenizer: A tokenizer of transformers; without one tokens are called by their ids.
    """
    if tokenizer is None:
        return [f"{i} " for i in ids]
    texts = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    # half a character is decoded as a mark, which the whole text does not have
    sure = [common_start(text, texts[-1]) for text in texts]
    ends = list(itertools.accumulate(sure, max))
    return [texts[-1][start:end] for start, end in itertools.pairwise(ends)]


def piece_of_answer(text: str, ids: list[int], tokenizer: Any) -> Tensor:
    """1 for the tokens of the last place where a text stands in an answer, 0 elsewhere.

    Args:
        text (str): What is looked for.
        ids (list of int): Of the answer.
        tokenizer: A tokenizer of transformers.

    Raises:
        TargetError: It is not there.
    """
    pieces = pieces_of(ids, tokenizer)
    whole, wanted = "".join(pieces), text.strip()
    start = whole.rfind(wanted) if wanted else -1
    if start < 0:
        raise TargetError(f"{text!r} does not stand in the answer {whole!r}")
    weights, place = torch.zeros(1, len(ids)), 0
    for i, piece in enumerate(pieces):
        # what adds nothing yet is the beginning of the next character
        begins, place = place, place + len(piece)
        weights[0, i] = float(begins < start + len(wanted) and max(place, begins + 1) > start)
    return weights


def _hops(wished: int | str | None) -> int | None:
    if wished == "all":
        return None
    if isinstance(wished, int) and not isinstance(wished, bool) and wished >= 0:
        return wished
    raise TargetError(f"hops must be a number of hops, 0 or more, or 'all', not {wished!r}")


def _token_of(wish: Wish, token: int) -> Wish:
    """A token of an answer, against what the user wants to contrast it with."""
    if wish.target is not None:
        raise TargetError("give either target= or answer=: an answer says which tokens are meant")
    return replace(wish, target=token)


def _count(wish: Wish) -> int:
    """How many tokens are generated."""
    return wish.answer if isinstance(wish.answer, int) else _ANSWER


def _check_answer(answer: Any) -> None:
    """Complains about what is neither a text nor a number of tokens."""
    is_count = isinstance(answer, int) and not isinstance(answer, bool) and answer > 0
    if not (answer is None or is_count or (isinstance(answer, str) and answer)):
        raise TargetError(f"answer must be a positive number of tokens or a text, not {answer!r}")


def _check_room(count: int, inputs: Mapping[str, Tensor], reader: Reader) -> None:
    """Complains about an answer that ends behind the last position of the model."""
    limit, length = reader.limit(), inputs["input_ids"].shape[1]
    if limit is not None and length + count > limit:
        raise InputError(
            f"the text has {length} tokens and the answer up to {count}, but the model takes at "
            f"most {limit}; shorten one of them"
        )


def _forced(reader: Reader) -> int | None:
    """What every answer begins with, whatever the model predicts: a language, a start token."""
    settings = getattr(reader.model, "generation_config", None)
    token = getattr(settings, "forced_bos_token_id", None)
    return token if isinstance(token, int) else None


def _generated(reader: Reader, inputs: Mapping[str, Tensor], count: int) -> list[int]:
    if not hasattr(reader.model, "generate"):
        raise InputError("the model cannot generate; give the answer as a text: answer='...'")
    pad = getattr(reader.tokenizer, "pad_token_id", None)
    end = getattr(reader.tokenizer, "eos_token_id", None)
    try:
        written: Tensor = reader.model.generate(
            **inputs, max_new_tokens=count, do_sample=False, num_beams=1,
            pad_token_id=end if pad is None else pad, return_dict_in_generate=False,
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the model generates nothing of {', '.join(inputs)}: {error}. Where an entry is too "
            "many, the tokenizer is not the model's own; give the ids alone: explain(model, "
            "tokenizer, {'input_ids': ids})"
        ) from error
    ids: list[int] = written[0].tolist()
    return ids


def _without_end(ids: list[int], reader: Reader) -> list[int]:
    """Without the tokens that only say that the answer is over."""
    ends = {getattr(reader.tokenizer, f"{name}_token_id", None) for name in ("eos", "pad")}
    while ids and ids[-1] in ends:
        ids = ids[:-1]
    return ids
