"""Experiment 3 of Ali et al. 2022: a Graphormer on BACE, explained atom by atom.

    python -m experiments.ali2022.graphormer --data bace.csv

evaluates the stored model (``weights/bace.safetensors``) on the test molecules and writes the
tables and the picture in ``results``: about 6 minutes on one core. ``--train`` trains the model
first (about 2 minutes more) and overwrites the stored one. ``--quick`` needs no data and takes
seconds: it trains a tiny model on forty medicines and measures a few of them.

``bace.csv`` has the columns ``smiles`` and ``label`` (1: inhibits beta-secretase 1): the 1,513
molecules of MoleculeNet's BACE.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import captum
import rdkit
import torch
from torch import Tensor

import captum_lrp_tx
from captum_lrp_tx.methods.registry import Method
from experiments.ali2022.graphormer import report
from experiments.ali2022.graphormer.drugs import DRUGS
from experiments.ali2022.graphormer.evaluate import Result, conservation, evaluate
from experiments.ali2022.graphormer.explain import ALL, method_of, relevance_of
from experiments.ali2022.graphormer.model import Config, Graphormer, load, save
from experiments.ali2022.graphormer.molecules import Example, examples, read_csv, scaffold_split
from experiments.ali2022.graphormer.train import Training, logits, quality, train
from experiments.ali2022.published import AUAC

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights" / "bace.safetensors"
RESULTS = HERE / "results"
#: The columns of the picture.
PICTURED = ("Rollout", "GAE", "GI", "LRP(AH+LN)", "LRP", "IG")
LARGEST = 36  # tokens of a molecule in the picture
QUICK = (Config(width=16, heads=4, layers=2, hidden=32), Training(epochs=3, batch_size=10))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment.

    Args:
        arguments (sequence of str, optional): Of the command line.
    """
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.quick:
        model, test, lines = _quick(options)
    else:
        model, test, lines = _bace(options)
    methods = [method_of(name) for name in options.methods.split(",")]
    test = sorted(test[: options.limit], key=lambda example: example.graph.atoms.shape[1])
    found = logits(model, test)
    labels = torch.tensor([example.label for example in test])
    targets = labels if options.target == "label" else found.argmax(1)
    results = evaluate(
        model, test, targets, methods, seed=options.seed, show_progress=options.progress
    )
    lines += [*report.about(model, test, targets, options.target), _versions()]
    conserved = conservation(model, test, targets, options.progress)
    text = report.markdown(results, conserved, lines, {} if options.quick else AUAC["BACE"])
    print(text)
    if options.output is None:
        return
    name = "drugs" if options.quick else "bace"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    report.write_csv(results, options.output / f"{name}.csv")
    report.write_examples(results, test, options.output / f"{name}_examples.csv")
    _draw(model, test, found, methods, options.output / f"{name}.png")
    _draw_curves(results, options.output / f"{name}_curves.png")


def _bace(options: argparse.Namespace) -> tuple[Graphormer, list[Example], list[str]]:
    everything = read_csv(options.data)
    parts = [
        [everything[i] for i in part] for part in scaffold_split([e.smiles for e in everything])
    ]
    if options.train:
        how = Training(seed=options.seed)
        options.weights.parent.mkdir(parents=True, exist_ok=True)
        save(train(parts[0], Config(), how, parts[1], options.progress), options.weights)
    model = load(options.weights)
    lines = [
        "# Experiment 3: a Graphormer on BACE",
        f"{len(everything)} molecules, split by Bemis-Murcko scaffold as in MoleculeNet "
        "(80/10/10).",
    ]
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        lines.append(_quality(model, name, part))
    return model, parts[2], lines


def _quick(options: argparse.Namespace) -> tuple[Graphormer, list[Example], list[str]]:
    everything = examples((smiles, label) for _, smiles, label in DRUGS)
    test, rest = everything[::7], [e for i, e in enumerate(everything) if i % 7]
    model = train(rest, *QUICK, show_progress=options.progress)
    lines = ["# Quick run: forty medicines (a toy: the model has learned nothing)"]
    return model, test, [*lines, _quality(model, "train", rest), _quality(model, "test", test)]


def _quality(model: Graphormer, name: str, part: list[Example]) -> str:
    auc, accuracy = quality(model, part)
    return (
        f"- {name}: {len(part)} molecules, {sum(e.label for e in part)} active; ROC-AUC {auc:.3f}, "
        f"accuracy {accuracy:.3f}"
    )


def _versions() -> str:
    return (
        f"captum_lrp_tx {captum_lrp_tx.__version__}, torch {torch.__version__}, captum "
        f"{captum.__version__}, rdkit {rdkit.__version__}, {platform.machine()}, float32, CPU."
    )


def _draw(
    model: Graphormer, test: list[Example], found: Tensor, methods: list[Method], path: Path
) -> None:
    """The two surest predictions of each class among smaller molecules, right ones first."""
    from experiments.ali2022.graphormer.picture import Drawn, draw_grid

    shown = [m for m in methods if m.name in PICTURED]
    if not shown:
        return
    probability = found.softmax(1)
    rows = []
    for label, name in ((1, "active"), (0, "inactive")):
        told = [
            i for i, example in enumerate(test)
            if int(found[i].argmax()) == label and example.graph.atoms.shape[1] <= LARGEST
        ]  # fmt: skip
        told.sort(key=lambda i: (test[i].label != label, -float(probability[i, label])))
        for i in told[:2]:
            relevances = {
                m.name: relevance_of(model, m, test[i].graph, torch.tensor([label])) for m in shown
            }
            title = f"predicted {name}\np = {float(probability[i, label]):.2f}"
            rows.append(Drawn(test[i].smiles, title, relevances))
    if rows:
        draw_grid(rows, path)


def _draw_curves(results: Sequence[Result], path: Path) -> None:
    from experiments.ali2022.graphormer.picture import draw_curves

    draw_curves(results, path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ali2022.graphormer",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="CSV file with the columns smiles and label")
    parser.add_argument("--train", action="store_true", help="train first, overwrite the weights")
    parser.add_argument("--quick", action="store_true", help="a toy run without data, in seconds")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the trained model")
    parser.add_argument("--methods", default=",".join(ALL), help="names as in the tables")
    parser.add_argument(
        "--target", choices=("predicted", "label"), default="predicted", help="explained class"
    )
    parser.add_argument("--limit", type=int, help="only so many test molecules")
    parser.add_argument("--output", type=Path, help=f"folder; {RESULTS.name}, none for --quick")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)
    options.progress = sys.stderr.isatty()
    if not options.quick:
        if options.data is None:
            parser.error("--data is needed (or --quick)")
        options.output = options.output or RESULTS
    return options


if __name__ == "__main__":
    main()
