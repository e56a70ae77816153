"""Pages from templates, in which every text is escaped unless it is HTML already."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.visualization.colours import hexadecimal
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(
    template: str, *, package: str = "captum_lrp_tx.visualization", folder: str = "templates",
    **values: Any,
) -> Markup:  # fmt: skip
    """A template with values in it.

    Args:
        template (str): Name of its file.
        package (str): In which it is.
        folder (str): Of the package.
        values: By the names that the template has for them; texts are escaped.

    Returns:
        Markup: HTML, a ``str`` that other templates do not escape again.

    Example::

        >>> print(render("text.html", pieces=[], least="<", most=">", colours=[])[:48])
        <p class="text" dir="auto"></p>
        <div class="lege
    """
    from markupsafe import Markup

    return Markup(_environment(package, folder).get_template(template).render(values))


@functools.cache
def _environment(package: str, folder: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(package, folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(printable=printable, hexadecimal=hexadecimal)
    return made
