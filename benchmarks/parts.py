"""What maps and edges of parts cost beside one explanation: the tables in ``parts.md``.

    python benchmarks/parts.py --output benchmarks/parts.md

Operations are counted, not timed, so the numbers are the same on every machine: calls that reach
torch's dispatcher, and the floating-point operations of matrix products and attention among them
(``torch.utils.flop_counter``).  Models have random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from captum_lrp_tx import ConservativeLRP, EdgeRelevance, PartRelevance

TOKENS, WIDTH = 32, 128


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


def bert(layers: int, heads: int) -> torch.nn.Module:
    """A model with as many weights for any number of heads."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * WIDTH, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def llama(layers: int, heads: int) -> torch.nn.Module:
    """The same for another shape."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=3 * WIDTH, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def rows() -> list[str]:
    """Lines of the table."""
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
    text = "\n".join(
        [
            "Operations of maps and edges of parts, as multiples of those of one explanation",
            f"(`ConservativeLRP.attribute`), for one input of {TOKENS} tokens:",
            "",
            *rows(),
            "",
            "Parts are heads and MLPs. With more heads in the same layers, and with more layers,",
            "the multiple for edges grows linearly with the number of parts.",
            "",
            f"Random weights, {WIDTH} features in the stream. Counted, not timed: calls that reach",
            "torch's dispatcher, and floating-point operations of matrix products and attention;",
            f"torch {torch.__version__}, transformers {transformers.__version__}.",
        ]
    )
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
