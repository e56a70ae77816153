"""From texts, pairs, chats and token ids to what a language model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining.words import Span, Tokens, common_start, tokens_of_ids, tokens_of_text
from captum_lrp_tx.runs.subject import device_of

#: What tokenizers add for other purposes than to call the model.
_NOT_FOR_THE_MODEL = (
    "labels", "label", "offset_mapping", "special_tokens_mask", "overflow_to_sample_mapping",
    "length",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """How inputs are read: the model, its processor, and whether to cut what is too long.

    Attributes:
        model: The model; asked for its sizes.
        processor: A tokenizer, image processor or feature extractor of transformers, what holds
            several of them, or None if the inputs are given as the model takes them.
        truncation (bool or str): As tokenizers take it.
        max_length (int, optional): As tokenizers take it.
    """

    model: Any
    processor: Any
    truncation: bool | str = False
    max_length: int | None = None

    @property
    def tokenizer(self) -> Any:
        """What reads texts: of a processor its tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def image_processor(self) -> Any:
        """What reads images: of a processor its image processor."""
        return getattr(self.processor, "image_processor", self.processor)

    @property
    def feature_extractor(self) -> Any:
        """What reads audio: of a processor its feature extractor."""
        return getattr(self.processor, "feature_extractor", self.processor)

    @property
    def config(self) -> Any:
        """The configuration of the model, or None."""
        return getattr(self.model, "config", None)

    def for_model(self, values: Tensor) -> Tensor:
        """Numbers where the model is, and in its precision."""
        parameters = getattr(self.model, "parameters", tuple)
        first = next((p for p in parameters() if p.is_floating_point()), None)
        return values if first is None else values.to(device_of(self.model), first.dtype)

    def limit(self) -> int | None:
        """The most tokens that the model takes, if there is a limit."""
        modules = getattr(self.model, "modules", tuple)
        return most_tokens(modules(), self.tokenizer, self.max_length if self.truncation else None)


@dataclass(frozen=True)
class Encoded:
    """One text as a model takes it.

    Attributes:
        inputs (dict of str to Tensor): Keyword arguments of the model, each ``(1, tokens)``.
        tokens (Tokens): What the ids stand for.
        warnings (tuple of str): What the reader of the result should know.
    """

    inputs: dict[str, Tensor]
    tokens: Tokens
    warnings: tuple[str, ...] = ()

    def last(self) -> int:
        """Position of the last token that is no padding."""
        mask = self.inputs.get("attention_mask")
        if mask is None or mask.dim() != 2:
            return self.inputs["input_ids"].shape[1] - 1
        return int(mask[0].nonzero().max())


def is_chat(item: Any) -> bool:
    """Whether something is a list of messages with roles."""
    return (
        isinstance(item, (list, tuple))
        and bool(item)
        and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in item)
    )


def is_pair(item: Any) -> bool:
    """Whether something is a pair of texts: a tuple, as a list holds several examples."""
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(t, str) for t in item)


def encode(
    item: Any, reader: Reader, labels: tuple[str, str] = ("first", "second"), **options: Any
) -> Encoded:
    """Token ids of one text, and what they stand for.

    Args:
        item: A text, a pair of texts, chat messages, token ids, or a tokenizer's encoding.
        reader (Reader): The tokenizer and the model.
        labels (tuple of str): What the texts of a pair are called.
        **options: Of the tokenizer.

    Raises:
        InputError: If it is none of these, empty, too long, or does not fit the model.
    """
    if is_chat(item):
        text = _chat(item, reader.tokenizer)
        made = _from_texts({"text": text}, reader, add_special_tokens=False)
        tokens = replace(made.tokens, messages=_places(item, text, reader.tokenizer))
        made = replace(made, tokens=tokens)
    elif isinstance(item, str):
        made = _from_texts({"text": item}, reader, **options)
    elif is_pair(item):
        made = _from_texts(dict(zip(labels, item, strict=True)), reader, **options)
    else:
        made = _from_ids(item, reader)
    _check_vocabulary(made.inputs["input_ids"], reader)
    device = device_of(reader.model)
    return Encoded({k: v.to(device) for k, v in made.inputs.items()}, made.tokens, made.warnings)


