"""What needs no model answers without torch, and an interruption of the imports is no traceback."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captum_lrp_tx
from captum_lrp_tx.cli import COMMANDS
from captum_lrp_tx.cli.arguments import names
from captum_lrp_tx.evaluation import MEASURES
from captum_lrp_tx.methods import METHODS
from captum_lrp_tx.reporting.explaining import DEFAULT_METHODS
from captum_lrp_tx.rules import PRESETS

ROOT = Path(captum_lrp_tx.__file__).parent
#: What takes seconds to import.
HEAVY = ("torch", "captum", "transformers", "numpy", "matplotlib", "PIL", "tqdm")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT.parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, captum_lrp_tx.__version__),
        ([], 2, "usage"),
        (["--help"], 0, "usage"),
        *(([command, "--help"], 0, "usage") for command in COMMANDS),
        (["comapre", "a film"], 2, "did you mean 'compare'"),
        (["a film", "--no-such-option"], 2, "unrecognized arguments"),
        (["a film", "--rules", "lpr"], 2, "invalid choice"),
        (["evaluate"], 2, "required: --data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_needs_no_model_imports_nothing_heavy(
    arguments: list[str], status: int, said: str
) -> None:
    code = (
        "import sys; from captum_lrp_tx.cli import main; status = main();"
        f"print('imported', sorted(set({HEAVY!r}) & set(sys.modules))); sys.exit(status)"
    )
    done = python(code, *arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "imported []" in done.stdout


def test_the_package_imports_nothing_heavy_until_it_is_used() -> None:
    code = (
        "import sys, captum_lrp_tx as lrp; before = 'torch' in sys.modules; lrp.ConservativeLRP;"
        "print(before, 'torch' in sys.modules)"
    )
    assert python(code).stdout.split() == ["False", "True"]


@pytest.mark.parametrize("library", ["torch", "captum", "transformers"])
def test_an_interruption_of_the_imports_is_no_traceback(library: str) -> None:
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {library!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
sys.argv = ["captum_lrp_tx", "a charming film"]
import runpy
runpy.run_module("captum_lrp_tx", run_name="__main__")
"""
    done = python(code)
    assert done.returncode == 130
    assert done.stderr == "captum_lrp_tx: interrupted\n" and done.stdout == ""


def test_every_public_name_is_there_for_people_and_for_type_checkers() -> None:
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in stub.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert sorted(listed) == sorted(captum_lrp_tx.__all__) == sorted(dir(captum_lrp_tx))
    for name in listed:
        assert getattr(captum_lrp_tx, name) is not None
    with pytest.raises(AttributeError):
        captum_lrp_tx.no_such_name  # noqa: B018


def test_names_in_help_texts_are_those_of_the_tables() -> None:
    assert tuple(PRESETS) == names.PRESETS
    assert tuple(method.name for method in METHODS) == names.METHODS
    assert tuple(measure.name for measure in MEASURES) == names.METRICS
    assert names.REPORTED == DEFAULT_METHODS
