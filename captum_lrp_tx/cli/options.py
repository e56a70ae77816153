"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.methods.registry import ALL, SELECTIONS, find_method
from captum_lrp_tx.rules.composite import PRESETS, Composite
from captum_lrp_tx.rules.rule import Bias

_BIAS_HELP = {
    "absorb": "biases keep their relevance (default)",
    "distribute": "it is spread over the inputs, so that these sum to the logit",
    "ignore": "left out of the rules",
}


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Adds what is explained: text or image, model, output."""
    parser.add_argument(
        "text", nargs="*", metavar="TEXT", help='the text, or "-" to read it from standard input'
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="explain an image instead: PNG, JPEG, or a NumPy array (.npy) with values 0 to 255, "
        "0 to 1, or -1 to 1",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a folder in Hugging Face format, or the name of a model on the Hub; a sentiment or "
        "digit classifier comes with the package",
    )
    parser.add_argument(
        "--target",
        metavar="CLASS",
        help="index or name of the class to explain; for a language model the next token or its "
        "id (default: the predicted one)",
    )


def add_rules(parser: argparse._ActionsContainer) -> None:
    """Adds how it is explained: rules, biases, stabiliser."""
    parser.add_argument("--rules", choices=list(PRESETS), default="lrp", help="default: lrp")
    parser.add_argument(
        "--bias",
        choices=list(_BIAS_HELP),
        default="absorb",
        help="; ".join(f"{name}: {text}" for name, text in _BIAS_HELP.items()),
    )
    parser.add_argument(
        "--epsilon", type=_positive, metavar="E", help="stabiliser of the epsilon rule"
    )


#: For the end of a help text.
METHODS_LINE = f"methods: {', '.join(ALL)}"


def add_methods(
    parser: argparse._ActionsContainer, default: str | Sequence[str], told: str
) -> None:
    """Adds which methods explain; the arguments then have the list of their names.

    Args:
        parser: Of the command.
        default (str or sequence of str): A selection, or names of methods.
        told (str): What the default is, in words.
    """
    chosen = SELECTIONS[default] if isinstance(default, str) else default
    parser.add_argument(
        "--methods", type=_methods, default=list(chosen), metavar="A,B,C",
        help="names of methods, separated by commas; all; or paper, those of the tables of Ali et "
        f"al. 2022 (default: {told})",
    )  # fmt: skip


def _methods(text: str) -> list[str]:
    selected = SELECTIONS.get(text.strip().casefold())
    if selected is not None:
        return list(selected)
    try:
        names = [find_method(name).name for name in text.split(",") if name.strip()]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not names:
        raise argparse.ArgumentTypeError(f"names no method; the methods are: {', '.join(ALL)}")
    return list(dict.fromkeys(names))


def count(text: str) -> int:
    """The type of an option that is a positive whole number."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def composite_of(arguments: argparse.Namespace) -> Composite:
    """The rule set that the options name.

    Raises:
        RuleError: If ``--epsilon`` is given with a preset in which it has no effect.
    """
    composite = Composite(base=arguments.rules)
    return composite if arguments.epsilon is None else composite.with_epsilon(arguments.epsilon)


def bias_of(arguments: argparse.Namespace) -> Bias:
    """The treatment of biases that the options name."""
    bias: Bias = arguments.bias
    return bias


def text_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str | None:
    """The text to explain, from the arguments or standard input.

    Args:
        parser (ArgumentParser): For its help and its error messages.
        arguments (Namespace): What it parsed.

    Returns:
        str or None: None if an image is to be explained.
    """
    text: str = " ".join(arguments.text)
    if arguments.image is not None:
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
