"""Training a Graphormer: cross entropy on whole molecules and on partly hidden ones."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from experiments.ali2022.graphormer.model import Config, Graphormer
from experiments.ali2022.graphormer.molecules import Example, Graphs, collate


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs (int): Passes over the training set.
        batch_size (int): Molecules in a step.
        learning_rate (float): At its peak, after a warm-up of a tenth of the steps.
        weight_decay (float): Of AdamW.
        hidden (float): Share of the molecules of a batch that are partly hidden.
        seed (int): Of all random numbers.
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    hidden: float = 0.25
    seed: int = 0


def train(
    examples: Sequence[Example],
    config: Config,
    how: Training,
    validation: Sequence[Example] = (),
    show_progress: bool = False,
) -> Graphormer:
    """A model trained on some molecules, in evaluation mode.

    Some molecules of each batch (a share of ``how.hidden``) are partly hidden: between none and all
    of their atoms are masked or, in every second one, removed (see
    :meth:`~.molecules.Graphs.masked`). So the model has seen what the experiments show it.

    Args:
        examples (sequence of Example): The training set.
        config (Config): Sizes of the model.
        how (Training): Epochs, steps and seed.
        validation (sequence of Example): The model of the epoch with the best ROC-AUC on these is
            kept; the last one without them.
        show_progress (bool): Show a progress bar on standard error.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = Graphormer(config).train()
        steps = how.epochs * math.ceil(len(examples) / how.batch_size)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, how.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        bar = tqdm(
            total=steps, desc="training", unit="step", disable=not show_progress, file=sys.stderr
        )
        best, kept = -1.0, model.state_dict()
        for _ in range(how.epochs):
            for batch in batches(examples, how.batch_size):
                graphs = partly_hidden(collate([e.graph for e in batch]), how.hidden)
                labels = torch.tensor([e.label for e in batch])
                loss = F.cross_entropy(model(graphs.atoms, *graphs.structure), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if validation:
                auc = quality(model.eval(), validation)[0]
                model.train()
                if auc > best:
                    best, kept = auc, copy.deepcopy(model.state_dict())
        bar.close()
        model.load_state_dict(kept)
    return model.eval()


def batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """The examples in random order, of similar size within a batch."""
    noisy = torch.tensor([float(e.graph.atoms.shape[1]) for e in examples])
    order = (noisy + 5 * torch.rand(len(examples))).argsort().tolist()
    for i in torch.randperm(math.ceil(len(order) / size)).tolist():
        yield [examples[j] for j in order[i * size : (i + 1) * size]]


def partly_hidden(graphs: Graphs, rate: float) -> Graphs:
    """Molecules of which, at a rate, a random share of the atoms is masked or removed."""
    count = len(graphs)
    hidden = torch.rand(graphs.atoms.shape) < torch.rand(count, 1)
    kind = torch.rand(count, 1)
    masked, removed = kind < rate / 2, (kind >= rate / 2) & (kind < rate)
    return graphs.masked(hidden & masked).removed(hidden & removed)


@torch.no_grad()
def logits(model: Graphormer, examples: Sequence[Example], batch_size: int = 32) -> Tensor:
    """Logits of the molecules in their order, shape (molecules, 2)."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].graph.atoms.shape[1])
    found = torch.zeros(len(examples), 2)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        graphs = collate([examples[i].graph for i in chosen])
        found[chosen] = model(graphs.atoms, *graphs.structure)
    return found


def quality(model: Graphormer, examples: Sequence[Example]) -> tuple[float, float]:
    """ROC-AUC and accuracy."""
    found = logits(model, examples)
    labels = torch.tensor([example.label for example in examples])
    auc = roc_auc(found[:, 1] - found[:, 0], labels)
    return auc, float((found.argmax(1) == labels).float().mean())


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Probability that an active scores above an inactive, ties counting half.

    Args:
        scores (Tensor): Shape (molecules,).
        labels (Tensor): Classes 0 and 1, shape (molecules,).
    """
    active, inactive = scores[labels == 1], scores[labels == 0]
    wins = (active[:, None] > inactive).double() + 0.5 * (active[:, None] == inactive).double()
    return float(wins.mean())
