"""The order in which words of a line stand where some are written from right to left.

The algorithm is Unicode's (UAX #9) with a word in the place of a character: letters within a word
are ordered by whoever draws them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

#: Mark in front of brackets between words from right to left, which are drawn mirrored.
RIGHT_TO_LEFT_MARK = "\u200f"
_STRONG = {"L": "L", "R": "R", "AL": "R"}
_NUMBERS = ("EN", "AN")


def direction(text: str) -> str:
    r"""``"R"`` or ``"L"`` by the first letter; ``"N"`` for numbers without letters, else ``""``.

    Example::

        >>> [direction(text) for text in ("\u05e9\u05dc\u05d5\u05dd", "(film)", "1984", "...")]
        ['R', 'L', 'N', '']
    """
    classes = [unicodedata.bidirectional(char) for char in text]
    strong = next((_STRONG[c] for c in classes if c in _STRONG), "")
    return strong or ("N" if any(c in _NUMBERS for c in classes) else "")


def has_right_to_left(text: str) -> bool:
    """Whether some of the characters are written from right to left."""
    return any(_STRONG.get(unicodedata.bidirectional(char)) == "R" for char in text)


def is_right_to_left(words: Sequence[str]) -> bool:
    """Whether a text is to be read from right to left: by its first word with letters."""
    return next((d for d in map(direction, words) if d in ("L", "R")), "L") == "R"


def levels(words: Sequence[str], right_to_left: bool) -> list[int]:
    """The embedding level of each word; those of odd levels run from right to left.

    Args:
        words (sequence of str): Of one line; an empty one is neutral.
        right_to_left (bool): Whether the text is to be read from right to left.
    """
    base = int(right_to_left)
    own = [direction(word) for word in words]
    strong = "R" if right_to_left else "L"
    for i, kind in enumerate(own):  # numbers between words from left to right are such words
        if kind == "N" and strong == "L":
            own[i] = "L"
        strong = kind if kind in ("L", "R") else strong
    sides = ["R" if d == "N" else d for d in own]
    found: list[int] = []
    for i, side in enumerate(own):
        if not side:
            before = next((s for s in reversed(sides[:i]) if s), "RL"[1 - base])
            after = next((s for s in sides[i + 1 :] if s), "RL"[1 - base])
            side = before if before == after else "RL"[1 - base]
        if side == "N":
            found.append(2)
        elif side == "R":
            found.append(1)
        else:
            found.append(2 * base)
    return found


def visual_order(items: Sequence[Item], levels: Sequence[int]) -> list[Item]:
    """The items of a line from left to right: runs of each level are turned, the highest first.

    Example::

        >>> visual_order(["a", "B", "C", "d"], [0, 1, 1, 0])
        ['a', 'C', 'B', 'd']
    """
    order = list(range(len(items)))
    for level in range(max(levels, default=0), 0, -1):
        start = 0
        while start < len(order):
            if levels[order[start]] < level:
                start += 1
                continue
            stop = start
            while stop < len(order) and levels[order[stop]] >= level:
                stop += 1
            order[start:stop] = order[start:stop][::-1]
            start = stop
    return [items[i] for i in order]
