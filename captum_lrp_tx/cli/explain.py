"""The command ``explain``: one prediction as a heat map, a table and a sum."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from captum_lrp_tx.cli.models import Kind, find, kind_of, load_model, load_processor
from captum_lrp_tx.cli.options import check_outputs, composite_of, text_of, write
from captum_lrp_tx.cli.sounds import read_sound
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.cli.subject import load, subject_of
from captum_lrp_tx.errors import TargetError
from captum_lrp_tx.explaining import Explanation, explain
from captum_lrp_tx.explaining.images import check_file
from captum_lrp_tx.explaining.saving import picture
from captum_lrp_tx.explaining.showing import is_lossy, map_of_picture, whole_page
from captum_lrp_tx.explaining.tasks import ONE_AT_A_TIME
from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization import image_terminal, supports_colour, table, terminal


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Explains what the arguments name."""
    is_alone = not arguments.text and arguments.image is None and arguments.audio is None
    if is_alone and isinstance(arguments.contrast, str):
        parser.error(
            f"--contrast took {arguments.contrast!r} for a class; write TEXT in front of it"
        )
    kind = _kind_of_pair_or_sound(parser, arguments)
    text = None if kind == "sound" else text_of(parser, arguments, with_image=True)
    if text is None and arguments.positions:
        parser.error("--positions is for texts")
    check_outputs(arguments)
    if arguments.png is not None or (text is None and arguments.html is not None):
        with status("importing matplotlib"):
            matplotlib()
    if kind is None:
        explanation = explained(text, arguments, arguments.contrast)
    else:
        explanation = _explained_by_processor(text, kind, arguments)
    _show(explanation, arguments)
    if arguments.html is not None:
        page = whole_page([explanation], merge=not arguments.pieces)
        write(arguments.html, page.encode("utf-8", "replace"))
    if arguments.png is not None:
        write(arguments.png, picture(explanation, "png", merge=not arguments.pieces))
    if arguments.audit:
        with status("auditing"):
            report = explanation.audit()
        print(f"\n{report}")
    return 0


_NAMES: dict[Kind, str] = {"sound": "sounds", "text and image": "text and image together"}


def _kind_of_pair_or_sound(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Kind | None:
    """Whether a text with an image is meant, or a sound; None for a text or an image alone."""
    if arguments.audio is not None and (arguments.text or arguments.image is not None):
        parser.error("--audio explains a sound alone, without TEXT and --image")
    found: Kind | None = "sound" if arguments.audio is not None else None
    if arguments.text and arguments.image is not None:
        found = "text and image"
    if found is not None and arguments.model is None:
        parser.error(f"no model of {_NAMES[found]} comes with the package; name one with --model")
    return found


def _explained_by_processor(
    text: str | None, kind: Kind, arguments: argparse.Namespace
) -> Explanation:
    """A text together with an image, or a sound."""
    composite_of(arguments)  # complains before anything is loaded
    if kind == "sound":
        item: Any = read_sound(Path(arguments.audio))
    else:
        check_file(Path(arguments.image))
        item = (text, arguments.image)
    source = find(arguments.model, "")
    kind_of(source, (kind,))
    processor, model = load_processor(source, kind), load_model(source, kind)
    with status("explaining"):
        made = source.use("model", lambda: explain(
            model, processor, item, arguments.target, contrast=arguments.contrast,
            rules=arguments.rules, bias=arguments.bias, epsilon=arguments.epsilon,
        ))  # fmt: skip
    if not isinstance(made, Explanation):
        raise TargetError(ONE_AT_A_TIME)
    return made


def explained(
    text: str | None, arguments: argparse.Namespace, contrast: bool | str = False
) -> Explanation:
    """What the arguments name, of a text or an image.

    Args:
        text (str, optional): Without one ``arguments.image`` is explained.
        arguments (Namespace): With subject and rules.
        contrast (bool or str): See :func:`captum_lrp_tx.explain`.

    Raises:
        InputError: If a model or an input cannot be loaded or does not fit.
        TargetError: If the model has no such class or token.
    """
    composite_of(arguments)  # complains before anything is loaded
    loaded = load(text, arguments.model)
    item = loaded.input(text, arguments)
    # a damaged model shows now
    loaded.source.use("model", lambda: subject_of(loaded, item, arguments.target))
    with status("explaining"):
        made = explain(
            loaded.model, loaded.tokenizer, item, arguments.target, contrast=contrast,
            rules=arguments.rules, bias=arguments.bias, epsilon=arguments.epsilon,
            task=loaded.task,
        )  # fmt: skip
    assert isinstance(made, Explanation)
    return made


def _show(explanation: Explanation, arguments: argparse.Namespace) -> None:
    colour = not arguments.no_color and supports_colour()
    for name, text in explanation.facts()[:-1]:  # the sum comes last, below the table
        print(f"{name:<12}{text}")
    if explanation.tokenized is not None:
        heatmap = explanation.heatmap()
        print(f"\n{terminal(heatmap, colour=colour, merge=not arguments.pieces)}\n")
        parts = explanation.embeddings if arguments.positions else {}
        columns = [(name, parts[key].tolist()) for key, name in _short_names(parts).items()]
        print(table(heatmap, columns, colour=colour))
    seen = None if explanation.audio is not None else map_of_picture(explanation)
    if seen is not None:
        print(f"\n{image_terminal(seen, colour=colour)}")
    explains = explanation.explains
    if "logit" in explains:  # the line at the top says of what
        explains = "difference of logits" if " minus that of " in explains else "logit"
    lines = [
        ("sum of relevance", explanation.sum),
        ("absorbed by constants", math.fsum(explanation.absorbed.values())),
        (explains, explanation.value),
    ]
    if is_lossy(explanation):
        lines.insert(2, ("unaccounted for", explanation.unaccounted))
    width = max(len(name) for name, _ in lines)
    print()
    for name, value in lines:
        print(f"{name:<{width}}  {value:+.4f}")


def _short_names(parts: Mapping[str, Tensor]) -> dict[str, str]:
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
