"""Text of tokens: marks of word borders, control characters, width in a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

Scheme = Literal["auto", "wordpiece", "sentencepiece", "bytes", "words"]

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
    return "wordpiece"


def raw_text(token: str, scheme: Scheme) -> tuple[bytes, bool]:
    """Text of a token in bytes, and whether it begins with a space."""
    if scheme == "wordpiece":
        if token.startswith("##") and len(token) > 2:
            return token[2:].encode("utf-8", "replace"), False
        return token.encode("utf-8", "replace"), token not in _CLOSING
    if scheme == "words":
        return token.encode("utf-8", "replace"), True
    if scheme == "bytes":
        raw = b"".join(
            bytes([_BYTES[char]]) if char in _BYTES else char.encode("utf-8", "replace")
            for char in token
        )
    elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        raw = bytes([int(token[3:5], 16)])
    else:
        raw = token.replace("\u2581", " ").encode("utf-8", "replace")
    space = raw.startswith(b" ")
    return raw[space:], space


def belong_together(left: bytes, right: bytes, token: str, scheme: Scheme) -> bool:
    """Whether two neighbours without a space between them are parts of one word."""
    if scheme == "wordpiece":
        return token.startswith("##") and len(token) > 2
    try:
        before, after = left.decode(), right.decode()
    except UnicodeDecodeError:  # a character that is spread over several tokens
        return True
    return bool(before and after) and _in_word(before[-1]) and _in_word(after[0])


def _in_word(char: str) -> bool:
    # Chinese and Japanese put no spaces between words: joining would make a word of the sentence
    if re.match("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", char):
        return False
    return char.isalnum() or char in "'\u2019_" or unicodedata.category(char).startswith("M")


def printable(text: str) -> str:
    """Text that cannot move the cursor, switch colours or reverse the writing direction."""
    joiners = "\u200c\u200d"  # part of emoji and of Persian and Indic spelling
    return "".join(
        char if char.isprintable() or char in joiners
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )  # fmt: skip


def cells(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )  # fmt: skip
