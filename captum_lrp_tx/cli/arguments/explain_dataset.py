"""The arguments of the command ``explain-dataset``."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_lrp_tx.cli.arguments.shared import add_model, add_rules, count

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
    add_model(data, "a sentiment classifier comes")
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
