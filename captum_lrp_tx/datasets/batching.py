"""Which examples are explained together, and which batches share a file.

Both depend on the lengths and on settings only, not on how many processes there are or what has
been done before: so every batch, and with it every bit of the relevance, is the same in any run.
"""

from __future__ import annotations

from collections.abc import Sequence

Batch = list[int]


def plan_batches(lengths: Sequence[int], token_budget: int, padded: bool = True) -> list[Batch]:
    """Batches of examples of about one length, longest first.

    The longest come first, so that memory runs out at once or not at all.

    Args:
        lengths (sequence of int): Number of tokens of each example.
        token_budget (int): Upper bound on the tokens of a batch, padding included. A longer
            example makes a batch of its own.
        padded (bool): Whether examples of different lengths may share a batch.

    Example::

        >>> plan_batches([3, 9, 4, 4], token_budget=9)
        [[1], [2, 3], [0]]
    """
    batches: list[Batch] = []
    widest = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fits = (
            batches
            and (len(batches[-1]) + 1) * widest <= token_budget
            and (padded or lengths[row] == widest)
        )
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
            widest = lengths[row]
    return batches


def plan_shards(batches: Sequence[Batch], per_shard: int) -> list[list[Batch]]:
    """Consecutive batches that are written to one file.

    Example::

        >>> plan_shards([[1], [2, 3], [0]], 2)
        [[[1], [2, 3]], [[0]]]
    """
    return [list(batches[i : i + per_shard]) for i in range(0, len(batches), per_shard)]
