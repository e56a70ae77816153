"""What explanations of language models of published size cost: ``language_models.md``.

    python benchmarks/language_models.py --model DIR --output benchmarks/language_models.md

``DIR`` is a folder with SmolLM2-135M-Instruct; ``python -m experiments.language_models`` makes one.
The model of a billion parameters has the shape of Llama 3.2 1B and random weights in bfloat16.
Ratios are those of medians of calls in turns, as in ``speed.py``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from captum.attr import InputXGradient
from methods import FORWARD, REFERENCE, Method, low
from operators import peak_memory
from speed import HEADS, conditions, rows, table
from torch import Tensor, nn
from workloads import FromEmbeddings

from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.rules import PRESETS

#: What the models read.
TEXT = (
    "The keys to the cabinet in the old house that the mayor of the town had bought were lost, and "
    "nobody who had lived there could say when they had last been seen by the children. "
)
#: Tokens, turns, and the presets that are measured with so many.
LENGTHS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (8, 9, tuple(PRESETS)),
    (64, 5, tuple(PRESETS)),
    (512, 2, tuple(PRESETS)),
    (2048, 1, ("ah+ln", "lrp", "attnlrp")),
)
#: Positions of a text that are explained at once.
POSITIONS = 32


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def token_ids(tokenizer: Any, count: int) -> Tensor:
    """The text again and again, cut to a number of tokens: shape ``(1, count)``."""
    ids = tokenizer(TEXT)["input_ids"]
    return torch.tensor([(ids * (count // len(ids) + 1))[:count]])


def by_length(model: nn.Module, tokenizer: Any) -> Iterator[list[str]]:
    """Presets over gradient x input, for short and long texts."""
    last = FromEmbeddings(model, last=True)
    for tokens, turns, presets in LENGTHS:
        x = model.get_input_embeddings()(token_ids(tokenizer, tokens)).detach()  # type: ignore[operator]

        def forward(x: Tensor = x) -> None:
            with torch.no_grad():
                last(x)

        made: dict[str, Any] = {REFERENCE: InputXGradient(last)}
        made |= {name: ConservativeLRP(last, name) for name in presets}
        made[low("lrp")] = ConservativeLRP(last, memory="low")
        found = {FORWARD: Method(forward)}
        found |= {n: Method(functools.partial(m.attribute, x, target=0)) for n, m in made.items()}
        measured = rows(found, {}, turns, time.perf_counter)
        title = f"## SmolLM2-135M in float32, 1 x {tokens:,}"
        count = f"{turns} turn{'s' * (turns > 1)}."
        cells = [row.cells()[:6] for row in measured]
        yield [title, "", count, "", *table(HEADS[:6], cells), ""]


def first_and_later(model: nn.Module, tokenizer: Any) -> list[str]:
    """What is looked at once, and what an audit takes, over a later explanation."""
    ids = token_ids(tokenizer, 64)
    target = (63, 0)
    starts, laters, audits = [], [], []
    for _ in range(3):
        explainer = ConservativeLRP(model)
        call = functools.partial(explainer.attribute, ids, target=target)
        starts.append(seconds(call))
        laters.append(statistics.median(seconds(call) for _ in range(5)))
        report = functools.partial(
            audit.explainability, model, ids, target, additional_forward_args=None, file=None
        )
        audits.append(seconds(report))
    later = statistics.median(laters)
    lines = [
        [name, f"{statistics.median(times):.2f}", f"{statistics.median(times) / later:.2f}",
         f"{min(times):.2f} to {max(times):.2f}"]
        for name, times in (
            ("a later explanation", laters),
            ("the first of a new `ConservativeLRP(model)`", starts),
            ("`audit.explainability`", audits),
        )
    ]  # fmt: skip
    heads = ("64 tokens, `lrp`", "seconds", "over a later one", "range of 3")
    return ["## The first explanation, later ones, and the audit", "", *table(heads, lines), ""]


def every_position(model: nn.Module, tokenizer: Any) -> list[str]:
    """The token at every position of a text, explained at once and one by one."""
    ids = token_ids(tokenizer, POSITIONS + 1)
    targets = [(i, int(ids[0, i + 1])) for i in range(POSITIONS)]
    explainer = ConservativeLRP(model)
    one = functools.partial(explainer.attribute, ids, target=targets[-1])
    together = functools.partial(explainer.attribute_targets, ids, targets)
    one()
    single = statistics.median(seconds(one) for _ in range(5))
    packed = statistics.median(seconds(together) for _ in range(3))
    repeated = [explainer.attribute(ids, target=t) for t in targets]
    wanted = torch.stack(repeated)
    error = float((together() - wanted).abs().max() / wanted.abs().max())
    line = [
        str(POSITIONS), f"{packed:.2f}", f"{packed / single:.1f}",
        f"{(packed / single - 1) / (POSITIONS - 1):.2f}", f"{error:.0e}",
    ]  # fmt: skip
    heads = (
        "positions", "seconds", "over one explanation", "a further position, over one explanation",
        "greatest difference from one by one",
    )  # fmt: skip
    return ["## Every position of a text: `attribute_targets`", "", *table(heads, [line]), ""]


def billion() -> nn.Module:
    """A Llama of 1.2 billion parameters in bfloat16."""
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def of_a_billion() -> Iterator[list[str]]:
    """Seconds and memory of a large model, whole and with its weights on the disk."""
    model = billion()
    count = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    last = FromEmbeddings(model, last=True)
    heads = ("tokens", "method", "seconds", "over forward", "peak MiB above the weights")
    lines = []
    for tokens in (256, 2048):
        x = torch.randn(1, tokens, 2048, dtype=torch.bfloat16) * 0.02

        def forward(x: Tensor = x) -> None:
            with torch.no_grad():
                last(x)

        calls: dict[str, Callable[[], Any]] = {FORWARD: forward}
        for name, explainer in (
            ("lrp", ConservativeLRP(last)),
            (low("lrp"), ConservativeLRP(last, memory="low")),
        ):
            explainer.attribute(x[:, :8], target=0)  # looks at the model once
            calls[name] = functools.partial(explainer.attribute, x, target=0)
        plain = 0.0
        for name, call in calls.items():
            gc.collect()
            taken = seconds(call) if tokens > 256 else min(seconds(call) for _ in range(3))
            plain = plain or taken
            peak, _ = peak_memory(call)
            lines.append(
                [f"{tokens:,}", name, f"{taken:.1f}", f"{taken / plain:.2f}", f"{peak / 2**20:.0f}"]
            )
            print(lines[-1], file=sys.stderr, flush=True)
    x = torch.randn(1, 256, 2048, dtype=torch.bfloat16) * 0.02
    wanted = ConservativeLRP(last).attribute(x, target=0)
    with tempfile.TemporaryDirectory() as folder:
        from accelerate import disk_offload

        disk_offload(model, folder, execution_device=torch.device("cpu"))
        explainer = ConservativeLRP(last, memory="low")
        explainer.attribute(x[:, :8], target=0)
        call = functools.partial(explainer.attribute, x, target=0)
        taken = seconds(call)
        same = torch.equal(call(), wanted)
        lines.append(["256", f"{low('lrp')}, weights on the disk", f"{taken:.1f}", "", ""])
    yield [
        f"## A Llama of {count / 1e9:.2f} billion parameters in bfloat16 ({weights:,.0f} MiB)", "",
        "256 tokens: the best of 3; 2,048: one call. With its weights on the disk (accelerate) the "
        f"relevance is {'the same to the last bit' if same else 'NOT the same'}.", "",
        *table(heads, lines), "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.clock = "wall"
    torch.set_num_threads(args.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.eval().requires_grad_(False)
    lines = ["# Explanations of language models", "", conditions(args), ""]
    parts: tuple[Callable[[], Any], ...] = (
        functools.partial(by_length, model, tokenizer),
        lambda: [first_and_later(model, tokenizer)],
        lambda: [every_position(model, tokenizer)],
        of_a_billion,
    )
    for part in parts:
        for made in part():
            print("\n".join(made), flush=True)
            lines += made
            if args.output is not None:  # what there is, should the rest not come to an end
                args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
