"""Explanations as tables and in files: JSON and Parquet there and back, pages and pictures."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining import showing
from captum_lrp_tx.explaining.words import Tokens
from captum_lrp_tx.files import check_writable, write_atomically
from captum_lrp_tx.packages import pandas, pyarrow
from captum_lrp_tx.visualization.glyphs import quiet_about_glyphs

if TYPE_CHECKING:
    import pandas as pd

    from captum_lrp_tx.explaining.explanation import Explanation

_FORMAT = "captum_lrp_tx explanation 1"
_PICTURES = (".png", ".pdf", ".svg")
_DATA = (".json", ".parquet")
_PAGES = (".html", ".htm")
#: Columns of texts and numbers that are stored as they are.
_PLAIN = ("task", "explains", "target", "value", "prediction", "probability", "rules", "bias")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save(items: Sequence[Explanation], path: str | os.PathLike[str], many: bool) -> None:
    """Writes explanations in the format that the name says, complete or not at all."""
    file = Path(path)
    known = (*_PAGES, *_DATA) if many else (*_PAGES, *_PICTURES, *_DATA)
    suffix = file.suffix.lower()
    if suffix not in known:
        hint = (
            "; save pictures one by one: explanations[0].save(...)" if suffix in _PICTURES else ""
        )
        raise InputError(f"cannot write {file}: the name must end in {', '.join(known)}{hint}")
    check_writable(file)
    if suffix in _PAGES:
        content = showing.whole_page(items).encode("utf-8", "replace")
    elif suffix in _PICTURES:
        content = picture(items[0], suffix[1:])
    elif suffix == ".json":
        stored = {"format": _FORMAT, "explanations": [record(item) for item in items]}
        content = json.dumps(stored, ensure_ascii=False, indent=1).encode("utf-8", "replace")
    else:
        content = _as_parquet([record(item) for item in items])
    write_atomically(file, content)


def picture(item: Explanation, kind: str, **options: Any) -> bytes:
    """An explanation as a picture.

    Args:
        item (Explanation): What to draw.
        kind (str): ``"png"``, ``"pdf"`` or ``"svg"``.
        **options: Of ``Explanation.plot``.
    """
    drawn = io.BytesIO()
    made = showing.plot(item, **options)
    with quiet_about_glyphs():
        made.savefig(drawn, format=kind, dpi=200)
    return drawn.getvalue()


def record(item: Explanation) -> dict[str, Any]:
    """An explanation as one flat mapping of texts, numbers and lists of them."""
    tokens = item.tokenized
    spans = [span or (None, None) for span in item.spans]
    return {
        **{name: getattr(item, name) for name in _PLAIN},
        "warnings": list(item.warnings),
        "relevance": item.relevance.double().flatten().tolist(),
        "shape": list(item.relevance.shape),
        "dtype": str(item.relevance.dtype).removeprefix("torch."),
        "absorbed_by": list(item.absorbed),
        "absorbed": list(item.absorbed.values()),
        "embedded_in": list(item.embeddings),
        "embedded": [part.double().tolist() for part in item.embeddings.values()],
        "tokens": None if tokens is None else list(tokens.names),
        "special": None if tokens is None else list(tokens.special),
        "parts": None if tokens is None else list(tokens.parts),
        "starts": None if tokens is None else [start for start, _ in spans],
        "ends": None if tokens is None else [end for _, end in spans],
        "words": None if tokens is None else [list(word) for word in tokens.words],
        "texts": None if tokens is None else list(tokens.texts.values()),
        "text_names": None if tokens is None else list(tokens.texts),
        "scheme": None if tokens is None else tokens.scheme,
        "messages": None if tokens is None else [list(span) for span in tokens.messages],
        "image": _flat(item.image),
        "image_shape": None if item.image is None else list(item.image.shape),
        "image_relevance": _flat(item.image_relevance),
        "audio": _flat(item.audio),
        "seconds": item.seconds,
    }


def _flat(values: Tensor | None) -> list[float] | None:
    numbers: list[float] | None = None if values is None else values.double().flatten().tolist()
    return numbers


def fields_of(row: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Arguments of ``Explanation`` from what :func:`record` made.

    Raises:
        InputError: If something is missing or of another kind.
    """
    try:
        dtype = _DTYPES[row["dtype"]]
        made: dict[str, Any] = {name: row[name] for name in _PLAIN}
        made["relevance"] = torch.tensor(row["relevance"], dtype=dtype).reshape(row["shape"])
        made["warnings"] = tuple(map(str, row["warnings"]))
        made["absorbed"] = dict(zip(row["absorbed_by"], row["absorbed"], strict=True))
        made["embeddings"] = {
            name: torch.tensor(values, dtype=dtype)
            for name, values in zip(row["embedded_in"], row["embedded"], strict=True)
        }
        if row["tokens"] is not None:
            made["tokenized"] = _tokens(row)
            if len(row["tokens"]) != len(made["relevance"]):
                raise ValueError("another number of tokens than of relevances")
        if row["image"] is not None:
            made["image"] = torch.tensor(row["image"]).reshape(row["image_shape"])
        if row.get("image_relevance") is not None:
            pictured = torch.tensor(row["image_relevance"], dtype=dtype)
            made["image_relevance"] = pictured.reshape(row["image_shape"])
        if row.get("audio") is not None:
            made["audio"] = torch.tensor(row["audio"]).reshape(row["shape"])
            made["seconds"] = row["seconds"]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{path} holds no explanation ({type(error).__name__}: {error})"
        ) from error
    return made


