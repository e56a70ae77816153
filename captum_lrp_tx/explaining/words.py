"""Words: which tokens belong together, and where in the original text they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from captum_lrp_tx.visualization.tokens import TokenHeatmap
from captum_lrp_tx.visualization.wording import Scheme, in_word

#: Where a token or a word stands in its text: text[start:end]; None for what the tokenizer added.
Span = tuple[int, int]


class Word(NamedTuple):
    """A word of the text with its relevance.

    Attributes:
        text (str): As it stands in the original text.
        relevance (float): Sum over its tokens.
        start, end (int, optional): ``text[start:end]`` is the word, in characters of Python; None
            where the tokenizer cannot tell.
        part (str): Which text it is in: ``"text"``; ``"first"`` and ``"second"`` of a pair; ...
        tokens (tuple of int): Indices of its tokens.
    """

    text: str
    relevance: float
    start: int | None
    end: int | None
    part: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """The tokens of what is explained.

    Attributes:
        names (tuple of str): As the tokenizer names them.
        special (tuple of bool): Which of them are special tokens.
        parts (tuple of str): Which text each of them is in; empty for what belongs to none.
        spans (tuple): Where each of them stands in its text, or None.
        words (tuple of tuple of int): Indices of the tokens of each word, in their order.
        texts (dict of str to str): The original texts, by part.
        scheme (str): How the tokens mark the borders of words.
        messages (tuple): Where each message of a chat stands in its text, as far as known.
    """

    names: tuple[str, ...]
    special: tuple[bool, ...]
    parts: tuple[str, ...]
    spans: tuple[Span | None, ...]
    words: tuple[tuple[int, ...], ...]
    texts: dict[str, str]
    scheme: Scheme = "auto"
    messages: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Tokens) -> Tokens:
        """These tokens and then others."""
        shift = len(self)
        moved = tuple(tuple(i + shift for i in word) for word in other.words)
        return Tokens(
            self.names + other.names, self.special + other.special, self.parts + other.parts,
            self.spans + other.spans, self.words + moved, {**self.texts, **other.texts},
            self.scheme, self.messages,
        )  # fmt: skip


def tokens_of_ids(ids: Sequence[int], tokenizer: Any, part: str = "text") -> Tokens:
    """Tokens of which only the ids are known.

    Args:
        ids (sequence of int): Of one text.
        tokenizer: A tokenizer of transformers; without one the tokens are called by their ids.
        part (str): What the text is called.
    """
    count, nothing = len(ids), [0.0] * len(ids)
    if tokenizer is None:
        heatmap = TokenHeatmap([*map(str, ids)], nothing, special=[False] * count, scheme="words")
    else:
        heatmap = TokenHeatmap.from_ids(tokenizer, ids, nothing)
    return Tokens(
        tuple(heatmap.tokens), tuple(heatmap.special or ()), (part,) * count, (None,) * count,
        tuple(piece.tokens for piece in heatmap.pieces()), {}, heatmap.scheme,
    )  # fmt: skip


def tokens_of_text(
    encoding: Any, ids: Sequence[int], tokenizer: Any, texts: dict[str, str]
) -> Tokens:
    """Tokens of a text, with the words and places that a fast tokenizer knows.

    Args:
        encoding (BatchEncoding): What the tokenizer returned for it.
        ids (sequence of int): Token ids.
        tokenizer: A tokenizer of transformers.
        texts (dict of str to str): The original texts, by the name of the part.
    """
    labels = list(texts)
    plain = replace(tokens_of_ids(ids, tokenizer, labels[0]), texts=texts)
    if not getattr(encoding, "is_fast", False):
        return plain
    known = encoding.encodings[0]
    parts = tuple("" if i is None else labels[i] for i in known.sequence_ids)
    spans = tuple(
        _trimmed(texts[part], (int(start), int(end))) if part else None
        for part, (start, end) in zip(parts, known.offsets, strict=True)
    )
    inside = [
        bool(part) and not special for part, special in zip(parts, plain.special, strict=True)
    ]
    words = _grouped(known.word_ids, parts, spans, inside, texts)
    return replace(plain, parts=parts, spans=spans, words=words)


def common_start(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    places = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in places if a != b), min(len(one), len(other)))


def _trimmed(text: str, span: Span) -> Span:
    """Without the space before a word, which byte-level tokenizers count to the word."""
    start, end = span
    return end - len(text[start:end].lstrip()), end


def _grouped(
    word_ids: Sequence[int | None],
    parts: Sequence[str],
    spans: Sequence[Span | None],
    inside: Sequence[bool],
    texts: dict[str, str],
) -> tuple[tuple[int, ...], ...]:
    """Tokens of the same word, as the tokenizer splits words.

    Tokenizers without a splitter (Llama) call the whole text a word, and those that split at spaces
    a whole Chinese sentence: such words are taken apart at spaces, signs and characters.
    """
    reach: dict[tuple[str, int | None], Span] = {}
    for number, part, span in zip(word_ids, parts, spans, strict=True):
        if span is not None and span[0] < span[1]:
            low, high = reach.get((part, number), span)
            reach[part, number] = (min(low, span[0]), max(high, span[1]))
    whole = {
        (part, number)
        for (part, number), (low, high) in reach.items()
        if any(char.isspace() for char in texts[part][low:high])
    }
    groups: list[list[int]] = []
    for i, number in enumerate(word_ids):
        together = (
            i > 0 and inside[i] and inside[i - 1] and parts[i] == parts[i - 1]
            and _goes_on(
                texts[parts[i]], spans[i - 1], spans[i], number == word_ids[i - 1],
                (parts[i], number) in whole,
            )
        )  # fmt: skip
        if together:
            groups[-1].append(i)
        else:
            groups.append([i])
    return tuple(map(tuple, groups))


def _goes_on(text: str, before: Span | None, span: Span | None, same: bool, whole: bool) -> bool:
    """Whether a token goes on with the word of the token before it."""
    assert before is not None and span is not None
    if span[0] < before[1]:  # a character that is spread over several tokens
        return True
    if not same or any(char.isspace() for char in text[before[1] : span[0]]):
        return False
    if before[0] == before[1] or span[0] == span[1]:
        return True
    left, right = text[before[1] - 1], text[span[0]]
    if whole:
        return in_word(left) and in_word(right)
    # letters of writing systems that put no spaces between words
    return not (left.isalpha() and right.isalpha()) or in_word(left) or in_word(right)
