"""The command line: ``python -m captum_lrp_tx "a charming and funny film"``.

A command is listed in ``COMMANDS``; a module in ``arguments`` says what it takes, and one of the
same name beside that folder does the work. Without the name of a command the arguments are those of
``explain``. Nothing that takes long is imported before the arguments are known to fit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx._version import __version__
from captum_lrp_tx.cli import status
from captum_lrp_tx.errors import CaptumLRPError, CaptumLRPWarning

__all__ = ["COMMANDS", "main"]

PROGRAM = "captum_lrp_tx"
DEBUG_VARIABLE = "CAPTUM_LRP_TX_DEBUG"

#: One line of help for each command.
COMMANDS: dict[str, str] = {
    "explain": "explain one prediction (the default)",
    "audit": "say how far the explanation can be trusted",
    "compare": "explain one prediction by many methods",
    "evaluate": "measure how faithful many methods are",
    "explain-dataset": "explain every text of a file",
    "report": "explain many predictions, on a page to look through",
    "insights": "show the shipped models in Captum Insights",
}


#: Words that differ from a command in one letter, and may well begin a text.
_WORDS = frozenset(
    "audi audio audits compared compares compere deport evaluated evaluates explains "
    "reports resort retort".split()
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv (sequence of str, optional): Arguments without the name of the program; those of the
            process unless given.

    Returns:
        int: 0; 1 if something could not be read, loaded, explained or written; 2 for arguments
        that do not fit; 130 if interrupted. Errors are one line on standard error, with the
        traceback if ``CAPTUM_LRP_TX_DEBUG`` is ``1``.

    Example::

        >>> main(["a charming and funny film", "--no-color"])  # doctest: +SKIP
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_encode()
    try:
        with _warnings_in_one_line():
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after it has said why
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # the reader has gone (`| head`); keep the interpreter from flushing into the pipe at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        kind = type(error).__name__
        text = " ".join(str(error).split()) or kind
        if not isinstance(error, (CaptumLRPError, ImportError, OSError)):
            text = f"unexpected {kind}: {text[:300]} (set {DEBUG_VARIABLE}=1 for the traceback)"
        _complain(text)
        return 1


def _dispatch(arguments: list[str]) -> int:
    is_bare = not arguments
    name = "explain"
    program = started = _started_as()
    if arguments and arguments[0] in COMMANDS:
        name = arguments.pop(0)
        program += f" {name}"
    elif any(not argument.startswith("-") for argument in arguments[1:]):
        _refuse_near_miss(arguments[0])
    module = name.replace("-", "_")
    taken: Any = importlib.import_module(f"captum_lrp_tx.cli.arguments.{module}")
    others = "\n".join(f"  {key:<15} {text}" for key, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=program,
        description=taken.DESCRIPTION,
        epilog=f"commands, to be named first:\n{others}\n\n"
        + taken.EXAMPLES.replace(f"python -m {PROGRAM}", started),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    taken.add_arguments(parser)
    if is_bare:
        parser.print_help(sys.stderr)
        return 2
    parsed = parser.parse_args(arguments)
    with status.status("importing torch"):
        command: Any = importlib.import_module(f"captum_lrp_tx.cli.{module}")
    code: int = command.run(parser, parsed)
    return code


def _started_as() -> str:
    """What the user typed: the module, or the script that pip installs."""
    script = PROGRAM.replace("_", "-")
    return script if Path(sys.argv[0]).stem == script else f"python -m {PROGRAM}"


def _refuse_near_miss(word: str) -> None:
    """Ask back where the first of several words is almost the name of a command."""
    if word in _WORDS:
        return
    near = min(COMMANDS, key=lambda name: _edits(word, name))
    if _edits(word, near) <= (2 if "-" in near else 1):
        _complain(
            f"there is no command {word!r}; did you mean {near!r}? (To explain a text that "
            "begins with this word, put it in quotes.)"
        )
        raise SystemExit(2)


def _edits(one: str, other: str) -> int:
    """How many letters to add, leave out, exchange or swap to make one word of another.

    Source: Damerau, "A technique for computer detection and correction of spelling errors", 1964.
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            best = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, last = last, row
    return last[-1]


def _complain(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def _never_fail_to_encode() -> None:
    """Characters that the output's encoding lacks become question marks, not a UnicodeError."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows this package's warnings without source lines, and no others."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _complain("warning: " + " ".join(str(message).split()))

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", CaptumLRPWarning)
        warnings.showwarning = show
        yield
