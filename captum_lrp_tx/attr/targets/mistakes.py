"""What is often taken for a target, and is none: truth values and names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import TargetError


def refuse_truth(target: Any) -> None:
    """Complain about a truth value where an index belongs, also in a list, tuple or tensor.

    Raises:
        TargetError: with the index that it may stand for.

    Example::

        >>> refuse_truth(1)
    """
    if _holds_truth(target):
        raise TargetError(
            f"target={target!r} is a truth value, not an index; for the class with number 1 write "
            "target=1, for masks that name classes target=mask.long()."
        )


def _holds_truth(target: Any) -> bool:
    if isinstance(target, (list, tuple)):
        return any(_holds_truth(item) for item in target)
    if isinstance(target, Tensor):
        return target.dtype == torch.bool
    return isinstance(target, bool) or str(getattr(target, "dtype", "")) == "bool"


def hint_of_names(target: Any) -> str:
    """What to do about a target that holds names; empty if it holds none.

    Example::

        >>> hint_of_names(3)
        ''
    """
    items = target if isinstance(target, (list, tuple)) else [target]
    if any(isinstance(item, str) for item in items):
        return (
            " In place of a name pass its number: model.config.label2id[name] for a class, "
            "for a token what tokenizer.encode(token, add_special_tokens=False) gives, if it is "
            "one id (a space before the token counts)."
        )
    return ""
