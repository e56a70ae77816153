"""Comparisons of methods as a self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from captum_lrp_tx.visualization.colours import BLUE, RED, RGB, hexadecimal
from captum_lrp_tx.visualization.comparison import PURPLE, Strip, TextComparison, shade
from captum_lrp_tx.visualization.comparison_figure import image_comparison_figure
from captum_lrp_tx.visualization.page import _PAGE_STYLE, _STYLE, _escape
from captum_lrp_tx.visualization.wording import printable

_MORE_STYLE = """
.lrp h2{font-size:1rem;font-weight:600;margin:2.25rem 0 .4rem}
.lrp section{margin-bottom:0}
.lrp section+section{border-top:1px solid #d8d8d8}
.lrp dl{margin-bottom:.6rem}
.lrp table{color:inherit;border-collapse:collapse;width:100%;font-size:.95rem}
.lrp thead th{font-size:.75rem;font-weight:400;color:#757b83;text-align:right;white-space:nowrap;
border-bottom:1px solid #9a9a9a}
.lrp thead th:first-child{text-align:left}
.lrp td,.lrp th{padding:.12rem .5rem;vertical-align:baseline}
.lrp thead th:first-child{padding-left:0}
.lrp tbody th{font-weight:500;text-align:left;white-space:nowrap;padding-left:0}
.lrp .text{line-height:1.9;width:100%;text-align:left}
.lrp .t{padding:.14em .24em;border-radius:.2em}
.lrp .n{text-align:right;white-space:nowrap;font-size:.78rem;font-variant-numeric:tabular-nums;
color:#757b83}
.lrp .e{color:#757b83;font-style:italic;font-size:.85rem}
.lrp tbody tr+tr{border-top:1px solid #8884}
.lrp .legend{flex-wrap:wrap}
.lrp .legend i{width:7rem}
.lrp .legend span+i,.lrp .legend i+span{margin-left:-.2rem}
.lrp .legend b{width:.6rem}
@media print{.lrp section{break-inside:avoid}}
"""


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
    parts = []
    for comparison in listed:
        heading = f"<h2>{_escape(printable(comparison.title))}</h2>\n" if several else ""
        parts.append(
            f"<section>\n{heading}{_facts(comparison.facts)}{_table(comparison, merge)}</section>\n"
        )
    kinds = {s.signed for c in listed for s in c.strips if s.is_drawn}
    common = any(c.common_scale for c in listed)
    return _document(title, facts, "".join(parts) + _legend(kinds, common), whole)


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
    picture = io.BytesIO()
    drawing = image_comparison_figure(image, strips, common_scale=common_scale, width=9.0)
    drawing.savefig(picture, format="png", dpi=200)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    names = ", ".join(_escape(printable(strip.name)) for strip in strips)
    body = f'<p><img alt="relevance by {names}" src="data:image/png;base64,{data}"></p>\n'
    return _document(title, facts, body + _rows(strips, ["" for _ in strips]), whole)


def _table(comparison: TextComparison, merge: bool) -> str:
    texts = []
    for strip, pieces, scale in comparison.lines(merge):
        boxes = []
        for piece in pieces:
            background, ink = shade(piece.relevance, scale, strip.signed, piece.special)
            number = f"{piece.relevance:+.4g}" if strip.signed else f"{piece.relevance:.4g}"
            kind = "t s" if piece.special else "t"
            boxes.append(
                f'{" " if piece.space else ""}<span class="{kind}" data-r="{number}" '
                f'style="background:{hexadecimal(background)};color:{hexadecimal(ink)}">'
                f"{_escape(piece.text)}</span>"
            )
        texts.append("".join(boxes).strip())
    return _rows(comparison.strips, texts)


def _rows(strips: Sequence[Strip], texts: Sequence[str]) -> str:
    headings = list(dict.fromkeys(name for strip in strips for name, _ in strip.numbers))
    cells = "".join(f'<th scope="col">{_escape(name)}</th>' for name in headings)
    lines = [
        f'<table>\n<thead><tr><th scope="col">method</th><th></th>{cells}</tr></thead>\n<tbody>'
    ]
    for strip, text in zip(strips, texts, strict=True):
        name = f'<th scope="row">{_escape(printable(strip.name))}</th>'
        if strip.relevance is None:
            reason = _escape(strip.reason)
            lines.append(
                f'<tr>{name}<td class="e" colspan="{len(headings) + 1}">{reason}</td></tr>'
            )
            continue
        text = text if strip.is_drawn else f'<span class="e">{_escape(strip.reason)}</span>'
        numbers = dict(strip.numbers)
        shown = "".join(f'<td class="n">{_escape(numbers.get(h, ""))}</td>' for h in headings)
        lines.append(f'<tr>{name}<td class="text" dir="auto">{text}</td>{shown}</tr>')
    return "\n".join(lines) + "\n</tbody>\n</table>\n"


def _legend(kinds: set[bool], common: bool) -> str:
    def bar(stops: Sequence[RGB]) -> str:
        colours = ",".join(map(hexadecimal, stops))
        return f'<i style="background:linear-gradient(90deg,{colours})"></i>'

    parts = []
    if True in kinds:
        parts.append(f"<span>against</span>{bar((*BLUE[::-1], *RED[1:]))}<span>for</span>")
    if False in kinds:
        parts.append(f"<span>0</span>{bar(PURPLE)}<span>largest (no sign)</span>")
    parts.append(f"<span>{'one scale for all' if common else 'each line on its own scale'}</span>")
    return f'<div class="legend">{"<b></b>".join(parts)}</div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    listed = "".join(
        f"<dt>{_escape(printable(name))}</dt><dd>{_escape(printable(text))}</dd>"
        for name, text in facts
    )
    return f"<dl>{listed}</dl>\n" if listed else ""


def _document(title: str, facts: Sequence[tuple[str, str]], body: str, whole: bool) -> str:
    if not whole:
        return f'<div class="lrp"><style>{_STYLE}{_MORE_STYLE}</style>{_facts(facts)}{body}</div>'
    title = _escape(printable(title)) or "Comparison of methods"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # a second line of defence behind the escaping: nothing can run or be fetched
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{title}</title>\n<style>{_PAGE_STYLE}body{{max-width:68rem}}{_STYLE}{_MORE_STYLE}"
        '</style>\n</head>\n<body class="lrp">\n'
        f"<h1>{title}</h1>\n{_facts(facts)}{body}\n</body>\n</html>\n"
    )
