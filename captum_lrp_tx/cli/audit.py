"""The command ``audit``: which rule acted where, what no rule covers, where relevance is lost."""

from __future__ import annotations

import argparse
import os
import re

from captum_lrp_tx.cli.explain import explained
from captum_lrp_tx.cli.options import text_of
from captum_lrp_tx.cli.status import status

#: How a word looks that can only be meant as a folder, or as a name on the Hub.
_MODEL = re.compile(r"(\.{0,2}|~)/.*|[\w-][\w.-]*(/[\w-][\w.-]*)+/?")
#: What a model is audited on that is given no text.
_SENTENCE = "a charming and funny film"


def _take_folder(arguments: argparse.Namespace) -> None:
    """``audit MODEL`` is about a folder or a name on the Hub, not about a text of that name."""
    if arguments.model is not None or not arguments.text:
        return
    first = arguments.text[0]
    is_folder = os.path.isdir(os.path.expanduser(first))
    if not first or " " in first or not (is_folder or _MODEL.fullmatch(first)):
        return
    arguments.model = arguments.text.pop(0)
    if not arguments.text and arguments.image is None:
        arguments.text = [_SENTENCE]


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Prints the audit of one prediction."""
    _take_folder(arguments)
    text = text_of(parser, arguments)
    explanation = explained(text, arguments)
    with status("auditing"):
        report = explanation.audit()
    print(f"Explained: {explanation.explains} {explanation.value:+.4f}")
    print(report)
    return 0
