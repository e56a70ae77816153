"""Why the order of methods differs from the paper's: models between theirs and ours.

    python -m experiments.ali2022.run --experiment ablation --shared ../shared --models DIR

Trains on SST-2, on top of the frozen embedding block of ``models/minilm-sst2``: the architecture of
the paper (three attention blocks without MLPs), and the same with MLPs.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.ali2022.attention_only import AttentionClassifier
from experiments.ali2022.data import Split
from experiments.ali2022.finetune import batches_by_length, encode

#: Name in the tables: whether there are MLPs.
VARIANTS: dict[str, bool] = {"attention": False, "attention-mlp": True}
TITLES = {"attention": "3 attention blocks (paper)", "attention-mlp": "the same with MLPs"}
MAX_TOKENS = 96


def build(bert: Any, mlp: bool, seed: int = 0) -> AttentionClassifier:
    """An untrained classifier on the embedding block of a BERT.

    Args:
        bert (nn.Module): A Hugging Face ``BertForSequenceClassification``.
        mlp (bool): Whether blocks have MLPs.
        seed (int): Of the weights.
    """
    torch.manual_seed(seed)
    config = bert.config
    model = AttentionClassifier(
        bert.base_model.embeddings, config.hidden_size, config.num_attention_heads, mlp=mlp
    )
    for module in model.blocks.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=config.initializer_range)
            torch.nn.init.zeros_(module.bias)
    return model


def train(
    model: AttentionClassifier,
    tokenizer: Any,
    rows: Split,
    epochs: int = 3,
    learning_rate: float = 5e-4,
    seed: int = 0,
    show: bool = True,
) -> None:
    """Trains the blocks in place: AdamW, batch 32, linear decay after 6 % warm-up.

    Args:
        model (AttentionClassifier): The model.
        tokenizer: Of its embedding block.
        rows (Split): Texts and labels.
        epochs (int): Passes over them.
        learning_rate (float): At its peak.
        seed (int): Of batches and dropout.
        show (bool): Show a progress bar.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    lengths = [len(text) for text in rows.texts]
    plan = [batch for _ in range(epochs) for batch in batches_by_length(lengths, 32, rng)]
    warmup = max(1, round(0.06 * len(plan)))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (len(plan) - step) / max(len(plan) - warmup, 1)),
    )
    model.train()
    model.embeddings.eval()
    for batch in tqdm(plan, unit="step", mininterval=20, disable=not show, file=sys.stderr):
        inputs = encode(tokenizer, [rows.texts[i] for i in batch], MAX_TOKENS)
        truth = torch.tensor([rows.labels[i] for i in batch])
        loss = torch.nn.functional.cross_entropy(model(**inputs), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: AttentionClassifier, tokenizer: Any, rows: Split) -> float:
    """Share of texts that are classified correctly.

    Args:
        model (AttentionClassifier): In evaluation mode.
        tokenizer: Of its embedding block.
        rows (Split): Texts and labels.
    """
    hits = 0
    for batch in batches_by_length([len(text) for text in rows.texts], 64):
        logits = model(**encode(tokenizer, [rows.texts[i] for i in batch], MAX_TOKENS))
        hits += int((logits.argmax(-1) == torch.tensor([rows.labels[i] for i in batch])).sum())
    return hits / len(rows.texts)


def obtain(
    name: str, bert: Any, tokenizer: Any, rows: Split, folder: Path | None, **options: Any
) -> AttentionClassifier:
    """A trained variant; from ``folder`` if it is there.

    Args:
        name (str): One of ``VARIANTS``.
        bert (nn.Module): Gives the embedding block.
        tokenizer: Of it.
        rows (Split): To train on.
        folder (Path, optional): Where trained weights are kept.
        options: Of :func:`train`.
    """
    model = build(bert, VARIANTS[name])
    path = None if folder is None else folder / f"{name}.pt"
    if path is not None and path.exists():
        model.load_state_dict(torch.load(path, weights_only=True), strict=False)
        return model.eval()
    train(model, tokenizer, rows, **options)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {k: v for k, v in model.state_dict().items() if not k.startswith("embeddings.")}
        torch.save(own, path)
    return model
