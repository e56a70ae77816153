"""Explaining one batch: padding, target, relevance, and a row for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.class_names import numbers_of_regression
from captum_lrp_tx.attr.conservative import Conservative
from captum_lrp_tx.attr.targets import Target, TargetType, select_target
from captum_lrp_tx.errors import CaptumLRPError, InputError, OutputError, TargetError
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.runs.encoding import Example
from captum_lrp_tx.runs.padding import Side, as_they_were, is_alike, padded_batch, real_places

#: What is explained of one example: a target as ``attribute`` takes it; ``None``: the prediction.
Wanted = Any


@dataclass
class Explained:
    """What a batch is asked for, and what is known of it once the model has run.

    Attributes:
        targets (list): What was explained of each example.
        predictions (list of int, optional): The predicted class or next token of each; None where
            there is none (outputs without classes, a regression with several numbers).
        logits (list of float): The explained outputs.
    """

    targets: list[Any]
    predictions: list[int | None]
    logits: list[float]


class _Asked(Target):
    """The targets of a batch, predictions among them, found in the pass that explains them.

    Outputs with a dimension of tokens are read at the real tokens of each example: an int is the
    token after the last one, and positions may be counted from the end.
    """

    def __init__(self, wanted: Sequence[Wanted], lengths: Sequence[int], side: Side) -> None:
        self.wanted = list(wanted)
        self.lengths = list(lengths)
        self.side = side
        self.found: Explained | None = None
        #: The output of one example of each length: which one, and what.
        self.samples: dict[int, tuple[int, Tensor]] = {}
        self.by_token = False

    def __repr__(self) -> str:
        return "the targets of a data set"

    def select(self, output: Tensor) -> Tensor:
        if len(output) != len(self.wanted) or output.dim() not in (1, 2, 3):
            raise OutputError(
                f"the output has the shape {tuple(output.shape)} for {len(self.wanted)} examples; "
                "wanted is (examples, classes), or (examples, tokens, vocabulary)"
            )
        by_token = self.by_token = output.dim() == 3
        if by_token and output.shape[1] != max(self.lengths):
            raise OutputError(
                f"the output has {output.shape[1]} positions for {max(self.lengths)} tokens; pass "
                "a forward function that returns (examples, classes)"
            )
        targets: list[Any] = []
        predictions: list[int | None] = []
        values: list[Tensor] = []
        for i, (wanted, length) in enumerate(zip(self.wanted, self.lengths, strict=True)):
            own = output[i : i + 1]
            if by_token:
                own = own[:, real_places(length, output.shape[1], self.side)]
            self.samples[length] = (i, own.detach())
            prediction = None
            if output.dim() > 1:
                prediction = int((own[0, -1] if by_token else own[0]).detach().argmax())
            target = prediction if wanted is None else wanted
            if by_token and isinstance(target, int):
                target = (length - 1, target)
            value = select_target(own, target)
            if value.numel() != 1:
                raise TargetError(f"{target!r} names {value.numel()} values of one example")
            targets.append(target)
            predictions.append(prediction)
            values.append(value.reshape(1))
        selected = torch.cat(values)
        self.found = Explained(targets, predictions, selected.detach().float().tolist())
        return selected


class _OfRealTokens(Target):
    """A target of one example, read at its real tokens, for methods that run on padded batches.

    Args:
        target (Target): Of the example alone.
        places (slice): Where the example stands in the batch.
    """

    def __init__(self, target: Target, places: slice) -> None:
        self._target, self._places = target, places
        self.parts = tuple(_in_batch(part, places) for part in target.parts)

    def __repr__(self) -> str:
        return repr(self._target)

    def select(self, output: Tensor) -> Tensor:
        return select_target(output[:, self._places], self._target)


def _in_batch(target: Any, places: slice) -> Any:
    """A target of one example, with places in a padded batch."""
    if isinstance(target, Target):
        return _OfRealTokens(target, places)
    if isinstance(target, list):
        return [_in_batch(one, places) for one in target]
    if not isinstance(target, tuple):
        return target
    return (places.start + target[0] % (places.stop - places.start), *target[1:])


@dataclass
class Job:
    """How the examples of a data set are explained.

    Attributes:
        method: An attribution that gives one relevance per token.
        forward (callable): What it explains.
        modules (sequence of Module): Which modules that runs.
        pad_id (int): What ids are filled up with.
        device (torch.device, optional): Where the inputs go.
        options (mapping): For ``attribute``.
    """

    method: Any
    forward: Callable[..., Any]
    modules: Sequence[nn.Module]
    pad_id: int
    device: torch.device | None
    options: Mapping[str, Any]

    def inputs(self, examples: Sequence[Example], side: Side = "right") -> dict[str, Tensor]:
        """What the model is called with."""
        padded = padded_batch(examples, self.pad_id, side)
        return {key: value.to(self.device) for key, value in padded.items()}


def explain_batch(
    job: Job, examples: Sequence[Example], wanted: Sequence[Wanted]
) -> tuple[list[list[float]], Explained]:
    """Relevance of the tokens of each example, without padding.

    One example of each length is run alone, too. If its output differs, padding on the right
    changes what the model computes (XLNet reads the last place); then it is tried on the left, and
    if that does not help either, only examples of the same length are put together. A model that
    fails on several examples (classifiers on GPT-like models, without a padding token in their
    configuration) gets them one by one.

    Args:
        job (Job): How to explain.
        examples (sequence of dict): Entries of shape ``(tokens,)``.
        wanted (sequence): Target of each example, or None for the predicted class.

    Raises:
        InputError: The method does not give one relevance per token.
        Exception: Whatever the method raises.
    """
    lengths = [len(example["input_ids"]) for example in examples]
    sides: tuple[Side, ...] = ("right", "left")
    groups = [[i for i, n in enumerate(lengths) if n == k] for k in sorted(set(lengths))]
    try:
        for side in sides:
            relevance, asked = _explain_padded(job, examples, wanted, lengths, side)
            assert asked.found is not None
            if min(lengths) == max(lengths) or _are_as_alone(job, examples, asked):
                return relevance, asked.found
    except CaptumLRPError:
        raise
    except (RuntimeError, ValueError):
        if len(examples) == 1:
            raise
        groups = [[i] for i in range(len(lengths))]
    relevance = [[] for _ in lengths]
    found = Explained([None] * len(lengths), [None] * len(lengths), [0.0] * len(lengths))
    for places in reversed(groups):
        rows, one = explain_batch(job, [examples[i] for i in places], [wanted[i] for i in places])
        for k, place in enumerate(places):
            relevance[place], found.targets[place] = rows[k], one.targets[k]
            found.predictions[place], found.logits[place] = one.predictions[k], one.logits[k]
    return relevance, found


def _are_as_alone(job: Job, examples: Sequence[Example], asked: _Asked) -> bool:
    """Whether examples have the output in their batch that they have without padding."""
    for length, (place, output) in sorted(asked.samples.items()):
        if length == max(asked.samples):  # has no padding
            continue
        with torch.no_grad(), as_they_were(job.modules):
            alone = output_tensor(job.forward(**job.inputs([examples[place]])))
        if not is_alike(output, alone):
            return False
    return True


def _explain_padded(
    job: Job,
    examples: Sequence[Example],
    wanted: Sequence[Wanted],
    lengths: Sequence[int],
    side: Side,
) -> tuple[list[list[float]], _Asked]:
    """Relevance of examples that are filled up on one side.

    The conservative methods find the prediction in the pass that explains it; for others the model
    runs once more.
    """
    method, batch = job.method, job.inputs(examples, side)
    asked = _Asked(wanted, lengths, side)
    target: TargetType = asked
    if not isinstance(method, Conservative):
        with torch.no_grad():
            asked.select(output_tensor(job.forward(**batch)))
        assert asked.found is not None
        targets = asked.found.targets
        if asked.by_token:
            at = [real_places(length, max(lengths), side) for length in lengths]
            targets = [_in_batch(one, places) for one, places in zip(targets, at, strict=True)]
        target = None if targets[0] is None else list(targets)
    relevance = method.attribute(dict(batch), target=target, **job.options)
    ids = batch["input_ids"]
    if not isinstance(relevance, Tensor) or relevance.shape != ids.shape:
        shape = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance)
        raise InputError(
            f"{type(method).__name__} gives {shape} for token ids of shape {tuple(ids.shape)}; a "
            "method that gives one relevance per token is needed"
        )
    assert asked.found is not None
    if numbers_of_regression(("", module) for module in job.modules):
        asked.found.predictions = [None] * len(lengths)
    rows = relevance.detach().float().cpu()
    width = ids.shape[1]
    kept = [
        row[real_places(length, width, side)].tolist()
        for row, length in zip(rows, lengths, strict=True)
    ]
    return kept, asked


def row_of(
    number: int,
    name: str | None,
    example: Example,
    tokenizer: Any,
    relevance: list[float],
    found: Explained,
    place: int,
) -> dict[str, Any]:
    """The row of one example of an explained batch, by column name."""
    target = found.targets[place]
    position = None
    if isinstance(target, tuple) and len(target) == 2:
        position, index = target
    else:
        index = target
    logit = found.logits[place]
    ids = example["input_ids"].tolist()
    known = tokenizer is not None
    return {
        "example": number,
        "id": name,
        "tokens": list(map(str, tokenizer.convert_ids_to_tokens(ids))) if known else None,
        "token_ids": ids,
        "relevance": relevance,
        "target": index if isinstance(index, int) else None,
        "position": position,
        "explained": None if target is None else repr(target),
        "logit": logit,
        "prediction": found.predictions[place],
        "delta": logit - sum(relevance),
    }
