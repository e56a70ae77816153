r"""What explanations of a real language model cost: ``language_models_cost.md``.

    python benchmarks/language_models_cost.py --model DIR \
        --output benchmarks/language_models_cost.md

``DIR`` is a folder with SmolLM2-135M-Instruct; ``python -m experiments.language_models`` makes one.
Ratios are those of medians of calls in turns, as in ``speed.py``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from captum.attr import InputXGradient
from methods import FORWARD, REFERENCE, Method, low
from speed import conditions
from torch import Tensor, nn
from turns import HEADS, rows, table
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
        x = model.get_input_embeddings()(token_ids(tokenizer, tokens)).detach()

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
        fresh = copy.deepcopy(model)  # a model is looked at once
        explainer = ConservativeLRP(fresh)
        call = functools.partial(explainer.attribute, ids, target=target)
        starts.append(seconds(call))
        laters.append(statistics.median(seconds(call) for _ in range(5)))
        report = functools.partial(audit.explainability, fresh, ids, target, file=None)
        audits.append(seconds(report))
    later = statistics.median(laters)
    lines = [
        [name, f"{statistics.median(times):.2f}", f"{statistics.median(times) / later:.2f}",
         f"{min(times):.2f} to {max(times):.2f}"]
        for name, times in (
            ("a later explanation", laters),
            ("the first of a model", starts),
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
    lines = ["# Explanations of a language model", "", conditions(args), ""]
    parts: tuple[Callable[[], Any], ...] = (
        functools.partial(by_length, model, tokenizer),
        lambda: [first_and_later(model, tokenizer)],
        lambda: [every_position(model, tokenizer)],
    )
    for part in parts:
        for made in part():
            print("\n".join(made), flush=True)
            lines += made
            if args.output is not None:  # what there is, should the rest not come to an end
                args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
