"""A report as one HTML file that runs its own script and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from markupsafe import Markup

from captum_lrp_tx._version import __version__
from captum_lrp_tx.reporting.payload import payload
from captum_lrp_tx.reporting.results import Report
from captum_lrp_tx.visualization.rendering import render
from captum_lrp_tx.visualization.wording import printable

_PACKAGE, _FOLDER = "captum_lrp_tx.reporting", "page"
#: Joined to one script, in this order.
_SCRIPTS = ("data.js", "state.js", "text.js", "image.js", "list.js", "figures.js", "main.js")


def page(report: Report) -> str:
    """The page of a report.

    Args:
        report (Report): The report.

    Returns:
        str: An HTML document. Its content security policy allows no connection, and no script or
        style but its own, which it names by their hashes.
    """
    script = '(() => {\n"use strict";\n' + "\n".join(map(_read, _SCRIPTS)) + "})();\n"
    style = _read("report.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return render(
        "report.html", package=_PACKAGE, folder=_FOLDER,
        policy=policy, version=__version__, title=printable(report.title) or "Report",
        style=Markup(style), script=Markup(script), data=Markup(embedded(payload(report))),
    )  # fmt: skip


def embedded(data: Any) -> str:
    r"""JSON that can stand in a script element: it can neither end it nor begin a comment.

    Example::

        >>> print(embedded("</script>"))
        "\u003c/script\u003e"
    """
    # ASCII only, so U+2028 and U+2029 are escaped as well
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _read(name: str) -> str:
    file = resources.files(_PACKAGE).joinpath(_FOLDER).joinpath(name)
    return file.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
