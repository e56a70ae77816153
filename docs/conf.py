"""How Sphinx builds the pages: ``sphinx-build -W docs FOLDER``, without network."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from captum_lrp_tx import __version__  # noqa: E402

# Notebooks and what was measured live beside the scripts that write them, and Sphinx reads only
# what lies beside its pages: they are copied, and links to them lead to the copies.
COPIES = HERE / "repository"
COPIED = (
    "benchmarks/*.md",
    "benchmarks/*.png",
    "experiments/**/*.md",
    "experiments/**/*.png",
    "experiments/*/*.ipynb",
    "experiments/language_models/*.py",
    "experiments/encoders/*.py",
    "tutorials/*.ipynb",
    "tutorials/MODELS.md",
)

project = "captum_lrp_tx"
author = copyright = "the authors of captum_lrp_tx"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build", "repository/benchmarks/conservation.md"]
html_theme = "furo"
html_title = f"captum_lrp_tx {version}"

# pages
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # tables that begin with smaller headings
nb_execution_mode = "off"  # committed with their outputs; tests/project/test_tutorials.py runs them
nb_render_markdown_format = "gfm"  # tables

# docstrings
autodoc_typehints = "none"  # the signature has names and defaults, "Args" the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False


def copy_pages(*_: Any) -> None:
    """Copies what pages link to outside of this folder; unchanged files keep their times."""
    shutil.rmtree(COPIES, ignore_errors=True)
    for path in (path for pattern in COPIED for path in ROOT.glob(pattern)):
        copy = COPIES / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def adapt_pages(_: Any, name: str, source: list[str]) -> None:
    """Links to pages outside of this folder lead to their copies, which get a title."""
    up = "../" * name.count("/")
    links = rf"\]\({re.escape(up)}\.\./((?:benchmarks|experiments|tutorials)/[^)]*\.(?:md|ipynb))"
    source[0] = re.sub(links, rf"]({up}repository/\1", source[0])
    if name.startswith(COPIES.name):  # one folder deeper than the original
        source[0] = source[0].replace(f"]({up.removeprefix('../')}docs/", f"]({up}")
    if name.startswith(COPIES.name) and not source[0].startswith(("# ", "{")):
        source[0] = f"# {name.rpartition('/')[2].replace('_', ' ').capitalize()}\n\n{source[0]}"


def setup(app: Any) -> None:
    """Connects both."""
    app.connect("config-inited", copy_pages)
    app.connect("source-read", adapt_pages)
