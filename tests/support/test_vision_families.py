"""Every family of timm, tiny and random: equal to the oracle, or refused with the operation."""

from __future__ import annotations

import os
from typing import Any

import pytest

from captum_lrp_tx import audit
from families import timm as walker
from families.common import TOLERANCE, NotBuilt, check, in_turns

pytest.importorskip("timm")

pytestmark = [pytest.mark.captum, pytest.mark.image_models]

THOROUGH = "CAPTUM_LRP_TX_THOROUGH" in os.environ
#: What has no rule, by model and preset.
REFUSED = {
    ("efficientvim_m1", "ah+ln"): "weights that were not recognised as an attention pattern",
}
NAMES = walker.names()


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_family_is_verified_or_refused(name: str, untouched: Any) -> None:
    try:
        cases = walker.cases(name)
    except NotBuilt as error:
        pytest.skip(f"{name} cannot be made small: {error}")
    for case, presets in zip(cases, in_turns(NAMES.index(name), len(cases)), strict=True):
        with untouched(case.model):
            outcomes = {preset: check(case, preset) for preset in presets}
        for preset, outcome in outcomes.items():
            reason = REFUSED.get((name, preset))
            if reason is None:
                assert outcome.status in ("verified", "convention"), f"{case} {preset}: {outcome}"
            else:
                assert outcome.status == "refused", f"{case} {preset}: {outcome}"
                assert reason in outcome.reason
    is_turn = THOROUGH or NAMES.index(name) % 3 == 0  # the oracle above is the sharper test
    if is_turn and (name, "lrp") not in REFUSED:
        report = audit.explainability(cases[-1].forward, cases[-1].inputs, 1, file=None)
        scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
        assert abs(report.conservation_error) <= TOLERANCE * scale


def test_nearly_all_families_are_verified() -> None:
    assert len(NAMES) >= 80
    assert len({name for name, _ in REFUSED}) <= 0.05 * len(NAMES)
