"""The command ``evaluate``: how faithful many methods are on a data set."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

from captum_lrp_tx.attr.class_names import labels_of
from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.cli.images import read_image
from captum_lrp_tx.cli.models import Source, find, kind_of, load_model, load_tokenizer, together
from captum_lrp_tx.cli.reading import (
    check_shape,
    class_numbers,
    image_files,
    is_array,
    read_images,
    read_labels,
    read_texts,
)
from captum_lrp_tx.cli.status import note, status
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.evaluation import Evaluation, evaluate
from captum_lrp_tx.evaluation.examples import Examples, ImageExamples, ImageFiles, TextExamples
from captum_lrp_tx.files import write_atomically
from captum_lrp_tx.methods.registry import find_method
from captum_lrp_tx.metrics.curves import FRACTIONS, Fractions
from captum_lrp_tx.metrics.masking import Masker, MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches, patch_size_of
from captum_lrp_tx.packages import matplotlib


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Evaluates what the arguments name."""
    matplotlib()
    reference = _reference(arguments)
    path: Path = arguments.data
    if not path.exists():
        raise InputError(f"there is no {path}")
    is_text = path.is_file() and not is_array(path)
    if arguments.labels is not None and is_text:
        parser.error('--labels is for images; texts have a column "label"')
    source = find(arguments.model, "sentiment" if is_text else "digits")
    kind, config = kind_of(source, ("text",) if is_text else ("image",))
    model = load_model(source, kind)
    examples: Examples
    masker: Masker
    if is_text:
        examples, masker = _texts(path, arguments, source, config, model)
    else:
        examples = _images(path, arguments, source, config)
        masker = _patches(arguments, model)
    facts = {"model": Path(source.name).name or source.name, "data": path.name or str(path)}
    if isinstance(examples, TextExamples) and examples.truncated:
        facts["texts cut to the model's length"] = str(examples.truncated)
    fractions: Fractions = "all" if arguments.every else FRACTIONS
    begun = time.perf_counter()
    evaluation = evaluate(
        model, examples, arguments.methods, masker=masker, metrics=arguments.metrics,
        target=arguments.target, at=arguments.at, fractions=fractions, limit=arguments.limit,
        limits={"A-Flow": arguments.flow_limit}, out=arguments.out, fresh=arguments.fresh,
        seed=arguments.seed, batch_size=arguments.batch_size, facts=facts, show_progress=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    _write(evaluation, arguments, reference, facts)
    note(f"wrote table.md, table.csv and curves.png to {arguments.out} after {seconds:.0f} s")
    return 0 if any(method.error is None for method in evaluation) else 1


def _texts(
    path: Path, arguments: argparse.Namespace, source: Source, config: Any, model: Any
) -> tuple[TextExamples, Masker]:
    texts, labels = read_texts(path)
    tokenizer = load_tokenizer(source)
    numbers = None
    if labels is not None and arguments.target == "label":
        numbers = class_numbers(labels, labels_of(config, int(model.config.num_labels)))
    together(source, model, tokenizer)
    longest = most_tokens(model.modules(), tokenizer, arguments.max_length)
    with status("tokenizing"):
        examples = TextExamples(texts, tokenizer, numbers, longest)
    if arguments.mask_token == "remove":
        return examples, RemoveTokens.from_tokenizer(tokenizer)
    return examples, MaskTokens.from_tokenizer(
        tokenizer, arguments.mask_token, keep_special=arguments.keep_special
    )


def _images(path: Path, arguments: argparse.Namespace, source: Source, config: Any) -> Examples:
    labels: list[str] | None = None
    if path.is_dir():
        files = image_files(path)
        if all(len(file.relative_to(path).parts) == 2 for file in files):
            labels = [file.parent.name for file in files]
        read: Examples = ImageFiles(files, lambda file: read_image(file, source, config))
    else:
        images = read_images(path)
        check_shape(images, path, config)
        read = ImageExamples(images)
    if arguments.labels is not None:
        labels = read_labels(arguments.labels)
    if labels is not None and len(labels) != len(read):
        raise InputError(f"{len(labels)} labels for {len(read)} images")
    if labels is not None and arguments.target == "label":
        read.labels = tuple(class_numbers(labels, labels_of(config, config.num_labels)))
    return read


def _patches(arguments: argparse.Namespace, model: Any) -> Masker:
    own = patch_size_of(model)
    size = own if arguments.patch_size is None else (arguments.patch_size,) * 2
    if size is None:
        raise UnsupportedModelError(
            "the model does not say how large its patches are; give --patch-size and --mask-value"
        )
    if arguments.mask_value is not None:
        return MaskPatches(size, arguments.mask_value)
    if own is None or size != own:
        raise InputError(
            "only the model's own patches can be taken out; give --mask-value with --patch-size"
        )
    return RemovePatches(size, value=-1.0)


def _write(
    evaluation: Evaluation,
    arguments: argparse.Namespace,
    reference: str | None,
    facts: dict[str, str],
) -> None:
    table = evaluation.markdown(reference)
    print(table, end="")
    folder: Path = arguments.out
    write_atomically(folder / "table.md", table.encode())
    write_atomically(folder / "table.csv", evaluation.csv().encode())
    has_curves = any(measure.is_curve for measure in evaluation.measures)
    if has_curves and any(method.error is None for method in evaluation):
        drawn = io.BytesIO()
        title = arguments.title if arguments.title is not None else facts["data"]
        evaluation.png(drawn, title=title)
        write_atomically(folder / "curves.png", drawn.getvalue())


def _reference(arguments: argparse.Namespace) -> str | None:
    if arguments.reference is None:
        return None
    name = find_method(arguments.reference).name
    if name not in arguments.methods:
        raise InputError(
            f"--reference {name} is none of the methods: {', '.join(arguments.methods)}"
        )
    return name
