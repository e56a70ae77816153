"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from captum_lrp_tx.cli.arguments.names import METHODS, PRESETS, SELECTIONS
from captum_lrp_tx.errors import InputError

#: As the function ``explain`` chooses them.
_BY_TASK = "lrp; language-ah for next tokens"
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
    add_model(parser, "a sentiment or digit classifier comes")
    parser.add_argument(
        "--target",
        type=output,
        metavar="CLASS",
        help="index or name of the class to explain; for a language model the next token, or "
        "id:N (default: the predicted one)",
    )


def add_model(parser: argparse._ActionsContainer, shipped: str) -> None:
    """Adds the model; ``shipped`` says what comes with the package."""
    parser.add_argument(
        "--model", metavar="DIR",
        help="a folder in Hugging Face format, or the name of a model on the Hub; "
        f"{shipped} with the package",
    )  # fmt: skip


def add_shown(parser: argparse.ArgumentParser) -> None:
    """Adds how an explanation is shown, and where to."""
    parser.add_argument("--pieces", action="store_true", help="do not join word-pieces to words")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a figure")
    parser.add_argument(
        "--no-color", "--no-colour", action="store_true", help="plain text, also on a terminal"
    )


def add_rules(parser: argparse._ActionsContainer) -> None:
    """Adds how it is explained: rules, biases, stabiliser."""
    parser.add_argument("--rules", choices=PRESETS, help=f"default: {_BY_TASK}")
    parser.add_argument(
        "--bias",
        choices=list(_BIAS_HELP),
        default="absorb",
        help="; ".join(f"{name}: {text}" for name, text in _BIAS_HELP.items()),
    )
    parser.add_argument(
        "--epsilon", type=_not_negative, metavar="E", help="stabiliser of the epsilon rule"
    )


#: For the end of a help text.
METHODS_LINE = f"methods: {', '.join(METHODS)}"


def add_methods(parser: argparse._ActionsContainer, default: str) -> None:
    """Adds which methods explain; the arguments then have the list of their names.

    Args:
        parser: Of the command.
        default (str): As it would be typed.
    """
    parser.add_argument(
        "--methods", type=_methods, default=default, metavar="A,B,C",
        help="names of methods, separated by commas; all stands for every one, paper for those of "
        f"the tables of Ali et al. 2022 (default: {default})",
    )  # fmt: skip


def _methods(text: str) -> list[str]:
    parts = text.split(",")
    selected = [name for part in parts for name in SELECTIONS.get(part.strip().casefold(), (part,))]
    if set(selected) <= set(METHODS):
        return list(dict.fromkeys(selected))
    from captum_lrp_tx.methods.registry import find_method  # which knows other spellings

    try:
        names = [find_method(name).name for name in selected if name.strip()]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not names:
        raise argparse.ArgumentTypeError(f"names no method; the methods are: {', '.join(METHODS)}")
    return list(dict.fromkeys(names))


def output(text: str) -> str | int:
    """The type of an option that names a class or token, or gives its number as ``id:N``."""
    mark, _, number = text.partition(":")
    return int(number) if mark == "id" and number.isdecimal() else text


def count(text: str) -> int:
    """The type of an option that is a positive whole number."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number >= 0")
    return value
