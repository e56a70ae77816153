"""What one reads at once stays small: files of the package and their functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "captum_lrp_tx").rglob("*.py"))
#: Lines of a file, and lines of a function below its docstring.
FILE, FUNCTION = 450, 60
#: Longer functions, and how long they may be.
LONGER = {
    "cli/arguments/evaluate.py:add_arguments": 76,
    "propagation/judging/coverage.py:_judge": 62,
    "visualization/comparison_figure.py:comparison_figure": 65,
}


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every function with the number of its lines below the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_can_be_read_at_once(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    name = file.relative_to(ROOT / "captum_lrp_tx").as_posix()
    assert text.count("\n") <= FILE
    sizes = {f"{name}:{f}": n for f, n in functions(ast.parse(text))}
    assert {key: n for key, n in sizes.items() if n > LONGER.get(key, FUNCTION)} == {}
    # what has become shorter leaves the list
    assert [k for k in LONGER if k.startswith(f"{name}:") and sizes.get(k, 0) <= FUNCTION] == []
