"""The folder of a run: its settings, and which of its files are there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captum_lrp_tx.errors import InputError

_SETTINGS = "_settings.json"  # readers of Parquet pass by names that begin so
#: Settings that every run has, and that reading needs.
_SIZES = ("shards", "examples")


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:06d}.parquet"


def prepare(folder: Path, settings: Mapping[str, Any], fresh: bool) -> None:
    """Make the folder ready for a run: new, or begun with the same settings.

    Args:
        folder (Path): Made if there is none.
        settings (mapping): What every number depends on; of JSON types.
        fresh (bool): Drop what is there.

    Raises:
        InputError: It holds results of other settings, or cannot be used.
    """
    path = folder / _SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh or not path.exists():  # files that have lost their settings are worthless
            path.unlink(missing_ok=True)
            for old in [*folder.glob("shard-*.parquet"), *folder.glob(".shard-*.unfinished")]:
                old.unlink()
            unfinished = folder / f".{_SETTINGS}.unfinished"
            unfinished.write_text(json.dumps(dict(settings), indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror}") from error
    stored = stored_settings(folder)
    changed = [
        f"{key} (there: {_short(stored.get(key))}, now: {_short(settings.get(key))})"
        for key in sorted({*stored, *settings})
        if stored.get(key) != settings.get(key)
    ]
    if changed:
        raise InputError(
            f"{folder} holds relevance of another run; different are: {'; '.join(changed)}. Choose "
            "another folder, or start anew with fresh=True (--fresh)"
        )


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = folder / _SETTINGS
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in _SIZES:
            int(stored[key])
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no relevance of a data set") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); start anew with fresh=True (--fresh)"
        ) from error
    return stored


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