def _tokens(row: Mapping[str, Any]) -> Tokens:
    places = zip(row["starts"], row["ends"], strict=True)
    words = tuple(tuple(int(i) for i in word) for word in row["words"])
    if sorted(i for word in words for i in word) != list(range(len(row["tokens"]))):
        raise ValueError("a token is in no word, or in several")
    return Tokens(
        tuple(map(str, row["tokens"])), tuple(map(bool, row["special"])),
        tuple(map(str, row["parts"])),
        tuple(None if start is None else (int(start), int(end)) for start, end in places),
        words, dict(zip(row["text_names"], row["texts"], strict=True)), row["scheme"],
        tuple((int(start), int(end)) for start, end in row.get("messages") or ()),
    )  # fmt: skip


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records in a file.

    Raises:
        InputError: If it is missing or holds no explanations.
        MissingPackageError: For Parquet, if pyarrow is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in _DATA:
        raise InputError(f"cannot read {file}: explanations are read from {' and '.join(_DATA)}")
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    if file.suffix.lower() == ".parquet":
        return _from_parquet(file)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON file ({error})") from error
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise InputError(f"{file} holds no explanations, or those of another version")
    rows = stored.get("explanations")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} holds no explanations")
    return rows


def _as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    arrow, parquet = pyarrow()
    text, number, whole = arrow.string(), arrow.float64(), arrow.int64()
    of_texts, of_numbers, of_wholes = map(arrow.list_, (text, number, whole))
    kinds = {
        **dict.fromkeys(_PLAIN, text), "value": number, "probability": number,
        "warnings": of_texts, "relevance": of_numbers, "shape": of_wholes, "dtype": text,
        "absorbed_by": of_texts, "absorbed": of_numbers, "embedded_in": of_texts,
        "embedded": arrow.list_(of_numbers), "tokens": of_texts,
        "special": arrow.list_(arrow.bool_()), "parts": of_texts, "starts": of_wholes,
        "ends": of_wholes, "words": arrow.list_(of_wholes), "texts": of_texts,
        "text_names": of_texts, "scheme": text, "messages": arrow.list_(of_wholes),
        "image": of_numbers, "image_shape": of_wholes,
        "image_relevance": of_numbers, "audio": of_numbers, "seconds": number,
    }  # fmt: skip
    schema = arrow.schema(list(kinds.items()), metadata={"format": _FORMAT})
    stream = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), stream)
    return stream.getvalue()


def _from_parquet(file: Path) -> list[dict[str, Any]]:
    arrow, parquet = pyarrow()
    try:
        table = parquet.read_table(file)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{file} is no Parquet file ({error})") from error
    if (table.schema.metadata or {}).get(b"format") != _FORMAT.encode():
        raise InputError(f"{file} holds no explanations, or those of another version")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def frame(item: Explanation) -> pd.DataFrame:
    """One row for each token, or for each pixel; see ``Explanation.to_frame``."""
    library = pandas()
    tokens = item.tokenized
    if tokens is None:
        values: Tensor = item.relevance.double()
        names = ["row", "column"]
        if item.audio is None:
            values = values.sum(0)
        else:
            names = ["sample"] if values.dim() == 1 else ["frequency", "frame"]
        places = torch.meshgrid(*map(torch.arange, values.shape), indexing="ij")
        columns = {n: place.flatten().numpy() for n, place in zip(names, places, strict=True)}
        made: pd.DataFrame = library.DataFrame({**columns, "relevance": values.flatten().numpy()})
        return made
    word = {i: number for number, members in enumerate(tokens.words) for i in members}
    starts = [None if span is None else span[0] for span in tokens.spans]
    ends = [None if span is None else span[1] for span in tokens.spans]
    made = library.DataFrame(
        {
            "token": list(tokens.names),
            "relevance": item.relevance.double().tolist(),
            "word": [word[i] for i in range(len(tokens))],
            "special": list(tokens.special),
            "part": list(tokens.parts),
            "start": library.array(starts, dtype="Int64"),
            "end": library.array(ends, dtype="Int64"),
        }
    )
    return made


def frames(items: Sequence[Explanation]) -> pd.DataFrame:
    """All tables below each other, with the number of the explanation in front."""
    library = pandas()
    tables = []
    for number, item in enumerate(items):
        table = frame(item)
        table.insert(0, "example", number)
        tables.append(table)
    made: pd.DataFrame = library.concat(tables or [library.DataFrame()], ignore_index=True)
    return made
