"""``supported()``: the shipped table of model families, and the page made from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from captum_lrp_tx import supported
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.support import STATUSES

ROOT = Path(__file__).resolve().parents[2]


def test_every_family_has_a_status_and_a_reason_where_it_needs_one() -> None:
    table = supported()
    assert len({(f.library, f.family) for f in table}) == len(table)
    for family in table:
        assert family.status in STATUSES
        assert bool(family.note) == (family.status != "verified"), family
        assert family.measured_with and family.model
    assert sum(table.counts().values()) == len(table)


def test_selections() -> None:
    assert {f.library for f in supported("transformers")} == {"transformers"}
    refused = supported(status="refused")
    assert all(f.status == "refused" for f in refused)
    assert len(refused) == supported().counts()["refused"]
    assert [f.family for f in supported()[:3]] == [f.family for f in list(supported())[:3]]
    assert f"{len(refused)} families: 0 verified" in str(refused)
    assert str(len(supported())) in repr(supported())


@pytest.mark.parametrize("arguments", [{"library": "keras"}, {"status": "perhaps"}])
def test_unknown_selections_are_errors(arguments: dict[str, str]) -> None:
    with pytest.raises(InputError, match="No "):
        supported(**arguments)


def test_the_page_is_what_the_data_say() -> None:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks/families.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    page = (ROOT / "tutorials" / "MODELS.md").read_text(encoding="utf-8")
    assert page == benchmark.tables()
    for family in supported(status="refused"):
        assert f"| {family.family} | `{family.model}` | refused |" in page
