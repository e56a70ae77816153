"""Text of tokens: marks of word borders, control characters, width in a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

Scheme = Literal["auto", "wordpiece", "sentencepiece", "bytes", "end-of-word", "continued", "words"]

#: Marks of CLIP and GPT-1 at the end of a word, and of fastBPE where a word goes on.
_END, _GOES_ON = "</w>", "@@"
_MARKED_AT_THE_END = {"end-of-word": _END, "continued": _GOES_ON}
_CLOSING = frozenset(".,;:!?)]}%…")


def _byte_alphabet() -> dict[str, int]:
    """The characters with which byte-level BPE (GPT-2) writes the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTES = _byte_alphabet()


def guess_scheme(tokens: Sequence[str]) -> Scheme:
    """How the tokens mark the borders of words, by the marks that occur."""
    if any("\u0120" in token or "\u010a" in token for token in tokens):  # Ġ and Ċ
        return "bytes"
    if any(token.startswith("\u2581") for token in tokens):  # ▁
        return "sentencepiece"
    if any(token.endswith(_END) and token != _END for token in tokens):
        return "end-of-word"
    if any(token.endswith(_GOES_ON) and token != _GOES_ON for token in tokens):
        return "continued"
    return "wordpiece"


def scheme_of(tokenizer: Any) -> Scheme:
    """How a tokenizer marks the borders of words, by what its decoder undoes.

    Args:
        tokenizer: A tokenizer of transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(getattr(backend, "model", None), "end_of_word_suffix", None) == _END:
        return "end-of-word"
    decoder = repr(getattr(backend, "decoder", None))
    if "ByteLevel" in decoder:
        return "bytes"
    if "WordPiece" in decoder:
        return "wordpiece"
    if "Metaspace" in decoder or "\u2581" in decoder:
        return "sentencepiece"
    return "auto"


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens of a tokenizer, those of chats included.

    The unknown token is none of them: it stands for text.

    Args:
        tokenizer: A tokenizer of transformers.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    of_chats = {i for i, token in added.items() if getattr(token, "special", False)}
    return {*tokenizer.all_special_ids, *of_chats} - {tokenizer.unk_token_id}


def raw_text(token: str, scheme: Scheme, before: str = "") -> tuple[bytes, bool]:
    """Text of a token in bytes, and whether it begins with a space.

    Args:
        token (str): As the tokenizer names it.
        scheme (str): How borders of words are marked.
        before (str): The token before it, if that is part of a word.
    """
    if scheme == "wordpiece":
        if token.startswith("##") and len(token) > 2:
            return token[2:].encode("utf-8", "replace"), False
        return token.encode("utf-8", "replace"), token not in _CLOSING
    if scheme in _MARKED_AT_THE_END:
        text = token.removesuffix(_MARKED_AT_THE_END[scheme]) or token
        raw = _from_bytes(text) if scheme == "end-of-word" else text.encode("utf-8", "replace")
        return raw, not _goes_on(before, scheme) and text not in _CLOSING
    if scheme == "words":
        return token.encode("utf-8", "replace"), True
    if scheme == "bytes":
        raw = _byte_text(token)
    elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        raw = bytes([int(token[3:5], 16)])
    else:
        raw = token.replace("\u2581", " ").encode("utf-8", "replace")
    space = raw.startswith(b" ")
    return raw[space:], space


def _byte_text(token: str) -> bytes:
    return b"".join(
        bytes([_BYTES[char]]) if char in _BYTES else char.encode("utf-8", "replace")
        for char in token
    )


def _from_bytes(text: str) -> bytes:
    """CLIP writes bytes as characters before ``</w>``, GPT-1 the characters themselves."""
    raw = _byte_text(text)
    try:
        raw.decode()
    except UnicodeDecodeError:
        if text.isalpha() and max(text) < "\u0100":
            return text.encode()
    return raw


def _goes_on(before: str, scheme: Scheme) -> bool:
    """Whether the word of the token before goes on, where its end tells."""
    if scheme == "continued":
        return before.endswith(_GOES_ON)
    return bool(before) and not before.endswith(_END)


def belong_together(
    left: bytes, right: bytes, token: str, scheme: Scheme, before: str = ""
) -> bool:
    """Whether two neighbours without a space between them are parts of one word."""
    if scheme in _MARKED_AT_THE_END:
        return _goes_on(before, scheme)
    if scheme == "wordpiece":
        return token.startswith("##") and len(token) > 2
    try:
        before, after = left.decode(), right.decode()
    except UnicodeDecodeError:  # a character that is spread over several tokens
        return True
    return bool(before and after) and in_word(before[-1]) and in_word(after[0])


def in_word(char: str) -> bool:
    """Whether a character can be inside a word, with more of the word on both sides."""
    # Chinese and Japanese put no spaces between words: joining would make a word of the sentence
    if re.match("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", char):
        return False
    return char.isalnum() or char in "'\u2019_" or unicodedata.category(char).startswith("M")


def printable(text: str) -> str:
    """Text that cannot move the cursor, switch colours or reverse the writing direction."""
    joiners = "\u200c\u200d"  # part of emoji and of Persian and Indic spelling
    return "".join(
        char
        if char.isprintable() or char in joiners
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def fitted(text: str, columns: int) -> str:
    """A text that takes so many columns at most; three dots at its end if it was cut."""
    if cells(text) <= columns:
        return text
    text = text[:columns]
    while text and cells(text) > columns - 3:
        text = text[:-1]
    return text + "..."


def cells(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )  # fmt: skip
