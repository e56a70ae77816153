"""What a model is called with, as a batch of examples that rows can be taken from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.model.outputs import output_tensor

_MAIN = ("input_ids", "pixel_values", "inputs_embeds", "input_features", "input_values")


@dataclass(frozen=True)
class Batch:
    """Examples, and everything that the model takes beside them.

    Attributes:
        main (Tensor): What is masked: token ids ``(examples, tokens)`` or floats; dimension 0
            counts the examples.
        key (str, optional): Its name if the model is called with keywords.
        named (dict): The other keyword arguments.
        extra (tuple): Positional arguments after ``main``.

    Example::

        >>> batch = Batch.of(torch.arange(6.0).reshape(3, 2))
        >>> batch.take(torch.tensor([2, 0])).main
        tensor([[4., 5.],
                [0., 1.]])
    """

    main: Tensor
    key: str | None = None
    named: dict[str, Any] = field(default_factory=dict)
    extra: tuple[Any, ...] = ()

    @classmethod
    def of(cls, inputs: Any, additional_forward_args: Any = None) -> Batch:
        """From what ``attribute`` takes.

        Args:
            inputs (Tensor or mapping): A tensor, or what a tokenizer or an image processor returns.
            additional_forward_args (Any, optional): As for ``attribute``. Tensors with one entry
                for each example are cut with the examples.

        Raises:
            InputError: No tensor, an empty one, or a mapping without a known entry to mask.
        """
        extra = tuple(_format_additional_forward_args(additional_forward_args) or ())
        if isinstance(inputs, Tensor):
            batch = cls(inputs, extra=extra)
        elif isinstance(inputs, Mapping):
            keys = [key for key in _MAIN if isinstance(inputs.get(key), Tensor)]
            if not keys:
                raise InputError(
                    f"the mapping holds none of {', '.join(_MAIN)} as a tensor (keys: "
                    f"{sorted(map(str, inputs))}); tokenizers must be called with "
                    "return_tensors='pt'"
                )
            rest = {str(k): v for k, v in inputs.items() if k != keys[0]}
            batch = cls(inputs[keys[0]], keys[0], rest, extra)
        else:
            raise InputError(
                f"inputs must be a tensor or a mapping, not {type(inputs).__name__}; pass further "
                "inputs in additional_forward_args"
            )
        if batch.main.layout != torch.strided or batch.main.is_nested or batch.main.is_meta:
            raise InputError("inputs must be a dense tensor with values; convert it first")
        if batch.main.dim() < 2 or not batch.main.numel():
            raise InputError(
                f"inputs must have the shape (examples, ...), not {tuple(batch.main.shape)}"
            )
        return batch

    def __len__(self) -> int:
        return self.main.shape[0]

    @property
    def attention_mask(self) -> Tensor | None:
        """Which tokens are there, as booleans in the shape of ``main``, if the inputs say so."""
        mask = self.named.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != self.main.shape:
            return None
        return mask if mask.dtype == torch.bool else mask > 0

    def take(self, rows: Tensor, tokens: int | None = None) -> Batch:
        """A batch of the examples ``rows``, which may repeat.

        Args:
            rows (Tensor): Shape ``(n,)``, numbers of examples.
            tokens (int, optional): Keep only so many tokens, from the first.
        """
        count = len(self)

        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != count:
                return value
            taken = value.index_select(0, rows.to(value.device))
            is_cut = tokens is not None and value.shape[:2] == self.main.shape[:2]
            return taken[:, :tokens].contiguous() if is_cut else taken

        named = {key: cut(value) for key, value in self.named.items()}
        return replace(
            self, main=cut(self.main), named=named, extra=tuple(cut(value) for value in self.extra)
        )

    def with_main(self, main: Tensor, **named: Any) -> Batch:
        """The same with another ``main`` and, where given, other keyword arguments."""
        return replace(self, main=main, named={**self.named, **named})

    @property
    def can_be_cropped(self) -> bool:
        """Whether padding at the end can be cut off: every other tensor goes along with it."""
        others = [*self.named.values(), *self.extra]
        return all(
            value.dim() < 2 or value.shape == self.main.shape
            for value in others
            if isinstance(value, Tensor)
        )

    @property
    def inputs(self) -> Any:
        """What ``attribute`` takes beside ``extra``: a tensor, or a mapping if there is a key."""
        return self.main if self.key is None else {self.key: self.main, **self.named}

    def call(self, model: Callable[..., Any]) -> Tensor:
        """The model's output tensor for these examples."""
        if self.key is None:
            return output_tensor(model(self.main, *self.extra, **self.named))
        return output_tensor(model(*self.extra, **{self.key: self.main}, **self.named))


def of_one_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of examples that go together without padding, which some models see.

    Args:
        lengths (sequence of int): Of each example.
        most (int): How many go together.

    Example::

        >>> of_one_length([3, 5, 3, 3], 2)
        [[0, 2], [3], [1]]
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(length, []).append(number)
    return [
        numbers[start : start + most]
        for _, numbers in sorted(groups.items())
        for start in range(0, len(numbers), most)
    ]
