"""Every family of transformers in the shipped table is what the table says.

Tiny random models, built without knowing the family, eager and SDPA, both rule sets; relevance is
compared with the oracle. With another version of transformers than the one that was measured, a
family may have become better, but is never explained wrongly.
"""

from __future__ import annotations

import importlib.metadata
import os

import pytest

from captum_lrp_tx import supported
from families import common, huggingface

pytest.importorskip("transformers")

TABLE = {f.family: f for f in supported() if f.library == "transformers"}
#: Each takes as long as ten others, however small it is made; benchmarks/thorough.py runs them.
LARGE = """afmoe bailing_hybrid groupvit hiera kimi_linear pocket_tts_audio_tokenizer
pp_ocrv6_small_rec sam3 sam3_lite_text udop""".split()
FAMILIES = sorted(TABLE if "CAPTUM_LRP_TX_THOROUGH" in os.environ else TABLE.keys() - set(LARGE))
INSTALLED = f"transformers {importlib.metadata.version('transformers')}"


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_what_the_table_says(family: str) -> None:
    recorded = TABLE[family]
    measured_here = INSTALLED in recorded.measured_with
    if family not in huggingface.names():
        pytest.skip(f"{INSTALLED} has no {family}")
    try:
        cases = huggingface.cases(family)
    except common.NotBuilt as error:
        if measured_here:
            raise
        pytest.skip(f"{INSTALLED}: {error}")
    known = recorded.status == "verified"
    place = sorted(TABLE).index(family)
    row = common.row_of(cases, common.in_turns(place, len(cases)) if known else None)
    assert row.status in ("verified", "convention", "refused"), row.note
    if measured_here:
        assert (row.model, row.status) == (recorded.model, recorded.status), row.note
        assert tuple(row.attention) == recorded.attention
    elif recorded.status != "refused":
        assert row.status != "refused", row.note


def test_most_families_are_explained() -> None:
    explained = sum(f.status != "refused" for f in TABLE.values())
    assert len(TABLE) >= 250
    assert explained >= 0.95 * len(TABLE)
