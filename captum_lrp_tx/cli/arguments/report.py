"""The arguments of the command ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_lrp_tx.cli.arguments.names import REPORTED
from captum_lrp_tx.cli.arguments.shared import METHODS_LINE, add_methods, add_model, count

DESCRIPTION = "Explain many predictions by several methods and write a page to look through them."
#: How many examples, unless told otherwise.
LIMIT = 100
EXAMPLES = f"""{METHODS_LINE}

examples:
  python -m captum_lrp_tx report
  python -m captum_lrp_tx report --digits --methods LRP,GI,GAE --html digits.html
  python -m captum_lrp_tx report --file reviews.tsv --limit 200 --methods LRP,GI,GAE,IG
  python -m captum_lrp_tx report --images folder --model my-vit --classes 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--file", type=Path, metavar="FILE",
        help='texts: one in each line, or a table (.csv, or tabs) with a column "sentence" and, '
        'if known, "label" (default: a few sentences that come with the package)',
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="PATH",
        help="images: a folder of them (those in folders within it belong to the class of that "
        "name), or an array (.npy) of shape (images, height, width) or (images, channels, height, "
        "width)",
    )  # fmt: skip
    parser.add_argument(
        "--digits", action="store_true", help="the digits that come with the package"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="true classes: one in each line, or .npy; of a folder in the order of sorted names",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=count, metavar="N", help=f"how many examples (default: {LIMIT})"
    )
    add_model(parser, "a sentiment and a digit classifier come")
    add_methods(parser, ",".join(REPORTED))
    parser.add_argument(
        "--classes", type=_classes, metavar="WHICH",
        help="classes to explain: all, a number (so many of the most probable ones), or names "
        "separated by commas (default: all of at most 10, or the 3 most probable)",
    )  # fmt: skip
    parser.add_argument(
        "--no-faithfulness",
        action="store_true",
        help="leave out the curves, which take many passes through the model",
    )
    parser.add_argument("--title", default="", help="headline of the page")
    parser.add_argument("--seed", type=int, default=0, help="of random methods (default: 0)")
    parser.add_argument(
        "--html", type=Path, default=Path("report.html"), metavar="FILE",
        help="where to write the page (default: report.html)",
    )  # fmt: skip


def _classes(text: str) -> str | int | list[str]:
    if text == "all":
        return text
    if text.isdecimal():
        return count(text)
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(
            "names no class; write names or numbers with commas between them"
        )
    return found
