"""Which axis of a tensor inside the model counts the examples, where shapes do not tell.

The output of the first example depends on nothing of the others: along the examples its gradient
is zero but for the first entry, which has all that it has under the outputs of all examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets.indices import Target


def all_outputs(output: Tensor) -> Tensor:
    """All outputs of each example, weighted and summed: shape ``(batch,)``.

    The plain sum of probabilities, or of what a norm gave, is a constant without a gradient.
    """
    each = output.reshape(len(output), -1)
    return each @ torch.arange(1, each.shape[1] + 1, device=each.device).sin().to(each.dtype)


class EveryExample(Target):
    """What a function gives for each example.

    Args:
        select (callable): From the model's output to ``(batch,)``; :func:`all_outputs` unless
            given.
    """

    parts = ()

    def __init__(self, select: Callable[[Tensor], Tensor] = all_outputs) -> None:
        self._select = select

    def select(self, output: Tensor) -> Tensor:
        return self._select(output)


class FirstExample(EveryExample):
    """The same of the first example, and zero for all others.

    Example::

        >>> FirstExample(lambda output: output[:, 1]).select(torch.eye(2) + 1)
        tensor([1., 0.])
    """

    def select(self, output: Tensor) -> Tensor:
        each = self._select(output)
        return torch.cat([each[:1], 0.0 * each[1:]])


def counts_examples(of_all: Tensor, of_first: Tensor) -> bool:
    """Whether the first axis counts the examples; true also where nothing tells.

    Args:
        of_all (Tensor): Gradient or relevance of the outputs of all examples.
        of_first (Tensor): Of that of the first alone.

    Example::

        >>> counts_examples(torch.ones(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        True
        >>> counts_examples(torch.ones(2, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        False
    """
    rounding = 1e-4 * of_all.abs().max()
    own = (of_all[0] - of_first[0]).abs() <= rounding
    return bool(own.all()) and not bool((of_first[1:].abs() > rounding).any())
