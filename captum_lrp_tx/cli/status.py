"""A line on standard error while something takes long."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Shows a text on the terminal for as long as the block runs.

    Args:
        text (str): What is being done. Nothing is written if standard error is no terminal.

    Yields:
        None: The block runs.

    Example::

        >>> with status("adding up"):
        ...     total = sum(range(10**6))
    """
    stream = sys.stderr
    if not stream.isatty():
        yield
        return
    line = f"{text} ..."
    stream.write("\r" + line)
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r" + " " * len(line) + "\r")
        stream.flush()


def note(text: str) -> None:
    """Says something on standard error that is no part of the result."""
    print(f"captum_lrp_tx: note: {text}", file=sys.stderr)
