r"""The experiments of Ali et al. 2022 on real data, with intervals.

    python -m experiments.ali2022.run --experiment all --shared ../shared --models paper-models

============= =========================================================== ====================
experiment    what                                                        time of one core
============= =========================================================== ====================
search        gammas on validation examples: ``LRP-tuned`` of the others  about 35 minutes
text          AUAC and AU-MSE of all methods on six text data sets        about 60 minutes
mnist         the same on MNIST with a vision transformer                 1 minute
conservation  sums of relevance against logits on SST-2                   1.5 minutes
bias          relevance of names, countries and gendered words            1 minute
ablation      AUAC and AU-MSE on models between the paper's and ours      not timed
tables        only writes tables and figures of what is there             seconds
============= =========================================================== ====================

What is measured goes to ``--work`` at once, so that a run can be broken off and taken up again;
summaries, tables and figures go to ``--out``.  The text data sets except SST-2 need the models of
``python -m experiments.ali2022.finetune``.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import captum
import torch
import transformers

import captum_lrp_tx
from captum_lrp_tx.evaluation import evaluate
from experiments.ali2022 import (
    ablation,
    bar,
    bias,
    conservation,
    figures,
    molecules,
    pages,
    reporting,
    search,
)
from experiments.ali2022.data import TASKS
from experiments.ali2022.methods import LIMITS, LIMITS_OF_LONG, by_depth, named
from experiments.ali2022.subjects import (
    COUNTS,
    DataSet,
    digit_subject,
    load_text,
    text_data,
    text_subject,
)

ORDER = (*TASKS, "mnist", "mnist-black")


def faithfulness(data: DataSet, options: argparse.Namespace) -> None:
    """Measures all methods on a data set and writes its summary.

    Args:
        data (DataSet): The examples.
        options (Namespace): Of the command line.
    """
    print(data.title, file=sys.stderr)
    shared_with = {"long": "sst2"}.get(data.name, data.name)  # the same model
    chosen = (*data.methods, *search.tuned(shared_with, data.examples, options.out))
    evaluation = evaluate(
        data.model, data.examples, named(chosen, options.methods), masker=data.masker,
        target=options.target, limit=data.count,
        limits=LIMITS_OF_LONG if data.name == "long" else LIMITS,
        out=options.work / f"{data.name}-{options.target}", show_progress=True,
    )  # fmt: skip
    found = reporting.summary(evaluation, data, options.target)
    reporting.save(found, options.out / f"{data.name}.json")


def run_search(options: argparse.Namespace) -> None:
    """Gammas for every model, on validation examples."""
    count = search.COUNT if options.count is None else options.count
    subjects = [
        (
            text_subject(name, options.shared, options.models, count, "val"),
            "IG [UNK]",
        )
        for name in options.tasks or TASKS
        if name != "long"  # the model of SST-2
    ]
    if options.tasks is None:
        subjects += [
            (digit_subject(options.shared, count, removed, validation=True), "IG black")
            for removed in (True, False)
        ]
    for data, bar_name in subjects:
        print(data.title, file=sys.stderr)
        (integrated,) = named(data.methods, [bar_name])
        search.save(search.search(data, integrated, show=True), data.name, options.out)
    text = search.report(search.load(options.out))
    (options.out / "search.md").write_text(text, encoding="utf-8")
    print(text)


def text(options: argparse.Namespace) -> None:
    """Experiment 1: six text data sets."""
    for name in options.tasks or TASKS:
        faithfulness(text_subject(name, options.shared, options.models, options.count), options)


def mnist(options: argparse.Namespace) -> None:
    """Experiment 2: MNIST, with patches taken out as in the paper, and painted black."""
    for removed in (True, False):
        faithfulness(digit_subject(options.shared, options.count, removed), options)


def run_ablation(options: argparse.Namespace) -> None:
    """Models between the paper's and ours, and ours at different depths."""
    bert, tokenizer = load_text(options.shared / "models/minilm-sst2")
    task = TASKS["sst2"]
    rows, test = (task.split(options.shared, name) for name in ("train", "test"))
    count = COUNTS["sst2"] if options.count is None else options.count
    data = text_data(task, bert, tokenizer, test, count)
    methods = ("Random", *by_depth(bert.config.num_hidden_layers))
    deep = replace(data, name="depth", title="SST-2, by depth", methods=methods)
    faithfulness(deep, argparse.Namespace(**{**vars(options), "methods": None}))
    for name in ablation.VARIANTS:
        model = ablation.obtain(name, bert, tokenizer, rows, options.models)
        data = text_data(task, model, tokenizer, test, count)
        title = ablation.TITLES[name]
        right = ablation.accuracy(model, tokenizer, test)
        titled = replace(
            data, name=name, title=f"SST-2, {title}", architecture=title,
            facts={"accuracy on the test split": f"{100 * right:.1f} %"},
        )  # fmt: skip
        faithfulness(titled, options)


