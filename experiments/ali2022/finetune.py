r"""Fine-tunes a small BERT for each text data set of the paper's tables that needs one.

    python -m experiments.ali2022.finetune --shared ../shared --models paper-models

Each model starts from the encoder of ``models/minilm-sst2`` in the shared folder (6 layers, hidden
size 384: all-MiniLM-L6-v2, fine-tuned on SST-2) with a new classification head, and goes to a
folder of its own in ``--models``; a model that is there already is left alone. The weights are not
part of this repository. ``results/finetune.md`` and ``results/finetune.json`` hold what came out.

The embeddings and the two lowest layers stay as they are. AdamW, weight decay 0.01 (not on biases
and norms), linear decay after 6 % warm-up, gradient norm clipped at 1.0, dropout 0.1, seed 0. The
epoch with the best macro-F1 on val is kept; the test split is used once, for the kept epoch.

SST-2 and the long documents, which are made of SST-2 sentences, take the base model as it is; how
good it is there is reported beside the others. About 25 minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.ali2022.data import TASKS, Split, Task, sample

RESULTS = Path(__file__).parent / "results"
BASE = "models/minilm-sst2"
#: Layers that stay as they are, beside the embeddings: they are good already, and it saves time.
FROZEN_LAYERS = 2


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Attributes:
        epochs (int): Passes over the training split.
        max_tokens (int): Longer texts are cut.
        batch_size (int): Texts in a step.
        learning_rate (float): At its peak.
        rows (int): How many texts of the training split, drawn at random.
    """

    epochs: int = 3
    max_tokens: int = 96
    batch_size: int = 32
    learning_rate: float = 5e-5
    rows: int = 10_000


#: In the order of training.
PLANS: dict[str, Plan] = {
    "emotion": Plan(epochs=4),
    "meld": Plan(epochs=2),
    "hate": Plan(epochs=2, rows=4000),
    "sentiment": Plan(epochs=3),
}
#: Data sets for which the base model serves as it is, and where their texts are cut.
AS_IS: dict[str, int] = {"sst2": 96, "long": 512}


def batches_by_length(
    lengths: Sequence[int], batch_size: int, rng: random.Random | None = None
) -> list[list[int]]:
    """Splits texts into batches of similar length.

    Args:
        lengths (sequence of int): Length of each text.
        batch_size (int): Largest number of texts in a batch.
        rng (random.Random, optional): Shuffles within stretches of 32 batches, and the batches.

    Returns:
        list[list[int]]: Indices of the texts of each batch, every text once.

    Example::

        >>> batches_by_length([5, 1, 4, 2], 2)
        [[1, 3], [2, 0]]
    """
    order = list(range(len(lengths)))
    chunk = len(order) or 1
    if rng is not None:
        rng.shuffle(order)
        chunk = 32 * batch_size
    batches = []
    for start in range(0, len(order), chunk):
        similar = sorted(order[start : start + chunk], key=lengths.__getitem__)
        batches += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
    if rng is not None:
        rng.shuffle(batches)
    return batches


def scores(predicted: Sequence[int], labels: Sequence[int], classes: int) -> dict[str, float]:
    """Accuracy and macro-F1.

    Args:
        predicted (sequence of int): Predicted classes.
        labels (sequence of int): True classes.
        classes (int): Number of classes.

    Returns:
        dict: ``n``, ``accuracy`` and ``macro_f1``, the mean of the F1 of all classes.

    Example::

        >>> scores([0, 1, 1, 1], [0, 0, 1, 1], 2)
        {'n': 4, 'accuracy': 0.75, 'macro_f1': 0.7333}
    """
    pairs = list(zip(predicted, labels, strict=True))
    f1 = []
    for c in range(classes):
        hits = sum(p == c == y for p, y in pairs)
        total = sum(p == c for p, _ in pairs) + sum(y == c for _, y in pairs)
        f1.append(2 * hits / total if total else 0.0)
    accuracy = sum(p == y for p, y in pairs) / len(pairs)
    return {
        "n": len(pairs),
        "accuracy": round(accuracy, 4),
        "macro_f1": round(sum(f1) / classes, 4),
    }


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Any:
    """Token ids of texts, padded to the longest.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts (sequence of str): The texts.
        max_tokens (int): Longer texts are cut.
    """
    return tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )


@torch.no_grad()
def predict(model: Any, tokenizer: Any, split: Split, max_tokens: int) -> list[int]:
    """Predicted class of every text."""
    model.eval()
    predicted = [0] * len(split.texts)
    for batch in batches_by_length([len(text) for text in split.texts], 64):
        logits = model(**encode(tokenizer, [split.texts[i] for i in batch], max_tokens)).logits
        for i, best in zip(batch, logits.argmax(-1).tolist(), strict=True):
            predicted[i] = best
    return predicted


def new_model(base: Path, classes: Sequence[str], seed: int) -> Any:
    """The encoder of a classifier with a new head.

    Args:
        base (Path): Folder of a ``BertForSequenceClassification``.
        classes (sequence of str): Names of the classes.
        seed (int): Of the head.
    """
    from transformers import AutoConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    old = BertForSequenceClassification.from_pretrained(base, local_files_only=True).float()
    model: Any = BertForSequenceClassification(config)
    model.bert.load_state_dict(old.bert.state_dict())
    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        frozen.requires_grad_(False)
    return model


