"""The arguments of the command ``evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_lrp_tx.cli.arguments.names import METRICS
from captum_lrp_tx.cli.arguments.shared import METHODS_LINE, add_methods, add_model, count
from captum_lrp_tx.errors import InputError

DESCRIPTION = """Measure how faithful explanations are on a data set, method by method.

Writes table.md, table.csv and curves.png to the folder --out, and results as they come: the same
command goes on where it was stopped."""
EXAMPLES = f"""{METHODS_LINE}
metrics: {", ".join(METRICS)}

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
        help="true classes, of a folder by sorted names: in lines, .npy, .npz or MNIST's idx.gz",
    )  # fmt: skip
    add_model(data, "a sentiment and a digit classifier come")
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
    add_methods(how, "paper,LRP")
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
        "--every",
        action="store_true",
        help="a step after each token or patch instead of every 10 %%",
    )
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
        "--reference",
        metavar="METHOD",
        help="also give each method's difference from this one, with p-values",
    )
    results.add_argument(
        "--title", metavar="TEXT", help="of the figure (default: name of the data)"
    )


def _metrics(text: str) -> list[str]:
    from captum_lrp_tx.evaluation.measures import find_measure

    try:
        names = [find_measure(name.strip()).name for name in text.split(",") if name.strip()]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not names:
        raise argparse.ArgumentTypeError(f"names no metric; the metrics are: {', '.join(METRICS)}")
    return list(dict.fromkeys(names))
