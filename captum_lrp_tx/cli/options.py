"""What the arguments that several commands share come to."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from captum_lrp_tx.cli.status import note
from captum_lrp_tx.explaining.tasks import task_of
from captum_lrp_tx.files import check_writable, write_atomically
from captum_lrp_tx.rules.composite import Composite


def composite_of(arguments: argparse.Namespace, task: str = "sequence classification") -> Composite:
    """The rule set that the options name, or that ``explain`` takes for a task.

    Raises:
        RuleError: If ``--epsilon`` is given with a preset in which it has no effect.
    """
    named = arguments.rules or task_of(None, None, task).rules
    composite = Composite(base=named)
    return composite if arguments.epsilon is None else composite.with_epsilon(arguments.epsilon)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Complains about ``--html`` and ``--png`` before the work is done.

    Raises:
        InputError: If such a file cannot be written.
    """
    if arguments.html is not None:
        check_writable(arguments.html, ".html", ".htm")
    if arguments.png is not None:
        check_writable(arguments.png, ".png")


def write(path: Path, content: bytes) -> None:
    """Writes a file, and says so."""
    write_atomically(path, content)
    note(f"wrote {path}")


def first(items: Any, limit: int | None, most: int, what: str) -> Any:
    """The first of many; says so where no limit was asked for.

    Args:
        items (sequence or Tensor): All of them.
        limit (int, optional): How many were asked for.
        most (int): How many it is otherwise.
        what (str): What they are, for the message.
    """
    if limit is None and len(items) > most:
        note(f"the first {most} {what} of {len(items)}; --limit N takes more")
    return items[: limit or most]


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
    if " " not in text and (os.sep in text or "." in text) and os.path.isfile(text):
        _refuse(
            parser,
            f"{text} is a file, and would be read as a text of this name; write --image {text} for "
            f"a picture, - < {text} for the text in it, and for many texts see compare and "
            "explain-dataset",
        )
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
