"""Which message or document relevance is on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining.texts import is_chat
from captum_lrp_tx.explaining.words import Tokens

#: Texts by name, or chat messages.
Segments = Union[Mapping[str, str], Sequence[Mapping[str, Any]]]
#: What lies in no segment: templates, special tokens, the space between documents.
REST = "rest"


class Segment(NamedTuple):
    """A part of a text with its relevance.

    Attributes:
        name (str): Of the document; ``"message 2: user"``; ``"answer"``; or ``"rest"``.
        relevance (float): Sum over its tokens.
        share (float): Of the positive relevance of all tokens, what lies on these.
        tokens (tuple of int): Indices of its tokens.
    """

    name: str
    relevance: float
    share: float
    tokens: tuple[int, ...]


def segments_of(
    tokens: Tokens, values: Sequence[float], segments: Segments | None
) -> list[Segment]:
    """The segments of a text, in their order, and the rest.

    Args:
        tokens (Tokens): With their places in the text.
        values (sequence of float): Relevance of each token.
        segments (optional): See :meth:`captum_lrp_tx.Explanation.by_segment`.

    Raises:
        InputError: A segment is not in the text, or the places of tokens are not known.
    """
    if segments is None:
        owners = [part or REST for part in tokens.parts]
        names = list(tokens.texts)
    else:
        named = _named(segments)
        places = _of_messages(tokens, named) if is_chat(segments) else _places(tokens, named)
        owners = [_owner(tokens, i, places) for i in range(len(tokens))]
        names = [name for name, *_ in places]
    positive = math.fsum(max(value, 0.0) for value in values)
    found = []
    last = sorted(dict.fromkeys(owners), key=lambda name: name == REST)
    for name in dict.fromkeys([*names, *last]):
        members = tuple(i for i, owner in enumerate(owners) if owner == name)
        mine = [values[i] for i in members]
        share = math.fsum(max(v, 0.0) for v in mine) / positive if positive else 0.0
        found.append(Segment(name, math.fsum(mine), share, members))
    return found


def _named(segments: Segments) -> list[tuple[str, str]]:
    """Names and texts of what is looked for."""
    if isinstance(segments, Mapping):
        named = [(str(name), text) for name, text in segments.items()]
    elif is_chat(segments):
        named = [(f"message {i + 1}: {m['role']}", m["content"]) for i, m in enumerate(segments)]
    else:
        raise InputError(
            "segments are chat messages, or texts by name: {'document 1': 'Paris is ...'}"
        )
    for name, text in named:
        if not isinstance(text, str):
            raise InputError(f"the segment {name!r} is no text but {type(text).__name__}")
        if name == REST:
            raise InputError(f"a segment is called {REST!r}, as what lies in none; rename it")
    return named


def _of_messages(tokens: Tokens, named: list[tuple[str, str]]) -> list[tuple[str, str, int, int]]:
    """Name, part, start and end of each message of a chat, where the template put it."""
    part = next(iter(tokens.texts), "")
    text, known, found = tokens.texts.get(part, ""), iter(tokens.messages), []
    for name, wanted in named:
        span = next((s for s in known if text[slice(*s)] == wanted.strip()), None)
        found += [] if span is None else [(name, part, *span)]
    if len(found) == len(named):
        return found
    found, end = _places(tokens, named), len(text)
    for (name, wanted), (_, _, start, _) in zip(reversed(named), reversed(found), strict=True):
        end = text.rfind(wanted.strip(), 0, end) if wanted.strip() else start
        if end != start:
            raise InputError(
                f"the segment {name!r} stands at several places of the text: "
                f"{wanted.strip()[:60]!r}; give explain() the messages themselves, or name the "
                "segments by texts that stand there once"
            )
    return found


def _places(tokens: Tokens, named: list[tuple[str, str]]) -> list[tuple[str, str, int, int]]:
    """Name, part, start and end of each; of several places the first behind the one before."""
    if not tokens.texts or all(span is None for span in tokens.spans):
        raise InputError(
            "where the segments lie is not known: explain the text itself with a fast tokenizer, "
            "not token ids"
        )
    found: list[tuple[str, str, int, int]] = []
    last: tuple[str, int] = (next(iter(tokens.texts)), 0)
    for name, text in named:
        wanted = text.strip()  # as chat templates do
        tries = [last, *((part, 0) for part in tokens.texts)]
        for part, begin in tries:
            start = tokens.texts[part].find(wanted, begin)
            if start >= 0:
                break
        else:
            raise InputError(
                f"the segment {name!r} is not in the text as it stands: {wanted[:60]!r}; give it "
                "as the model reads it (explanation.text)"
            )
        last = (part, start + len(wanted))
        found.append((name, part, start, last[1]))
    return found


def _owner(tokens: Tokens, index: int, places: list[tuple[str, str, int, int]]) -> str:
    """The segment in which a token begins."""
    part, span = tokens.parts[index], tokens.spans[index]
    if span is None or span[0] == span[1]:
        return REST if part in ("", *tokens.texts) else part
    for name, where, start, end in places:
        if where == part and start <= span[0] < end:
            return name
    return REST
