"""Classes and tokens by name: what a user writes as a target, and what a result calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from captum_lrp_tx.attr.class_names import class_number
from captum_lrp_tx.errors import TargetError


class Names(Protocol):
    """Names of the outputs of a model."""

    def name(self, index: int) -> str:
        """What a result calls an output."""

    def index(self, wanted: str | int, scores: Tensor) -> int:
        """The output that is meant.

        Args:
            wanted (str or int): A name or a number.
            scores (Tensor): Of all outputs, shape ``(outputs,)``.

        Raises:
            TargetError: If there is none.
        """


class ClassNames:
    """Names of classes, as the model's configuration has them.

    Args:
        names (sequence of str): One for each class.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def name(self, index: int) -> str:
        return self.names[index]

    def index(self, wanted: str | int, scores: Tensor) -> int:
        return class_number(wanted, self.names)


class TokenNames:
    """Tokens of a vocabulary as text in quotes, so that leading spaces show.

    Args:
        tokenizer: A tokenizer of transformers; without one the tokens are called by their ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def name(self, index: int) -> str:
        if self._tokenizer is None:
            return f"token {index}"
        text = self._tokenizer.decode([index])
        if not text or "\ufffd" in text:  # half a character, or a mark alone: by its own name
            text = self._tokenizer.convert_ids_to_tokens([index])[0] or text
        return repr(text)

    def index(self, wanted: str | int, scores: Tensor) -> int:
        return token_index(wanted, self._tokenizer, scores)


def token_index(target: str | int, tokenizer: Any, scores: Tensor) -> int:
    """The token that is meant; with or without a space before it, whichever is more probable.

    Args:
        target (str or int): Its text ("7" is a digit) or its id.
        tokenizer: A tokenizer of transformers; needed for a text.
        scores (Tensor): Of all tokens, shape ``(vocabulary,)``.

    Raises:
        TargetError: If it is not one token of the vocabulary.
    """
    if not isinstance(target, str):
        if 0 <= int(target) < scores.numel():
            return int(target)
        raise TargetError(f"there is no token {target}; ids go from 0 to {scores.numel() - 1}")
    if not target:
        raise TargetError("the target is an empty text; name a token")
    if tokenizer is None:
        raise TargetError(f"the target {target!r} needs a tokenizer; give the token's id instead")
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in (target, f" {target}")]
    known: list[int] = [
        ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    ]
    special = tokenizer.convert_tokens_to_ids(target)
    if not known and isinstance(special, int) and special != tokenizer.unk_token_id:
        known = [special]
    if known:
        return max(known, key=lambda index: float(scores[index]))
    pieces = " ".join(repr(tokenizer.decode([index])) for index in encoded[0])
    by_id = f"; the id is {target} without quotes, and id:{target} on the command line"
    raise TargetError(
        (
            f"the target {target!r} is not one token but {len(encoded[0])} ({pieces}); name one of "
            "them"
            if len(encoded[0]) > 1
            else f"the target {target!r} is not in the vocabulary of the model"
        )
        + (by_id if target.isdecimal() else "")
    )
