"""What is explained: a model, its inputs, its prediction, and the output that was asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.cli.images import read_image
from captum_lrp_tx.cli.models import Kind, find, kind_of, labels_of, load_model, load_tokenizer
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.errors import InputError, OutputError, TargetError

if TYPE_CHECKING:
    from captum_lrp_tx.visualization.wording import Scheme


@dataclass(frozen=True)
class Subject:
    """One prediction.

    Attributes:
        kind (str): ``"text"``, ``"next token"`` or ``"image"``.
        model (nn.Module): In evaluation mode.
        inputs (mapping or Tensor): A tokenizer's encoding, or pixels.
        target (int or tuple of int): Of ``attribute``.
        prediction (str): Name of the predicted class.
        probability (float, optional): Of the predicted class; None for a model with one output.
        explained (str): Name of the explained class.
        score (float): The explained logit.
        tokens (tuple of str): Of a text, as the tokenizer names them.
        special (tuple of bool): Which of them are special tokens.
        scheme (str): How they mark the borders of words.
    """

    kind: Kind
    model: Any
    inputs: Any
    target: int | tuple[int, ...]
    prediction: str
    probability: float | None
    explained: str
    score: float
    tokens: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()
    scheme: Scheme = "auto"


def load_subject(text: str | None, arguments: argparse.Namespace) -> Subject:
    """Loads what the arguments name and runs the model once.

    Args:
        text (str, optional): The text; without one ``arguments.image`` is explained.
        arguments (Namespace): With ``model``, ``image`` and ``target``.

    Raises:
        InputError: If a model or an input cannot be loaded or does not fit.
        TargetError: If the model has no such class or token.
    """
    if text is None:
        return _image(Path(arguments.image), arguments.model, arguments.target)
    return _text(text, arguments.model, arguments.target)


def _text(text: str, name: str | None, target: str | None) -> Subject:
    source = find(name, "sentiment")
    kind, config = kind_of(source, ("text", "next token"))
    tokenizer = load_tokenizer(source)
    inputs = source.use("tokenizer", lambda: tokenizer(text, return_tensors="pt"))
    ids = inputs["input_ids"][0].tolist()
    _check_length(len(ids), tokenizer, config)
    model = load_model(source, kind)
    logits = source.use("model", lambda: _run(model, inputs))
    if kind == "next token":
        logits = logits[-1]
        names: Any = _TokenNames(tokenizer)
        index = None if target is None else _token_index(target, tokenizer, logits)
    else:
        names = labels_of(config, logits.numel())
        index = None if target is None else class_index(target, names)
    return _subject(
        kind, model, inputs, logits, names, index,
        position=(len(ids) - 1,) if kind == "next token" else (),
        **source.use("tokenizer", lambda: _tokens(tokenizer, ids)),
    )  # fmt: skip


def _tokens(tokenizer: Any, ids: list[int]) -> dict[str, Any]:
    """What a :class:`Subject` says about the tokens of a text."""
    from captum_lrp_tx.visualization.wording import scheme_of, special_ids

    hidden = special_ids(tokenizer)
    return {
        "tokens": tuple(map(str, tokenizer.convert_ids_to_tokens(ids))),
        "special": tuple(i in hidden for i in ids),
        "scheme": scheme_of(tokenizer),
    }


def _image(file: Path, name: str | None, target: str | None) -> Subject:
    source = find(name, "digits")
    kind, config = kind_of(source, ("image",))
    pixels = read_image(file, source, config)
    model = load_model(source, kind)
    logits = source.use("model", lambda: _run(model, pixels))
    names = labels_of(config, logits.numel())
    index = None if target is None else class_index(target, names)
    return _subject(kind, model, pixels, logits, names, index)


def _subject(
    kind: Kind,
    model: Any,
    inputs: Any,
    logits: Tensor,
    names: Any,
    index: int | None,
    position: tuple[int, ...] = (),
    **more: Any,
) -> Subject:
    predicted = int(logits.argmax())
    index = predicted if index is None else index
    if logits.numel() == 1:
        probability = None
    elif getattr(model.config, "problem_type", None) == "multi_label_classification":
        probability = float(logits[predicted].sigmoid())
    else:
        probability = float(logits.softmax(-1)[predicted])
    return Subject(
        kind, model, inputs, (*position, index) if position else index, names[predicted],
        probability, names[index], float(logits[index]), **more,
    )  # fmt: skip


@torch.no_grad()
def _run(model: Any, inputs: Any) -> Tensor:
    """Logits of the only example."""
    with status("running the model"):
        output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[0] != 1:
        raise OutputError(f"{type(model).__name__} returned no logits for the input")
    return logits[0]


def _check_length(length: int, tokenizer: Any, config: Any) -> None:
    if not length:
        raise InputError("the tokenizer made no token of the text")
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    limit = min((n for n in limits if isinstance(n, int) and n > 0), default=length)
    if length > limit:
        raise InputError(
            f"the text has {length} tokens, but the model takes at most {limit}; shorten the text"
        )


def class_index(target: str, names: list[str]) -> int:
    """The class that is meant by an index or a name.

    Args:
        target (str): What the user wrote.
        names (list of str): Of the classes. Upper and lower case do not matter.

    Raises:
        TargetError: If there is none, or several that differ in case only.

    Example::

        >>> class_index("Positive", ["negative", "positive"])
        1
    """
    try:
        index = int(target)
    except ValueError:
        index = -1
        for same in (str, str.casefold):
            found = [i for i, name in enumerate(names) if same(name) == same(target)]
            if len(found) == 1:
                return found[0]
    if 0 <= index < len(names):
        return index
    listed = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(names[:20])]
    more = f" ... ({len(names)} classes)" if len(names) > 20 else ""
    raise TargetError(f"unknown target {target!r}; the classes are: {', '.join(listed)}{more}")


class _TokenNames:
    """Tokens of a vocabulary as text in quotes, so that leading spaces show."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getitem__(self, index: int) -> str:
        return repr(self._tokenizer.decode([index]))


def _token_index(target: str, tokenizer: Any, logits: Tensor) -> int:
    """The token that is meant; with or without a space before it, whichever is more probable."""
    if target.isdecimal():
        if int(target) < logits.numel():
            return int(target)
        raise TargetError(f"there is no token {target}; ids go from 0 to {logits.numel() - 1}")
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in (target, f" {target}")]
    known: list[int] = [
        ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    ]
    if known:
        return max(known, key=lambda index: float(logits[index]))
    pieces = " ".join(repr(tokenizer.decode([index])) for index in encoded[0])
    raise TargetError(
        f"the target {target!r} is not one token but {len(encoded[0])} ({pieces}); name one of them"
        if len(encoded[0]) > 1
        else f"the target {target!r} is not in the vocabulary of the model"
    )
