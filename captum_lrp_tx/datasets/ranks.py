"""Which part of the work is this process's: one of several of ``torchrun`` or ``accelerate``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Attributes:
        rank (int): Its number.
        count (int): How many there are.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    def mine(self, items: Sequence[T]) -> list[T]:
        """The items of this process: every ``count``-th one."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.group is not None:
            distributed.barrier(self.group)


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes of this run.

    A process group that exists (Hugging Face ``accelerate`` makes one) is used; one that
    ``torchrun`` or ``accelerate launch`` has prepared in the environment is made for the time of
    the block. Nothing but waiting goes through it, over gloo, which needs no GPU.

    Yields:
        Ranks: A single one where there is no other process.
    """
    if not distributed.is_available():
        yield Ranks()
        return
    prepared = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    own = prepared and not distributed.is_initialized()
    if own:
        distributed.init_process_group("gloo")
    try:
        if not distributed.is_initialized():
            yield Ranks()
            return
        # a group of our own: the usual one gives up waiting after some minutes
        group = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), group)
    finally:
        if own:
            distributed.destroy_process_group()
