"""Names of classes as targets, where the model's configuration has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from captum_lrp_tx.errors import TargetError


def by_number(target: Any, modules: Iterable[tuple[str, nn.Module]]) -> Any:
    """A target with the numbers of classes in place of their names.

    Args:
        target: See :mod:`captum_lrp_tx.attr.targets`; or the name of a class, or a list with the
            name of one for each example.
        modules (iterable of (str, Module)): Of the model; the first that has labels counts.

    Raises:
        TargetError: If the model has no class of this name.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> by_number(["positive", 0], sentiment()[0].named_modules())
        [1, 0]
    """
    if isinstance(target, list):
        return [by_number(item, modules) for item in target] if _has_name(target) else target
    if not isinstance(target, str):
        return target
    configs = (getattr(module, "config", None) for _, module in modules)
    labels: dict[int, str] | None
    labels = next((found for c in configs if (found := getattr(c, "id2label", None))), None)
    if not labels:
        return target  # what reads the output says what a target can be
    numbers = [int(i) for i, name in labels.items() if str(name).casefold() == target.casefold()]
    if len(numbers) != 1:
        known = ", ".join(f"{i} {name}" for i, name in list(labels.items())[:20])
        raise TargetError(
            f"The model has no class {target!r}; it has {known}. For tokens pass their ids: "
            "tokenizer.convert_tokens_to_ids(token)."
        )
    return numbers[0]


def _has_name(target: list[Any]) -> bool:
    return any(isinstance(item, str) for item in target)
