"""The package is built in layers: imports go down, and there is no circle (``pyproject.toml``)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter reads the contracts")

ROOT = Path(__file__).parents[2]
#: One name in several packages; each of them is the only one in its own.
SHARED_NAMES = frozenset({"__init__.py"})


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports as check; exit(check(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )


def test_imports_go_down_and_in_no_circle() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_arrow_that_runs_up_is_found(tmp_path: Path) -> None:
    """The test above can fail: one import of the command line in the engine breaks it."""
    files = {
        "pyproject.toml": (ROOT / "pyproject.toml").read_text(),
        **{
            str(file.relative_to(ROOT)): file.read_text()
            for file in (ROOT / "captum_lrp_tx").rglob("*.py")
        },
    }
    files["captum_lrp_tx/propagation/graph.py"] += "\nfrom captum_lrp_tx import cli\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = check(tmp_path)
    assert done.returncode == 1
    assert "captum_lrp_tx.propagation is not allowed to import captum_lrp_tx.cli" in done.stdout


def test_files_of_the_core_have_names_of_their_own() -> None:
    core = [ROOT / "captum_lrp_tx" / folder for folder in ("propagation", "rules", "attr")]
    names = Counter(file.name for folder in core for file in folder.rglob("*.py"))
    assert [n for n, count in names.items() if count > 1 and n not in SHARED_NAMES] == []