def _from_texts(texts: dict[str, str], reader: Reader, **more: Any) -> Encoded:
    tokenizer = reader.tokenizer
    if not callable(tokenizer):
        given = "" if tokenizer is None else f", and {tokenizer!r} is none"
        raise InputError(
            f"a text needs the tokenizer of the model{given}: explain(model, tokenizer, text)"
        )
    if not any(text.strip() for text in texts.values()):
        raise InputError("the text is empty; give some words")
    cut = {"truncation": reader.truncation, "max_length": reader.limit()}
    options = {**more, **(cut if reader.truncation else {})}
    # verbose: the message about long texts would say that indexing errors follow
    encoding = tokenizer(*texts.values(), return_tensors="pt", verbose=False, **options)
    inputs = for_the_model({**encoding}, reader.model)
    ids = inputs["input_ids"]
    if not ids.numel():
        raise InputError("the tokenizer made no token of the text")
    tokens = tokens_of_text(encoding, ids[0].tolist(), tokenizer, texts)
    warnings = _of_unknown(ids[0], tokens, tokenizer)
    if reader.truncation:
        full = len(tokenizer(*texts.values(), verbose=False, **more)["input_ids"])
        if full > ids.shape[1]:
            warnings.append(
                f"the text was cut: of its {full} tokens the model got {ids.shape[1]}, and the "
                "rest is not explained"
            )
    else:
        _check_length(ids.shape[1], reader)
    return Encoded(inputs, tokens, tuple(warnings))


def _from_ids(item: Any, reader: Reader) -> Encoded:
    """A tokenizer's encoding, or token ids alone, of one text."""
    given = dict(item) if isinstance(item, Mapping) else {"input_ids": item}
    if isinstance(item, (list, tuple)) and any(isinstance(part, str) for part in item):
        raise InputError(
            f"cannot explain {type(item).__name__} of {len(item)} texts as one input: a pair is a "
            "tuple of two texts, and several pairs are a list of such tuples"
        )
    ids = given.get("input_ids")
    if ids is None or not (isinstance(ids, (Tensor, list, tuple)) or hasattr(ids, "__array__")):
        decode = " (decode it)" if isinstance(item, (bytes, bytearray)) else ""
        raise InputError(
            f"cannot explain {type(item).__name__}: give a text{decode}, a pair of texts as a "
            "tuple, chat messages, token ids, or what the tokenizer returns"
        )
    inputs = {
        str(key): _row(value, str(key))
        for key, value in given.items()
        if key not in _NOT_FOR_THE_MODEL and value is not None
    }
    ids = inputs["input_ids"]
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"token ids are whole numbers, not {ids.dtype}")
    ids = inputs["input_ids"] = ids.long()  # torch looks up nothing shorter than 32 bits
    if len(ids) != 1 or not ids.numel():
        raise InputError(f"token ids of one text have the shape (1, tokens), not {(*ids.shape,)}")
    of_decoder = [key for key in inputs if key.startswith("decoder_")]
    if of_decoder:
        raise InputError(
            f"explain shows the relevance of input_ids alone, and {', '.join(of_decoder)} would "
            "have a part of it. Leave it out (a model that writes gets what it writes, or "
            "answer=), or use ConservativeLRP(model).attribute(inputs, target)"
        )
    inputs = _without_padding_before(inputs)
    ids = inputs["input_ids"]
    _check_length(ids.shape[1], reader)
    tokens = tokens_of_ids(ids[0].tolist(), reader.tokenizer)
    warnings = _of_unknown(ids[0], tokens, reader.tokenizer)
    pad = getattr(reader.tokenizer, "pad_token_id", None)
    end = getattr(reader.tokenizer, "eos_token_id", None)
    padding = 0 if pad is None or pad == end else int((ids == pad).sum())
    if padding and "attention_mask" not in inputs:
        warnings.append(
            f"padding was given no mask: the model reads {padding} padding tokens as text; pass "
            "attention_mask too"
        )
    return Encoded(inputs, tokens, tuple(warnings))


