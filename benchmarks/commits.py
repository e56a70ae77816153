"""Which commit and which versions wrote a page."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Short, with ``-dirty`` behind it where files were changed since; unknown without git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    return told.stdout.strip() or "unknown"


def made_with(*packages: str) -> str:
    """The commit, Python's version and those of packages; asked before anything is measured."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"commit {commit()}", f"Python {platform.python_version()}", *versions])
