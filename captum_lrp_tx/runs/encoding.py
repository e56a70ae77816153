"""From texts, data sets and data loaders to token ids, one example after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captum_lrp_tx.errors import InputError

#: One example: what the model is called with, without padding; each entry of shape ``(tokens,)``.
Example = dict[str, Tensor]

#: Names of columns, the first that is there counts.
TEXT_COLUMNS = ("sentence", "text", "review")
LABEL_COLUMNS = ("label", "labels", "class")
#: What the model gets of a data set of token ids.
_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_CHUNK = 256


@dataclass(frozen=True)
class Encoded:
    """A data set as a model takes it.

    Attributes:
        examples (list of dict): Entries of shape ``(tokens,)``, ``input_ids`` among them.
        labels (list of int, optional): Class of each.
    """

    examples: list[Example]
    labels: list[int] | None = None

    @property
    def is_padded(self) -> bool:
        """Whether examples of different lengths can be put together: all have a mask."""
        return all("attention_mask" in example for example in self.examples)

    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        return [len(example["input_ids"]) for example in self.examples]

    def fingerprint(self) -> str:
        """A hash of all that the model is called with, and of the labels."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for example in self.examples:
            for key, value in sorted(example.items()):
                digest.update(f"{key} {value.dtype} {len(value)}".encode())
                digest.update(value.numpy().tobytes())
        return digest.hexdigest()[:16]


def encode(
    data: Any,
    tokenizer: Any = None,
    *,
    text_column: str | None = None,
    max_length: int | None = None,
    workers: int = 0,
) -> Encoded:
    """Token ids of every example.

    Args:
        data: A sequence or a column of texts; a ``datasets.Dataset``, or anything with
            ``column_names`` and columns by name, with texts or with ``input_ids``; or a
            ``DataLoader`` (any iterable) of mappings as a tokenizer returns them. Padding that the
            ``attention_mask`` of token ids tells is taken off.
        tokenizer (PreTrainedTokenizerBase, optional): Needed for texts.
        text_column (str, optional): Where the texts are; ``sentence``, ``text`` or ``review``
            unless given.
        max_length (int, optional): Longer texts are cut to so many tokens; token ids are not.
        workers (int): Processes that tokenize, beside this one.

    Raises:
        InputError: No examples, no tokenizer, token ids beyond ``max_length``, or something that
            cannot be read.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> encode(["dull"], sentiment()[1]).examples[0]["input_ids"].shape
        torch.Size([3])
    """
    labels: list[int] | None = None
    columns = getattr(data, "column_names", None)
    if isinstance(data, str):
        raise InputError("the data is one string; give a list of texts")
    if columns is None and hasattr(data, "columns"):
        raise InputError(
            f"a table has several columns ({', '.join(map(str, data.columns))}); give one of them: "
            "table['text']"
        )
    if hasattr(data, "tolist") and not isinstance(data, Tensor):  # a column of pandas
        data = data.tolist()
    if isinstance(columns, Sequence):
        examples, labels = _from_columns(data, columns, tokenizer, text_column, max_length, workers)
    elif isinstance(data, Sequence) and data and all(isinstance(text, str) for text in data):
        examples = _tokenized(data, tokenizer, max_length, workers)
    elif isinstance(data, Sequence) and any(isinstance(text, str) for text in data):
        wrong = next(i for i, text in enumerate(data) if not isinstance(text, str))
        raise InputError(f"example {wrong} is {data[wrong]!r}, and others are texts; leave it out")
    elif isinstance(data, Iterable):
        examples, labels = _from_batches(data)
    else:
        raise InputError(f"cannot read examples from {type(data).__name__}: {_KINDS}")
    if not examples:
        raise InputError("there are no examples; give at least one")
    if max_length is not None and max(map(len, (e["input_ids"] for e in examples))) > max_length:
        raise InputError(
            f"max_length={max_length} cuts texts, and these are token ids; let the tokenizer cut "
            f"them: tokenizer(..., truncation=True, max_length={max_length})"
        )
    empty = next((i for i, example in enumerate(examples) if not len(example["input_ids"])), None)
    if empty is not None:
        raise InputError(f"example {empty} has no tokens; leave it out")
    return Encoded(examples, labels)


_KINDS = (
    "give a list of texts, a datasets.Dataset, or a DataLoader of mappings with 'input_ids' as a "
    "tokenizer returns them"
)


def _ids(tokenizer: Any, options: dict[str, Any], texts: list[str]) -> dict[str, list[list[int]]]:
    """Lists of ids, one for each text; no method, so that worker processes can be sent it."""
    return dict(tokenizer(texts, padding=False, **options))


