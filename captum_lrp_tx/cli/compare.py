"""The command ``compare``: one prediction, or many, as several methods explain them."""

from __future__ import annotations

import argparse
import io
import sys
from typing import Any

from tqdm import tqdm

from captum_lrp_tx.cli.options import check_outputs, first, text_of, write
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.cli.subject import Subject, load, load_subject, subject_of
from captum_lrp_tx.cli.tables import read_table
from captum_lrp_tx.comparing.comparison import Comparison
from captum_lrp_tx.comparing.run import compare
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization import summary, supports_colour
from captum_lrp_tx.visualization.comparison import TextComparison, numbers_table
from captum_lrp_tx.visualization.comparison_page import comparison_html
from captum_lrp_tx.visualization.wording import Scheme, printable


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Compares methods on what the arguments name."""
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
    check_outputs(arguments)
    if arguments.png is not None or (arguments.image is not None and arguments.html is not None):
        matplotlib()
    if arguments.file is not None:
        _many(arguments)
    else:
        _one(text, arguments)
    return 0


def _one(text: str | None, arguments: argparse.Namespace) -> None:
    """A text, or the image where there is none."""
    subject = load_subject(text, arguments)
    comparison = _compared(subject, arguments, show_progress=True)
    _print_one(comparison, subject, arguments)
    options: dict[str, Any] = {
        "title": f"Relevance for {subject.choice.name}", "facts": _facts(subject),
        "scheme": _scheme(subject), "common_scale": arguments.common_scale,
        "merge": not arguments.pieces,
    }  # fmt: skip
    if arguments.html is not None:
        write(arguments.html, comparison.html(**options).encode("utf-8", "replace"))
    if arguments.png is not None:
        drawn = io.BytesIO()
        comparison.png(drawn, **options)
        write(arguments.png, drawn.getvalue())


def _scheme(subject: Subject) -> Scheme:
    return "auto" if subject.case.tokens is None else subject.case.tokens.scheme


def _many(arguments: argparse.Namespace) -> None:
    texts = first(read_table(arguments.file).rows, arguments.limit, 20, "texts")
    model = load("", arguments.model)
    drawings: list[TextComparison] = []
    bar = tqdm(
        texts, desc="comparing", unit="text", delay=1, leave=False, disable=not sys.stderr.isatty()
    )
    for number, text, _ in bar:
        try:
            subject = subject_of(model, text, arguments.target)
        except InputError as error:
            with tqdm.external_write_mode(file=sys.stderr):
                note(f"line {number} is left out: {error}")
            continue
        comparison = _compared(subject, arguments, show_progress=False)
        with tqdm.external_write_mode(file=sys.stdout):
            print(f"{chr(10) if drawings else ''}{len(drawings) + 1}. {printable(text)}")
            _print_one(comparison, subject, arguments)
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
        write(arguments.html, page.encode("utf-8", "replace"))


def _compared(subject: Subject, arguments: argparse.Namespace, show_progress: bool) -> Comparison:
    case, tokens = subject.case, subject.case.tokens
    return compare(
        case.forward, case.inputs, subject.choice.target, methods=arguments.methods,
        tokens=None if tokens is None else tokens.names,
        special=None if tokens is None else tokens.special, show_progress=show_progress,
    )  # fmt: skip


def _facts(subject: Subject) -> list[tuple[str, str]]:
    choice = subject.choice
    told = summary(
        0.0, prediction=choice.prediction, probability=choice.probability, target=choice.name,
        score=subject.score,
    )  # fmt: skip
    return told[:-1]  # without the sum


def _print_one(comparison: Comparison, subject: Subject, arguments: argparse.Namespace) -> None:
    for name, text in _facts(subject):
        print(f"{name:<12}{text}")
    if comparison.baseline:
        print(f"{'baseline':<12}{printable(comparison.baseline)}")
    shown = comparison.terminal(
        colour=not arguments.no_color and supports_colour(), merge=not arguments.pieces,
        scheme=_scheme(subject), common_scale=arguments.common_scale,
    )  # fmt: skip
    print(f"\n{shown}\n")
    print(numbers_table([strip for strip in comparison.strips() if strip.relevance is not None]))
