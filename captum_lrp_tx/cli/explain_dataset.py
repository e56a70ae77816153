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
from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.cli.options import composite_of
from captum_lrp_tx.cli.reading import class_numbers, read_texts
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.cli.subject import load
from captum_lrp_tx.datasets import attribute_dataset
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import pyarrow


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Explains what the arguments name."""
    pyarrow()  # complains before the work begins
    if arguments.workers < 0:
        parser.error("--workers must not be negative")
    texts, labels = read_texts(arguments.data)
    loaded = load("", arguments.model)
    source, tokenizer, model = loaded.source, loaded.tokenizer, loaded.model.to(_device())
    is_classifier = loaded.kind == "text"
    names = labels_of(loaded.config, int(model.config.num_labels)) if is_classifier else []
    target: Any = arguments.target
    if target == "label":
        if labels is None or not names:
            raise InputError(f"{arguments.data} has no labels, or {source.name} has no classes")
        target = class_numbers(labels, names)[: arguments.limit]
    elif target != "predicted":
        if not names:
            raise InputError("a language model is explained at its prediction: --target predicted")
        target = class_number(target, names)
    begun = time.perf_counter()
    found = attribute_dataset(
        ConservativeLRP(model, composite_of(arguments, loaded.task), bias=arguments.bias),
        texts[: arguments.limit], arguments.out, tokenizer=tokenizer, target=target,
        max_length=most_tokens(model.modules(), tokenizer, arguments.max_length),
        token_budget=arguments.token_budget, batches_per_shard=arguments.batches_per_file,
        workers=arguments.workers,
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
