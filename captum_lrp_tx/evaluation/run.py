"""Measuring the faithfulness of many methods on many examples."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_lrp_tx._version import __version__
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.evaluation.examples import Examples
from captum_lrp_tx.evaluation.measures import MEASURES, Measure, Measured, find_measure
from captum_lrp_tx.evaluation.result import Evaluation, MethodResult
from captum_lrp_tx.evaluation.store import Entry, Store
from captum_lrp_tx.methods.registry import Chosen, Method, choose_methods, find_method
from captum_lrp_tx.methods.running import reason
from captum_lrp_tx.methods.running import run as run_method
from captum_lrp_tx.metrics.batches import of_one_length
from captum_lrp_tx.metrics.blocks import common_blocks, rows_first
from captum_lrp_tx.metrics.curves import FRACTIONS, Curve, Fractions
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.metrics.perturbation import Perturbation
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.runs.subject import (
    content_of,
    device_of,
    model_fingerprint,
    placed,
    refuse_training,
)

Targets = Literal["predicted", "label"]
#: Where gradient x input and LRP take relevance.
At = Literal["embeddings", "input"]
_AT_INPUT = "take relevance at the tokens: at='input' (--at input)"


def evaluate(
    model: Callable[..., Any],
    examples: Examples,
    methods: str | Sequence[Chosen] = ("paper", "LRP"),
    *,
    masker: Masker,
    metrics: Sequence[str] = ("activation", "pruning"),
    target: Targets = "predicted",
    at: At = "embeddings",
    fractions: Fractions = FRACTIONS,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    seed: int = 0,
    block_size: int = 32,
    batch_size: int | None = None,
    facts: Mapping[str, str] | None = None,
    show_progress: bool = False,
) -> Evaluation:
    r"""
    Measures how faithful several methods are on a data set.

    Results go to the folder ``out`` after each batch. The same call goes on where it was broken
    off; more methods, metrics or examples can be asked for later, and only what is missing is
    computed. A folder with results for another model, other data or another setting is refused.

    A method that does not apply to the model has its reason in the table.

    Args:
        model (nn.Module or callable): In evaluation mode and single precision.
        examples (Examples): :class:`TextExamples`, :class:`ImageExamples`, or a class of your own.
        methods (str or sequence): See :func:`captum_lrp_tx.methods.choose_methods`. What a
            function of your own does is not part of what the folder is checked for.
        masker (Masker): What is hidden, and how; its fully masked inputs are the baseline of
            Integrated Gradients and GradientShap.
        metrics (sequence of str): ``"activation"`` (AUAC), ``"pruning"`` (AU-MSE), ``"deletion"``,
            ``"deletion-lerf"``, ``"insertion-lerf"``, ``"comprehensiveness"``, ``"sufficiency"``,
            ``"log-odds"``.
        target (str): Explain the ``"predicted"`` class, or the ``"label"`` as Ali et al. do.
        at (str): Where gradient x input and the LRP methods take relevance: ``"embeddings"``, what
            goes into the first block, summed over its dimensions, as Ali et al. do; or ``"input"``,
            pixels and token ids. With a norm right behind the embeddings (BERT), GI and LRP(AH) of
            token ids are zero up to rounding.
        fractions (sequence of float or str): Steps of the curves; ``"all"`` for one after each
            token or patch.
        limit (int, optional): Only the first examples.
        limits (mapping, optional): Fewer examples for slow methods, by name, e.g.
            ``{"A-Flow": 50}``.
        out (path, optional): Folder for results; without one nothing is written.
        fresh (bool): Drop the results in the folder.
        seed (int): Of random methods.
        block_size (int): How many examples of one length are explained together.
        batch_size (int, optional): How many masked variants run through the model at once; see
            :class:`~captum_lrp_tx.metrics.perturbation.Perturbation`.
        facts (mapping, optional): What else to say below the table, e.g. the name of the model.
        show_progress (bool): Show a progress bar on standard error.

    Returns:
        Evaluation: With :meth:`~Evaluation.markdown`, :meth:`~Evaluation.csv` and
        :meth:`~Evaluation.png`.

    Raises:
        InputError: Unknown methods or metrics, no labels though they are the target, a folder with
            results of another evaluation.
        TargetError: A label that the model has no class for.

    Example::

        >>> from captum_lrp_tx.evaluation import TextExamples, evaluate
        >>> from captum_lrp_tx.metrics.masking import MaskTokens
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> examples = TextExamples(["a charming film", "a dull mess"], tokenizer, [1, 0])
        >>> masker = MaskTokens.from_tokenizer(tokenizer)
        >>> print(evaluate(model, examples, ["GI", "LRP"], masker=masker))  # doctest: +SKIP
    """
    if not isinstance(examples, Examples):
        raise InputError(
            f"examples must be TextExamples(texts, tokenizer) or ImageExamples(pixels), not "
            f"{type(examples).__name__}"
        )
    chosen = choose_methods(methods)
    measures = _measures(metrics)
    labels = _labels(examples, target, at)
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1 or block_size < 1:
        raise InputError(f"limit and block_size must be positive, not {limit} and {block_size}")
    own = {method.name for method in chosen}
    at_most = {
        name if name in own else find_method(name).name: number
        for name, number in (limits or {}).items()
    }
    wanted = {method.name: min(at_most.get(method.name, count), count) for method in chosen}
    settings = {
        "version": __version__, "model": model_fingerprint(model), "data": examples.fingerprint(),
        "target": target, "masker": _described(masker, model), "at": at, "seed": seed,
        "fractions": fractions if isinstance(fractions, str) else list(map(float, fractions)),
    }  # fmt: skip
    refuse_training(model)
    store = Store(None if out is None else Path(out), settings, fresh)
    missing = {
        name: {row for row in range(wanted[name])
               if not _is_complete(store.entries(name).get(row), measures)}
        for name in wanted
    }  # fmt: skip
    blocks = of_one_length(examples.lengths()[:count], block_size)
    work = _Work(
        model, examples, masker, labels, at, seed, batch_size, measures, fractions,
        device_of(model),
    )  # fmt: skip
    with tqdm(
        total=sum(map(len, missing.values())), desc="evaluating", unit="explanation",
        disable=not (show_progress and sys.stderr.isatty()),
    ) as bar:  # fmt: skip
        failures = _fill(store, work, chosen, missing, blocks, bar)
    results = [
        _result(name, store.entries(name), wanted[name], measures, fractions, failures.get(name))
        for name in wanted
    ]
    every = isinstance(fractions, str)
    told = {
        **(facts or {}),
        "examples": str(count) + (f", the first of {len(examples)}" * (count < len(examples))),
        "explained": _TARGETS[target],
        "masking": repr(masker),
        "steps": "after each feature" if every else f"{len(fractions)} fractions",
        "gradient x input and LRP": _AT[at],
        "seed": str(seed),
        "version": f"captum_lrp_tx {__version__}",
    }
    return Evaluation(tuple(results), tuple(measures), told)


_TARGETS = {"predicted": "the predicted class", "label": "the true class"}
_AT = {
    "embeddings": "at the embeddings, the input of the first block",
    "input": "at the token ids or pixels",
}


def _described(masker: Masker, model: Callable[..., Any]) -> str:
    """What a masker does: its text, and tensors and modules, which that does not tell apart."""
    told = repr(masker)
    for name, value in sorted(vars(masker).items()):
        if isinstance(value, Tensor):
            told += f", {name.lstrip('_')} {hashlib.sha256(content_of(value)).hexdigest()[:16]}"
        elif isinstance(value, nn.Module):
            told += f", {name.lstrip('_')} {[k for k, m in find_modules(model) if m is value]}"
    return told


def _measures(metrics: Sequence[str]) -> list[Measure]:
    """What is measured, each once."""
    measures = [find_measure(name) for name in dict.fromkeys(metrics)]
    if not measures:
        raise InputError(
            f"no metric is named; the metrics are: {', '.join(m.name for m in MEASURES)}"
        )
    return measures


def _labels(examples: Examples, target: Targets, at: At) -> Sequence[int] | None:
    """The classes that are explained; ``None`` for the predicted ones."""
    if target not in _TARGETS or at not in _AT:
        raise InputError(
            f"target is 'predicted' or 'label' and at is 'embeddings' or 'input', not {target!r} "
            f"and {at!r}"
        )
    if target == "label" and examples.labels is None:
        raise InputError(
            "the examples have no labels that are numbers of classes; explain the predicted class "
            "instead"
        )
    return examples.labels if target == "label" else None


@dataclass(frozen=True)
class _Work:
    """What is done with every block of examples."""

    model: Callable[..., Any]
    examples: Examples
    masker: Masker
    labels: Sequence[int] | None
    at: At
    seed: int
    batch_size: int | None
    measures: Sequence[Measure]
    fractions: Fractions
    device: torch.device | None

    def perturbation(self, rows: Sequence[int]) -> Perturbation:
        """Examples to be masked, with the classes that are explained."""
        classes = None if self.labels is None else [self.labels[row] for row in rows]
        inputs = placed(self.examples.inputs(rows), self.device)
        return Perturbation(
            self.model, inputs, classes, masker=self.masker, batch_size=self.batch_size
        )

    def entries(self, method: Method, used: Perturbation) -> list[Entry]:
        """What is measured of a method on each of the examples."""
        begun = time.perf_counter()
        found = self._explained(method, used)
        seconds = (time.perf_counter() - begun) / len(used)
        entries: list[Entry] = [{"seconds": seconds} for _ in range(len(used))]
        for measure in self.measures:
            measured = measure.compute(used, found, self.fractions)
            if isinstance(measured, Curve):
                counts = used.counts.tolist() if isinstance(self.fractions, str) else None
                for row, values in enumerate(measured.values.tolist()):
                    kept = values if counts is None else values[: counts[row] + 1]
                    entries[row][measure.name] = kept
            else:
                for row, value in enumerate(measured.tolist()):
                    entries[row][measure.name] = value
        return entries

    def _explained(self, method: Method, used: Perturbation) -> Tensor:
        """Relevance of examples of one length."""
        blank = used.masker.masked(used.batch, used.features).main
        layered = self.at == "embeddings" and method.at_layer is not None
        layer = common_blocks(self.model, _AT_INPUT)[0] if layered else None
        found = run_method(
            method, self.model, used.batch.inputs, used.target.to(blank.device),
            # no baseline if they differ by their mask only
            baseline=None if torch.equal(blank, used.batch.main) else blank,
            seed=self.seed, layer=layer,
        )  # fmt: skip
        relevance: Tensor | None = found.relevance
        if layer is not None:
            relevance = rows_first(_by_token(found.relevance, used), len(used))
        if relevance is None:
            parts = (used.take(rows) for rows in ([0], range(1, len(used))))
            return torch.cat([self._explained(method, part) for part in parts])
        return relevance.cpu().double()


def _by_token(relevance: Tensor, used: Perturbation) -> Tensor:
    """Relevance at a block, of maps summed over the channels, which come first or last."""
    if relevance.dim() != 4:
        return relevance
    features, (height, width) = used.features.shape[1], used.batch.main.shape[-2:]
    fitting = [
        part
        for part in (relevance.sum(-1), relevance.sum(1))
        if part[0].numel() == features and part.shape[1] * width == part.shape[2] * height
    ]
    if len(fitting) != 1:
        raise InputError(
            f"relevance of shape {tuple(relevance.shape)} at the first block does not say which of "
            f"it is that of the {features} features; take it at the pixels: at='input' (--at input)"
        )
    return fitting[0]


def _fill(
    store: Store,
    work: _Work,
    methods: Sequence[Method],
    missing: Mapping[str, set[int]],
    blocks: Sequence[Sequence[int]],
    bar: Any,
) -> dict[str, str]:
    """Measures what is missing, and says why methods do not apply, by their name."""
    failures: dict[str, str] = {}
    for block in blocks:
        wanting = [
            method
            for method in methods
            if method.name not in failures and missing[method.name].intersection(block)
        ]
        if not wanting:
            continue
        rows = [row for row in block if any(row in missing[method.name] for method in wanting)]
        whole = work.perturbation(rows)
        for method in wanting:
            name = method.name
            bar.set_postfix_str(name)
            places = [place for place, row in enumerate(rows) if row in missing[name]]
            used = whole if len(places) == len(rows) else whole.take(places)
            left = [rows[place] for place in places]
            try:
                entries = work.entries(method, used)
            except Exception as error:
                failures[name] = reason(error)
                continue
            store.add(name, left, entries)
            bar.update(len(left))
    return failures


def _is_complete(entry: Entry | None, measures: Sequence[Measure]) -> bool:
    return entry is not None and all(measure.name in entry for measure in measures)


def _result(
    name: str,
    entries: Mapping[int, Entry],
    wanted: int,
    measures: Sequence[Measure],
    fractions: Fractions,
    failure: str | None,
) -> MethodResult:
    rows = [row for row in range(wanted) if _is_complete(entries.get(row), measures)]
    if failure is not None or not rows:
        return MethodResult(name, (), {}, 0.0, failure or "nothing was measured")
    found: dict[str, Measured] = {}
    for measure in measures:
        values = [entries[row][measure.name] for row in rows]
        found[measure.name] = (
            _curve(measure.name, values, fractions) if measure.is_curve else _doubles(values)
        )
    seconds = sum(float(entries[row]["seconds"]) for row in rows) / len(rows)
    return MethodResult(name, tuple(rows), found, seconds)


def _curve(name: str, values: list[list[float]], fractions: Fractions) -> Curve:
    if not isinstance(fractions, str):
        return Curve(name, _doubles(list(fractions)), _doubles(values))
    rows = [_doubles([row]) for row in values]
    ends = [torch.linspace(0, 1, row.shape[1], dtype=torch.float64)[None] for row in rows]
    return Curve.joined([Curve(name, at, row) for at, row in zip(ends, rows, strict=True)])


def _doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
