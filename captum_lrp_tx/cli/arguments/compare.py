"""The arguments of the command ``compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_lrp_tx.cli.arguments.shared import (
    METHODS_LINE,
    add_methods,
    add_shown,
    add_subject,
    count,
)

DESCRIPTION = "Explain a prediction by several methods, one below the other."
EXAMPLES = f"""{METHODS_LINE}

examples:
  python -m captum_lrp_tx compare "has a lot of the virtues of eastwood at his best."
  python -m captum_lrp_tx compare "a slow film" --methods rollout,gi,lrp --png film.png
  python -m captum_lrp_tx compare --file reviews.tsv --limit 20 --html reviews.html
  python -m captum_lrp_tx compare --image four.png --png methods.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_subject(parser)
    add_methods(parser, "all")
    parser.add_argument(
        "--file", type=Path, metavar="FILE",
        help="explain many texts instead: one in each line, or a table separated by tabs with a "
        'column "sentence"',
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=count, metavar="N", help="how many texts of the file (default: 20)"
    )
    parser.add_argument(
        "--common-scale",
        action="store_true",
        help="one colour scale for all methods instead of one for each",
    )
    add_shown(parser)
