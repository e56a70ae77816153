"""The command ``explain``: one prediction as a heat map, a table and a sum."""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.audit import explainability
from captum_lrp_tx.cli.files import check_writable, write_atomically
from captum_lrp_tx.cli.options import add_rules, add_subject, bias_of, composite_of, text_of
from captum_lrp_tx.cli.status import note, status
from captum_lrp_tx.cli.subject import Subject, load_subject
from captum_lrp_tx.visualization import (
    TokenHeatmap,
    html,
    image_figure,
    image_html,
    image_terminal,
    png,
    summary,
    supports_colour,
    table,
    terminal,
)
from captum_lrp_tx.visualization.figures import require_matplotlib

DESCRIPTION = "Explain a prediction of a transformer by conservative relevance propagation."
EXAMPLES = """examples:
  python -m captum_lrp_tx "has a lot of the virtues of eastwood at his best."
  python -m captum_lrp_tx "a slow film" --target positive --html film.html --png film.png
  python -m captum_lrp_tx "The capital of France is" --model ./gpt2 --target Paris
  python -m captum_lrp_tx --image four.png --audit
  echo "never dull" | python -m captum_lrp_tx -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_subject(parser)
    add_rules(parser)
    parser.add_argument(
        "--positions", action="store_true", help="show the parts of words, positions and segments"
    )
    parser.add_argument("--pieces", action="store_true", help="do not join word-pieces to words")
    parser.add_argument(
        "--audit", action="store_true", help="also say how far the explanation can be trusted"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the heat map as a page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the heat map as a figure")
    parser.add_argument(
        "--no-color", "--no-colour", action="store_true", help="plain text, also on a terminal"
    )


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Explains what the arguments name.

    Args:
        parser (ArgumentParser): For error messages.
        arguments (Namespace): What it parsed.

    Returns:
        int: Exit status.
    """
    text = text_of(parser, arguments)
    if text is None and arguments.positions:
        parser.error("--positions is for texts")
    if arguments.html is not None:
        check_writable(arguments.html, ".html", ".htm")
    if arguments.png is not None:
        check_writable(arguments.png, ".png")
    if arguments.png is not None or (text is None and arguments.html is not None):
        with status("importing matplotlib"):
            require_matplotlib()
    composite, bias = composite_of(arguments), bias_of(arguments)
    subject = load_subject(text, arguments)
    explainer = ConservativeLRP(subject.model, composite, bias=bias)
    parts: dict[str, Tensor] = {}
    with status("explaining"):
        if arguments.positions:
            parts = explainer.attribute(subject.inputs, subject.target, positions="separate")
            relevance = torch.stack([*parts.values()]).sum(0)
        else:
            attributed = explainer.attribute(subject.inputs, subject.target)
            # one tensor in, one out
            relevance = attributed if isinstance(attributed, Tensor) else attributed[0]
    show = _show_image if text is None else _show_text
    show(subject, relevance, parts, arguments)
    if arguments.audit:
        with status("auditing"):
            report = explainability(
                subject.model, subject.inputs, subject.target,
                rules=composite, bias=bias, file=None,
            )  # fmt: skip
        print(f"\n{report}")
    return 0


def facts_of(subject: Subject, total: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`captum_lrp_tx.visualization.summary`."""
    label = "difference"
    if arguments.rules == "lrp" and arguments.bias == "absorb":
        constants = " and positions" if subject.kind == "image" else ""
        label = f"absorbed by biases{constants}"
    return {
        "prediction": subject.prediction,
        "probability": subject.probability,
        "target": subject.explained,
        "score": subject.score,
        "delta": subject.score - total,
        "delta_label": label,
    }


def _show_text(
    subject: Subject, relevance: Tensor, parts: dict[str, Tensor], arguments: argparse.Namespace
) -> None:
    values = relevance[0].double().tolist()
    facts = facts_of(subject, math.fsum(values), arguments)
    heatmap = TokenHeatmap(
        subject.tokens, values, title=f"Relevance for {subject.explained}",
        special=subject.special, scheme=subject.scheme, **facts,
    )  # fmt: skip
    merge, colour = not arguments.pieces, _colour(arguments)
    _print_head(heatmap.facts(), arguments)
    print(f"\n{terminal(heatmap, colour=colour, merge=merge)}\n")
    columns = [(name, parts[key][0].tolist()) for key, name in _short_names(parts).items()]
    print(table(heatmap, columns, colour=colour))
    _print_sum(heatmap.total, facts)
    if arguments.html is not None:
        _write(arguments.html, html(heatmap, merge=merge).encode("utf-8", "replace"))
    if arguments.png is not None:
        drawn = io.BytesIO()
        png(heatmap, drawn, merge=merge)
        _write(arguments.png, drawn.getvalue())


def _show_image(
    subject: Subject, relevance: Tensor, _: dict[str, Tensor], arguments: argparse.Namespace
) -> None:
    total = float(relevance.double().sum())
    facts = facts_of(subject, total, arguments)
    told = summary(total, **facts)
    _print_head(told, arguments)
    print(f"\n{image_terminal(relevance, colour=_colour(arguments))}")
    _print_sum(total, facts)
    title = f"Relevance for {subject.explained}"
    if arguments.html is not None:
        page = image_html(subject.inputs, relevance, title=title, facts=told)
        _write(arguments.html, page.encode("utf-8", "replace"))
    if arguments.png is not None:
        drawn = io.BytesIO()
        image_figure(subject.inputs, relevance, title=title).savefig(drawn, format="png", dpi=200)
        _write(arguments.png, drawn.getvalue())


def _print_head(facts: list[tuple[str, str]], arguments: argparse.Namespace) -> None:
    for name, text in facts[:-1]:  # the sum comes last, below the table
        print(f"{name:<12}{text}")
    print(f"{'rules':<12}{arguments.rules}, bias {arguments.bias}")


def _print_sum(total: float, facts: dict[str, Any]) -> None:
    lines = [
        ("sum of relevance", total),
        (facts["delta_label"], facts["delta"]),
        ("logit", facts["score"]),
    ]
    width = max(len(name) for name, _ in lines)
    print()
    for name, value in lines:
        print(f"{name:<{width}}  {value:+.4f}")


def _short_names(parts: dict[str, Tensor]) -> dict[str, str]:
    """Word, position, segment instead of the names of modules, where that is clear."""
    names = {}
    for key in parts:
        last = key.rsplit(".", 1)[-1]
        if "position" in last or last == "wpe":
            names[key] = "position"
        elif "type" in last or "segment" in last:
            names[key] = "segment"
        elif "word" in last or last in ("wte", "embed_tokens", "tok_embeddings"):
            names[key] = "word"
        else:
            names[key] = last
    taken = list(names.values())
    return {key: name if taken.count(name) == 1 else key for key, name in names.items()}


def _colour(arguments: argparse.Namespace) -> bool:
    return not arguments.no_color and supports_colour()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)
    note(f"wrote {path}")
