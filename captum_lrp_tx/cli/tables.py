"""Texts and labels from files: lines of text, tables separated by tabs, CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from captum_lrp_tx.cli.status import note
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.runs.encoding import LABEL_COLUMNS, TEXT_COLUMNS

#: Tables that would be taken for lines of text, and what of pandas reads them.
_OTHERS = {
    ".json": "read_json(FILE)", ".jsonl": "read_json(FILE, lines=True)",
    ".ndjson": "read_json(FILE, lines=True)", ".parquet": "read_parquet(FILE)",
    ".xlsx": "read_excel(FILE)",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Texts of a file.

    Attributes:
        rows (list of (int, str, str)): Number of the line, text, and label ("" for none).
        column (str): Name of the column of texts; empty for a file with one text in each line.
        label (str): Name of the column of labels, if there is one.
    """

    rows: list[tuple[int, str, str]]
    column: str = ""
    label: str = ""

    def told(self) -> str:
        """Which columns were read, and the first text."""
        first = self.rows[0][1]
        shown = first if len(first) <= 60 else f"{first[:57]}..."
        labels = f", labels from {self.label!r}" if self.label else ""
        return f"texts from the column {self.column!r}{labels}; the first: {shown}"


def read_table(file: Path) -> Table:
    """Reads a file of texts; says which columns of a table it took.

    Args:
        file (Path): ``.csv``: with a column ``sentence``, ``text`` or ``review``, and maybe
            ``label``. Anything else: a table separated by tabs, without quotes, with such columns
            in its first line, or one text in each line. Lines without text are left out.

    Raises:
        InputError: If the file cannot be read, or holds no text.
    """
    other = _OTHERS.get(file.suffix.lower())
    if other is not None and file.exists():
        raise InputError(
            f"{file} is not read here; make a CSV file of it: pandas."
            f"{other.replace('FILE', repr(str(file)))}.to_csv({f'{file.stem}.csv'!r})"
        )
    lines = list(_lines(read_content(file), file))
    names = [name.strip() for name in lines[0][1]] if lines else []
    folded = [name.casefold() for name in names]
    column = next((folded.index(name) for name in TEXT_COLUMNS if name in folded), None)
    place = next((folded.index(name) for name in LABEL_COLUMNS if name in folded), None)
    is_csv = file.suffix.lower() == ".csv"
    if column is None and (len(names) > 1 or (is_csv and any(names))):
        raise InputError(
            f'{file} is a table without a column "sentence" (or "text"); it has '
            f"{', '.join(map(repr, names[:20]))}"
        )
    rows = []
    for number, fields in lines if column is None else lines[1:]:
        if column is None:
            text = "\t".join(fields).strip()
        elif any(map(str.strip, fields[len(names) :])):
            # else a text would end where its first comma is
            raise InputError(
                f"line {number} of {file} has {len(fields)} fields, but the first line names "
                f"{len(names)}; "
                + ("put texts that hold the separator in quotes" if is_csv else "take out the tabs")
            )
        else:
            text = _field(fields, column)
        if text:
            label = "" if column is None or place is None else _field(fields, place)
            rows.append((number, text, label))
    if not rows:
        raise InputError(
            f'{file} holds no text; write one in each line, or a table with a column "sentence"'
        )
    if column is None:
        return Table(rows)
    table = Table(rows, names[column], "" if place is None else names[place])
    note(table.told())
    return table


def read_content(file: Path) -> str:
    """What is in a text file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"cannot read {file}: {why}") from error


def _field(fields: list[str], place: int) -> str:
    return fields[place].strip() if len(fields) > place else ""


def _lines(content: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line, with its number."""
    if file.suffix.lower() != ".csv":
        for number, line in enumerate(content.split("\n"), 1):
            yield number, line.split("\t")
        return
    head = content.partition("\n")[0]
    mark = ";" if head.count(";") > head.count(",") else ","
    # strict: a quote that is not closed would make one text of all that follows
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=mark, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file: {error} in line {reader.line_num}") from error
