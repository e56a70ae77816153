"""Parquet files of relevance: complete or not there at all, and checked when they are read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx.files import write_atomically
from captum_lrp_tx.packages import pyarrow

#: Where the settings are in the metadata of a file's schema.
METADATA_KEY = "captum_lrp_tx"
#: The files of a run.
SHARDS = "shard-*.parquet"


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:06d}.parquet"


def row_schema(settings: Mapping[str, Any]) -> Any:
    """The columns of a file (``pyarrow.Schema``), with the settings as metadata."""
    arrow, _ = pyarrow()
    columns = [
        ("example", arrow.int64()),
        ("id", arrow.string()),
        ("tokens", arrow.list_(arrow.string())),
        ("token_ids", arrow.list_(arrow.int64())),
        ("relevance", arrow.list_(arrow.float32())),
        ("target", arrow.int64()),
        ("position", arrow.int64()),
        ("explained", arrow.string()),
        ("logit", arrow.float32()),
        ("prediction", arrow.int64()),
        ("delta", arrow.float32()),
    ]
    return arrow.schema(columns, metadata={METADATA_KEY: json.dumps(settings, sort_keys=True)})


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write a file so that no one ever sees half of it, not even after a power cut.

    Args:
        path (Path): The file to write or to replace.
        rows (sequence of dict): By column name.
        settings (mapping): For the metadata.

    Raises:
        OSError: It cannot be written.
    """
    arrow, parquet = pyarrow()
    table = arrow.Table.from_pylist(list(rows), schema=row_schema(settings))
    stream = io.BytesIO()
    parquet.write_table(table, stream, write_page_checksum=True, compression="zstd")
    write_atomically(path, stream.getvalue())


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A file as a ``pyarrow.Table``, its checksums checked.

    Raises:
        OSError, pyarrow.ArrowException: The file is not there or damaged.
    """
    _, parquet = pyarrow()
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def is_complete(path: Path, examples: Sequence[int], settings: Mapping[str, Any]) -> bool:
    """Whether a file holds all of these examples, computed with these settings, undamaged."""
    arrow, _ = pyarrow()
    try:
        table = read_rows(path)
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY.encode()])
    except (OSError, arrow.ArrowException, KeyError, ValueError):
        return False
    stored: list[int] = table.column("example").to_pylist()
    return metadata == dict(settings) and stored == list(examples)
