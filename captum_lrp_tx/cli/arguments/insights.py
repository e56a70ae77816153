"""The arguments of the command ``insights``."""

from __future__ import annotations

import argparse

DESCRIPTION = (
    "Show the shipped sentiment and digit models in Captum Insights, with the methods of this "
    "package in its list. Needs captum 0.8, the last with Insights."
)
EXAMPLES = """examples:
  python -m captum_lrp_tx insights
  python -m captum_lrp_tx insights --port 8000 --no-browser"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="of the server (default: a free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)
