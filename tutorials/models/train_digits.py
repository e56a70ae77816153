#!/usr/bin/env python3
"""Trains the small vision transformer that ships in ``captum_lrp_tx/models/digits``.

The model is a Hugging Face ``ViTForImageClassification`` for 28x28 grey-scale digits, trained
from scratch. The only data needed is the 10,000-image file of MNIST: the first 9,000 images
are the training set, the last 1,000 the test set.

Example:
    From the root of the repository, with the two ``t10k-*-ubyte.gz`` files in ``data/mnist``::

        python tutorials/models/train_digits.py --data data/mnist --out digits

Runs with the same seed, number of threads, machine type and library versions give the same
weights. Other versions of torch may round differently; expect accuracies within about one
percentage point of those in the model card.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
from transformers import ViTConfig, ViTForImageClassification

TRAIN_IMAGES = 9_000
SAMPLES_PER_CLASS = 2
CLASSES = 10

# A ViTForImageClassification, most methods of which have no types.
Vit: TypeAlias = Any


def read_idx(path: Path) -> Tensor:
    """Reads a gzip-compressed IDX file of unsigned bytes.

    Args:
        path (Path): File such as ``t10k-images-idx3-ubyte.gz``.

    Returns:
        Tensor: The array in the file, dtype uint8.

    Raises:
        ValueError: If the file is not an IDX file of unsigned bytes.
    """
    with gzip.open(path, "rb") as stream:
        content = stream.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    values = torch.frombuffer(bytearray(content[4 + 4 * rank :]), dtype=torch.uint8)
    return values.reshape(shape)


def normalise(images: Tensor) -> Tensor:
    """Turns uint8 images into the model's input.

    Args:
        images (Tensor): Shape (batch, 28, 28), dtype uint8.

    Returns:
        Tensor: Shape (batch, 1, 28, 28), dtype float32, values from -1 to 1.
    """
    return ((images.float() / 255 - 0.5) / 0.5).unsqueeze(1)


def shift(images: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Moves each image by a random number of pixels, background coming in from outside.

    Args:
        images (Tensor): Shape (batch, height, width), dtype uint8, background 0.
        limit (int): Largest number of pixels in either direction.
        generator (torch.Generator): Source of the random shifts.

    Returns:
        Tensor: The moved images, in the shape of ``images``.
    """
    count, height, width = images.shape
    padded = torch.nn.functional.pad(images, (limit, limit, limit, limit))
    corner = torch.randint(0, 2 * limit + 1, (2, count, 1), generator=generator)
    rows = corner[0] + torch.arange(height)
    columns = corner[1] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def build_model() -> Vit:
    """Makes the untrained model.

    Returns:
        Vit: 4 layers, hidden size 96, patches of 4x4 pixels.
    """
    names = [str(digit) for digit in range(CLASSES)]
    config = ViTConfig(
        image_size=28,
        patch_size=4,
        num_channels=1,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ViTForImageClassification(config)


@torch.no_grad()
def count_correct(model: Vit, images: Tensor, labels: Tensor) -> int:
    """Counts the images that a model classifies correctly.

    Args:
        model (Vit): The classifier.
        images (Tensor): Shape (count, 28, 28), dtype uint8.
        labels (Tensor): Shape (count,), the true classes.

    Returns:
        int: Number of correct predictions.
    """
    model.eval()
    correct = 0
    for start in range(0, len(images), 500):
        logits = model(normalise(images[start : start + 500])).logits
        correct += int((logits.argmax(-1) == labels[start : start + 500]).sum())
    return correct


def train(model: Vit, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """Trains a model in place.

    Args:
        model (Vit): The classifier.
        images (Tensor): Training images, shape (count, 28, 28), dtype uint8.
        labels (Tensor): Training classes, shape (count,).
        args (argparse.Namespace): Command line of this script.
    """
    generator = torch.Generator().manual_seed(args.seed)
    steps_per_epoch = math.ceil(len(images) / args.batch_size)
    total, warmup = args.epochs * steps_per_epoch, max(1, steps_per_epoch // 2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup,
            0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (total - warmup))),
        ),
    )
    model.train()
    with tqdm(total=total, desc="training", unit="step", mininterval=2) as progress:
        for epoch in range(args.epochs):
            losses = []
            order = torch.randperm(len(images), generator=generator)
            for chosen in torch.split(order, args.batch_size):
                inputs = normalise(shift(images[chosen], args.shift, generator))
                loss = torch.nn.functional.cross_entropy(model(inputs).logits, labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.update()
            progress.write(f"epoch {epoch + 1:2d}: mean loss {sum(losses) / len(losses):.4f}")


def save(model: Vit, folder: Path) -> None:
    """Stores a model in half precision.

    The configuration names float32, so that the model comes back in single precision whatever
    the version of transformers.

    Args:
        model (Vit): The trained model, changed to half precision.
        folder (Path): Where ``config.json`` and ``model.safetensors`` go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_samples(images: Tensor, labels: Tensor, path: Path) -> None:
    """Stores the first two images of each class for demonstrations.

    Args:
        images (Tensor): Test images, shape (count, 28, 28), dtype uint8.
        labels (Tensor): Test classes, shape (count,).
        path (Path): File to write, in safetensors format.
    """
    chosen = torch.cat(
        [(labels == digit).nonzero()[:SAMPLES_PER_CLASS, 0] for digit in range(CLASSES)]
    )
    samples = {"images": images[chosen].contiguous(), "labels": labels[chosen].contiguous()}
    save_file(samples, path, metadata={"source": "MNIST, last 1,000 of the 10,000-image file"})


def parse_args() -> argparse.Namespace:
    """Reads the command line.

    Returns:
        argparse.Namespace: The options.
    """
    parser = argparse.ArgumentParser(
        description="Train the digit classifier that ships with captum_lrp_tx.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=None,
        help="folder of a model of the same shape to go on from; none: random initialisation",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--epochs", type=int, default=24, help="passes over the training set")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="weight decay of AdamW")
    parser.add_argument("--shift", type=int, default=2, help="largest random shift in pixels")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args()


def main() -> None:
    """Trains, stores and measures the model."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)

    images = read_idx(args.data / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(args.data / "t10k-labels-idx1-ubyte.gz").long()
    train_images, test_images = images[:TRAIN_IMAGES], images[TRAIN_IMAGES:]
    train_labels, test_labels = labels[:TRAIN_IMAGES], labels[TRAIN_IMAGES:]

    model: Vit
    if args.base is None:
        model = build_model()
    else:
        model = ViTForImageClassification.from_pretrained(args.base, local_files_only=True)
        model.float()
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    train(model, train_images, train_labels, args)
    save(model, args.out)
    save_samples(test_images, test_labels, args.out / "samples.safetensors")

    stored: Vit = ViTForImageClassification.from_pretrained(args.out, local_files_only=True)
    stored.float()
    for name, part, truth in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        correct = count_correct(stored, part, truth)
        print(f"{name}: {correct} of {len(part)} = {correct / len(part):.2%} (as stored)")


if __name__ == "__main__":
    main()
