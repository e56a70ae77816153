"""What each further target of one input costs: the table in ``many_targets.md``.

    python benchmarks/many_targets.py --output benchmarks/many_targets.md

Models with random weights. CPU time of the process, one thread; the variants take turns in every
round and the medians are compared. With ``c(k)`` the time of k targets, a further target costs
``(c(K) - c(1)) / (K - 1)``, given as a share of one call of ``attribute``, which is what it costs
when calls are repeated (share 1).  ``error`` is the largest difference from repeated calls,
relative to the largest relevance.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from commits import made_with
from torch import Tensor

from captum_lrp_tx import ConservativeLRP

PACKS: tuple[tuple[str, int | None], ...] = (
    ("one by one", 1), ("2", 2), ("4", 4), ("8", 8), ("default", None)
)  # fmt: skip


def bert(width: int, layers: int, heads: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, num_labels=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def llama(vocabulary: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, intermediate_size=704, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768,
        image_size=224, patch_size=16, num_labels=1000,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def row(name: str, model: torch.nn.Module, inputs: Tensor, targets: list[Any], rounds: int) -> str:
    explainer = ConservativeLRP(model)
    count = len(targets)
    repeated = torch.stack([explainer.attribute(inputs, target=t) for t in targets])
    packed = explainer.attribute_targets(inputs, targets)
    error = float((packed - repeated).abs().max() / repeated.abs().max())
    variants: dict[str, Callable[[], Any]] = {
        "one": lambda: explainer.attribute(inputs, target=targets[0])
    }
    for label, size in PACKS:
        variants[label] = lambda size=size: explainer.attribute_targets(  # type: ignore[misc]
            inputs, targets, targets_per_pass=size
        )
    for function in variants.values():
        function()
    times: dict[str, list[float]] = {label: [] for label in variants}
    for _ in range(rounds):
        for label, function in variants.items():
            times[label].append(seconds(function))
    medians = {label: statistics.median(values) for label, values in times.items()}
    one = medians.pop("one")
    shares = [f"{(total - one) / (count - 1) / one:.2f}" for total in medians.values()]
    return f"| {name} | {count} | {1000 * one:.0f} | {' | '.join(shares)} | {error:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = made_with("torch", "transformers")
    names = " | ".join(label if label[0].isalpha() else f"packs of {label}" for label, _ in PACKS)
    lines = [
        "Cost of each further target, as a share of one call of `attribute` (`ConservativeLRP`):",
        "",
        f"| model and input | targets | one call (ms) | {names} | error |",
        "|---|" + "---|" * (len(PACKS) + 3),
    ]
    small, base, causal, large = bert(256, 4, 4), bert(768, 12, 12), llama(4000), llama(32000)
    jobs: list[tuple[str, torch.nn.Module, Tensor, list[Any]]] = []
    for shape in ((1, 16), (1, 128), (1, 512), (8, 32)):
        ids = torch.randint(5, 2000, shape)
        name = f"BERT, 4 layers, 256 wide, {shape[0]} x {shape[1]}"
        jobs.append((name, small, ids, list(range(8))))
    for tokens in (16, 128):
        ids = torch.randint(5, 2000, (1, tokens))
        jobs.append((f"BERT-base size, 1 x {tokens}", base, ids, list(range(8))))
    for tokens in (32, 128, 512):
        ids = torch.randint(5, 2000, (1, tokens))
        positions = [(tokens - 1 - i, 7) for i in range(8)]
        jobs.append((f"Llama shape, 4,000 tokens, 1 x {tokens}", causal, ids, positions))
    ids = torch.randint(5, 2000, (1, 128))
    positions = [(127 - i, 7) for i in range(8)]
    jobs.append(("Llama shape, 32,000 tokens, 1 x 128", large, ids, positions))
    jobs.append(("ViT, 6 layers, 192 wide, 224 px", vit(), torch.randn(1, 3, 224, 224),
                 list(range(8))))  # fmt: skip
    for name, model, inputs, targets in jobs:
        lines.append(row(name, model, inputs, targets, options.rounds))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Random weights, float32; {platform.machine()}, {os.cpu_count()} cores, 1 thread, CPU "
        f"time, median of {options.rounds} interleaved rounds; {made}.",
    ]  # fmt: skip
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
