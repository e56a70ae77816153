"""Every family of transformers in the shipped table is what the table says.

Tiny random models, built without knowing the family, eager and SDPA, both rule sets; relevance is
compared with the oracle. With another version of transformers than the one that was measured, a
family may have become better, but is never explained wrongly.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from torch import Tensor

import oracle
from captum_lrp_tx import ConservativeLRP, supported
from families import common, huggingface

pytest.importorskip("transformers")

TABLE = {f.family: f for f in supported() if f.library == "transformers"}
INSTALLED = f"transformers {importlib.metadata.version('transformers')}"


#: What the oracle does not know: divisions by a mean modulus or by a running deviation are norms,
#: so only presets without a rule for norms are compared.
OTHER_NORMS = ("autoformer", "time_series_transformer", "timesfm2_5")
#: Attention over layers: along an axis that parameters made a pattern is a mixture and stays as it
#: is, which the oracle does not see; so only the rule for norms is compared, and full LRP.
OVER_LAYERS = ("inkling2", "inkling2_text")
#: Rows that are added to words without having been looked up place by place (interpolated, one for
#: all, behind a concatenation), so only the words are compared; by what their table is called.
OTHER_ROWS = {
    "kosmos-2.5": "embed_tokens", "sam3_lite_text_text_model": "token_embedding",
    "udop": "embed_tokens",
}  # fmt: skip


@pytest.mark.parametrize("family", OTHER_NORMS)
def test_family_with_norms_that_the_oracle_does_not_know(family: str) -> None:
    for case in _cases(family):
        assert common.check(case, "ah").status in ("verified", "convention")


@pytest.mark.parametrize("preset", ["ln", "lrp"])
@pytest.mark.parametrize("family", OVER_LAYERS)
def test_family_with_attention_over_layers(family: str, preset: str) -> None:
    for case in _cases(family):
        assert common.check(case, preset).status in ("verified", "convention")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHER_ROWS)
@pytest.mark.parametrize("preset", common.PRESETS)
def test_family_with_rows_that_the_oracle_does_not_know(family: str, preset: Any) -> None:
    for case in _cases(family):
        words = sum(oracle.oracle_lookup_relevance(case.forward, case.inputs, preset, case.select))
        parts = ConservativeLRP(case.forward, preset).attribute(
            case.inputs, target=case.target, strict=True, positions="separate"
        )
        got = sum(v for name, v in parts.items() if OTHER_ROWS[family] in name)
        assert isinstance(got, Tensor) and isinstance(words, Tensor)
        assert float((got - words).abs().max()) <= common.TOLERANCE * float(words.abs().max())


def _cases(family: str) -> list[common.Case]:
    if family not in huggingface.names():
        pytest.skip(f"{INSTALLED} has no {family}")
    return huggingface.cases(family)


@pytest.mark.parametrize("family", sorted(TABLE))
def test_family_is_what_the_table_says(family: str) -> None:
    if family in (*OTHER_NORMS, *OTHER_ROWS, *OVER_LAYERS):
        pytest.skip("compared in part, see above")
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
    row = common.row_of(cases)
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
