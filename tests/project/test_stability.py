"""What the page on stability says is so in the code and in what CI runs."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import captum_lrp_tx as lrp
from captum_lrp_tx.models import sentiment
from captum_lrp_tx.rules.composite import PRESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "stability.md").read_text(encoding="utf-8")


def table(head: str) -> list[list[str]]:
    """Rows of the table that begins with this head."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_preset_is_on_one_side() -> None:
    text = PAGE[PAGE.index("*Presets have") : PAGE.index("*[Conventions")]
    papers, ours = (re.findall(r"[\w+-]+", part) for part in re.findall(r"\((`[^)]*)\)", text))
    assert sorted(papers + ours) == sorted(PRESETS)


def test_the_table_of_presets_has_them_all() -> None:
    method = (ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
    rows = method.split("## Presets")[1].split("\n\n")[1].splitlines()[2:]
    assert [re.match(r"\| `([^`]+)`", row)[1] for row in rows] == list(PRESETS)


def test_versions_are_those_allowed_and_tested() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lowest = dict(re.findall(r"^(\w+)>=([\d.]+)$", "\n".join(listed), re.MULTILINE))
    lowest["Python"] = config["options"]["python_requires"].removeprefix(">=")
    sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for package, allowed, tested in table("package"):
        assert allowed == f"{lowest[package]} and later"
        for version in re.findall(r"\d+\.\d+\.\d+", tested):
            assert f"{package}=={version}" in sessions


def test_formats_are_those_written(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    model, tokenizer = sentiment()
    lrp.explain(model, tokenizer, "a charming film").save(tmp_path / "x.json")
    lrp.attribute_dataset(
        model, ["a charming film"], tmp_path / "rows", tokenizer=tokenizer, show_progress=False
    )
    stored = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["format"]
    settings = json.loads((tmp_path / "rows" / "_settings.json").read_text(encoding="utf-8"))
    (file, saved, _), (_, rows, _), *_ = table("what")
    assert "x.json" in file and f'"{stored}"' in saved
    assert f"`format` ({settings['format']})" in rows
    assert {"captum_lrp_tx", "torch", "captum"} <= set(settings)
