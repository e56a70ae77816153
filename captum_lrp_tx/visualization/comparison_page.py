"""Comparisons of methods as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum_lrp_tx.visualization.colours import PURPLE, SIGNED, shade
from captum_lrp_tx.visualization.comparison import Strip, TextComparison
from captum_lrp_tx.visualization.comparison_figure import image_comparison_figure
from captum_lrp_tx.visualization.page import Box, embedded
from captum_lrp_tx.visualization.rendering import render
from captum_lrp_tx.visualization.wording import printable


def comparison_html(
    comparisons: Sequence[TextComparison] | TextComparison,
    *,
    title: str = "",
    facts: Sequence[tuple[str, str]] = (),
    merge: bool = True,
    whole: bool = True,
) -> str:
    """A page with one table for each text and one line of coloured text for each method.

    The page is self-contained: no scripts, and nothing is loaded from elsewhere. Numbers show on
    hovering over a word.

    Args:
        comparisons (TextComparison or sequence of them): What to show.
        title (str): Headline of the page; that of the only comparison unless given.
        facts (sequence of (str, str)): What holds for all of them.
        merge (bool): Join word-pieces.
        whole (bool): A document, or a part for another page, such as a notebook.

    Returns:
        str: An HTML document; all texts are escaped.

    Example::

        >>> page = comparison_html(TextComparison(["<b>"], [Strip("GI", [1.0])]))
        >>> "&lt;b&gt;" in page
        True
    """
    several = not isinstance(comparisons, TextComparison)
    listed = list(comparisons) if not isinstance(comparisons, TextComparison) else [comparisons]
    if not several:
        title = title or listed[0].title
    return _rendered(
        title, facts, whole, several=several, picture=None,
        lines=[(comparison, _texts(comparison, merge)) for comparison in listed],
        kinds={s.signed for c in listed for s in c.strips if s.is_drawn},
        common=any(c.common_scale for c in listed),
        signed=SIGNED, unsigned=PURPLE,
    )  # fmt: skip


def image_comparison_html(
    image: Any,
    strips: Sequence[Strip],
    *,
    title: str = "",
    facts: Sequence[tuple[str, str]] = (),
    common_scale: bool = False,
    whole: bool = True,
) -> str:
    """A page with the heat maps of all methods and a table of their numbers.

    Args:
        image (Tensor or array): See :func:`image_figure`.
        strips (sequence of Strip): With maps as relevance.
        title (str): Headline.
        facts (sequence of (str, str)): What is known about the output.
        common_scale (bool): One scale for all signed maps, and one for all others.
        whole (bool): A document, or a part for another page, such as a notebook.

    Returns:
        str: A self-contained HTML document; all texts are escaped.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    drawing = image_comparison_figure(image, strips, common_scale=common_scale, width=9.0)
    return _rendered(title, facts, whole, picture=embedded(drawing), strips=strips)


def _texts(comparison: TextComparison, merge: bool) -> list[list[Box]]:
    return [
        [
            Box.of(
                piece,
                f"{piece.relevance:{'+' if strip.signed else ''}.4g}",
                shade(piece.relevance, scale, strip.signed, piece.special),
            )
            for piece in pieces
        ]
        for strip, pieces, scale in comparison.lines(merge)
    ]


def _rendered(title: str, facts: Sequence[tuple[str, str]], whole: bool, **values: Any) -> str:
    title = printable(title) or "Comparison of methods"
    template = "comparison_page.html" if whole else "comparison_notebook.html"
    return render(template, title=title, facts=facts, **values)
