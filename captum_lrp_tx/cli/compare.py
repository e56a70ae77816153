"""The command ``compare``: one prediction, or many, as several methods explain them."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captum_lrp_tx.cli.options import text_of
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.cli.subject import Loaded, Subject, load, load_subject, subject_of
from captum_lrp_tx.cli.tables import read_table
from captum_lrp_tx.comparing.comparison import Comparison
from captum_lrp_tx.comparing.run import compare
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.files import check_writable, write_atomically
from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization import summary, supports_colour
from captum_lrp_tx.visualization.comparison import TextComparison, numbers_table
from captum_lrp_tx.visualization.comparison_page import comparison_html
from captum_lrp_tx.visualization.wording import Scheme, printable


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Compares methods on what the arguments name.

    Args:
        parser (ArgumentParser): For error messages.
        arguments (Namespace): What it parsed.

    Returns:
        int: Exit status.
    """
    if arguments.file is not None:
        if arguments.text or arguments.image is not None:
            parser.error("give one of TEXT, --image and --file")
        if arguments.png is not None:
            parser.error("--png is for a single text or image; use --html with --file")
        text = None
    else:
        if arguments.limit is not None:
            parser.error("--limit is for --file")
        text = text_of(parser, arguments)
    if arguments.html is not None:
        check_writable(arguments.html, ".html", ".htm")
    if arguments.png is not None:
        check_writable(arguments.png, ".png")
    if arguments.png is not None or (arguments.image is not None and arguments.html is not None):
        matplotlib()
    if arguments.file is not None:
        _many(arguments)
    elif text is None:
        _image(arguments)
    else:
        _text(text, arguments)
    return 0


def _text(text: str, arguments: argparse.Namespace) -> None:
    model = load(text, arguments.model)
    item = model.input(text, arguments)
    subject = model.source.use("model", lambda: subject_of(model, item, arguments.target))
    comparison = _compared(model, subject, arguments, show_progress=True)
    facts, scheme = _facts(subject), _scheme(subject)
    _print_one(comparison, facts, scheme, arguments)
    options = {"scheme": scheme, "merge": not arguments.pieces}
    _write_files(comparison, subject, facts, options, arguments)


def _image(arguments: argparse.Namespace) -> None:
    subject = load_subject(None, arguments)
    comparison = compare(
        subject.model, subject.inputs, subject.target, methods=arguments.methods, show_progress=True
    )
    facts = _facts(subject)
    _print_one(comparison, facts, "auto", arguments)
    _write_files(comparison, subject, facts, {}, arguments)


def _scheme(subject: Subject) -> Scheme:
    return "auto" if subject.tokens is None else subject.tokens.scheme


def _write_files(
    comparison: Comparison,
    subject: Subject,
    facts: list[tuple[str, str]],
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    options = {
        "title": f"Relevance for {subject.explained}", "common_scale": arguments.common_scale,
        "facts": facts, **options,
    }  # fmt: skip
    if arguments.html is not None:
        _write(arguments.html, comparison.html(**options).encode("utf-8", "replace"))
    if arguments.png is not None:
        drawn = io.BytesIO()
        comparison.png(drawn, **options)
        _write(arguments.png, drawn.getvalue())


def _many(arguments: argparse.Namespace) -> None:
    texts, left = read_texts(arguments.file, arguments.limit or 20)
    if left and arguments.limit is None:
        note(f"the first {len(texts)} texts of {len(texts) + left}; --limit N takes more")
    model = load("", arguments.model)
    drawings: list[TextComparison] = []
    bar = tqdm(
        texts, desc="comparing", unit="text", delay=1, leave=False, disable=not sys.stderr.isatty()
    )
    for number, text in bar:
        try:
            subject = subject_of(model, text, arguments.target)
        except InputError as error:
            with tqdm.external_write_mode(file=sys.stderr):
                note(f"line {number} is left out: {error}")
            continue
        comparison = _compared(model, subject, arguments, show_progress=False)
        with tqdm.external_write_mode(file=sys.stdout):
            print(f"{chr(10) if drawings else ''}{len(drawings) + 1}. {printable(text)}")
            _print_one(comparison, _facts(subject), _scheme(subject), arguments)
            sys.stdout.flush()
        drawings.append(
            comparison.drawing(
                title=f"{len(drawings) + 1}. {text}", facts=_facts(subject),
                scheme=_scheme(subject), common_scale=arguments.common_scale,
            )
        )  # fmt: skip
    if not drawings:
        raise InputError(f"{arguments.file} has no text that the model can take; shorten the texts")
    if arguments.html is not None:
        page = comparison_html(
            drawings,
            title="Comparison of methods",
            facts=[("file", arguments.file.name), ("texts", str(len(drawings)))],
            merge=not arguments.pieces,
        )
        _write(arguments.html, page.encode("utf-8", "replace"))


def _compared(
    model: Loaded, subject: Subject, arguments: argparse.Namespace, show_progress: bool
) -> Comparison:
    tokens = subject.tokens
    assert tokens is not None
    return compare(
        subject.model, subject.inputs, subject.target, methods=arguments.methods,
        tokens=tokens.names, special=tokens.special, show_progress=show_progress,
    )  # fmt: skip


def _facts(subject: Subject) -> list[tuple[str, str]]:
    told = summary(
        0.0, prediction=subject.prediction, probability=subject.probability,
        target=subject.explained, score=subject.score,
    )  # fmt: skip
    return told[:-1]  # without the sum


def _print_one(
    comparison: Comparison,
    facts: Sequence[tuple[str, str]],
    scheme: Scheme,
    arguments: argparse.Namespace,
) -> None:
    for name, text in facts:
        print(f"{name:<12}{text}")
    if comparison.baseline:
        print(f"{'baseline':<12}{printable(comparison.baseline)}")
    shown = comparison.terminal(
        colour=not arguments.no_color and supports_colour(), merge=not arguments.pieces,
        scheme=scheme, common_scale=arguments.common_scale,
    )  # fmt: skip
    print(f"\n{shown}\n")
    print(numbers_table([strip for strip in comparison.strips() if strip.relevance is not None]))


def read_texts(file: Path, limit: int) -> tuple[list[tuple[int, str]], int]:
    """Texts of a file with the numbers of their lines, and how many more there are.

    Args:
        file (Path): See :func:`captum_lrp_tx.cli.tables.read_table`.
        limit (int): How many at most.

    Raises:
        InputError: If the file cannot be read or holds no text.
    """
    table = read_table(file)
    if table.column:
        note(table.told())
    found = [(number, text) for number, text, _ in table.rows]
    return found[:limit], max(len(found) - limit, 0)


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)
    note(f"wrote {path}")
