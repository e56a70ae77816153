"""Classes by name or number: what a user writes, and what the model's configuration has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    config = next((c for c in configs if getattr(c, "id2label", None)), None)
    if config is None:
        return target  # what reads the output says what a target can be
    names = labels_of(config, 1 + max(map(int, config.id2label)))
    number = _named(target, names)
    if number is None:  # also for "1", which may be meant as a token
        hint = "for tokens pass their ids: tokenizer.encode(token, add_special_tokens=False)"
        raise TargetError(f"{no_class(target, names)}; {hint}")
    return number


def numbers_of_regression(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """What the numbers of a regression with several are called; of no other model anything.

    Args:
        modules (iterable of (str, Module)): Of the model.
    """
    for config in (getattr(module, "config", None) for _, module in modules):
        count = getattr(config, "num_labels", None) or 1
        if getattr(config, "problem_type", None) == "regression" and count > 1:
            return labels_of(config, count)
    return []


def is_multi_label(modules: Iterable[tuple[str, nn.Module]]) -> bool:
    """Whether a configuration says that each class is answered for by itself, by a sigmoid.

    Args:
        modules (iterable of (str, Module)): Of the model.
    """
    configs = (getattr(module, "config", None) for _, module in modules)
    return any(
        getattr(config, "problem_type", None) == "multi_label_classification" for config in configs
    )


def refuse_argmax_of_numbers(
    modules: Iterable[tuple[str, nn.Module]], instead: str = "name one as target"
) -> None:
    """Complains of a missing target: of several numbers none is a prediction before the others.

    Args:
        modules (iterable of (str, Module)): Of the model.
        instead (str): What to do.

    Raises:
        TargetError: If the model is a regression with several numbers.
    """
    if numbers := numbers_of_regression(modules):
        raise TargetError(
            f"the model is a regression with {len(numbers)} numbers; {instead}: "
            f"{', '.join(numbers)}"
        )


def _has_name(target: list[Any]) -> bool:
    return any(isinstance(item, str) for item in target)


def labels_of(config: Any, outputs: int) -> list[str]:
    """The names of the classes; their numbers where there are none.

    Args:
        config (PretrainedConfig, optional): Of the model.
        outputs (int): How many classes there are.
    """
    names = getattr(config, "id2label", None) or {}
    return [str(names.get(index, names.get(str(index), index))) for index in range(outputs)]


def class_number(wanted: object, names: Sequence[str]) -> int:
    """The class that is meant by a number or a name.

    Args:
        wanted (int or str): What the user wrote. Upper and lower case do not matter.
        names (sequence of str): Of the classes.

    Raises:
        TargetError: If there is none, or several that differ in case only.

    Example::

        >>> class_number("Positive", ["negative", "positive"])
        1
    """
    number = wanted
    if isinstance(wanted, str):
        number = _named(wanted, names)
        # where classes are called by other numbers than theirs ("1" to "5"), "0" is none of them
        misleads = any(name.isdecimal() and int(name) != i for i, name in enumerate(names))
        if number is None and wanted.isdecimal() and not misleads:
            number = int(wanted)
    elif not isinstance(wanted, bool) and hasattr(wanted, "__index__"):
        number = wanted.__index__()  # of NumPy and torch too
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
        return number
    raise no_class(wanted, names)


def _named(wanted: str, names: Sequence[str]) -> int | None:
    """The only class of this name, as it is written or else in any case."""
    for same in (str, str.casefold):
        fits = [i for i, name in enumerate(names) if same(name) == same(wanted)]
        if len(fits) == 1:
            return fits[0]
    return None


def no_class(wanted: object, names: Sequence[str]) -> TargetError:
    """What to say about a class that does not exist, or that is called as others are."""
    alike = [str(i) for i, name in enumerate(names) if name.casefold() == str(wanted).casefold()]
    if len(alike) > 1:
        return TargetError(
            f"{len(alike)} classes are called {wanted!r}: {', '.join(alike[:20])}; give the number"
        )
    listed = ", ".join(n if n == str(i) else f"{i} {n}" for i, n in enumerate(names[:20]))
    more = f" ... ({len(names)} classes)" if len(names) > 20 else ""
    return TargetError(f"there is no class {wanted!r}; the classes are: {listed}{more}")
