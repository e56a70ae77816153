"""The command ``report``: many predictions by several methods, on one page to look through."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.cli.arguments.report import LIMIT
from captum_lrp_tx.cli.images import read_image
from captum_lrp_tx.cli.models import Source, find, kind_of, load_model, load_tokenizer, together
from captum_lrp_tx.cli.options import first
from captum_lrp_tx.cli.reading import (
    check_shape,
    image_files,
    is_array,
    read_images,
    read_labels,
    read_lines,
)
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.cli.tables import read_table
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.files import check_writable
from captum_lrp_tx.models import digit_samples
from captum_lrp_tx.reporting import Report, report
from captum_lrp_tx.visualization.wording import printable

#: Without a file: sentences of our own, plain ones and some that are hard for a small model.
_SENTENCES: tuple[tuple[str, str], ...] = (
    ("a charming and funny film with a wonderful cast", "positive"),
    ("the story drags on and the jokes fall flat", "negative"),
    ("not nearly as bad as i had feared", "positive"),
    ("a waste of two great actors and of two long hours", "negative"),
    ("a thriller without a single thrill", "negative"),
    ("slow, strange, and unforgettable", "positive"),
    ("one of the funniest films of the year", "positive"),
    ("the best thing about it is the poster", "negative"),
    ("it never stops being warm, clever and alive", "positive"),
    ("all the charm of a parking ticket", "negative"),
    ("the camera work is beautiful , but nothing else is", "negative"),
    ("you will laugh , you will cry , and you will want to see it again", "positive"),
)


@dataclass(frozen=True)
class _Data:
    """What was read.

    Attributes:
        name (str): For the page.
        inputs (list of str or Tensor): Texts or images.
        labels (sequence of str, optional): Names or numbers of the true classes.
        count (int): How many examples there are, those beyond the limit included.
    """

    name: str
    inputs: list[str] | Tensor
    labels: Sequence[str | None] | None
    count: int


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Explains what the arguments name and writes the page."""
    if sum((arguments.file is not None, arguments.images is not None, arguments.digits)) > 1:
        parser.error("give one of --file, --images and --digits")
    if arguments.labels is not None and arguments.images is None and arguments.file is None:
        parser.error("--labels is for --file and --images")
    check_writable(arguments.html, ".html", ".htm")
    is_text = arguments.images is None and not arguments.digits
    source = find(arguments.model, "sentiment" if is_text else "digits")
    kind, config = kind_of(source, ("text", "next token") if is_text else ("image",))
    if kind == "next token":
        raise UnsupportedModelError(
            f"{source.name} predicts tokens; a report is for classifiers. Use explain or compare."
        )
    tokenizer = None
    if is_text:
        tokenizer = load_tokenizer(source)
        data = _texts(arguments.file, arguments.limit)
    else:
        data = _images(arguments.images, arguments.limit, source, config)
    if arguments.labels is not None:
        file: Path = arguments.labels
        labels = read_labels(file) if is_array(file) else [x or None for x in read_lines(file)]
        if len(labels) != data.count:
            raise InputError(
                f"{file} has {len(labels)} labels for {data.count} examples; give one for each, an "
                "empty line where it is unknown (lines without a text are no examples)"
            )
        data = replace(data, labels=labels[: len(data.inputs)])
    model = load_model(source, kind)
    if tokenizer is not None:
        data = _short_enough(data, tokenizer, together(source, model, tokenizer))
    model_name = Path(source.name).name if source.is_local else source.name
    made = report(
        model, data.inputs, tokenizer=tokenizer, labels=_labels(data, config),
        methods=arguments.methods, classes=arguments.classes, title=arguments.title
        or f"{model_name} on {data.name}", facts=[("model", model_name), ("data", data.name)],
        faithfulness=not arguments.no_faithfulness, seed=arguments.seed, path=arguments.html,
        show_progress=True,
    )  # fmt: skip
    print(_summary(made))
    note(f"wrote {arguments.html}")
    return 0


