"""How faithful a method is for what it costs: ``faithfulness_per_price.md`` and its figure.

    python benchmarks/faithfulness_per_price.py --data SST2/dev.tsv --model FOLDER \
        --output benchmarks/faithfulness_per_price.md

Faithfulness as in the tables of Ali et al. 2022, on sentences with their true class; among the
methods are Integrated Gradients with several numbers of steps.  The price is the time of one
explanation over that of one forward pass, on sentences of usual length one by one, in turns.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
from commits import commit

from captum_lrp_tx.attr.token_gradients import TokenIntegratedGradients
from captum_lrp_tx.evaluation import Evaluation, TextExamples, evaluate
from captum_lrp_tx.methods import Method, find_method, run
from captum_lrp_tx.metrics.masking import MaskTokens

STEPS = (3, 5, 8, 10, 20, 50)
NAMES = ("A-Last", "Rollout", "GAE", "GI", "LRP(AH+LN)", "LRP", "LRP-gamma", "AttnLRP")
#: Sentences whose explanations are timed, and how often.
SENTENCES, TURNS = 8, 3
#: Of the axis of prices.
TICKS = (2, 3, 5, 10, 20, 30)
METRICS = (("activation", "AUAC (higher is better)"), ("pruning", "AU-MSE (lower is better)"))


def methods() -> list[Method]:
    """Those of one pass or two, then Integrated Gradients by their steps."""
    lrp = find_method("LRP")
    named = [find_method(name) for name in NAMES]
    gamma = Method(
        "AttnLRP-gamma", lrp.make, {"rules": "attnlrp-gamma", "bias": "distribute"},
        style=("#7241a8", "--", 1.5), at_layer=lrp.at_layer,
    )  # fmt: skip
    ig = find_method("IG")
    paths = [
        Method(f"IG, {n} steps", TokenIntegratedGradients, {"n_steps": n}, style=ig.style,
               takes=ig.takes)
        for n in STEPS
    ]  # fmt: skip
    return [*named, gamma, *paths]


def prices(model: Any, examples: TextExamples, chosen: list[Method]) -> dict[str, float]:
    """Time of an explanation over that of a forward pass: medians over sentences and turns."""
    lengths = examples.lengths()
    usual = statistics.median(lengths)
    rows = sorted(range(len(lengths)), key=lambda row: abs(lengths[row] - usual))[:SENTENCES]
    labels = examples.labels
    assert labels is not None
    ratios: dict[str, list[float]] = {method.name: [] for method in chosen}
    for turn in range(TURNS + 1):
        for row in rows:
            inputs = examples.inputs([row])
            start = time.perf_counter()
            with torch.no_grad():
                model(**inputs)
            forward = time.perf_counter() - start
            for method in chosen:
                start = time.perf_counter()
                run(method, model, inputs, labels[row], baseline=100)
                if turn:  # the first is a warm-up
                    ratios[method.name].append((time.perf_counter() - start) / forward)
    return {name: statistics.median(found) for name, found in ratios.items()}


def table(evaluation: Evaluation, price: dict[str, float]) -> list[str]:
    """Dearest last; bold is what no method of the same price or less reaches."""
    lines = ["| method | forward passes | AUAC | AU-MSE |", "|---|---|---|---|"]
    best: dict[str, float] = {}
    for method in sorted(evaluation, key=lambda m: price[m.name]):
        cells = []
        for metric, _ in METRICS:
            found = method.interval(metric)
            sign = 1 if metric == "activation" else -1
            bold = "**" if sign * found.estimate > best.get(metric, -1e9) else ""
            best[metric] = max(best.get(metric, -1e9), sign * found.estimate)
            cells.append(f"{bold}{found.estimate:.3f}{bold} [{found.low:.3f}, {found.high:.3f}]")
        lines.append(f"| {method.name} | {price[method.name]:.1f} | {' | '.join(cells)} |")
    return [*lines, ""]


def figure(evaluation: Evaluation, price: dict[str, float], path: Path) -> None:
    """Both metrics over the price, which is logarithmic; bars are 95 % intervals."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {method.name: method.style for method in methods()}
    drawn, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS, strict=True):
        path_points = []
        for method in evaluation:
            found, style = method.interval(metric), styles[method.name]
            colour = style[0] if style else "#555555"
            x, y = price[method.name], found.estimate
            error = [[y - found.low], [found.high - y]]
            is_path = method.name.startswith("IG")
            axis.errorbar(x, y, error, fmt="s" if is_path else "o", color=colour, capsize=2)
            text = method.name.removeprefix("IG, ").removesuffix(" steps")
            axis.annotate(text, (x, y), (5, 4), textcoords="offset points", fontsize=8)
            if is_path:
                path_points.append((x, y))
        axis.plot(*zip(*path_points, strict=True), color="#7d5a3c", lw=1, ls="--",
                  label="Integrated Gradients by steps")  # fmt: skip
        axis.set(xscale="log", xlabel="time of an explanation, in forward passes", title=title)
        axis.set_xticks(TICKS, labels=map(str, TICKS))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="best")
    drawn.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="SST-2, tab separated")
    parser.add_argument("--model", type=Path, required=True, help="a sentence classifier of it")
    parser.add_argument("--limit", type=int, default=200, help="sentences, the first ones")
    parser.add_argument("--results", type=Path, help="folder by which a run goes on later")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    with args.data.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: args.limit]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.model, dtype=torch.float32
    ).eval()
    texts, labels = [line["sentence"] for line in lines], [int(line["label"]) for line in lines]
    examples = TextExamples(texts, tokenizer, labels)
    chosen = methods()
    load = os.getloadavg()[0]
    price = prices(model, examples, chosen)
    masker = MaskTokens.from_tokenizer(tokenizer)
    evaluation = evaluate(model, examples, chosen, masker=masker, target="label", out=args.results)
    if evaluation.errors:
        raise SystemExit(f"a method does not apply: {evaluation.errors}")
    picture = args.output.with_suffix(".png")
    figure(evaluation, price, picture)
    page = [
        "# Faithfulness for its price", "",
        f"At {commit()}: {args.model.name} on the first {len(lines)} sentences of "
        f"{args.data.name} of SST-2. {platform.machine()}, {os.cpu_count()} cores; load before "
        f"the start {load:.1f}; torch "
        f"{torch.__version__}, transformers {transformers.__version__}. The price is that of one "
        f"sentence in forward passes (median over {SENTENCES} sentences of usual length, {TURNS} "
        "turns); 95 % bootstrap intervals. Bold: better than everything that costs no more.", "",
        *table(evaluation, price),
        f"![AUAC and AU-MSE over the time of an explanation]({picture.name})", "",
    ]  # fmt: skip
    args.output.write_text("\n".join(page), encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
