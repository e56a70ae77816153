"""Arguments of a block as they were when it began, to run it a second time.

A block may write to what it is handed: language models hand a cache of keys and values to every
block, and each adds its own.  What it wrote in the first run stays with the model; the second run
gets a copy of the object in the state from before the first one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.hygiene.arguments import collect


class CannotCopy(Exception):
    """An argument cannot be copied; the text is its type and the reason."""


class Snapshot:
    """The state of an object that a block may write to.

    Tensors are not copied. Those that are constants are held (and must not change in place); those
    of this pass's own graph, which earlier blocks have left there, are replaced by tensors of the
    same shape without values, so that they are not kept alive: whoever reads them in the second
    run is found out, see :func:`reads_placeholder`.

    Args:
        value (object): The argument.

    Raises:
        CannotCopy: it cannot be copied.

    Example::

        >>> cache = {"keys": [torch.ones(2)]}
        >>> before = Snapshot(cache)
        >>> cache["keys"].append(torch.zeros(2))
        >>> len(before.restored()["keys"])
        1
    """

    def __init__(self, value: Any) -> None:
        found = collect(value)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            memo = {
                id(t): torch.empty_like(t, device="meta") if t.requires_grad else t for t in found
            }
        #: The constants in it, and what takes the place of other tensors.
        self.tensors: list[Tensor] = list(memo.values())
        self._state = _copied(value, memo)

    def restored(self) -> Any:
        """The object as it was: a new one each time."""
        return _copied(self._state, {id(t): t for t in self.tensors})


def reads_placeholder(tensor: Tensor) -> bool:
    """Whether a tensor was computed from what a snapshot holds no values of."""
    return tensor.is_meta


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        with torch._C.DisableTorchFunction():
            return copy.deepcopy(value, dict(memo))
    except (TypeError, RuntimeError, copy.Error) as error:
        raise CannotCopy(f"{type(value).__name__}, which cannot be copied ({error})") from error
