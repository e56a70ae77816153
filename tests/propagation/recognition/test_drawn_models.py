"""Models drawn from the table of spellings: the frozen function, and the same in other words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import drawn_models
import spellings

#: ``python benchmarks/drawn.py`` draws thousands more.
SEEDS = 40
#: Drawn before and silently wrong at the time.
ONCE_WRONG = (24, 44, 130)


@pytest.mark.parametrize(
    "seeds", [ONCE_WRONG, *(range(first, first + 10) for first in range(0, SEEDS, 10))], ids=str
)
def test_no_drawn_model_is_silently_wrong(seeds: Sequence[int]) -> None:
    verdicts = [drawn_models.faults(seed) for seed in seeds]
    found = [fault for verdict in verdicts for fault in verdict.faults]
    assert not found, "\n".join(found)
    assert all(verdict.is_determined for verdict in verdicts)


def test_where_torchs_own_gradient_depends_on_the_spelling_nothing_is_said() -> None:
    """Seed 30,790: values near 200 saturate a softmax, whose gradient is rounding."""
    assert drawn_models.faults(30_790) == drawn_models.Verdict([], is_determined=False)


def test_a_fault_would_be_seen() -> None:
    """Of a part whose pattern is not frozen, and of two functions that are not the same."""
    one = drawn_models.Drawn([drawn_models.Step("attention", 0, "residual")], ["matmul"], 0).eval()
    x = (spellings.inputs(),)
    plain, frozen = (drawn_models._relevance(one, x, preset) for preset in ("gi", "ah"))
    assert plain is not None and frozen is not None
    assert drawn_models._differs(plain, frozen)
    assert drawn_models._differs((torch.full((2,), torch.nan),), (torch.ones(2),))


def test_everything_is_drawn() -> None:
    every = [drawn_models.draw(seed) for seed in range(2_000)]
    parts = {
        (step.part, name)
        for drawn in every
        for names in (drawn.first, drawn.second)
        for step, name in zip(drawn.steps, names, strict=True)
    }
    known = {(part, n) for part, table in spellings.PARTS.items() for n in table}
    assert known - parts == drawn_models.NOT_ALIKE
    assert {drawn.wrapper for drawn in every} == set(drawn_models.WRAPPERS)
    assert {drawn.inputs for drawn in every} == {1, 2}
