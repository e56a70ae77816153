"""README and pages: every block of Python runs, cheap commands run, and links lead somewhere."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import matplotlib

import captum_lrp_tx
from captum_lrp_tx.cli import main
from captum_lrp_tx.models import digit_samples

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "repository" not in p.parts),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
REVIEWS = "sentence\tlabel\na charming and funny film\t1\na dull mess\t0\nnot bad at all\t1\n"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line and text of the blocks of one language."""
    text = page.read_text(encoding="utf-8")
    found = ((text.count("\n", 0, m.start()) + 2, m) for m in BLOCK.finditer(text))
    return [(line, m[2]) for line, m in found if m[1] == language]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
#: Commands of this package; what is run by .ci/run or needs a page of its own is left out.
COMMANDS = [
    pytest.param(line, id=f"{name(page)}: {line}")
    for page in PAGES
    for _, block in blocks(page, "bash")
    for line in block.splitlines()
    if line.startswith("python -m captum_lrp_tx")
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader may sit: a folder with reviews and an image in it."""
    pytest.importorskip("pyarrow")
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "reviews.tsv").write_text(REVIEWS, encoding="utf-8")
    pixels = ((digit_samples()[0][4, 0] + 1) * 127.5).byte().numpy()
    image.fromarray(pixels).save(tmp_path / "four.png")
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    yield tmp_path
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)


def test_there_is_something_to_run() -> None:
    assert len(WITH_PYTHON) >= 10 and len(COMMANDS) >= 10


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, block in blocks(page, "python"):
            source = "\n" * (line - 1) + block  # a traceback tells the line of the page
            exec(compile(source, str(page), "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, folder: Path) -> None:
    arguments = shlex.split(command)[3:]
    assert main(arguments) == 0
    for option, value in itertools.pairwise(arguments):
        if option in ("--html", "--png", "--out"):
            assert (folder / value).exists()


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub and MyST make it."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_reference_has_every_public_name() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    modules = re.findall(r"automodule:: ([\w.]+)", text)
    shown = set(re.findall(r"autoclass:: (\w+)", text)) | {"__version__"}
    for module in map(importlib.import_module, modules):
        members = [getattr(module, name) for name in getattr(module, "__all__", vars(module))]
        shown |= {member.__name__ for member in members if hasattr(member, "__name__")}
    for public in captum_lrp_tx.__all__:
        found = getattr(captum_lrp_tx, public)
        if isinstance(found, ModuleType):
            inner = {f"{found.__name__}.{name}" for name in getattr(found, "__all__", ())}
            assert found.__name__ in modules or (inner and inner <= set(modules))
        else:
            assert public in shown


def test_numbers_of_cost_are_those_measured() -> None:
    """The page has the first table of the benchmark, README the range of its numbers."""
    measured = (ROOT / "benchmarks" / "speed.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "explanation" / "cost.md").read_text(encoding="utf-8")
    table = page.split("<!-- cost -->\n")[1].split("<!-- end -->")[0].strip()
    assert table in measured
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    found = {name: [cell.split(" / ") for cell in cells] for name, *cells in rows}
    both = found["ah+ln"] + found["lrp"]
    times, memory = (sorted(cell[i] for cell in both) for i in (0, 1))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{times[0]} to {times[-1]} of the time and {memory[0]} to {memory[-1]}" in readme


def test_which_preset_for_what_is_as_measured() -> None:
    """The counts in the README against the table of faithfulness."""
    page = (ROOT / "docs" / "explanation" / "faithfulness.md").read_text(encoding="utf-8")
    lines = page.split("<!-- headline -->\n")[1].split("\n<!-- end -->")[0].splitlines()
    table = {
        name: [tuple(float(x) for x in cell.split(" (")[0].split(" / ")) for cell in cells if cell]
        for name, *cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:])
    }
    auac = {name: [pair[0] for pair in row] for name, row in table.items()}
    mse = {name: [pair[1] for pair in row] for name, row in table.items()}
    paper = ("Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)")
    assert all(a > max(auac[m][i] for m in paper) for i, a in enumerate(auac["LRP(AH+LN)"]))
    presets = ("GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP", "AttnLRP", "AttnLRP-gamma")
    text = range(6)
    assert all(mse["LRP-gamma"][i] < min(mse[m][i] for m in presets) for i in text)
    assert sum(a > b for a, b in zip(auac["AttnLRP"], auac["LRP"], strict=True)) == 5