def _tokenized(
    texts: Sequence[str], tokenizer: Any, max_length: int | None, workers: int
) -> list[Example]:
    if tokenizer is None:
        raise InputError("texts need the tokenizer of the model: pass tokenizer=")
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    chunks: Any = DataLoader(
        texts,  # type: ignore[arg-type]  # any sequence will do
        batch_size=_CHUNK, num_workers=workers, collate_fn=partial(_ids, tokenizer, cut),
    )  # fmt: skip
    return [row for chunk in chunks for row in _rows(chunk)]


def _rows(columns: Mapping[str, Sequence[Sequence[int]]]) -> list[Example]:
    """Columns of lists as one mapping of tensors for each example."""
    if "input_ids" not in columns:
        raise InputError("the tokenizer gives no 'input_ids'")
    rows = zip(*columns.values(), strict=True)
    return [{key: torch.as_tensor(v) for key, v in zip(columns, row, strict=True)} for row in rows]


def whole_numbers(values: Iterable[Any]) -> list[int] | None:
    """Labels as numbers of classes; ``None`` if some are names, or numbers of a regression.

    Example::

        >>> whole_numbers([1.0, 0]), whole_numbers([2.5]), whole_numbers(["good"])
        ([1, 0], None, None)
    """
    found = list(values)
    try:
        numbers = [int(value) for value in found]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(a == b for a, b in zip(numbers, found, strict=True)) else None


def _from_columns(
    data: Any,
    names: Sequence[str],
    tokenizer: Any,
    text_column: str | None,
    max_length: int | None,
    workers: int,
) -> tuple[list[Example], list[int] | None]:
    """Rows of a ``datasets.Dataset`` and its labels."""
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    labels = None if label is None else whole_numbers(data[label])
    if "input_ids" in names and text_column is None:
        kept = [name for name in _COLUMNS if name in names]
        rows = _rows({name: list(data[name]) for name in kept})
        return [_unpadded(row) for row in rows], labels
    column = text_column or next((name for name in TEXT_COLUMNS if name in names), None)
    if column not in names:
        wanted = text_column or ", ".join((*TEXT_COLUMNS, "input_ids"))
        raise InputError(
            f"the data set has no column {wanted!r}; it has "
            f"{', '.join(names)}. Name one with text_column=."
        )
    texts = list(data[column])
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:  # of None the text would be "None"
        raise InputError(
            f"example {wrong} of {column!r} is {texts[wrong]!r}, no text; leave it out"
        )
    return _tokenized(texts, tokenizer, max_length, workers), labels


def _from_batches(batches: Iterable[Any]) -> tuple[list[Example], list[int] | None]:
    """Examples of padded batches, without their padding."""
    examples: list[Example] = []
    labels: list[int] = []
    for batch in batches:
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            raise InputError(f"a batch is no mapping with a tensor 'input_ids': {_KINDS}")
        ids = batch["input_ids"]
        found = next((batch[name] for name in LABEL_COLUMNS if name in batch), None)
        if isinstance(found, Tensor) and found.shape == ids.shape[:1]:
            labels.extend(whole_numbers(found.tolist()) or ())
        kept = {key: value for key, value in batch.items() if key not in LABEL_COLUMNS}
        if ids.dim() != 2:
            raise InputError(
                f"'input_ids' of a batch has the shape {tuple(ids.shape)}, not (examples, tokens). "
                "Explain such inputs with attribute(), or LoaderAttribution; choices can also be "
                "given one by one to a forward function that adds the dimension."
            )
        for key, value in kept.items():
            if not isinstance(value, Tensor) or value.shape != ids.shape:
                is_tensor = isinstance(value, Tensor)
                what = f"the shape {tuple(value.shape)}" if is_tensor else type(value).__name__
                raise InputError(
                    f"an entry of a batch, {key!r}, has {what}, 'input_ids' has the shape "
                    f"{tuple(ids.shape)}; all but labels must be tensors (examples, tokens). Leave "
                    "it out, or explain such inputs with attribute() or LoaderAttribution."
                )
        for row in range(len(ids)):
            examples.append(_unpadded({key: value[row].cpu() for key, value in kept.items()}))
    return examples, labels if len(labels) == len(examples) else None


def _unpadded(example: Example) -> Example:
    mask = example.get("attention_mask")
    if mask is None:
        return example
    (real,) = mask.nonzero(as_tuple=True)
    if len(real) and int(real[-1] - real[0]) + 1 != len(real):
        raise InputError(
            "an attention mask hides tokens in the middle of an example; leave them out"
        )
    return {key: value[real] for key, value in example.items()}
