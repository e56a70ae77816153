"""Which commit wrote a page."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Short, with ``-dirty`` behind it where files were changed since."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
