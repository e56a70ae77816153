"""How much of the explained logit each rule set accounts for: a table of the pages.

    python benchmarks/conservation.py --shared ../shared --output benchmarks/conservation.md

Explains the predicted class of SST-2 dev sentences and MNIST test digits, one example at a time.
``error`` is |logit - relevance of the inputs - relevance absorbed by named constants|, ``left out``
is |logit - relevance of the inputs|; both are divided by |logit| and averaged over the examples,
with a 95 % bootstrap interval of the mean.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from commits import made_with
from tqdm import tqdm

from captum_lrp_tx import audit, models

METHODS: list[tuple[str, str, dict[str, Any]]] = [
    ("gradient x input", "gi", {}),
    ("AH", "ah", {}),
    ("LN", "ln", {}),
    ("AH+LN", "ah+ln", {}),
    ("AttnLRP", "attnlrp", {}),
    ("LRP", "lrp", {}),
    ("LRP, bias distributed", "lrp", {"bias": "distribute"}),
]


def sentences(shared: Path, count: int) -> list[str]:
    """The first sentences of the SST-2 dev set."""
    with open(shared / "data/sst2/dev.tsv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row[0] for row in rows[1 : count + 1]]


def digits(shared: Path, count: int) -> torch.Tensor:
    """The last digits of the file: the test part."""
    with gzip.open(shared / "data/mnist/t10k-images-idx3-ubyte.gz") as file:
        raw = file.read()[16:]
    images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    return (images[-count:].float() / 255 - 0.5) / 0.5


def subjects(shared: Path, count: int) -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, model and examples of each row group."""
    load_text = transformers.AutoModelForSequenceClassification.from_pretrained
    load_image = transformers.AutoModelForImageClassification.from_pretrained
    texts, images = sentences(shared, count), digits(shared, count).unsqueeze(1)
    for name, (model, tokenizer) in {
        "minilm-sst2 (6-layer BERT)": (
            load_text(shared / "models/minilm-sst2").float().eval(),
            transformers.AutoTokenizer.from_pretrained(shared / "models/minilm-sst2"),
        ),
        "shipped sentiment model": models.sentiment(),
    }.items():
        yield name, model, [tokenizer(text, return_tensors="pt") for text in texts]
    yield (
        "vit-mnist (4-layer ViT)",
        load_image(shared / "models/vit-mnist").float().eval(),
        [*images],
    )
    yield "shipped digit model", models.digits(), [*images]


def interval(values: np.ndarray, seed: int = 0) -> str:
    """Mean and 95 % bootstrap interval."""
    generator = np.random.default_rng(seed)
    means = generator.choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    if values.mean() < 1e-3:
        return f"{values.mean():.0e}"
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    made = made_with("torch", "captum", "transformers")
    lines = [
        "| model | rules | left out | error | worst error |",
        "|---|---|---|---|---|",
    ]
    for name, model, examples in subjects(options.shared, options.count):
        for label, rules, more in METHODS:
            left_out, error = [], []
            for example in tqdm(examples, f"{name}: {label}", leave=False, file=sys.stderr):
                report = audit.explainability(model, example, rules=rules, file=None, **more)
                scale = abs(report.output)
                left_out.append(abs(report.output - report.relevance) / scale)
                error.append(abs(report.conservation_error) / scale)
            errors = np.array(error)
            lines.append(
                f"| {name} | {label} | {interval(np.array(left_out))} | {interval(errors)} "
                f"| {errors.max():.0e} |"
            )
            print(lines[-1], flush=True)
    versions = f"{options.count} examples a row, float32, CPU; {made}, {platform.machine()}."
    text = "\n".join([*lines, "", versions, ""])
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
