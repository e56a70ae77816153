"""What maps and edges of parts cost beside one explanation: the tables in ``parts_cost.md``.

    python benchmarks/parts_cost.py --output benchmarks/parts_cost.md

Operations are counted, so that these numbers are the same on every machine: calls that reach
torch's dispatcher, and the floating-point operations of matrix products and attention among them
(``torch.utils.flop_counter``).  Time is measured in turns on a machine that should be idle.
Models have random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from commits import made_with
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from captum_lrp_tx import ConservativeLRP, EdgeRelevance, PartRelevance

TOKENS, WIDTH = 32, 128
REAL_WIDTH, TURNS = 768, 5


class Cost(NamedTuple):
    """Of one call: what reached the dispatcher, and the floating-point operations."""

    calls: int
    flops: int


class _Calls(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], Any]) -> Cost:
    """The cost of a call; the one before it tells what is told once."""
    run()
    with _Calls() as calls:
        run()
    with FlopCounterMode(display=False) as flops:
        run()
    return Cost(calls.count, flops.get_total_flops())


def timed(runs: list[Callable[[], Any]]) -> list[tuple[float, float, float]]:
    """Median, least and greatest ratio of the time of each call to that of the first, in turns."""
    ratios: list[list[float]] = [[] for _ in runs]
    for turn in range(TURNS + 1):
        seconds = []
        for run in runs:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        if turn:  # the first tells what is told once
            for ratio, taken in zip(ratios, seconds, strict=True):
                ratio.append(taken / seconds[0])
    return [(statistics.median(r), min(r), max(r)) for r in ratios]


def bert(layers: int, heads: int, width: int = WIDTH) -> torch.nn.Module:
    """A model with as many weights for any number of heads."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def llama(layers: int, heads: int, width: int = WIDTH) -> torch.nn.Module:
    """The same for another shape."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=3 * width, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def times() -> list[str]:
    """Lines of the table of time, at the sizes of real models."""
    lines = [
        "| model | tokens | layers | heads a layer | parts | part map | edges "
        "| edges for each part |",
        "|---" * 8 + "|",
    ]
    for name, build, target, tokens in (
        ("BERT", bert, 1, 32), ("BERT", bert, 1, 128), ("Llama", llama, (-1, 5), 128),
    ):  # fmt: skip
        for layers, heads in ((6, 6), (6, 12), (12, 12)):
            model, parts = build(layers, heads, REAL_WIDTH), layers * (heads + 1)
            ids = torch.arange(tokens)[None] % 100
            _, some, edges = timed(
                [
                    lambda c=cls, m=model, t=target, x=ids: c(m).attribute(x, t)
                    for cls in (ConservativeLRP, PartRelevance, EdgeRelevance)
                ]
            )
            shown = " | ".join(f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in (some, edges))
            each = f"{edges[0] / parts:.3f}"
            lines.append(f"| {name} | {tokens} | {layers} | {heads} | {parts} | {shown} | {each} |")
    return lines


def rows() -> list[str]:
    """Lines of the table of operations."""
    ids: Tensor = torch.arange(TOKENS)[None] % 100
    lines = [
        "| model | layers | heads a layer | parts | part map, calls | part map, FLOPs "
        "| edges, calls "
        "| edges, FLOPs | edges, FLOPs for each part |",
        "|---" * 9 + "|",
    ]
    for name, build, target in (("BERT", bert, 1), ("Llama", llama, (-1, 5))):
        for layers, heads in ((4, 2), (4, 4), (4, 8), (4, 16), (2, 8), (8, 8), (16, 8)):
            model, parts = build(layers, heads), layers * (heads + 1)
            one = counted(lambda m=model, t=target: ConservativeLRP(m).attribute(ids, t))
            some = counted(lambda m=model, t=target: PartRelevance(m).attribute(ids, t))
            edges = counted(lambda m=model, t=target: EdgeRelevance(m).attribute(ids, t))
            ratios = (
                some.calls / one.calls, some.flops / one.flops,
                edges.calls / one.calls, edges.flops / one.flops,
            )  # fmt: skip
            shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            each = edges.flops / one.flops / parts
            lines.append(f"| {name} | {layers} | {heads} | {parts} | {shown} | {each:.3f} |")
    return lines


def main() -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where the page is written, else it is printed")
    options = parser.parse_args()
    made = made_with("torch", "transformers")
    text = "\n".join(
        [
            "Operations of maps and edges of parts, as multiples of those of one explanation",
            f"(`ConservativeLRP.attribute`), for one input of {TOKENS} tokens:",
            "",
            *rows(),
            "",
            f"Time, as multiples of that of one explanation, {REAL_WIDTH} features in the stream",
            f"({TURNS} turns; median, and range in brackets; {torch.get_num_threads()} threads,",
            f"load before the start {os.getloadavg()[0]:.1f}):",
            "",
            *times(),
            "",
            "Parts are heads and MLPs. With more heads in the same layers, and with more layers,",
            "the multiple for edges grows linearly with the number of parts.",
            "",
            f"Random weights; in the first table {WIDTH} features in the stream, calls that reach",
            "torch's dispatcher, and floating-point operations of matrix products and attention;",
            f"{made}.",
        ]
    )
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
