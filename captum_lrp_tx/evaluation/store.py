"""Results on disk, so that a broken-off evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.runs.folder import open_folder

#: What is known of an example: a list for each curve, a number for each other metric, ``seconds``.
Entry = dict[str, Any]


class Store:
    """What has been measured: one file of JSON lines for each method, one line for each batch.

    A line is written at once and complete, or it is cut off when it is read. Without a folder
    everything stays in memory.

    Args:
        folder (Path, optional): Made if there is none.
        settings (mapping): What every number depends on.
        fresh (bool): Drop what is there.

    Raises:
        InputError: The folder holds results of other settings, or cannot be used.

    Example::

        >>> store = Store(None, {})
        >>> store.add("LRP", [0, 1], [{"pruning": [0.0, 1.0]}, {"pruning": [0.0, 2.0]}])
        >>> store.entries("LRP")[1]["pruning"]
        [0.0, 2.0]
    """

    def __init__(
        self, folder: Path | None, settings: Mapping[str, Any], fresh: bool = False
    ) -> None:
        self._folder = folder
        self._entries: dict[str, dict[int, Entry]] = {}
        if folder is not None:
            open_folder(folder, settings, ["*.jsonl"], fresh)

    def entries(self, method: str) -> dict[int, Entry]:
        """What is known of a method, by the number of the example."""
        if method not in self._entries:
            self._entries[method] = self._read(method)
        return self._entries[method]

    def add(self, method: str, rows: Sequence[int], entries: Sequence[Entry]) -> None:
        """Keeps what has been measured on a batch.

        Raises:
            InputError: It cannot be written.
        """
        known = self.entries(method)
        for row, entry in zip(rows, entries, strict=True):
            known[row] = {**known.get(row, {}), **entry}
        if self._folder is None:
            return
        line = json.dumps({"method": method, "rows": list(rows), "entries": list(entries)}) + "\n"
        path = self._path(method)
        try:
            with open(path, "ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def _path(self, method: str) -> Path:
        assert self._folder is not None
        name = re.sub(r"[^a-z0-9+-]+", "-", method.casefold()).strip("-")
        return self._folder / f"{name}.jsonl"

    def _read(self, method: str) -> dict[int, Entry]:
        if self._folder is None or not self._path(method).exists():
            return {}
        path = self._path(method)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the process was stopped in the middle of a line
            with open(path, "r+b") as stream:
                stream.truncate(whole)
        found: dict[int, Entry] = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                stored = json.loads(line)
                if stored["method"] != method:  # another name with the same file
                    continue
                for row, entry in zip(stored["rows"], stored["entries"], strict=True):
                    found[int(row)] = {**found.get(int(row), {}), **entry}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} of {path} is damaged; remove the file or start anew with "
                    "fresh=True (--fresh)"
                ) from error
        return found
