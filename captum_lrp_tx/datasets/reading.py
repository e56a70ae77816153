"""Reading relevance of a data set back, in the order of its examples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx.datasets.parquet import read_rows, shard_path
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import pyarrow
from captum_lrp_tx.runs.folder import stored_settings

_SLICE = 1024


class DatasetAttributions(Sequence[dict[str, Any]]):
    """The rows of a data set, in the order of its examples.

    A row has the columns ``example`` (its number), ``id``, ``tokens``, ``token_ids``,
    ``relevance``, ``target`` (class, or token of a language model), ``position`` (of that token's
    prediction), ``explained`` (the target as text), ``logit``, ``prediction`` (none of a
    regression with several numbers) and ``delta`` (logit minus sum of relevance: what biases and
    other constants absorbed).

    Args:
        folder (path): What ``attribute_dataset`` has written.
        columns (sequence of str, optional): Read no others.
        partial (bool): Take what is there of a run that has not come to its end.

    Attributes:
        settings (dict): Method, rules, model, versions.
        table (pyarrow.Table): All rows.

    Raises:
        InputError: The folder holds nothing of the kind, or a file is missing or damaged.
        MissingPackageError: pyarrow is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        columns: Sequence[str] | None = None,
        partial: bool = False,
    ) -> None:
        arrow, _ = pyarrow()
        self.folder = Path(folder)
        self.settings: dict[str, Any] = stored_settings(self.folder, ("shards", "examples"))
        paths = [shard_path(self.folder, i) for i in range(self.settings["shards"])]
        there = [path for path in paths if path.exists()]
        if len(there) < len(paths) and not partial:
            raise InputError(
                f"{len(paths) - len(there)} of {len(paths)} files are missing in {self.folder}: "
                "the run has not come to its end. Start it again, or read what is there with "
                "partial=True"
            )
        if not there:
            raise InputError(f"nothing has been written to {self.folder} yet; start the run again")
        wanted = None if columns is None else ["example", *(c for c in columns if c != "example")]
        tables = []
        for path in there:
            try:
                tables.append(read_rows(path, wanted))
            except (OSError, arrow.ArrowException) as error:
                raise InputError(
                    f"{path} is damaged ({error}); start the run again, which computes it anew"
                ) from error
        self.table: Any = arrow.concat_tables(tables).sort_by("example")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        """A row, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} rows, not {index}")
        return self.table.slice(number, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _SLICE):
            yield from self.table.slice(start, _SLICE).to_pylist()

    def __repr__(self) -> str:
        return f"DatasetAttributions({str(self.folder)!r}, {len(self)} rows)"


def read_dataset(
    folder: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    partial: bool = False,
) -> DatasetAttributions:
    """The rows that ``attribute_dataset`` has written, in the order of the examples.

    Args:
        folder, columns, partial: See :class:`DatasetAttributions`.

    Returns:
        DatasetAttributions: A sequence of dictionaries; ``.table`` is a ``pyarrow.Table``.

    Raises:
        InputError, MissingPackageError: See :class:`DatasetAttributions`.

    Example::

        >>> for row in read_dataset("relevance"):  # doctest: +SKIP
        ...     print(row["tokens"], row["relevance"])
    """
    return DatasetAttributions(folder, columns, partial)