def train(
    model: Any, tokenizer: Any, rows: Split, val: Split, classes: int, plan: Plan, seed: int
) -> list[dict[str, float]]:
    """Trains a model in place and keeps the weights of the epoch with the best macro-F1.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        rows (Split): To train on.
        val (Split): Chooses the epoch.
        classes (int): Number of classes.
        plan (Plan): How.
        seed (int): Of batches and dropout.

    Returns:
        list[dict]: Scores on val after each epoch.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    lengths = [len(text) for text in rows.texts]
    epochs = [batches_by_length(lengths, plan.batch_size, rng) for _ in range(plan.epochs)]
    total = sum(map(len, epochs))
    warmup = max(1, round(0.06 * total))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    decay = [weight for weight in trained if weight.ndim > 1]
    no_decay = [weight for weight in trained if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        lr=plan.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (total - step) / (total - warmup))
    )
    history: list[dict[str, float]] = []
    kept: dict[str, Tensor] = {}
    with tqdm(total=total, unit="step", mininterval=20, file=sys.stderr) as progress:
        for batches in epochs:
            model.train()
            for batch in batches:
                inputs = encode(tokenizer, [rows.texts[i] for i in batch], plan.max_tokens)
                truth = torch.tensor([rows.labels[i] for i in batch])
                loss = torch.nn.functional.cross_entropy(model(**inputs).logits, truth)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update()
            found = scores(predict(model, tokenizer, val, plan.max_tokens), val.labels, classes)
            progress.write(f"  epoch {len(history) + 1}: {found}", file=sys.stderr)
            if not history or found["macro_f1"] > max(h["macro_f1"] for h in history):
                kept = copy.deepcopy(model.state_dict())
            history.append(found)
    model.load_state_dict(kept)
    return history


def finetune(task: Task, shared: Path, folder: Path, plan: Plan, seed: int = 0) -> dict[str, Any]:
    """Trains and stores the model of a data set.

    Args:
        task (Task): The data set.
        shared (Path): Folder with ``data`` and ``models/minilm-sst2``.
        folder (Path): Where the model goes.
        plan (Plan): How it is trained.
        seed (int): Of everything random.

    Returns:
        dict: What was done and what came out, also stored as ``report.json`` in ``folder``.
    """
    from transformers import AutoTokenizer

    begun = time.time()
    base = shared / BASE
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = new_model(base, task.classes, seed)
    rows, val, test = (task.split(shared, name) for name in ("train", "val", "test"))
    chosen = sample(rows, plan.rows, seed)
    rows = Split([rows.texts[i] for i in chosen], [rows.labels[i] for i in chosen])
    history = train(model, tokenizer, rows, val, len(task.classes), plan, seed)
    predicted = predict(model, tokenizer, test, plan.max_tokens)
    report = {
        "task": task.name,
        "train": len(rows.texts),
        "epochs": plan.epochs,
        "max_tokens": plan.max_tokens,
        "val_by_epoch": history,
        "val": max(history, key=lambda h: h["macro_f1"]),
        "test": scores(predicted, test.labels, len(task.classes)),
        "most_frequent_class_in_test": _most_frequent(test.labels),
        "minutes": round((time.time() - begun) / 60, 1),
        "threads": torch.get_num_threads(),
    }
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def as_is(task: Task, shared: Path, max_tokens: int) -> dict[str, Any]:
    """How good the base model is on a data set that it is not trained for again.

    Args:
        task (Task): The data set.
        shared (Path): Folder with ``data`` and ``models/minilm-sst2``.
        max_tokens (int): Longer texts are cut.

    Returns:
        dict: As of :func:`finetune`, without what belongs to training.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = shared / BASE
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(base, local_files_only=True).float()
    found: dict[str, Any] = {"task": task.name, "train": 0, "max_tokens": max_tokens}
    for name in ("val", "test"):
        split = task.split(shared, name)
        predicted = predict(model, tokenizer, split, max_tokens)
        found[name] = scores(predicted, split.labels, len(task.classes))
    return {**found, "most_frequent_class_in_test": _most_frequent(split.labels)}


def _most_frequent(labels: Sequence[int]) -> float:
    return round(max(labels.count(c) for c in set(labels)) / len(labels), 4)


def table(reports: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of what came out.

    Args:
        reports (sequence of dict): As :func:`finetune` returns them.
    """
    lines = [
        "| data set | train | epochs (kept) | val | test | most frequent class in test |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        epochs = "as it is"
        if "val_by_epoch" in report:
            kept = report["val_by_epoch"].index(report["val"]) + 1
            epochs = f"{report['epochs']} ({kept})"
        cells = [
            f"{100 * r['accuracy']:.1f} % / {100 * r['macro_f1']:.1f} ({r['n']:,})"
            for r in (report["val"], report["test"])
        ]
        lines.append(
            f"| {TASKS[report['task']].title} | {report['train']:,} | {epochs} "
            f"| {cells[0]} | {cells[1]} | {100 * report['most_frequent_class_in_test']:.1f} % |"
        )
    lines += ["", "Accuracy / macro-F1 x 100 (number of texts). One run, one seed."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", type=Path, required=True, help="folder for the models")
    parser.add_argument("--tasks", nargs="+", choices=[*AS_IS, *PLANS], default=[*AS_IS, *PLANS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in options.tasks:
        folder = options.models / name
        if (folder / "report.json").exists():
            print(f"{name}: there already", file=sys.stderr)
            continue
        print(name, file=sys.stderr)
        if name in AS_IS:
            text = json.dumps(as_is(TASKS[name], options.shared, AS_IS[name]), indent=1) + "\n"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").write_text(text, encoding="utf-8")
        else:
            finetune(TASKS[name], options.shared, folder, PLANS[name])
    found = [options.models / name / "report.json" for name in (*AS_IS, *PLANS)]
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in found if path.exists()]
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(reports, indent=1) + "\n"
    (options.out / "finetune.json").write_text(text, encoding="utf-8")
    (options.out / "finetune.md").write_text(table(reports), encoding="utf-8")
    print(table(reports))


if __name__ == "__main__":
    main()