def run_conservation(options: argparse.Namespace) -> None:
    """Sums of relevance against logits, on our model and on one like the paper's."""
    bert, tokenizer = load_text(options.shared / "models/minilm-sst2")
    task = TASKS["sst2"]
    rows, test = (task.split(options.shared, name) for name in ("train", "test"))
    count = 200 if options.count is None else options.count
    panels = {}
    like = ablation.obtain("attention", bert, tokenizer, rows, options.models)
    for title, model in (("6-layer BERT", bert), (ablation.TITLES["attention"], like)):
        data = text_data(task, model, tokenizer, test, count)
        panels[title] = conservation.sums(model, data.examples, data.count)
    figures.conservation(panels, options.out / "conservation.png")
    text = (
        "Sum of the relevance of the embedding block's output against the logit of the predicted "
        f"class, {data.count} sentences of the SST-2 test split.\n\n{conservation.table(panels)}\n"
    )
    (options.out / "conservation.md").write_text(text, encoding="utf-8")
    print(text)


def run_bias(options: argparse.Namespace) -> None:
    """Experiment 4: names, countries, gendered words."""
    model, tokenizer = load_text(options.shared / "models/minilm-sst2")
    found = [
        bias.measure(model, tokenizer, group, show=True) for group in bias.groups(options.count)
    ]
    figures.bias_names(found[0], options.out / "bias-names.png")
    figures.bias_groups(found, options.out / "bias-groups.png")
    text = bias.report(found)
    (options.out / "bias.md").write_text(text, encoding="utf-8")
    print(text)


def tables(options: argparse.Namespace) -> None:
    """Writes the tables, the figure of curves and, from the stored results, the pages."""
    found = reporting.load_all(options.out, ORDER)
    others = reporting.load_all(options.out, [*ablation.VARIANTS, "depth"])
    is_stored = options.out.resolve() == reporting.RESULTS.resolve()
    parts = []
    if found:
        figures.curves(found, options.out / "curves.png")
        if is_stored:
            found["bace"] = molecules.summary()
        parts += [
            reporting.table(found, *metric, semaine=True) + "\n" for metric in reporting.METRICS
        ]
        parts += ["## One pass against 50 steps of Integrated Gradients\n", bar.table(found) + "\n"]
        parts += [f"## Differences from {reporting.REFERENCE}\n", reporting.difference_table(found)]
    between = {**{k: v for k, v in found.items() if k == "sst2"}, **others}
    between.pop("depth", None)
    if len(between) > 1:
        parts += ["## Models between the paper's and ours\n"]
        parts += [reporting.table(between, *metric) + "\n" for metric in reporting.METRICS]
    if "depth" in others:
        deep = {"depth": others["depth"]}
        parts += ["## Relevance taken at the input of a block\n"]
        parts += [reporting.table(deep, *metric) + "\n" for metric in reporting.METRICS]
    parts += [f"{_measured([*found.values(), *others.values()])}; {_versions()}"]
    (options.out / "tables.md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))
    if found and is_stored:
        pages.write(pages.blocks(found, others))


def _measured(every: Sequence[dict[str, Any]]) -> str:
    """At which commits; results from before these were noted are named."""
    commits = sorted({data["commit"] for data in every if "commit" in data})
    earlier = [data["data set"] for data in every if "commit" not in data]
    told = f"Measured at {' and '.join(commits)}"
    return f"{told} (before commits were noted: {'; '.join(earlier)})" if earlier else told


def _versions() -> str:
    return (
        f"captum_lrp_tx {captum_lrp_tx.__version__}, torch {torch.__version__}, captum "
        f"{captum.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
        "float32, CPU.\n"
    )


EXPERIMENTS = {
    "search": run_search,
    "text": text,
    "mnist": mnist,
    "conservation": run_conservation,
    "bias": run_bias,
    "ablation": run_ablation,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", choices=[*EXPERIMENTS, "tables", "all"], default="all")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", type=Path, help="folder of the fine-tuned models")
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    parser.add_argument(
        "--work", type=Path, help="folder of what is measured (default: paper-work)"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these text data sets")
    parser.add_argument("--methods", nargs="+", help="only these methods")
    parser.add_argument(
        "--count", type=int, help="examples of each data set, words of each kind; 0 for all"
    )
    parser.add_argument(
        "--target", choices=["predicted", "label"], default="predicted",
        help="the explained class: the predicted one, or the true one as in the paper's code",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.work = options.work or Path("paper-work")
    options.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = EXPERIMENTS if options.experiment == "all" else [options.experiment]
    for name in chosen:
        if name in EXPERIMENTS:
            print(name, file=sys.stderr)
            EXPERIMENTS[name](options)
    if options.experiment not in ("bias", "conservation", "search"):
        tables(options)


if __name__ == "__main__":
    main()
