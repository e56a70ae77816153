"""The folder of a run: what its numbers depend on, so that the same call goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.files import write_atomically

SETTINGS = "_settings.json"  # readers of Parquet pass by names that begin so


def open_folder(
    folder: Path, settings: Mapping[str, Any], results: Sequence[str], fresh: bool = False
) -> None:
    """Makes the folder ready for a run: new, or begun with the same settings.

    Args:
        folder (Path): Made if there is none.
        settings (mapping): What every number depends on; of JSON types.
        results (sequence of str): Patterns of the names of the files that a run writes.
        fresh (bool): Drop what is there.

    Raises:
        InputError: It holds results of other settings, or of none that are known, or cannot be
            used.
    """
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(dict(settings)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = [file for pattern in results for file in folder.glob(pattern)]
        if fresh:
            for file in old:
                file.unlink()
        elif old and not path.exists():
            raise InputError(
                f"{folder} holds results ({old[0].name}), but no {SETTINGS} that says what they "
                "are of; choose another folder, or start anew with fresh=True (--fresh)"
            )
        if fresh or not path.exists():
            write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror}") from error
    stored = stored_settings(folder)
    changed = [
        f"{key} (there: {_short(stored.get(key))}, now: {_short(wanted.get(key))})"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if changed:
        raise InputError(
            f"{folder} holds results of another run; different are: {'; '.join(changed)}. Choose "
            "another folder, or start anew with fresh=True (--fresh)"
        )


def stored_settings(folder: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of the run in a folder.

    Args:
        folder (Path): What a run has written.
        needed (sequence of str): Whole numbers that must be among them.

    Raises:
        InputError: There are none, or they are damaged.
    """
    path = folder / SETTINGS
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in needed:
            int(stored[key])
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no results that can be read: there is no {SETTINGS} in it. Name the "
            "folder that attribute_dataset or explain-dataset --out wrote to; if it is of a "
            "version before the first release (with settings.json), run that again with "
            "fresh=True (--fresh)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); start anew with fresh=True (--fresh)"
        ) from error
    return stored


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
