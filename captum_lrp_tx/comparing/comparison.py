"""What a comparison gives: one row for each method, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.methods.registry import result_of
from captum_lrp_tx.visualization.comparison import (
    Strip,
    TextComparison,
    comparison_terminal,
    image_comparison_terminal,
    numbers_table,
)
from captum_lrp_tx.visualization.comparison_figure import (
    comparison_figure,
    image_comparison_figure,
)
from captum_lrp_tx.visualization.comparison_page import comparison_html, image_comparison_html
from captum_lrp_tx.visualization.glyphs import quiet_about_glyphs
from captum_lrp_tx.visualization.wording import Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Row:
    """One method's explanation, or why there is none.

    Attributes:
        name (str): Of the method.
        relevance (Tensor, optional): Shape ``(tokens,)``; for images that of the pixels, or
            ``(rows, columns)`` of the patches.
        seconds (float): How long it took.
        sum (float, optional): Of the relevance, whatever token or patch it belongs to.
        delta (float, optional): What the relevance leaves out: output minus sum, or for methods
            with a baseline output minus that of the baseline minus sum; None for methods whose
            relevance is not meant to sum to anything.
        error (str, optional): Why the method does not apply.
        note (str): What to know about the relevance, e.g. that it is zero up to rounding.
        signed (bool): Whether relevance can speak against the output.
    """

    name: str
    relevance: Tensor | None
    seconds: float
    sum: float | None = None
    delta: float | None = None
    error: str | None = None
    note: str = ""
    signed: bool = True


@dataclass(frozen=True, eq=False)
class Comparison:
    """Explanations of one output by several methods.

    Attributes:
        tokens (tuple of str): Of a text; their ids as text if no names were given.
        target (int, tuple, Tensor or None): Of the explained output.
        output (float): The explained output.
        rows (tuple of Row): In the order of the methods asked for.
        special (tuple of bool, optional): Which tokens are special and drawn dimmed.
        baseline (str): Where Integrated Gradients and GradientShap start, in words; empty if
            neither is there.
        image (Tensor, optional): The explained image.
    """

    tokens: tuple[str, ...]
    target: Any
    output: float
    rows: tuple[Row, ...]
    special: tuple[bool, ...] | None = None
    baseline: str = ""
    image: Tensor | None = None

    def __getitem__(self, name: str) -> Row:
        """The row of a method, by its name in any spelling.

        Raises:
            KeyError: If there is none.
        """
        return result_of(name, {row.name: row for row in self.rows})

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def errors(self) -> Mapping[str, str]:
        """Methods that do not apply, with the reason."""
        return {row.name: row.error for row in self.rows if row.error is not None}

    def __str__(self) -> str:
        return numbers_table(self.strips())

    def strips(self) -> list[Strip]:
        """The rows as the functions of ``captum_lrp_tx.visualization`` take them."""
        return [
            Strip(row.name, row.relevance, row.signed, row.error or "", row.note, _numbers(row))
            for row in self.rows
        ]

    def drawing(
        self,
        *,
        title: str = "",
        facts: Sequence[tuple[str, str]] = (),
        scheme: Scheme = "auto",
        common_scale: bool = False,
    ) -> TextComparison:
        """A text's rows as the functions of ``captum_lrp_tx.visualization`` take them.

        Args:
            title (str): Headline.
            facts (sequence of (str, str)): What is known about the output.
            scheme (str): How tokens mark the borders of words.
            common_scale (bool): One scale for all signed methods, and one for all others, instead
                of one for each.
        """
        return TextComparison(
            self.tokens, self.strips(), title, self._facts(facts), self.special, scheme,
            common_scale,
        )  # fmt: skip

    def _facts(self, facts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        return (*facts, ("baseline", self.baseline)) if self.baseline else tuple(facts)

    def _image(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a drawing that images have too."""
        kept = {key: value for key, value in options.items() if key != "scheme"}
        return {**kept, "facts": self._facts(kept.get("facts", ()))}

    def terminal(
        self,
        width: int | None = None,
        colour: bool | None = None,
        *,
        merge: bool = True,
        **options: Any,
    ) -> str:
        """One line of coloured text, or one heat map, for each method.

        Args:
            width (int, optional): Columns; those of the terminal unless given.
            colour (bool, optional): Unless given, whatever standard output can show.
            merge (bool): Join word-pieces.
            options: See :meth:`drawing`.
        """
        if self.image is not None:
            common = bool(options.get("common_scale"))
            return image_comparison_terminal(self.strips(), width, colour, common_scale=common)
        return comparison_terminal(self.drawing(**options), width, colour, merge=merge)

    def html(self, *, merge: bool = True, whole: bool = True, **options: Any) -> str:
        """A self-contained page.

        Args:
            merge (bool): Join word-pieces.
            whole (bool): A document, or a part for another page, such as a notebook.
            options: See :meth:`drawing`.
        """
        if self.image is not None:
            return image_comparison_html(
                self.image, self.strips(), whole=whole, **self._image(options)
            )
        return comparison_html(self.drawing(**options), merge=merge, whole=whole)

    def _repr_html_(self) -> str:
        return self.html(whole=False)

    def figure(self, *, width: float = 6.5, merge: bool = True, **options: Any) -> Figure:
        """A matplotlib figure that pyplot does not know of.

        Args:
            width (float): In inches.
            merge (bool): Join word-pieces.
            options: See :meth:`drawing`.
        """
        if self.image is not None:
            return image_comparison_figure(
                self.image, self.strips(), width=width, **self._image(options)
            )
        return comparison_figure(self.drawing(**options), width=width, merge=merge)

    def png(self, path: Any, *, dpi: int = 200, **options: Any) -> None:
        """Writes :meth:`figure` as a PNG file.

        Args:
            path (str, PathLike or binary file): Where to write.
            dpi (int): Dots per inch.
            options: See :meth:`figure`.
        """
        drawing = self.figure(**options)
        with quiet_about_glyphs():
            drawing.savefig(path, format="png", dpi=dpi)


def _numbers(row: Row) -> tuple[tuple[str, str], ...]:
    total = "" if row.sum is None else _short(row.sum)
    left = "" if row.delta is None else _short(row.delta)
    return (("sum", total), ("left out", left), ("seconds", f"{row.seconds:.2f}"))


def _short(value: float) -> str:
    return f"{value:+.3f}" if 0.001 <= abs(value) < 1e5 else f"{value:+.1e}"
