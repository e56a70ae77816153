"""The command ``explain-dataset``: relevance of every text of a file, in Parquet files."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from captum_lrp_tx.attr.class_names import class_number, labels_of
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.cli.models import find, kind_of, load_model, load_tokenizer
from captum_lrp_tx.cli.options import add_rules, bias_of, composite_of, count
from captum_lrp_tx.cli.reading import class_numbers, read_texts
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.datasets import attribute_dataset
from captum_lrp_tx.datasets.parquet import import_pyarrow
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.runs.subject import longest_text

DESCRIPTION = """Explain every text of a file, and write relevance to Parquet files.

The same command goes on where it was stopped. Under torchrun or accelerate launch every process
does its share."""
EXAMPLES = """examples:
  python -m captum_lrp_tx explain-dataset --data dev.tsv --out relevance
  python -m captum_lrp_tx explain-dataset --data dev.tsv --model my-model --target label --out here
  torchrun --nproc-per-node 2 -m captum_lrp_tx explain-dataset --data dev.tsv --out relevance

read them with captum_lrp_tx.read_dataset("relevance"), pandas, or anything that reads Parquet"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    data = parser.add_argument_group("what is explained")
    data.add_argument(
        "--data", type=Path, required=True, metavar="FILE",
        help='a table separated by tabs with a column "sentence" (or "text") and maybe "label", or '
        "one text in each line",
    )  # fmt: skip
    data.add_argument(
        "--model", metavar="DIR",
        help="a folder in Hugging Face format, or the name of a model on the Hub; a sentiment "
        "classifier comes with the package",
    )  # fmt: skip
    data.add_argument(
        "--target", default="predicted", metavar="CLASS",
        help="predicted (default): the predicted class or next token; label: the class in the "
        "file; or the index or name of a class",
    )  # fmt: skip
    data.add_argument("--limit", type=count, metavar="N", help="only the first N texts")
    data.add_argument(
        "--max-length", type=count, metavar="N",
        help="cut texts to N tokens (default: what the model takes)",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    add_rules(how)
    how.add_argument(
        "--token-budget", type=count, default=4096, metavar="N",
        help="tokens in a batch, padding included (default: 4096)",
    )  # fmt: skip
    how.add_argument(
        "--batches-per-file", type=count, default=8, metavar="N",
        help="batches in a file; a killed run loses the file that it was at (default: 8)",
    )  # fmt: skip
    how.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes for tokenizing (default: 0)"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the Parquet files"
    )
    results.add_argument("--fresh", action="store_true", help="drop the results in that folder")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Explains what the arguments name.

    Args:
        parser (ArgumentParser): For error messages.
        arguments (Namespace): What it parsed.

    Returns:
        int: Exit status.
    """
    import_pyarrow()
    if arguments.workers < 0:
        parser.error("--workers must not be negative")
    texts, labels = read_texts(arguments.data, note)
    source = find(arguments.model, "sentiment")
    kind, config = kind_of(source, ("text", "next token"))
    tokenizer = load_tokenizer(source)
    model = load_model(source, kind).to(_device())
    names = [] if kind == "next token" else labels_of(config, int(model.config.num_labels))
    target: Any = arguments.target
    if target == "label":
        if labels is None or not names:
            raise InputError(f"{arguments.data} has no labels, or {source.name} has no classes")
        target = class_numbers(labels, names)[: arguments.limit]
    elif target != "predicted":
        if not names:
            raise InputError("a language model is explained at its prediction: --target predicted")
        target = class_number(target, names)
    known = [n for n in (longest_text(tokenizer, config), arguments.max_length) if n is not None]
    begun = time.perf_counter()
    found = attribute_dataset(
        ConservativeLRP(model, composite_of(arguments), bias=bias_of(arguments)),
        texts[: arguments.limit], arguments.out, tokenizer=tokenizer, target=target,
        max_length=min(known, default=None), token_budget=arguments.token_budget,
        batches_per_shard=arguments.batches_per_file, workers=arguments.workers,
        model_name=Path(source.name).name or source.name, fresh=arguments.fresh,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        seconds = time.perf_counter() - begun
        files = found.settings["shards"]
        note(f"{len(found)} texts in {files} files in {arguments.out} after {seconds:.0f} s")
    return 0


def _device() -> torch.device:
    """The GPU of this process, if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
