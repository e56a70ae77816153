"""The arguments of the command ``audit``."""

from __future__ import annotations

import argparse

from captum_lrp_tx.cli.arguments.shared import add_rules, add_subject

DESCRIPTION = "Say how far the explanation of a prediction can be trusted."
EXAMPLES = """examples:
  python -m captum_lrp_tx audit ./my-model "the text"
  python -m captum_lrp_tx audit "a charming and funny film" --rules ah+ln"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_subject(parser)
    add_rules(parser)