def for_the_model(made: dict[str, Any], model: Any) -> dict[str, Any]:
    """What a processor made, without what the model does not take (segments, mostly)."""
    function = model.forward if isinstance(model, nn.Module) else model
    taken: Mapping[str, inspect.Parameter]
    try:
        taken = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature can be told
        taken = {}
    kept = {key: value for key, value in made.items() if key not in _NOT_FOR_THE_MODEL}
    if taken.keys() & kept.keys() and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        kept = {key: value for key, value in kept.items() if key in taken}
    return kept


def _without_padding_before(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text alone: behind padding most models would count its positions from there."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None or mask.shape != ids.shape or bool(mask[0, 0]) or not bool(mask.any()):
        return inputs
    start = int(mask[0].nonzero()[0])
    return {key: v[:, start:] if v.shape == ids.shape else v for key, v in inputs.items()}


def _row(value: Any, key: str) -> Tensor:
    """An entry of an encoding with a dimension for the example."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{key!r} holds no numbers: {type(value).__name__}") from error
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor


def _chat(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Chat messages as the text that the model reads."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "chat messages need a tokenizer with a chat template, and this one has none; write "
            "the conversation as one text"
        )
    answered = messages[-1]["role"] == "assistant"
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not answered
        )
    except Exception as error:  # whatever a template raises
        raise InputError(
            f"the chat template of the tokenizer fails on these messages: {error}. Most templates "
            "want a text as content, and user and assistant by turns"
        ) from error
    return text


def _places(messages: Sequence[Mapping[str, Any]], text: str, tokenizer: Any) -> tuple[Span, ...]:
    """Where each message stands: it ends where a letter more at its end makes another text.

    A search for what it says may find it in what the template says ("user", a default prompt).
    """
    if not all(isinstance(message["content"], str) for message in messages):
        return ()
    found = []
    for number, message in enumerate(messages):
        wanted, longer = message["content"].strip(), [dict(m) for m in messages]
        longer[number]["content"] = f"{message['content']}\u2063"
        try:
            other = _chat(longer, tokenizer)
        except InputError:  # a template that looks into messages
            return ()
        end = len(text[: common_start(text, other)].rstrip())
        if not text[:end].endswith(wanted):  # changed by the template
            return ()
        found.append((end - len(wanted), end))
    return tuple(found)


def _of_unknown(ids: Tensor, tokens: Tokens, tokenizer: Any) -> list[str]:
    """A warning where words are unknown."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return []
    of_text = [i for i, special in zip(ids.tolist(), tokens.special, strict=True) if not special]
    count = of_text.count(unknown)
    if not count:
        return []
    share = f"{count / len(of_text):.0%}".replace("%", " %")
    return [
        f"{share} of the tokens are unknown to this tokenizer; check that it is the model's own "
        "and knows the language of the text"
    ]


def _check_length(length: int, reader: Reader) -> None:
    limit = reader.limit()
    if limit is not None and length > limit:
        raise InputError(
            f"the text has {length} tokens, but the model takes at most {limit}; shorten the text, "
            "or cut it (in Python: truncation=True)"
        )


def _check_vocabulary(ids: Tensor, reader: Reader) -> None:
    embeddings = getattr(reader.model, "get_input_embeddings", lambda: None)
    try:
        table = embeddings()
    except (AttributeError, NotImplementedError):
        return
    size = getattr(table, "num_embeddings", None)
    low, high = int(ids.min()), int(ids.max())
    if isinstance(size, Integral) and (high >= size or low < 0):
        raise InputError(
            f"the text has the token id {high if high >= size else low}, but the model knows ids "
            f"from 0 to {size - 1}: the tokenizer is not that of the model"
        )
