"""Examples from files: tables of texts, arrays of images, labels."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_lrp_tx.attr.class_names import class_number, no_class
from captum_lrp_tx.cli.tables import read_content, read_table
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining.images import image_shape, scaled

Array = np.ndarray[Any, np.dtype[Any]]
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_texts(file: Path) -> tuple[list[str], list[str] | None]:
    """Texts and, where there are any, their labels as they are written.

    Args:
        file (Path): See :func:`captum_lrp_tx.cli.tables.read_table`.

    Raises:
        InputError: The file cannot be read, or holds no text, or a line lacks its label.
    """
    table = read_table(file)
    texts = [text for _, text, _ in table.rows]
    if not table.label:
        return texts, None
    for number, _, label in table.rows:
        if not label:
            raise InputError(
                f"line {number} of {file} has no label; give it one, or leave out the line"
            )
    return texts, [label for _, _, label in table.rows]


def read_images(file: Path) -> Tensor:
    """Images of an array, scaled to -1..1.

    Args:
        file (Path): ``.npy``; ``.npz`` with an entry ``images`` or ``x``; or the format of MNIST
            (``idx3-ubyte``, plain or ``.gz``). Shape ``(n, height, width)``, ``(n, channels,
            height, width)`` or ``(n, height, width, channels)`` with 1 or 3 channels. Values are
            taken for -1..1 if some are negative, floats of at most 1 for 0..1, others for 0..255.

    Returns:
        Tensor: Shape ``(n, channels, height, width)``, float32.

    Raises:
        InputError: The file cannot be read or holds something else.
    """
    array = _array(file, ("images", "x", "pixels"))
    if array.dtype.kind not in "uif":
        raise InputError(f"{file} holds {array.dtype} values; images have numbers")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise InputError(
            f"{file} has the shape {array.shape}; images have (n, height, width) or (n, channels, "
            "height, width) with 1 or 3 channels"
        )
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return scaled(values, np.issubdtype(array.dtype, np.integer), str(file))


def check_shape(images: Tensor, file: Path, config: Any) -> None:
    """Complains about images that a model does not take.

    Raises:
        InputError: They have another shape than its configuration has.
    """
    if tuple(images.shape[1:]) != image_shape(config):
        raise InputError(
            f"{file} has images of the shape {tuple(images.shape[1:])}, but the model takes "
            f"{image_shape(config)}"
        )


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and of those within it.

    Raises:
        InputError: There are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    if not files:
        raise InputError(f"the folder {folder} holds no images ({', '.join(_IMAGES)})")
    return files


def read_labels(file: Path) -> list[str]:
    """Labels as they are written.

    Args:
        file (Path): One in each line; or ``.npy``, ``.npz`` (entry ``labels`` or ``y``), or the
            format of MNIST (``idx1-ubyte``, plain or ``.gz``).

    Raises:
        InputError: The file cannot be read or holds something else.
    """
    if is_array(file):
        array = _array(file, ("labels", "y"))
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"{file} holds {array.dtype} of shape {array.shape}; labels are one integer for "
                "each example"
            )
        return [str(label) for label in array.tolist()]
    return [line for line in read_lines(file) if line]


def read_lines(file: Path) -> list[str]:
    """The lines of a text, empty ones between others among them.

    Raises:
        InputError: The file cannot be read.
    """
    return [line.strip() for line in read_content(file).rstrip("\n").split("\n")]


def class_numbers(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """Classes by their number or name.

    Args:
        labels (sequence of str): As they are written; all of them numbers, or all names.
        names (sequence of str): Of the model's classes.

    Raises:
        TargetError: A label that the model has no class for.

    Example::

        >>> class_numbers(["Positive", "negative"], ["negative", "positive"])
        [1, 0]
    """
    known = {name.casefold() for name in names}
    named = any(label.casefold() in known for label in labels)
    for label in labels:
        if named != (label.casefold() in known):
            raise no_class(label, names)
    return [class_number(label, names) for label in labels]


def is_array(file: Path) -> bool:
    """Whether the name says that it is an array: NumPy's, or MNIST's."""
    return file.suffix.lower() in (".npy", ".npz", ".gz") or bool(re.search(r"idx\d", file.name))


def _array(file: Path, keys: Sequence[str]) -> Array:
    try:
        if file.suffix.lower() == ".npy":
            loaded: Array = np.load(file, allow_pickle=False)
            return loaded
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as entries:
                for key in keys:
                    if key in entries:
                        return np.asarray(entries[key])
                raise InputError(
                    f"{file} has the entries {', '.join(entries.files)}; one must be called "
                    f"{' or '.join(keys)}"
                )
        if file.suffix.lower() == ".gz":
            with gzip.open(file) as stream:
                return _idx(stream.read())
        return _idx(file.read_bytes())
    except (OSError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {file} as an array: {why}") from error


def _idx(content: bytes) -> Array:
    """The format of MNIST: two zeros, type, number of dimensions, sizes, values."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError("it is neither .npy nor in the format of MNIST")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
    kind = np.dtype(_IDX_TYPES[content[2]])
    start = 4 + 4 * dimensions
    if len(content) != start + int(np.prod(shape)) * kind.itemsize:
        raise ValueError("it is cut off")
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))
