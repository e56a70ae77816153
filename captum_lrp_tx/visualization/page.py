"""Heat maps as self-contained HTML pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.visualization.colours import RGB, SIGNED, colour_of, hexadecimal
from captum_lrp_tx.visualization.figures import image_figure
from captum_lrp_tx.visualization.rendering import render
from captum_lrp_tx.visualization.text import decimals_for
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Box:
    """A word or token in its colours.

    Attributes:
        text (str): The word.
        space (bool): Whether there is a space before it.
        special (bool): Whether it is drawn small.
        number (str): Its relevance.
        background, ink (str): Its colours.
    """

    text: str
    space: bool
    special: bool
    number: str
    background: str
    ink: str

    @classmethod
    def of(cls, piece: Piece, number: str, colours: tuple[RGB, RGB]) -> Box:
        """A piece of a text with its number and its colours."""
        background, ink = map(hexadecimal, colours)
        return cls(piece.text, piece.space, piece.special, number, background, ink)


@dataclass(frozen=True)
class Section:
    """One text or image on a page.

    Attributes:
        title (str): Headline.
        facts (sequence of (str, str)): What is listed above it.
        body (Markup): HTML.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    body: Markup


def html(heatmap: TokenHeatmap, *, merge: bool = True) -> str:
    """A page that shows the text as a heat map, with the numbers on hovering.

    The page is self-contained: no scripts, and nothing is loaded from elsewhere.

    Args:
        heatmap (TokenHeatmap): What to show.
        merge (bool): Join word-pieces.

    Returns:
        str: An HTML document; all texts are escaped.

    Example::

        >>> "&lt;b&gt;" in html(TokenHeatmap(["<b>"], [1.0]))
        True
    """
    return page([text_section(heatmap, merge=merge)])


def text_section(heatmap: TokenHeatmap, *, merge: bool = True) -> Section:
    """A text as a heat map, for :func:`page` or :func:`sections`."""
    scale = heatmap.scale(merge)
    places = max(4, decimals_for(scale))
    pieces = [
        Box.of(p, f"{p.relevance:+.{places}f}", colour_of(p.relevance, scale, p.special))
        for p in heatmap.pieces(merge)
    ]
    body = render(
        "text.html", pieces=pieces, least=f"{-scale:+.3g}", most=f"{scale:+.3g}",
        colours=SIGNED,
    )  # fmt: skip
    return Section(heatmap.title, heatmap.facts(), body)


def image_html(
    image: Any, relevance: Any, *, title: str = "", facts: Sequence[tuple[str, str]] = ()
) -> str:
    """A page with an image beside the heat map of its relevance.

    Args:
        image (Tensor or array): See :func:`image_figure`.
        relevance (Tensor or array): See :func:`image_figure`.
        title (str): Headline.
        facts (sequence of (str, str)): What to list above the image, see :func:`summary`.

    Returns:
        str: A self-contained HTML document; all texts are escaped.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return page([image_section(image, relevance, title=title, facts=facts)])


def image_section(
    image: Any, relevance: Any, *, title: str = "", facts: Sequence[tuple[str, str]] = ()
) -> Section:
    """An image beside its heat map, for :func:`page` or :func:`sections`."""
    drawing = image_figure(image, relevance)
    return figure_section(drawing, "image and its relevance", title=title, facts=facts)


def figure_section(
    drawing: Figure, alt: str, *, title: str = "", facts: Sequence[tuple[str, str]] = ()
) -> Section:
    """A figure, for :func:`page` or :func:`sections`; ``alt`` says what it shows."""
    return Section(title, facts, render("image.html", picture=embedded(drawing), alt=alt))


def embedded(drawing: Figure, dpi: int = 200) -> str:
    """A figure as a PNG file in base64, for the source of an image."""
    picture = io.BytesIO()
    drawing.savefig(picture, format="png", dpi=dpi)
    return base64.b64encode(picture.getvalue()).decode("ascii")


def sections(parts: Sequence[Section]) -> str:
    """Texts and images as HTML to be put into another page, such as a notebook.

    Args:
        parts (sequence of Section): What to show, one below the other.

    Returns:
        str: HTML with a style of its own, which changes nothing around it.
    """
    return render("notebook.html", parts=parts)


def page(parts: Sequence[Section]) -> str:
    """A self-contained HTML document; all texts are escaped.

    Args:
        parts (sequence of Section): What to show, one below the other.

    Returns:
        str: A document without scripts, to which nothing is loaded from elsewhere.
    """
    title = f"Relevance of {len(parts)} predictions"
    if len(parts) == 1:
        title = printable(parts[0].title) or "Relevance"
    return render("sections.html", parts=parts, title=title)
