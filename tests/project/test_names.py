"""Names of the package: what is written in the documentation can be reached."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from types import ModuleType

import captum_lrp_tx


def shadowed(package: ModuleType) -> list[str]:
    """Submodules whose name stands for something else in their package."""
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}"
        with contextlib.suppress(ImportError):  # Captum Insights was retired after captum 0.8
            inner = importlib.import_module(name)
            if module.ispkg:
                found += shadowed(inner)
        if not isinstance(getattr(package, module.name, importlib), ModuleType):
            found.append(name)
    return found


def test_no_public_name_shadows_a_module() -> None:
    assert shadowed(captum_lrp_tx) == []


def test_a_shadow_would_be_seen() -> None:
    kept = captum_lrp_tx.methods
    try:
        captum_lrp_tx.methods = lambda: None  # type: ignore[assignment]
        assert shadowed(captum_lrp_tx) == ["captum_lrp_tx.methods"]
    finally:
        captum_lrp_tx.methods = kept
