"""Explaining one batch: padding, target, relevance, and a row for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_lrp_tx.attr.base import Conservative
from captum_lrp_tx.attr.targets import Target, TargetType, select_target
from captum_lrp_tx.datasets.encoding import Example
from captum_lrp_tx.errors import InputError, OutputError, TargetError
from captum_lrp_tx.propagation.outputs import output_tensor

#: What is explained of one example: a target as ``attribute`` takes it; ``None``: the prediction.
Wanted = Any


@dataclass
class Explained:
    """What a batch is asked for, and what is known of it once the model has run.

    Attributes:
        targets (list): What was explained of each example.
        predictions (list of int, optional): The predicted class or next token of each.
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

    def __init__(self, wanted: Sequence[Wanted], lengths: Sequence[int]) -> None:
        self.wanted = list(wanted)
        self.lengths = list(lengths)
        self.found: Explained | None = None

    def __repr__(self) -> str:
        return "the targets of a data set"

    def select(self, output: Tensor) -> Tensor:
        if len(output) != len(self.wanted) or output.dim() not in (1, 2, 3):
            raise OutputError(
                f"the output has the shape {tuple(output.shape)} for {len(self.wanted)} examples; "
                "wanted is (examples, classes), or (examples, tokens, vocabulary)"
            )
        by_token = output.dim() == 3
        if by_token and output.shape[1] != max(self.lengths):
            raise OutputError(
                f"the output has {output.shape[1]} positions for {max(self.lengths)} tokens; pass "
                "a forward function that returns (examples, classes)"
            )
        targets: list[Any] = []
        predictions: list[int | None] = []
        values: list[Tensor] = []
        for i, (wanted, length) in enumerate(zip(self.wanted, self.lengths, strict=True)):
            own = output[i : i + 1, :length] if by_token else output[i : i + 1]
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


def padded_batch(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Examples put together, filled up on the right.

    Args:
        examples (sequence of dict): Entries of shape ``(tokens,)``.
        pad_id (int): What ``input_ids`` is filled up with; everything else gets zeros.

    Returns:
        dict of Tensor: Entries of shape ``(examples, tokens)``.

    Raises:
        InputError: Examples with different entries.

    Example::

        >>> padded_batch([{"input_ids": torch.tensor([5])}], 0)
        {'input_ids': tensor([[5]])}
    """
    keys = list(examples[0])
    if any(list(example) != keys for example in examples):
        raise InputError("the examples have different entries")
    return {
        key: pad_sequence(
            [example[key] for example in examples], batch_first=True,
            padding_value=pad_id if key == "input_ids" else 0,
        )
        for key in keys
    }  # fmt: skip


def explain_batch(
    method: Any,
    forward: Callable[..., Any],
    batch: Mapping[str, Tensor],
    lengths: Sequence[int],
    wanted: Sequence[Wanted],
    options: Mapping[str, Any],
) -> tuple[list[list[float]], Explained]:
    """Relevance of the tokens of each example, without padding.

    The conservative methods find the prediction in the pass that explains it; for others the model
    runs once more.

    Args:
        method: An attribution that gives one relevance per token.
        forward (callable): What it explains.
        batch (mapping): What the model is called with.
        lengths (sequence of int): Number of tokens of each example.
        wanted (sequence): Target of each example, or None for the predicted class.
        options (mapping): For ``attribute``.

    Raises:
        InputError: The method does not give one relevance per token.
        Exception: Whatever the method raises.
    """
    asked = _Asked(wanted, lengths)
    target: TargetType = asked
    if not isinstance(method, Conservative):
        with torch.no_grad():
            asked.select(output_tensor(forward(**batch)))
        assert asked.found is not None
        target = None if asked.found.targets[0] is None else list(asked.found.targets)
    relevance = method.attribute(dict(batch), target=target, **options)
    ids = batch["input_ids"]
    if not isinstance(relevance, Tensor) or relevance.shape != ids.shape:
        shape = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance)
        raise InputError(
            f"{type(method).__name__} gives {shape} for token ids of shape {tuple(ids.shape)}; a "
            "method that gives one relevance per token is needed"
        )
    assert asked.found is not None
    rows = relevance.detach().float().cpu()
    kept = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
    return kept, asked.found


def row_of(
    number: int,
    name: str | None,
    example: Example,
    tokens: list[str] | None,
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
    return {
        "example": number,
        "id": name,
        "tokens": tokens,
        "token_ids": example["input_ids"].tolist(),
        "relevance": relevance,
        "target": index if isinstance(index, int) else None,
        "position": position,
        "explained": None if target is None else repr(target),
        "logit": logit,
        "prediction": found.predictions[place],
        "delta": logit - sum(relevance),
    }