def _texts(file: Path | None, limit: int | None) -> _Data:
    if file is None:
        known = first(_SENTENCES, limit, LIMIT, "texts")
        return _Data(
            "example sentences", [text for text, _ in known], [name for _, name in known],
            len(_SENTENCES),
        )  # fmt: skip
    table = read_table(file)
    rows = first(table.rows, limit, LIMIT, "texts")
    labels = [label or None for _, _, label in rows] if table.label else None
    return _Data(file.name, [text for _, text, _ in rows], labels, len(table.rows))


def _images(path: Path | None, limit: int | None, source: Source, config: Any) -> _Data:
    if path is None:
        images, classes = (first(x, limit, LIMIT, "digits") for x in digit_samples())
        return _Data("sample digits", images, [str(c) for c in classes.tolist()], len(images))
    if path.is_dir():
        whole = image_files(path)
        files = first(whole, limit, LIMIT, "images")
        named = [None if file.parent == path else file.parent.name for file in files]
        images = torch.cat([read_image(file, source, config) for file in files])
        return _Data(path.name, images, named if any(named) else None, len(whole))
    if not path.exists():
        raise InputError(f"there is no folder or file {path}")
    if not is_array(path):
        return _Data(path.name, read_image(path, source, config), None, 1)
    images = read_images(path)
    check_shape(images, path, config)
    return _Data(path.name, first(images, limit, LIMIT, "images"), None, len(images))


def _short_enough(data: _Data, tokenizer: Any, model: Any) -> _Data:
    """Without the texts that the model cannot take."""
    limit = most_tokens(model.modules(), tokenizer)
    if limit is None or isinstance(data.inputs, Tensor):
        return data
    lengths = [len(ids) for ids in tokenizer(data.inputs, verbose=False)["input_ids"]]
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    if len(kept) == len(lengths):
        return data
    note(f"{len(lengths) - len(kept)} texts of more than {limit} tokens are left out")
    if not kept:
        raise InputError(f"{data.name} has no text that the model can take; shorten the texts")
    labels = None if data.labels is None else [data.labels[i] for i in kept]
    return replace(data, inputs=[data.inputs[i] for i in kept], labels=labels)


def _labels(data: _Data, config: Any) -> Sequence[str | None] | None:
    """Labels, unless the model cannot have them."""
    if data.labels is not None and len(getattr(config, "id2label", None) or {}) < 2:
        note("the labels are left out: the model has one output")
        return None
    return data.labels


def _summary(made: Report) -> str:
    """The methods with their numbers, as a table."""
    what = "texts" if made.kind == "text" else "images"
    accuracy = "" if made.accuracy is None else f", accuracy {100 * made.accuracy:.1f} %"
    lines = [f"{len(made.examples)} {what}{accuracy}", ""]
    width = max(6, *(len(method.name) for method in made.methods))
    heads = ["left out", "AUAC", "AU-MSE", "seconds"]
    lines.append(f"{'method':<{width}}" + "".join(f"{head:>10}" for head in heads))
    for method in made.methods:
        if method.error:
            lines.append(f"{printable(method.name):<{width}}  {printable(method.error)}")
            continue
        cells = [
            _left_out(made, method.name),
            "" if method.activation is None else f"{method.activation.area.nanmean():.3f}",
            "" if method.pruning is None else f"{method.pruning.area.nanmean():.3f}",
            f"{method.seconds:.1f}",
        ]
        lines.append(
            f"{printable(method.name):<{width}}" + "".join(f"{cell:>10}" for cell in cells)
        )
    reasons = {m.unmeasured for m in made.methods if m.unmeasured and not m.error}
    if reasons:
        lines += ["", f"no curves: {'; '.join(sorted(reasons))}"]
    return "\n".join(lines)


def _left_out(made: Report, name: str) -> str:
    """Median share of the predicted class's output that the relevance leaves out."""
    deltas = made[name].deltas
    shares = [
        abs(deltas[i, e.prediction]) / abs(float(e.output[e.prediction]))
        for i, e in enumerate(made.examples)
        if (i, e.prediction) in deltas and float(e.output[e.prediction])
    ]
    return f"{100 * float(torch.tensor(shares).quantile(0.5)):.1f} %" if shares else ""
