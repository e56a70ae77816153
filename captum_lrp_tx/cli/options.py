"""What the arguments that several commands share come to."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from captum_lrp_tx.explaining.tasks import task_of
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias


def composite_of(arguments: argparse.Namespace, task: str = "sequence classification") -> Composite:
    """The rule set that the options name, or that ``explain`` takes for a task.

    Raises:
        RuleError: If ``--epsilon`` is given with a preset in which it has no effect.
    """
    named = arguments.rules or task_of(None, None, task).rules(bias_of(arguments))
    composite = Composite(base=named)
    return composite if arguments.epsilon is None else composite.with_epsilon(arguments.epsilon)


def bias_of(arguments: argparse.Namespace) -> Bias:
    """The treatment of biases that the options name."""
    bias: Bias = arguments.bias
    return bias


def text_of(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, with_image: bool = False
) -> str | None:
    """The text to explain, from the arguments or standard input.

    Args:
        parser (ArgumentParser): For its help and its error messages.
        arguments (Namespace): What it parsed.
        with_image (bool): Whether a text and an image can be explained together.

    Returns:
        str or None: None if an image is to be explained.
    """
    text: str = " ".join(arguments.text)
    if arguments.image is not None and not (arguments.text and with_image):
        if arguments.text:
            parser.error("give either TEXT or --image, not both")
        return None
    if not arguments.text:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    config = os.path.join(os.path.expanduser(text.strip()), "config.json")
    if arguments.model is None and text.strip() and os.path.isfile(config):
        _refuse(parser, f"{text} is the folder of a model; write --model {text} and a text")
    if text == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            _refuse(parser, f"standard input is not {error.encoding} text")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that Python could not decode
        _refuse(parser, "the text is not UTF-8; check the encoding of the terminal or of the file")
    if not text.strip():
        _refuse(parser, "the text is empty")
    return text.strip()


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Ends with a message and without the usage, which would not help here."""
    parser.exit(2, f"captum_lrp_tx: {message}\n")
