"""The data sets of the experiments: what they are called, where their files are, how they are read.

All texts come from a folder of data files (``--shared``, see the README beside this file).  Rows
are ``sentence<TAB>label`` behind a header line, without quoting.

Example::

    >>> from pathlib import Path
    >>> from experiments.ali2022.data import TASKS
    >>> split = TASKS["sst2"].split(Path("../shared"), "test")  # doctest: +SKIP
    >>> split.texts[0], split.labels[0]  # doctest: +SKIP
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SplitName = Literal["train", "val", "test"]

#: Rows of the TweetEval sentiment val file that are kept out of training; it has no train file.
HELD_OUT = 400
#: Words of a long document, and the part of its sentences that has the label of the document.
LONG_WORDS = (160, 380)
LONG_SHARE = 0.75
#: How many long documents are made of each split of SST-2.
LONG_COUNTS: dict[SplitName, int] = {"train": 800, "val": 100, "test": 300}


class Split(NamedTuple):
    """Texts and their classes."""

    texts: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Task:
    """A text data set.

    Attributes:
        name (str): On the command line, and of the folder of its model.
        title (str): In tables.
        classes (tuple of str): Names of the classes, in the order of their numbers.
        source (callable): Reads a split: ``source(shared, name)``.
        note (str): How the splits come about, where there is something to say.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    source: Callable[[Path, SplitName], Split]
    note: str = ""

    def split(self, shared: Path, name: SplitName) -> Split:
        """Reads a split.

        Args:
            shared (Path): Folder with ``data``.
            name (str): ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Split: Texts and labels, in the order of the file.
        """
        return self.source(shared, name)


def read_rows(path: Path) -> Split:
    """Reads a file of ``sentence<TAB>label`` rows.

    Args:
        path (Path): UTF-8, with a header line.

    Returns:
        Split: In the order of the file.

    Raises:
        ValueError: A row has no label.
    """
    texts, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[1:], 2):
        if not line.strip():
            continue
        text, tab, label = line.rstrip("\r").rpartition("\t")
        if not tab or not label.lstrip("-").isdigit():
            raise ValueError(f"{path}, line {number}: no tab and label at its end")
        texts.append(text)
        labels.append(int(label))
    return Split(texts, labels)


def _files(folder: str, val: str) -> Callable[[Path, SplitName], Split]:
    def read(shared: Path, name: SplitName) -> Split:
        return read_rows(shared / "data" / folder / f"{val if name == 'val' else name}.tsv")

    return read


def _held_out(shared: Path, name: SplitName) -> Split:
    """TweetEval sentiment without a train file: its val file, in a seeded order, is cut in two."""
    folder = shared / "data/tweeteval/sentiment"
    if name == "test":
        return read_rows(folder / "test.tsv")
    rows = list(zip(*read_rows(folder / "val.tsv"), strict=True))
    random.Random(0).shuffle(rows)
    rows = rows[-HELD_OUT:] if name == "val" else rows[:-HELD_OUT]
    return Split([text for text, _ in rows], [label for _, label in rows])


def long_documents(sentences: Split, count: int, seed: int) -> Split:
    """Makes documents of the length of film reviews out of sentences.

    A document alternates between label 0 and 1. Its length is drawn evenly from ``LONG_WORDS``;
    three quarters of its sentences have its label, the others the opposite one, in random order,
    as reviews have good and bad things to say. No sentence comes twice in a document.

    Args:
        sentences (Split): Sentences with labels 0 and 1.
        count (int): Number of documents.
        seed (int): Of the choice of sentences.

    Returns:
        Split: The documents.

    Example::

        >>> made = long_documents(Split([f"word{i} " * 20 for i in range(80)], [0, 1] * 40), 2, 0)
        >>> made.labels, [len(text.split()) >= 140 for text in made.texts]
        ([0, 1], [True, True])
    """
    rng = random.Random(seed)
    pools = [
        [text for text, label in zip(*sentences, strict=True) if label == wanted]
        for wanted in (0, 1)
    ]
    texts, labels = [], []
    for number in range(count):
        label, words = number % 2, rng.randint(*LONG_WORDS)
        same, other = (rng.sample(pool, len(pool)) for pool in (pools[label], pools[1 - label]))
        chosen: list[str] = []
        size = minority = 0
        while True:
            wants_other = minority < (1 - LONG_SHARE) * len(chosen) - 0.5
            pool = other if wants_other else same
            if not pool or size + len(pool[-1].split()) > words:
                break
            chosen.append(pool.pop())
            size += len(chosen[-1].split())
            minority += wants_other
        rng.shuffle(chosen)
        texts.append(" ".join(chosen))
        labels.append(label)
    return Split(texts, labels)


def _long(shared: Path, name: SplitName) -> Split:
    files = {"train": "train", "val": "dev", "test": "test"}
    sentences = read_rows(shared / "data/sst2" / f"{files[name]}.tsv")
    return long_documents(sentences, LONG_COUNTS[name], seed=0)


_POLARITY = ("negative", "positive")

#: In the order in which they are reported.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", "SST-2", _POLARITY, _files("sst2", "dev")),
        Task(
            "long", "long documents", _POLARITY, _long,
            "made of the sentences of the same split of SST-2, 160 to 380 words, three quarters "
            "of the sentences with the label of the document; in place of IMDB",
        ),
        Task(
            "emotion", "TweetEval emotion", ("anger", "joy", "optimism", "sadness"),
            _files("tweeteval/emotion", "val"),
        ),
        Task("hate", "TweetEval hate", ("not hate", "hate"), _files("tweeteval/hate", "val")),
        Task(
            "sentiment", "TweetEval sentiment", ("negative", "neutral", "positive"), _held_out,
            f"no train file: trained on the val file without {HELD_OUT} rows of it, which are val",
        ),
        Task("meld", "MELD sentiment", ("neutral", "positive", "negative"), _files("meld", "dev")),
    )
}  # fmt: skip


def sample(split: Split, count: int, seed: int = 0) -> list[int]:
    """Which rows of a split an experiment uses, in random order.

    A larger sample with the same seed begins with the smaller one.

    Args:
        split (Split): The rows.
        count (int): How many at most; 0 for all.
        seed (int): Of the order.

    Returns:
        list[int]: Row numbers.

    Example::

        >>> rows = Split(list("abcdef"), [0] * 6)
        >>> sample(rows, 4)[:2] == sample(rows, 2)
        True
    """
    order = list(range(len(split.texts)))
    random.Random(seed).shuffle(order)
    return order[: count or None]


def digits(shared: Path, count: int = 1000, before: int = 0) -> tuple[Tensor, list[int]]:
    """The last digits of the 10,000-image MNIST file, which the model did not see in training.

    Args:
        shared (Path): Folder with ``data``.
        count (int): How many.
        before (int): Leave out so many at the end.

    Returns:
        tuple: Images of shape ``(count, 1, 28, 28)`` between -1 and 1, and their labels.
    """
    with gzip.open(shared / "data/mnist/t10k-images-idx3-ubyte.gz") as file:
        pixels = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8)
    with gzip.open(shared / "data/mnist/t10k-labels-idx1-ubyte.gz") as file:
        labels = list(file.read()[8:])
    rows = slice(max(len(labels) - before - count, 0), len(labels) - before)
    images = pixels.reshape(-1, 1, 28, 28)[rows].float() / 255
    return (images - 0.5) / 0.5, labels[rows]
