"""Which model families are explained with verified rules, as measured and shipped.

Each family was built with tiny random weights and explained with ``strict=True`` under ``ah+ln``
(:class:`~captum_lrp_tx.ConservativeGI`) and ``lrp`` (:class:`~captum_lrp_tx.ConservativeLRP`); the
relevance was compared, at 1e-4 of its largest value, with an independent computation that holds
recorded patterns, divisors and gates constant.  ``benchmarks/families.py`` in the repository
repeats the measurement and writes the files that are read here.

A model that is not in the table is explained just as well if it uses standard parts:
``audit.explainability(model, inputs)`` and ``strict=True`` judge the model at hand.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, Union, overload

from captum_lrp_tx.errors import InputError

__all__ = ["STATUSES", "Family", "SupportTable", "supported"]

Status = Literal["verified", "convention", "refused"]
#: What can become of a family, best first.
STATUSES: tuple[Status, ...] = ("verified", "convention", "refused")


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        library (str): ``"transformers"``, ``"timm"``, ``"torchvision"`` or ``"torch.nn"``.
        family (str): Model type of transformers, architecture of timm, ...
        model (str): The class that was explained.
        status (str): ``"verified"``: equal to the independent computation under both rule sets;
            ``"convention"``: so, with a convention that ``note`` states; ``"refused"``:
            ``strict=True`` raises, ``note`` names the operation that has no rule.
        note (str): The convention, or the reason of the refusal.
        attention (tuple of str): Attention implementations for which this holds; empty where the
            family has no choice.
        measured_with (tuple of str): Packages with their versions, e.g. ``"torch 2.13.0"``.
    """

    library: str
    family: str
    model: str
    status: Status
    note: str
    attention: tuple[str, ...]
    measured_with: tuple[str, ...]

    def __str__(self) -> str:
        attention = f" [{', '.join(self.attention)}]" if self.attention else ""
        note = f": {self.note}" if self.note else ""
        return f"{self.library:<13} {self.family:<32} {self.status}{attention}{note}"


class SupportTable(Sequence[Family]):
    """A sequence of :class:`Family` that prints as a table and counts."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = tuple(families)

    @overload
    def __getitem__(self, index: int) -> Family: ...

    @overload
    def __getitem__(self, index: slice) -> SupportTable: ...

    def __getitem__(self, index: int | slice) -> Union[Family, SupportTable]:
        if isinstance(index, slice):
            return SupportTable(self._families[index])
        return self._families[index]

    def __len__(self) -> int:
        return len(self._families)

    def counts(self) -> dict[str, int]:
        """How many families have each status."""
        return {status: sum(f.status == status for f in self) for status in STATUSES}

    def __str__(self) -> str:
        counted = ", ".join(f"{number} {status}" for status, number in self.counts().items())
        return "\n".join([*map(str, self), f"{len(self)} families: {counted}"])

    def __repr__(self) -> str:
        return f"SupportTable({len(self)} families: {self.counts()})"


@functools.lru_cache(None)
def _everything() -> tuple[Family, ...]:
    found: list[Family] = []
    folder = resources.files(__name__)
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".json"):
            continue
        survey = json.loads(file.read_text(encoding="utf-8"))
        versions = tuple(survey["measured_with"])
        for row in survey["families"]:
            attention = tuple(row.pop("attention"))
            found.append(Family(**row, attention=attention, measured_with=versions))
    return tuple(found)


def supported(library: str | None = None, status: str | None = None) -> SupportTable:
    """The shipped table of model families: verified, verified with a convention, or refused.

    Args:
        library (str, optional): Only families of this library: ``"transformers"``, ``"timm"``,
            ``"torchvision"`` or ``"torch.nn"``.
        status (str, optional): Only families with this status: ``"verified"``, ``"convention"``
            or ``"refused"``.

    Returns:
        SupportTable: A sequence of :class:`Family`; ``print`` shows it as a table.

    Raises:
        InputError: no such library or status.

    Example::

        >>> from captum_lrp_tx import supported
        >>> [f.status for f in supported("transformers") if f.family == "bert"]
        ['verified']
        >>> print(supported(status="refused"))  # which, and why
    """
    families = _everything()
    libraries = sorted({f.library for f in families})
    if library is not None and library not in libraries:
        raise InputError(f"No library {library!r} in the table; there are {', '.join(libraries)}.")
    if status is not None and status not in STATUSES:
        raise InputError(f"No status {status!r}; choose one of {', '.join(STATUSES)}.")
    return SupportTable(
        [
            f
            for f in families
            if (library is None or f.library == library) and (status is None or f.status == status)
        ]
    )
