"""The command ``evaluate``: how faithful many methods are on a data set."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

from captum_lrp_tx.attr.class_names import labels_of
from captum_lrp_tx.cli.images import read_image
from captum_lrp_tx.cli.models import Source, find, kind_of, load_model, load_tokenizer
from captum_lrp_tx.cli.options import METHODS_LINE, add_methods, count
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
from captum_lrp_tx.evaluation import MEASURES, Evaluation, evaluate
from captum_lrp_tx.evaluation.examples import Examples, ImageExamples, ImageFiles, TextExamples
from captum_lrp_tx.evaluation.measures import find_measure
from captum_lrp_tx.files import write_atomically
from captum_lrp_tx.methods.registry import find_method
from captum_lrp_tx.metrics.curves import FRACTIONS, Fractions
from captum_lrp_tx.metrics.masking import Masker, MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches
from captum_lrp_tx.runs.subject import longest_text
from captum_lrp_tx.visualization.figures import require_matplotlib

DESCRIPTION = """Measure how faithful explanations are on a data set, method by method.

Writes table.md, table.csv and curves.png to the folder --out, and results as they come: the same
command goes on where it was stopped."""
EXAMPLES = f"""{METHODS_LINE}
metrics: {", ".join(measure.name for measure in MEASURES)}

examples:
  python -m captum_lrp_tx evaluate --data dev.tsv --limit 50
  python -m captum_lrp_tx evaluate --data dev.tsv --model my-model --methods all --target label
  python -m captum_lrp_tx evaluate --data images.npy --labels labels.npy --methods GI,LRP,IG"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    data = parser.add_argument_group("what is explained")
    data.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help='texts: a table separated by tabs with a column "sentence" and maybe "label", or one '
        "text in each line; images: .npy, .npz or MNIST's idx.gz, or a folder, in which those of a "
        "folder within it belong to the class of that name",
    )  # fmt: skip
    data.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="true classes: one in each line, .npy, .npz or MNIST's idx.gz",
    )  # fmt: skip
    data.add_argument(
        "--model", metavar="DIR",
        help="a folder in Hugging Face format, or the name of a model on the Hub; a sentiment and "
        "a digit classifier come with the package",
    )  # fmt: skip
    data.add_argument(
        "--target", choices=["predicted", "label"], default="predicted",
        help="which class: the predicted one (default), or the true one as in Ali et al. 2022",
    )  # fmt: skip
    data.add_argument("--limit", type=count, metavar="N", help="only the first N examples")
    data.add_argument(
        "--max-length", type=count, metavar="N",
        help="cut texts to N tokens (default: what the model takes)",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    add_methods(how, "paper", "paper")
    how.add_argument(
        "--metrics", type=_metrics, default=["activation", "pruning"], metavar="A,B",
        help="default: activation,pruning",
    )  # fmt: skip
    how.add_argument(
        "--at", choices=["embeddings", "input"], default="embeddings",
        help="where gradient x input and LRP take relevance: what goes into the first block, as in "
        "Ali et al. (default), or token ids and pixels",
    )  # fmt: skip
    how.add_argument(
        "--mask-token", choices=["unk", "mask", "pad", "remove"], default="unk",
        help="what takes the place of tokens (default: unk, as in Ali et al.); remove: hide them "
        "by the attention mask",
    )  # fmt: skip
    how.add_argument(
        "--keep-special", action="store_true", help="never mask [CLS], [SEP] and their like"
    )
    how.add_argument(
        "--patch-size", type=count, metavar="N", help="of images (default: that of the model)"
    )
    how.add_argument(
        "--mask-value", type=float, metavar="X",
        help="replace patches by pixels of this value, -1 for black (default: take them out of the "
        "sequence)",
    )  # fmt: skip
    how.add_argument(
        "--every", action="store_true",
        help="a step after each token or patch instead of every 10 %%",
    )  # fmt: skip
    how.add_argument(
        "--flow-limit", type=count, default=50, metavar="N",
        help="attention flow is slow: so many examples for it (default: 50)",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, help="of random methods (default: 0)")
    how.add_argument(
        "--batch-size", type=count, metavar="N",
        help="masked inputs in one pass (default: 2,048 tokens, or 64 images)",
    )  # fmt: skip
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=Path, default=Path("evaluation"), metavar="DIR",
        help="folder for results (default: evaluation)",
    )  # fmt: skip
    results.add_argument("--fresh", action="store_true", help="drop the results in that folder")
    results.add_argument(
        "--reference", metavar="METHOD",
        help="also give each method's difference from this one, with p-values",
    )  # fmt: skip
    results.add_argument(
        "--title", metavar="TEXT", help="of the figure (default: name of the data)"
    )


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Evaluates what the arguments name.

    Args:
        parser (ArgumentParser): For error messages.
        arguments (Namespace): What it parsed.

    Returns:
        int: Exit status.
    """
    require_matplotlib()
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
        masker = _patches(arguments, config, model)
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
    texts, labels = read_texts(path, note)
    tokenizer = load_tokenizer(source)
    numbers = None
    if labels is not None and arguments.target == "label":
        numbers = class_numbers(labels, labels_of(config, int(model.config.num_labels)))
    longest = longest_text(tokenizer, config)
    if arguments.max_length is not None:
        longest = min(arguments.max_length, longest or arguments.max_length)
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


def _patches(arguments: argparse.Namespace, config: Any, model: Any) -> Masker:
    size = arguments.patch_size or getattr(config, "patch_size", None)
    if not isinstance(size, int):
        raise UnsupportedModelError(
            "the model does not say how large its patches are; give --patch-size and --mask-value"
        )
    if arguments.mask_value is not None:
        return MaskPatches(size, arguments.mask_value)
    if arguments.patch_size not in (None, getattr(config, "patch_size", None)):
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


def _metrics(text: str) -> list[str]:
    try:
        names = [find_measure(name.strip()).name for name in text.split(",") if name.strip()]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not names:
        raise argparse.ArgumentTypeError(
            f"names no metric; the metrics are: {', '.join(m.name for m in MEASURES)}"
        )
    return list(dict.fromkeys(names))
