"""The tutorials run from top to bottom, and are committed with their outputs and pictures."""

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the tutorials need nbformat and nbclient")
nbclient = pytest.importorskip("nbclient", reason="the tutorials need nbformat and nbclient")
pytest.importorskip("ipykernel", reason="the tutorials need a kernel to run in")

FOLDER = Path(__file__).parents[2] / "tutorials"
#: Notebooks about a model that does not come along, and the variable that says where it is.
ABOUT = {"6_a_real_language_model": "CAPTUM_LRP_TX_SMOLLM2"}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: Any) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in code_cells(notebook)
        for output in cell.outputs
    )


def test_there_are_tutorials() -> None:
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "not run from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)
    assert pictures(notebook) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = ABOUT.get(path.stem)
    if variable is not None and not os.environ.get(variable):
        pytest.skip(f"set {variable} to the folder of the model that this notebook is about")
    # the kernel starts in another folder, and the package need not be installed
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    committed = pictures(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises CellExecutionError at the first cell that fails
    assert pictures(notebook) == committed
