"""What an evaluation gives: numbers for each method, and how they are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.evaluation.measures import Measure, Measured, find_measure
from captum_lrp_tx.methods.registry import result_of
from captum_lrp_tx.metrics.bootstrap import (
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
    places_for,
)
from captum_lrp_tx.metrics.curves import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What was measured of one method.

    Attributes:
        name (str): Of the method.
        rows (tuple of int): Numbers of the examples.
        measured (mapping): Curve, or one number for each example, by the name of the metric.
        seconds (float): Of one explanation, on average; without the metrics.
        error (str, optional): Why the method does not apply.
    """

    name: str
    rows: tuple[int, ...]
    measured: Mapping[str, Measured]
    seconds: float
    error: str | None = None

    def values(self, metric: str) -> Tensor:
        """One number for each example, areas of curves among them: ``(examples,)``.

        Args:
            metric (str): Name of a metric.

        Raises:
            InputError: The method does not apply, or the metric was not asked for.
        """
        name = find_measure(metric).name
        if self.error is not None:
            raise InputError(f"{self.name} has no results: {self.error}")
        if name not in self.measured:
            raise InputError(
                f"{name} was not measured, name it in metrics=; "
                f"measured: {', '.join(self.measured)}"
            )
        found = self.measured[name]
        return found.area if isinstance(found, Curve) else found

    def interval(self, metric: str, **options: Any) -> Interval:
        """Mean over the examples with its bootstrap interval.

        Args:
            metric (str): Name of a metric.
            options: See :func:`~captum_lrp_tx.metrics.bootstrap.bootstrap_interval`.
        """
        return bootstrap_interval(self.values(metric), **options)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Faithfulness of several methods on the same examples; ``str()`` is a table.

    Attributes:
        methods (tuple of MethodResult): In the order in which they were asked for.
        measures (tuple of Measure): What was measured.
        facts (mapping): How, in words.
    """

    methods: tuple[MethodResult, ...]
    measures: tuple[Measure, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> MethodResult:
        """The result of a method, by its name in any spelling.

        Raises:
            KeyError: There is none of that name.
        """
        return result_of(name, {method.name: method for method in self.methods})

    def __iter__(self) -> Iterator[MethodResult]:
        return iter(self.methods)

    def __str__(self) -> str:
        return self.markdown()

    @property
    def errors(self) -> dict[str, str]:
        """Methods that do not apply, with the reason."""
        return {m.name: m.error for m in self.methods if m.error is not None}

    def difference(self, first: str, second: str, metric: str, **options: Any) -> Difference:
        """Difference of two methods on the examples that both have: first minus second.

        Args:
            first, second (str): Names of methods.
            metric (str): Name of a metric.
            options: See :func:`~captum_lrp_tx.metrics.bootstrap.paired_bootstrap`.

        Raises:
            KeyError: No such method.
            InputError: No such metric, or no example in common.
        """
        one, other = self[first], self[second]
        common = sorted(set(one.rows) & set(other.rows))
        if not common and one.error is None and other.error is None:
            raise InputError(
                f"{first} and {second} have no example in common; measure both on the same ones"
            )
        pair = []
        for method in (one, other):
            place = {row: i for i, row in enumerate(method.rows)}
            pair.append(method.values(metric)[[place[row] for row in common]])
        return paired_bootstrap(pair[0], pair[1], **options)

    def markdown(self, reference: str | None = None) -> str:
        """A table in Markdown, with notes below it.

        Numbers are means over the examples with 95 % bootstrap intervals; the best of each column
        is bold, among the methods that have all examples.

        Args:
            reference (str, optional): Also give each method's difference from this one, on common
                examples, with the two-sided p-value of the paired bootstrap.

        Raises:
            KeyError: There is no such method as ``reference``.
        """
        if reference is not None:
            method = self[reference]
            reference = method.name if method.error is None else None
        head = ["method"]
        for measure in self.measures:
            head.append(f"{measure.title} {'↑' if measure.higher else '↓'}")
            if reference is not None:
                head.append(f"minus {reference}")
        head += ["n", "s / example"]
        best = {measure.name: self._best(measure) for measure in self.measures}
        lines = [head]
        for method in self.methods:
            if method.error is not None:
                blanks = [""] * (len(head) - 2)
                lines.append([method.name, f"does not apply: {_cell(method.error)}", *blanks])
                continue
            cells = [method.name]
            for measure in self.measures:
                interval, places = method.interval(measure.name), self._places(measure)
                mean = f"{interval.estimate:.{places}f}"
                if method.name in best[measure.name]:
                    mean = f"**{mean}**"
                cells.append(f"{mean} [{interval.low:.{places}f}, {interval.high:.{places}f}]")
                if reference is not None:
                    cells.append(self._minus(method.name, reference, measure))
            lines.append([*cells, str(len(method.rows)), f"{method.seconds:.3f}"])
        widths = [max(len(line[i]) for line in lines if len(line[1]) < 60 or i != 1)
                  for i in range(len(head))]  # fmt: skip
        table = [_row(line, widths) for line in lines]
        table.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = [f"{name}: {text}" for name, text in self.facts.items()]
        return "\n".join([*table, "", "; ".join(notes) + ".", ""])

    def csv(self) -> str:
        """A table with one line for each method and a header."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        head = ["method"]
        for measure in self.measures:
            head += [measure.title, f"{measure.title} low", f"{measure.title} high"]
        writer.writerow([*head, "n", "seconds", "reason"])
        for method in self.methods:
            cells: list[Any] = [method.name]
            for measure in self.measures:
                if method.error is not None:
                    cells += ["", "", ""]
                    continue
                interval = method.interval(measure.name)
                cells += [f"{v:.8g}" for v in (interval.estimate, interval.low, interval.high)]
            seconds = "" if method.error is not None else f"{method.seconds:.4f}"
            writer.writerow([*cells, len(method.rows), seconds, method.error or ""])
        return stream.getvalue()

    def figure(self, **options: Any) -> Figure:
        """The mean curves: see :func:`~captum_lrp_tx.evaluation.figure.curves_figure`."""
        from captum_lrp_tx.evaluation.figure import curves_figure

        return curves_figure(self, **options)

    def png(self, path: Any, *, dpi: int = 200, **options: Any) -> None:
        """Writes :meth:`figure` as a PNG file.

        Args:
            path (str, PathLike or binary file): Where to write.
            dpi (int): Dots per inch.
            options: See :meth:`figure`.
        """
        self.figure(**options).savefig(path, format="png", dpi=dpi)

    def _places(self, measure: Measure) -> int:
        """How many digits a metric is shown with, by the method that has the most of it."""
        found = [m for m in self.methods if m.error is None]
        sizes = [abs(float(m.values(measure.name).mean())) for m in found]
        return places_for(max(sizes, default=0.0))

    def _best(self, measure: Measure) -> set[str]:
        found = [m for m in self.methods if m.error is None]
        most = max((len(m.rows) for m in found), default=0)
        means = {
            m.name: round(float(m.values(measure.name).mean()), self._places(measure))
            for m in found
            if len(m.rows) == most
        }
        if len(means) < 2:
            return set()
        best = (max if measure.higher else min)(means.values())
        return {name for name, mean in means.items() if mean == best}

    def _minus(self, name: str, reference: str, measure: Measure) -> str:
        if name == reference:
            return ""
        difference = self.difference(name, reference, measure.name)
        p = "< 0.001" if difference.p < 0.001 else f"= {difference.p:.3f}"
        return f"{difference.estimate:+.{self._places(measure)}f} (p {p})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"


def mean_curve(curve: Curve) -> tuple[Tensor, Tensor]:
    """Fractions and the mean of all examples there, for a drawing.

    Args:
        curve (Curve): Of several examples; at each per cent if each has steps of its own.

    Example::

        >>> curve = Curve("c", torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 2.0], [2.0, 2.0]]))
        >>> mean_curve(curve)[1]
        tensor([1., 2.], dtype=torch.float64)
    """
    if curve.fractions.dim() == 1:
        return curve.fractions, curve.values.mean(0)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    return grid, curve.at(grid).mean(0)
