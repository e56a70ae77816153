"""The command ``audit``: which rule acted where, what no rule covers, where relevance is lost."""

from __future__ import annotations

import argparse

from captum_lrp_tx.audit import explainability
from captum_lrp_tx.cli.options import add_rules, add_subject, bias_of, composite_of, text_of
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.cli.subject import load_subject

DESCRIPTION = "Say how far the explanation of a prediction can be trusted."
EXAMPLES = """examples:
  python -m captum_lrp_tx audit "a charming and funny film" --rules ah+ln"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_subject(parser)
    add_rules(parser)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Prints the audit of one prediction.

    Args:
        parser (ArgumentParser): For error messages.
        arguments (Namespace): What it parsed.

    Returns:
        int: Exit status.
    """
    text = text_of(parser, arguments)
    composite, bias = composite_of(arguments), bias_of(arguments)
    subject = load_subject(text, arguments)
    with status("auditing"):
        report = explainability(
            subject.model, subject.inputs, subject.target, rules=composite, bias=bias, file=None
        )
    print(f"Explained: logit of {subject.explained} {subject.score:+.4f}")
    print(report)
    return 0
