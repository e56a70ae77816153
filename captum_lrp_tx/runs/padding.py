"""Putting examples of different lengths together, and whether a model minds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.runs.encoding import Example

#: Where examples are filled up.
Side = Literal["right", "left"]


def padded_batch(
    examples: Sequence[Example], pad_id: int, side: Side = "right"
) -> dict[str, Tensor]:
    """Examples put together, filled up on one side.

    Args:
        examples (sequence of dict): Entries of shape ``(tokens,)``.
        pad_id (int): What ``input_ids`` is filled up with; everything else gets zeros.
        side (str): ``"right"`` or ``"left"``.

    Returns:
        dict of Tensor: Entries of shape ``(examples, tokens)``.

    Raises:
        InputError: Examples with different entries.

    Example::

        >>> padded_batch([{"input_ids": torch.tensor([5])}], 0)
        {'input_ids': tensor([[5]])}
    """
    keys = list(examples[0])
    if any(list(example) != keys for example in examples):
        raise InputError("the examples have different entries; give all of them the same ones")
    return {key: _padded(key, [e[key] for e in examples], pad_id, side) for key in keys}


def _padded(key: str, rows: Sequence[Tensor], pad_id: int, side: Side) -> Tensor:
    width = max(map(len, rows))
    fill = pad_id if key == "input_ids" else 0
    result = rows[0].new_full((len(rows), width), fill)
    for filled, row in zip(result, rows, strict=True):
        filled[real_places(len(row), width, side)] = row
    return result


def real_places(length: int, width: int, side: Side) -> slice:
    """Where an example of some length stands in a padded batch.

    Example::

        >>> real_places(2, 5, "left")
        slice(3, 5, None)
    """
    return slice(0, length) if side == "right" else slice(width - length, width)


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs of a model are the same but for rounding."""
    if one.shape != other.shape:
        return False
    scale = float(other.float().abs().max())
    difference = float((one.float() - other.float()).abs().max())
    return difference <= math.sqrt(torch.finfo(one.dtype).eps) * scale


@contextlib.contextmanager
def as_they_were(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give modules back the attributes, parts and buffers that a call has replaced.

    BigBird, for one, exchanges its attention for good when it meets a short text.
    """
    before = [(vars(module), dict(vars(module)), _parts(module)) for module in modules]
    try:
        yield
    finally:
        for now, kept, parts in before:
            if not _are_same(now, kept):
                now.clear()
                now.update(kept)
            for name, part in parts.items():
                if not _are_same(now[name], part):
                    now[name].clear()
                    now[name].update(part)


def _parts(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {k: dict(vars(module)[k]) for k in ("_modules", "_parameters", "_buffers")}


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
