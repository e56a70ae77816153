"""Tiny models with random weights and fixed seeds, for the tests.

Building is lazy: collecting the tests imports neither transformers nor timm. Use it as::

    @pytest.mark.parametrize("entry", zoo.cases(), ids=str)
    def test_something(entry: zoo.Entry) -> None:
        case = entry.build()  # skips, with the reason, where a package is missing
        expected = case.expected("ah+ln")

The models are in a file for each kind, which puts them into the list when it is imported.
"""

import zoo_by_hand  # noqa: F401
import zoo_torch  # noqa: F401
import zoo_transformers  # noqa: F401
import zoo_vision  # noqa: F401
from zoo_cases import (
    BATCH,
    CLASSES,
    HEADS,
    LENGTHS,
    TOKENS,
    WIDTH,
    WORDS,
    Case,
    Entry,
    case,
    cases,
    floats,
    randomise,
    token_ids,
)

__all__ = [
    "BATCH",
    "CLASSES",
    "HEADS",
    "LENGTHS",
    "TOKENS",
    "WIDTH",
    "WORDS",
    "Case",
    "Entry",
    "case",
    "cases",
    "floats",
    "randomise",
    "token_ids",
]
