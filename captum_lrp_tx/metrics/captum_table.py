"""A table of Captum's infidelity and sensitivity: means with intervals, in several formats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_tx.methods.registry import result_of
from captum_lrp_tx.metrics.bootstrap import Interval

_COLUMNS = ("method", "infidelity", "scaled infidelity", "sensitivity", "n")
_NONE = "\u2013"


@dataclass(frozen=True, eq=False)
class CaptumScore:
    """The scores of one method: means over the examples with their bootstrap intervals.

    Attributes:
        method (str): Its name.
        infidelity (Interval, optional): ``captum.metrics.infidelity``, in squared units of the
            explained output; less is better. None if the method does not apply.
        scaled_infidelity (Interval, optional): The same with ``normalize=True``: after the
            relevance of each example was multiplied by the factor that fits best, so that units do
            not matter, as they should not for attention maps and saliency. The factor may be
            negative, so this number does not tell evidence for the output from evidence against.
        sensitivity (Interval, optional): ``captum.metrics.sensitivity_max``: largest relative
            change of the relevance under noise; less is more stable, not truer. None, like the
            scaled infidelity, if all relevance is zero up to rounding (gradient x input of tokens
            on models with a norm right behind the embeddings).
        n (int): Number of examples.
        error (str): Why the method does not apply.
        note (str): What else to know.
        values (dict): ``"infidelity"``, ``"scaled_infidelity"`` and ``"sensitivity"`` of each
            example, ``(n,)``, for paired comparisons; NaN where there is none.
    """

    method: str
    infidelity: Interval | None
    scaled_infidelity: Interval | None
    sensitivity: Interval | None
    n: int
    error: str = ""
    note: str = ""
    values: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class CaptumScores:
    """A table of scores; ``print`` it, or take :meth:`markdown` or :meth:`csv`.

    Attributes:
        rows (tuple of CaptumScore): In the order of the methods.
        reference (Interval): Infidelity of an explanation that says nothing (relevance zero
            everywhere): the mean squared change of the output. A scaled infidelity near it means
            that the relevance has nothing to do with the changes.
        settings (str): How it was measured, in words.

    Example::

        >>> scores = captum_scores(model, inputs, ["GI", "LRP"], masker=masker)  # see there
        >>> print(scores["LRP"].infidelity)  # doctest: +SKIP
        >>> first, second = (scores[name].values["infidelity"] for name in ("LRP", "GI"))
        >>> difference = paired_bootstrap(first, second)
    """

    rows: tuple[CaptumScore, ...]
    reference: Interval
    settings: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[CaptumScore]:
        return iter(self.rows)

    def __getitem__(self, method: str) -> CaptumScore:
        return result_of(method, {row.method: row for row in self.rows})

    def __str__(self) -> str:
        cells = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([*(line.rstrip() for line in lines), *self._notes()])

    def markdown(self) -> str:
        """The table in Markdown, with the settings below it."""
        cells = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(row) for row in self.rows)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        return "\n\n".join([table, "  \n".join(self._notes())]) + "\n"

    def csv(self) -> str:
        """The numbers, with a line for each method and the ends of the intervals beside the mean.

        Returns:
            str: Comma-separated, with a header line; empty cells where there is no number.
        """
        names = ("infidelity", "scaled_infidelity", "sensitivity")
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
        writer.writerow(["method", *ends, "n", "note"])
        for row in self.rows:
            numbers: list[Any] = []
            for interval in (row.infidelity, row.scaled_infidelity, row.sensitivity):
                numbers += (
                    [interval.estimate, interval.low, interval.high] if interval else [""] * 3
                )
            writer.writerow([row.method, *numbers, row.n, row.error or row.note])
        return stream.getvalue()

    def _notes(self) -> list[str]:
        notes = [
            f"{row.method}: {row.error or row.note}" for row in self.rows if row.error or row.note
        ]
        reference = f"relevance zero everywhere: infidelity {_cell(self.reference)}"
        return [*notes, reference, *([self.settings] if self.settings else [])]


def _cells(row: CaptumScore) -> tuple[str, ...]:
    intervals = (row.infidelity, row.scaled_infidelity, row.sensitivity)
    return (row.method, *(_NONE if i is None else _cell(i) for i in intervals), str(row.n))


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
