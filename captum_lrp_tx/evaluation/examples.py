"""The examples that methods are evaluated on."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.runs.encoding import encode, whole_numbers
from captum_lrp_tx.runs.padding import padded_batch
from captum_lrp_tx.runs.subject import content_of

Inputs = Union[Tensor, Mapping[str, Any]]


class Examples(ABC):
    """Numbered examples with labels, from which batches are made.

    Attributes:
        labels (tuple of int, optional): Class of each example.
    """

    labels: tuple[int, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def inputs(self, rows: Sequence[int]) -> Inputs:
        """What the model is called with for some of the examples, padded to one length."""

    @abstractmethod
    def lengths(self) -> Sequence[int]:
        """Length of each example; those of one length are explained together, without padding."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all examples and labels."""

    def _check_labels(self, labels: Sequence[int] | None) -> tuple[int, ...] | None:
        if labels is None:
            return None
        if len(labels) != len(self):
            raise InputError(f"{len(labels)} labels for {len(self)} examples; give one for each")
        numbers = whole_numbers(labels)
        if numbers is None:
            raise InputError("labels must be numbers of classes, one for each example")
        return tuple(numbers)


class TextExamples(Examples):
    """Texts, with the tokenizer of the model.

    Args:
        texts: A sequence of texts, or a ``datasets.Dataset`` with a column ``sentence``, ``text``
            or ``review`` and maybe ``label``; see :func:`captum_lrp_tx.attribute_dataset`.
        tokenizer (PreTrainedTokenizerBase): Of transformers.
        labels (sequence of int, optional): Class of each; those of the data set unless given.
        max_length (int, optional): Longer texts are cut to so many tokens.

    Attributes:
        truncated (int): How many were cut.

    Raises:
        InputError: No texts, or another number of labels.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> _, tokenizer = sentiment()
        >>> examples = TextExamples(["a charming film", "dull"], tokenizer, [1, 0])
        >>> examples.inputs([0, 1])["input_ids"].shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        texts: Any,
        tokenizer: Any,
        labels: Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        if not len(texts):
            raise InputError("there are no texts; give at least one")
        self._encoded = encode(texts, tokenizer, max_length=max_length)
        self._pad_id = pad_id if isinstance(pad_id := tokenizer.pad_token_id, int) else 0
        self._lengths = self._encoded.lengths()
        self.truncated = 0
        if max_length is not None and max_length in self._lengths:  # some may have been longer
            whole = encode(texts, tokenizer).lengths()
            self.truncated = sum(length > max_length for length in whole)
        self.labels = self._check_labels(self._encoded.labels if labels is None else labels)

    def __len__(self) -> int:
        return len(self._lengths)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        return padded_batch([self._encoded.examples[row] for row in rows], self._pad_id)

    def lengths(self) -> Sequence[int]:
        return self._lengths

    def fingerprint(self) -> str:
        labels = None if self.labels is None else list(self.labels)
        return replace(self._encoded, labels=labels).fingerprint()


class ImageExamples(Examples):
    """Images of one size, in the form that the model takes.

    Args:
        images (Tensor): Shape ``(examples, channels, height, width)``, float.
        labels (sequence of int, optional): Class of each.

    Raises:
        InputError: Another shape or number of labels, or no images.

    Example::

        >>> from captum_lrp_tx.models import digit_samples
        >>> examples = ImageExamples(*digit_samples())
        >>> examples.inputs([0, 3]).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, images: Tensor, labels: Any = None) -> None:
        if images.dim() != 4 or not images.numel() or not images.is_floating_point():
            raise InputError(
                "images must be floats of shape (examples, channels, height, width), not "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        self._images = images
        self.labels = self._check_labels(labels)

    def __len__(self) -> int:
        return self._images.shape[0]

    def inputs(self, rows: Sequence[int]) -> Inputs:
        return self._images[torch.tensor(list(rows))]

    def lengths(self) -> Sequence[int]:
        return [1] * len(self)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(content_of(self._images))
        digest.update(repr((tuple(self._images.shape), self.labels)).encode())
        return digest.hexdigest()[:16]


class ImageFiles(Examples):
    """Images in files, read when they are needed.

    Args:
        files (sequence of Path): The files.
        read (callable): From a file to a tensor ``(1, channels, height, width)``.
        labels (sequence of int, optional): Class of each.

    Raises:
        InputError: No files, or another number of labels.

    Example::

        >>> examples = ImageFiles([Path("cat.png")], read)  # doctest: +SKIP
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], Tensor],
        labels: Sequence[int] | None = None,
    ) -> None:
        if not files:
            raise InputError("there are no images; give at least one file")
        self._files = list(files)
        self._read = functools.lru_cache(maxsize=64)(read)
        self.labels = self._check_labels(labels)

    def __len__(self) -> int:
        return len(self._files)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        return torch.cat([self._read(self._files[row]) for row in rows])

    def lengths(self) -> Sequence[int]:
        return [1] * len(self)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.labels).encode())
        for file in self._files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.name} {content}".encode())
        return digest.hexdigest()[:16]
