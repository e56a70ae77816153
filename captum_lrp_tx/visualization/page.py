"""Heat maps as self-contained HTML pages."""

from __future__ import annotations

import base64
import html as _html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captum_lrp_tx.visualization.colours import BLUE, RED, colour_of, hexadecimal
from captum_lrp_tx.visualization.figures import image_figure
from captum_lrp_tx.visualization.tokens import TokenHeatmap
from captum_lrp_tx.visualization.wording import printable

#: Of what is shown, on a page of its own as in a notebook, whose colours are kept.
_STYLE = """
.lrp dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:0 0 1.25rem;
font-size:.9rem}
.lrp dt{color:#757b83;font-weight:400;text-align:left}
.lrp dd{margin:0;font-variant-numeric:tabular-nums}
.lrp .text{line-height:2.15;overflow-wrap:anywhere}
.lrp .t{position:relative;padding:.2em .3em;border-radius:.25em;white-space:pre-wrap;
-webkit-box-decoration-break:clone;box-decoration-break:clone}
.lrp .s{font-size:.8em}
.lrp .t:hover{outline:2px solid #888}
.lrp .t:hover::after{content:attr(data-r);position:absolute;left:50%;bottom:100%;z-index:1;
transform:translateX(-50%);margin-bottom:.3em;padding:.15em .5em;border-radius:.25em;
background:#1a1a1a;color:#fff;font-size:.8rem;line-height:1.4;white-space:nowrap}
.lrp .legend{display:flex;align-items:center;gap:.6rem;margin-top:1.25rem;font-size:.8rem;
color:#757b83;font-variant-numeric:tabular-nums}
.lrp .legend i{width:12rem;height:.7rem;border-radius:.2rem}
.lrp img{max-width:100%;height:auto;background:#fff}
"""
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;max-width:46rem;
margin:2.5rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.25rem;font-weight:600;margin:0 0 .75rem}
section{margin-bottom:3rem}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#16181c}
.lrp dt,.lrp .legend{color:#9aa0a6}}
"""


@dataclass(frozen=True)
class Section:
    """One text or image on a page.

    Attributes:
        title (str): Headline.
        facts (sequence of (str, str)): What is listed above it.
        body (str): HTML.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    body: str


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
    boxes = []
    for piece in heatmap.pieces(merge):
        background, ink = colour_of(piece.relevance, scale, piece.special)
        number = f"{piece.relevance:+.4f}"
        kind = "t s" if piece.special else "t"
        boxes.append(
            f'{" " if piece.space else ""}<span class="{kind}" data-r="{number}" '
            f'aria-label="{_escape(piece.text)}: {number}" '
            f'style="background:{hexadecimal(background)};color:{hexadecimal(ink)}">{_escape(piece.text)}</span>'
        )
    stops = ",".join(hexadecimal(rgb) for rgb in (*BLUE[::-1], *RED[1:]))
    body = (
        f'<p class="text" dir="auto">{"".join(boxes).strip()}</p>\n'
        f'<div class="legend"><span>against {-scale:+.3g}</span>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<span>{scale:+.3g} for</span></div>"
    )
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
    picture = io.BytesIO()
    image_figure(image, relevance).savefig(picture, format="png", dpi=200)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    body = f'<img alt="image and its relevance" src="data:image/png;base64,{data}">'
    return Section(title, facts, body)


def sections(parts: Sequence[Section]) -> str:
    """Texts and images as HTML to be put into another page, such as a notebook.

    Args:
        parts (sequence of Section): What to show, one below the other.

    Returns:
        str: HTML with a style of its own, which changes nothing around it.
    """
    shown = "\n".join(f'<div dir="ltr">{_listed(part.facts)}\n{part.body}</div>' for part in parts)
    return f'<div class="lrp"><style>{_STYLE}</style>\n{shown}\n</div>'


def _listed(facts: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(text)}</dd>" for name, text in facts)
    return f"<dl>{listed}</dl>"


def page(parts: Sequence[Section]) -> str:
    """A self-contained HTML document; all texts are escaped.

    Args:
        parts (sequence of Section): What to show, one below the other.

    Returns:
        str: A document without scripts, to which nothing is loaded from elsewhere.
    """
    titles = [_escape(printable(part.title)) or "Relevance" for part in parts]
    shown = "\n".join(
        f"<section>\n<h1>{title}</h1>\n{_listed(part.facts)}\n{part.body}\n</section>"
        for title, part in zip(titles, parts, strict=True)
    )
    title = titles[0] if len(titles) == 1 else f"Relevance of {len(titles)} predictions"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # a second line of defence behind the escaping: nothing can run or be fetched
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{title}</title>\n<style>{_PAGE_STYLE}{_STYLE}</style>\n</head>\n"
        f'<body class="lrp">\n{shown}\n</body>\n</html>\n'
    )


def _escape(text: str) -> str:
    return _html.escape(text, quote=True)
