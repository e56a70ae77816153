"""Captum's targets, taken apart into a position in the output and a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.class_names import by_number, refuse_argmax_of_numbers
from captum_lrp_tx.attr.targets.indices import Target
from captum_lrp_tx.errors import OutputError, TargetError
from captum_lrp_tx.propagation.model.modules import find_modules

#: Entries of the targets but the last, for each example.
Position = list[tuple[int, ...]]


def split_target(target: Any, examples: int, model: Any = None) -> tuple[Position | None, Any]:
    """Captum's target as positions in the output and classes at them.

    Args:
        target (int, tuple, Tensor or list, optional): Captum's target.
        examples (int): How many examples there are.
        model (callable, optional): Whose configuration has names of classes, where these are given.

    Returns:
        tuple: For each example the entries of its target but the last, None if there are none;
        and the classes, for :func:`target_classes`.

    Raises:
        TargetError: Another number of targets than examples, tuples of different lengths, or no
            such class.

    Example::

        >>> split_target((4, 1), 2)
        ([(4,), (4,)], [1, 1])
    """
    if model is not None:
        target = by_number(target, find_modules(model))
    if isinstance(target, str):
        raise TargetError(
            f"target={target!r} is a name, and the model's configuration has no names of classes; "
            "give the number of the class"
        )
    if isinstance(target, tuple):
        target = [target] * examples
    if isinstance(target, list) and target and isinstance(target[0], tuple):
        if len(target) != examples or len({len(entry) for entry in target}) != 1:
            raise TargetError(f"{len(target)} targets for {examples} examples; give one for each")
        positions = [tuple(int(i) for i in entry[:-1]) for entry in target]
        return (positions if positions[0] else None), [int(entry[-1]) for entry in target]
    return None, target


def counts_from_end(target: Any) -> bool:
    """Whether a target may count places from the end, which padding is a part of: it must stay.

    Args:
        target (int, tuple, Target, Tensor or list, optional): One, or one for each example.

    Returns:
        bool: True if an entry before the class is negative, and for a function of the output that
        is made of no targets, for nobody knows what it reads.

    Example::

        >>> counts_from_end([(-1, 7), (4, 7)])
        True
    """
    if isinstance(target, list):
        return any(map(counts_from_end, target))
    if isinstance(target, Target):
        return not target.parts or any(map(counts_from_end, target.parts))
    return isinstance(target, tuple) and any(int(place) < 0 for place in target[:-1])


def target_outputs(outputs: Tensor, position: Position | None, rows: Tensor) -> Tensor:
    """Outputs of the classes at the position that the target names.

    Args:
        outputs (Tensor): Of the model, ``(n, ..., classes)`` or ``(n,)``.
        position (list of tuple, optional): Of :func:`split_target`.
        rows (Tensor): Numbers of the examples that the outputs are for, ``(n,)``.

    Returns:
        Tensor: Shape ``(n, classes)``.

    Raises:
        OutputError: Not one output for each example.
        TargetError: The target does not fit the shape of the outputs.
    """
    if outputs.shape[:1] != rows.shape:
        raise OutputError(
            f"the model returned an output of shape {tuple(outputs.shape)} for {len(rows)} examples"
        )
    if position is not None:
        named = [position[row] for row in rows.tolist()]
        if outputs.dim() != len(named[0]) + 2:
            raise TargetError(
                f"a target of {len(named[0]) + 1} entries does not fit an output of shape "
                f"{tuple(outputs.shape)}"
            )
        examples = torch.arange(len(rows), device=outputs.device)
        indices = (examples, *torch.tensor(named, device=outputs.device).unbind(1))
        try:
            return outputs[indices]
        except IndexError as error:
            raise TargetError(f"the target is out of range: {error}") from error
    if outputs.dim() == 1:
        return outputs[:, None]
    if outputs.dim() != 2:
        raise TargetError(
            f"the output has the shape {tuple(outputs.shape)}: give a tuple as target, e.g. "
            f"target={(0,) * (outputs.dim() - 1)}"
        )
    return outputs


def target_classes(target: Any, whole: Tensor, model: Any = None) -> Tensor:
    """The class of each example, ``(examples,)``; the predicted one if there is no target.

    Args:
        target (int, Tensor or list, optional): Classes as of :func:`split_target`.
        whole (Tensor): Outputs, ``(examples, classes)``.
        model (callable, optional): Whose configuration may say that its outputs are no classes.

    Raises:
        TargetError: The target is malformed or out of range, or missing for a regression with
            several numbers.
    """
    examples, count = whole.shape
    if target is None:
        if model is not None and count > 1:
            refuse_argmax_of_numbers(find_modules(model))
        return whole.argmax(1)
    try:
        classes = torch.as_tensor(target).cpu()
        if classes.is_floating_point() or classes.dtype == torch.bool or classes.dim() > 1:
            raise ValueError("it is no index")
        classes = classes.long().expand(examples).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"target={target!r} does not fit {examples} examples: {error}. Valid targets: an int, "
            "a tensor or list with one index per example, or tuples"
        ) from error
    if bool((classes < 0).any()) or bool((classes >= count).any()):
        raise TargetError(f"target={target!r} is out of range: the classes are 0 to {count - 1}")
    return classes


def wide(outputs: Tensor) -> Tensor:
    """Outputs in single precision, or in double where the model computes in it.

    Example::

        >>> wide(torch.ones(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
