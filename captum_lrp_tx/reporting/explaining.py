"""One method on all examples, in batches of one shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError
from captum_lrp_tx.methods.registry import Method
from captum_lrp_tx.methods.running import is_signed, reason, replaced, run
from captum_lrp_tx.metrics.absorbed import absorbed_by_constants
from captum_lrp_tx.reporting.results import Explanations, Key
from captum_lrp_tx.reporting.samples import Samples
from captum_lrp_tx.visualization.patch_maps import token_grid

#: Unless asked for others: quick ones of each kind, and the reference of no information.
DEFAULT_METHODS = ("LRP", "LRP(AH+LN)", "GI", "GAE", "Rollout", "Random")
#: Tokens that go through the model at once.
_TOKENS = 4096


def explain(
    model: Callable[..., Any],
    method: Method,
    samples: Samples,
    classes: Sequence[Sequence[int]],
    *,
    baseline: int | float | None,
    seed: int,
    batch_size: int,
    advance: Callable[[int], object],
) -> Explanations:
    """Runs one method.

    Args:
        model (nn.Module or callable): Gives ``(examples, classes)``.
        method (Method): How.
        samples (Samples): The examples.
        classes (sequence of sequences of int): To explain of each example.
        baseline (int or float, optional): Token id, or value of pixels.
        seed (int): Of random methods.
        batch_size (int): Rows that go through the model at once; fewer for long texts.
        advance (callable): Told after each batch how many explanations were made.

    Returns:
        Explanations: Failures are in ``errors``, with their reason.
    """
    relevance: dict[Key, Tensor] = {}
    sums: dict[Key, float] = {}
    deltas: dict[Key, float] = {}
    errors: dict[int, str] = {}
    begun = time.perf_counter()

    def attempt(rows: list[Key]) -> None:
        try:
            values, totals, left = _attribute(model, method, samples, rows, baseline, seed)
        except Exception as error:
            # what is wrong with the model is wrong for all; others of the batch need not suffer
            is_of_all = isinstance(error, CaptumLRPError) and not isinstance(error, NonFiniteError)
            if len(rows) == 1 or is_of_all:
                errors.update((example, reason(error)) for example, _ in rows)
            else:
                for row in rows:
                    attempt([row])
            return
        for position, (example, explained) in enumerate(rows):
            for one in [explained] if method.uses_target else classes[example]:
                relevance[example, one] = values[position]
                sums[example, one] = totals[position]
                if left is not None:
                    deltas[example, one] = left[position]

    for rows in _batches(method, samples, classes, batch_size):
        attempt(rows)
        advance(len(rows))
    kept = {key: value for key, value in relevance.items() if key[0] not in errors}
    seconds = time.perf_counter() - begun
    signed = is_signed(method, kept.values(), bool(deltas))
    return Explanations(
        method.name, method.about, signed, method.uses_target, kept,
        {key: sums[key] for key in kept}, {key: deltas[key] for key in kept if key in deltas},
        errors, _absorbed(model, method, samples, kept), seconds=seconds,
    )  # fmt: skip


def _absorbed(
    model: Callable[..., Any], method: Method, samples: Samples, keys: Collection[Key]
) -> dict[Key, float]:
    """What constants take of each explained output, of methods that book it: a pass for each."""
    explainer = method.attribution(model) if keys and not method.takes else None
    if not isinstance(explainer, ConservativeGI):
        return {}
    return {
        (example, explained): absorbed_by_constants(explainer, samples.batch([example]), explained)
        for example, explained in keys
    }


def count_rows(method: Method, classes: Sequence[Sequence[int]]) -> int:
    """How many explanations a method has to make."""
    return sum(map(len, classes)) if method.uses_target else len(classes)


def portions(samples: Samples, rows: Sequence[Key], batch_size: int) -> Iterator[list[Key]]:
    """Rows of one shape, as many as go through the model at once."""
    if samples.kind == "text" and rows:
        longest = samples.items[rows[0][0]].main.shape[0]
        batch_size = min(batch_size, max(_TOKENS // longest, 1))
    for start in range(0, len(rows), batch_size):
        yield list(rows[start : start + batch_size])


def _batches(
    method: Method, samples: Samples, classes: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[Key]]:
    for group in samples.groups():
        if method.uses_target:
            rows = [(example, explained) for example in group for explained in classes[example]]
        else:
            rows = [(example, classes[example][0]) for example in group]
        yield from portions(samples, rows, batch_size)


def _attribute(
    model: Callable[..., Any],
    method: Method,
    samples: Samples,
    rows: list[Key],
    baseline: int | float | None,
    seed: int,
) -> tuple[list[Tensor], list[float], list[float] | None]:
    inputs = samples.batch([example for example, _ in rows])
    device = samples.items[rows[0][0]].main.device
    target = torch.tensor([explained for _, explained in rows], device=device)
    start: Any = baseline
    if samples.kind == "text" and baseline is not None and "baseline" in method.takes:
        items = [samples.items[example] for example, _ in rows]
        start = torch.stack([replaced(i.main, int(baseline), i.special) for i in items])
    found = run(method, model, inputs, target, baseline=start, seed=seed, with_delta=True)
    relevance, left = found.relevance.cpu(), found.left_out
    if relevance.shape[:1] != (len(rows),):
        raise InputError(
            f"the relevance has the shape {tuple(relevance.shape)} for {len(rows)} examples"
        )
    totals = relevance.double().reshape(len(rows), -1).sum(1).tolist()
    deltas = None if left is None else left.reshape(len(rows), -1).sum(1).tolist()
    return [_shaped(row, samples, rows[0][0]) for row in relevance], totals, deltas


def _shaped(values: Tensor, samples: Samples, example: int) -> Tensor:
    """One number for each token; a map of pixels or patches."""
    shape = samples.items[example].main.shape
    if samples.kind == "text":
        if values.shape != shape:
            raise InputError(
                f"the relevance of an example has the shape {tuple(values.shape)} for "
                f"{shape[0]} tokens"
            )
        return values
    if values.dim() == 1:
        return token_grid(values[None], (shape[-2], shape[-1]))[0]
    return values.sum(0) if values.dim() == 3 else values
