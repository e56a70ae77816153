"""Several targets of one input: what ``attribute_targets`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Union

from torch import Tensor

from captum_lrp_tx.attr.targets import TargetType, select_target
from captum_lrp_tx.errors import TargetError

#: A sequence of targets, each as ``attribute`` takes them, or all classes.
TargetsType = Union[Sequence[TargetType], Literal["all"]]


def select_targets(output: Tensor, targets: TargetsType) -> list[Tensor]:
    """The values of several targets, in order.

    Args:
        output (Tensor): The model's output, the examples in the first dimension.
        targets (sequence or str): Targets as :func:`~captum_lrp_tx.attr.targets.select_target`
            takes them, or ``"all"`` for every class of an output of shape ``(batch, classes)``.

    Returns:
        list of Tensor: One tensor of shape ``(batch,)`` for each target.

    Raises:
        TargetError: No targets, one that does not fit, or ``"all"`` of another output.

    Example::

        >>> select_targets(torch.tensor([[1.0, 3.0]]), "all")
        [tensor([1.]), tensor([3.])]
    """
    if isinstance(targets, str):
        if targets != "all" or output.dim() != 2:
            raise TargetError(
                f"targets={targets!r} does not fit the output of shape {tuple(output.shape)}: "
                "'all' is for outputs of shape (batch, classes); otherwise give a list of targets, "
                "for a language model [(position, token), ...]."
            )
        return [select_target(output, index) for index in range(output.shape[1])]
    if isinstance(targets, Tensor) or not isinstance(targets, Sequence) or not len(targets):
        raise TargetError(
            f"targets must be a list with at least one target, or 'all', not {targets!r}. For one "
            "index for each example, which is one target, write [[0, 1, ...]]."
        )
    return [select_target(output, target) for target in targets]
