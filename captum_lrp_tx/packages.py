"""Packages that not everybody has: imported when they are needed, else said how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from captum_lrp_tx.errors import MissingPackageError


def needed(module: str, purpose: str, hint: str) -> Any:
    """A module of a package that may be missing.

    Args:
        module (str): Its name.
        purpose (str): What needs the package, e.g. ``"tables need pandas"``.
        hint (str): The command that installs it.

    Raises:
        MissingPackageError: It cannot be imported.

    Example::

        >>> needed("torch", "tensors need torch", "pip install torch").ones(1)
        tensor([1.])
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose}, which cannot be imported ({error}); install it with: {hint}",
            name=error.name,
        ) from error


def matplotlib(name: str = "figure") -> Any:
    """A module of matplotlib, by its name without ``matplotlib.``."""
    hint = "pip install matplotlib pillow"
    return needed(f"matplotlib.{name}", "figures need matplotlib", hint)


def pandas() -> Any:
    """The package pandas."""
    return needed("pandas", "tables need pandas", "pip install pandas")


def pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``."""
    purpose, hint = "Parquet files need pyarrow", "pip install pyarrow"
    return needed("pyarrow", purpose, hint), needed("pyarrow.parquet", purpose, hint)
