"""``attribute_dataset``: relevance of every example of a data set."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import captum
import torch
from torch import nn
from tqdm import tqdm

from captum_lrp_tx._version import __version__
from captum_lrp_tx.attr.class_names import by_number, refuse_argmax_of_numbers
from captum_lrp_tx.attr.conservative import forward_of
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.targets import Target
from captum_lrp_tx.attr.token_gradients import padding_id
from captum_lrp_tx.datasets.batching import Batch, plan_batches, plan_shards
from captum_lrp_tx.datasets.explaining import Job, Wanted, explain_batch, row_of
from captum_lrp_tx.datasets.parquet import SHARDS, is_complete, shard_path, write_rows
from captum_lrp_tx.datasets.ranks import ranks
from captum_lrp_tx.datasets.reading import DatasetAttributions
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.packages import pyarrow
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.runs.encoding import Encoded, encode
from captum_lrp_tx.runs.folder import open_folder
from captum_lrp_tx.runs.subject import (
    content_of,
    device_of,
    model_fingerprint,
    refuse_training,
)


def attribute_dataset(
    model_or_method: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    target: Any = "predicted",
    ids: Sequence[str] | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    token_budget: int = 4096,
    batches_per_shard: int = 8,
    workers: int = 0,
    model_name: str | None = None,
    fresh: bool = False,
    show_progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> DatasetAttributions:
    r"""
    Relevance of every token of every example, in Parquet files.

    Examples of about one length are explained together. Each file is written at once and complete;
    the same call goes on where it was stopped, even by ``kill -9`` or a power cut. Which examples
    share a batch depends on their lengths and the settings only, so that relevance is the same to
    the last bit, however often the run was broken off (same machine, threads and versions).

    Run by several processes (``torchrun --nproc-per-node 2 script.py``, or ``accelerate launch``)
    each does every n-th file; a run may go on with another number of processes. A model that is
    spread over devices (``device_map``) gets its inputs on the first one.

    Args:
        model_or_method (nn.Module, callable or Attribution): A model in evaluation mode, explained
            by :class:`~captum_lrp_tx.ConservativeLRP`; or an attribution that gives one relevance
            per token, such as ``ConservativeGI(model, "ah")``.
        data: A list or a column of texts; a ``datasets.Dataset``, or anything with
            ``column_names`` and columns by name (texts, or ``input_ids``); or a ``DataLoader`` of
            mappings as a tokenizer returns them, which must give the same examples in the same
            order each time. Every process reads all of it.
        out (path): Folder for the files, on a disk that all processes share.
        tokenizer (PreTrainedTokenizerBase, optional): Needed for texts; names the tokens otherwise.
        target: ``"predicted"`` class (or next token), or the ``"label"`` of each example; or a
            class (number or name), or a list with one for each. For a language model an int
            is the token after the last one, and positions of ``(position, token)`` may be counted
            from the end of the example. A ``Target`` class of your own needs a ``__repr__`` that
            tells its settings, by which a run that goes on is recognised.
        ids (sequence of str, optional): Names of the examples, for the column ``id``.
        text_column (str, optional): Of the data set; ``sentence``, ``text`` or ``review`` unless
            given.
        max_length (int, optional): Cut texts to so many tokens.
        token_budget (int): Tokens of a batch at most, padding included.
        batches_per_shard (int): Batches in a file. A killed run loses the file it was at.
        workers (int): Processes for tokenizing.
        model_name (str, optional): For the settings in every file; that of the configuration unless
            given.
        fresh (bool): Drop what is in the folder.
        show_progress (bool): Show a progress bar with tokens per second on standard error.
        options (mapping, optional): Further arguments of ``attribute``, such as ``strict``.

    Returns:
        DatasetAttributions: The rows in the order of the examples.

    Raises:
        InputError: Data that cannot be read; a folder with relevance of another run; a method that
            gives something else than one relevance per token.
        TargetError: A target that does not fit.
        MissingPackageError: pyarrow is not installed.

    Example::

        >>> from captum_lrp_tx import ConservativeLRP, attribute_dataset
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> method = ConservativeLRP(model, bias="distribute")
        >>> texts = ["a charming film", "a dull mess"]
        >>> rows = attribute_dataset(method, texts, "out", tokenizer=tokenizer)  # doctest: +SKIP
        >>> rows[1]["tokens"], rows[1]["relevance"], rows[1]["delta"]  # doctest: +SKIP
    """
    pyarrow()  # complains before the work begins
    if token_budget < 1 or batches_per_shard < 1:
        raise InputError(
            f"token_budget and batches_per_shard must be positive, not {token_budget} and "
            f"{batches_per_shard}"
        )
    folder, method = Path(out), model_or_method
    if not callable(getattr(method, "attribute", None)):
        method = ConservativeLRP(method)
    forward = forward_of(method)
    named = find_modules(forward)
    modules = [module for _, module in named]
    if not (isinstance(target, str) and target in ("predicted", "label")):
        target = by_number(target, named)
    elif target == "predicted":
        refuse_argmax_of_numbers(named[:1])
    refuse_training(forward)
    encoded = encode(
        data, tokenizer, text_column=text_column, max_length=max_length, workers=workers
    )
    wanted, names = _wanted(target, encoded), _names(ids, encoded)
    batches = plan_batches(encoded.lengths(), token_budget, encoded.is_padded)
    shards = plan_shards(batches, batches_per_shard)
    pad_id = getattr(tokenizer, "pad_token_id", None)
    pad_id = pad_id if isinstance(pad_id, int) else padding_id(forward)
    settings = {
        "format": 1,
        "captum_lrp_tx": __version__,
        "torch": torch.__version__,
        "captum": captum.__version__,
        "method": type(method).__name__,
        "rules": _described(method, named),
        "options": {key: repr(value) for key, value in (options or {}).items()},
        "model": model_name or _model_name(modules),
        "weights": model_fingerprint(forward),
        "data": encoded.fingerprint(),
        "ids": None if ids is None else _hash(names),
        "target": target if isinstance(target, str) else _hash(wanted),
        "pad_id": pad_id,
        "token_budget": token_budget,
        "batches_per_shard": batches_per_shard,
        "shards": len(shards),
        "examples": len(encoded.examples),
    }
    job = Job(method, forward, modules, pad_id, device_of(forward), options or {})

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        examples = [encoded.examples[row] for row in batch]
        relevance, found = explain_batch(job, examples, [wanted[row] for row in batch])
        return [
            row_of(row, names[row], examples[i], tokenizer, relevance[i], found, i)
            for i, row in enumerate(batch)
        ]

    _write_missing(folder, shards, settings, encoded, rows_of, fresh, show_progress)
    return DatasetAttributions(folder)


def _write_missing(
    folder: Path,
    shards: Sequence[Sequence[Batch]],
    settings: Mapping[str, Any],
    encoded: Encoded,
    rows_of: Callable[[Batch], list[dict[str, Any]]],
    fresh: bool,
    show_progress: bool,
) -> None:
    """Writes the files that are not there, each process its share of them."""
    with ranks() as processes:
        if processes.rank == 0:
            open_folder(folder, settings, [SHARDS], fresh)
            for unfinished in folder.glob(f".{SHARDS}*"):  # of a process that was killed
                unfinished.unlink()
        processes.wait()
        if processes.rank != 0:
            open_folder(folder, settings, [SHARDS])
        todo = []
        for number in processes.mine(range(len(shards))):
            path, shard = shard_path(folder, number), shards[number]
            order = [row for batch in shard for row in batch]
            if not (path.exists() and is_complete(path, order, settings)):
                todo.append((path, shard))
        tokens_left = sum(_tokens(encoded, batch) for _, shard in todo for batch in shard)
        bar = tqdm(
            total=tokens_left, desc="explaining", unit="token", unit_scale=True,
            disable=not show_progress or processes.rank > 0 or not sys.stderr.isatty(),
        )  # fmt: skip
        with bar:
            for path, shard in todo:
                rows: list[dict[str, Any]] = []
                for batch in shard:
                    rows.extend(rows_of(batch))
                    bar.update(_tokens(encoded, batch))
                write_rows(path, rows, settings)
        processes.wait()


def _tokens(encoded: Encoded, batch: Batch) -> int:
    return sum(len(encoded.examples[row]["input_ids"]) for row in batch)


def _wanted(target: Any, encoded: Encoded) -> list[Wanted]:
    """The target of each example; ``None`` for its prediction."""
    count = len(encoded.examples)
    if isinstance(target, str):
        if target == "label" and encoded.labels is not None:
            if min(encoded.labels) < 0:  # which would count from the last class
                place = next(i for i, label in enumerate(encoded.labels) if label < 0)
                raise TargetError(
                    f"the label of example {place} is {encoded.labels[place]}, no class; leave out "
                    "examples without a label"
                )
            return list(encoded.labels)
        if target != "predicted":
            raise TargetError(
                "the examples have no labels that are numbers of classes; give a list of targets, "
                "or explain the predicted class"
                if target == "label"
                else f"target is 'predicted', 'label', a class, or a list, not {target!r}"
            )
        return [None] * count
    if isinstance(target, torch.Tensor):
        target = target.tolist()
    if isinstance(target, list):
        if len(target) != count:
            raise TargetError(f"{len(target)} targets for {count} examples; give one for each")
        return [_one(item) for item in target]
    return [_one(target)] * count


def _one(target: Any) -> Wanted:
    if isinstance(target, Target):
        return target
    if isinstance(target, tuple) and target:
        return tuple(int(item) for item in target)
    try:
        return int(target)
    except (TypeError, ValueError) as error:
        raise TargetError(f"{target!r} is no target of one example") from error


def _names(ids: Sequence[str] | None, encoded: Encoded) -> list[str | None]:
    if ids is None:
        return [None] * len(encoded.examples)
    if len(ids) != len(encoded.examples):
        raise InputError(f"{len(ids)} ids for {len(encoded.examples)} examples; give one for each")
    return [str(name) for name in ids]


def _model_name(modules: Sequence[nn.Module]) -> str:
    if not modules:
        return "a function"
    config = getattr(modules[0], "config", None)
    name = getattr(config, "_name_or_path", None) or type(modules[0]).__name__
    return Path(str(name)).name


def _described(method: Any, named: Sequence[tuple[str, nn.Module]]) -> dict[str, str]:
    """What a method's numbers depend on beside the model.

    Modules and functions as keys of a composite have no text of their own, so that what they stand
    for is told: rules by the names of modules.
    """
    names = {id(module): name for name, module in named}
    found: dict[str, str] = {}
    for key, value in sorted(vars(method).items()):
        if isinstance(value, Composite):
            rules = {kind.value: repr(rule) for kind, rule in value.base.items()}
            found[key] = f"{value!r} {dict(sorted(rules.items()))}"
            if not value.is_preset:
                tables = [(names[id(module)], table) for module, table in value.assign(named)]
                found[key] += f" {_hash([(n, sorted(map(repr, t.items()))) for n, t in tables])}"
        elif isinstance(value, torch.Tensor):
            found[key.lstrip("_")] = hashlib.sha256(content_of(value)).hexdigest()[:16]
        elif isinstance(value, (str, int, float, bool)):
            found[key.lstrip("_")] = repr(value)
    return found


def _hash(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:16]
