"""``strict=``: what is refused instead of warned about."""

from __future__ import annotations

from typing import Any, Literal, Union

from captum_lrp_tx.errors import InputError, UncoveredOperationError
from captum_lrp_tx.propagation.state.scope import Scope

#: Whether to raise for what no rule covers, or also for conventions that are not in the papers.
Strict = Union[bool, Literal["papers"]]


def check_strict(strict: Any) -> None:
    """Complain about anything that is not a value of ``strict``.

    Raises:
        InputError: with what it can be.
    """
    if not isinstance(strict, bool) and not (isinstance(strict, str) and strict == "papers"):
        raise InputError(f"strict must be True, False or 'papers', not {strict!r}.")


def refuse_conventions(scope: Scope) -> None:
    """Raise if something was recognised whose rule is in none of the papers.

    Raises:
        UncoveredOperationError: with what was recognised, and where.
    """
    found = tuple(
        f"{what} in {module or 'the forward function'}"
        for module, what in scope.found
        if what.endswith("(convention)")
    )
    if found:
        raise UncoveredOperationError(
            f"Rules that are in none of the papers would act here: {'; '.join(found)}. Pass "
            "strict=True to accept these conventions of the package, which the documentation "
            "of AHRule states.",
            found,
        )
