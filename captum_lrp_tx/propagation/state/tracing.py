"""Which explained id an entry of a tensor comes from, kept beside the tensors that a model makes.

A *trace* has the shape of its tensor and holds, at every place, the number of the id that the entry
comes from: ids are numbered from 1 over all inputs, 0 stands for none.  Whatever moves integers
moves their traces likewise (``interception.following``).

Integers are known by their storage, so that views of them, and what is written into views, need no
attention.  Embedded tokens are floats, of which there are many more; their traces go with the
tensor object, as an attribute that only this pass knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Attributes of tensors that a pass makes, each with the pass that it is for.
_ROWS, _TABLES = "_captum_lrp_tx_rows", "_captum_lrp_tx_tables"
#: What to do where ids cannot be followed.
WAY_OUT = (
    "Use LayerConservativeGI or LayerConservativeLRP on the embedding module: it gives relevance "
    "to the rows that were looked up."
)
INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


@dataclass(frozen=True)
class Lost:
    """In place of a trace: entries that were made of several ids, or of what they say.

    Attributes:
        operation (str): What was done with the ids.
    """

    operation: str


@dataclass
class _Stored:
    """The trace of a storage, element by element; both tensors keep their memory in place."""

    owner: Tensor
    trace: Tensor | Lost
    item: int  # bytes of an element
    is_one_hot: bool = False


class Traces:
    """Where the entries of a pass's tensors come from."""

    def __init__(self) -> None:
        self._stored: dict[int, _Stored] = {}
        #: Whether ids were cast to floats, so that floats may hold ids, too.
        self.has_floats = False
        #: Whether ids were compared with a whole vocabulary, so that booleans may hold rows.
        self.has_masks = False
        #: Whether rows with a single one were made of ids.
        self.has_one_hot = False
        #: Operations that made Python numbers or arrays of ids.
        self.left: dict[str, None] = {}
        #: The function that found distinct ids, from when rows were looked up for these until its
        #: inverse hands them out.
        self.unresolved = ""
        self._inverses: set[int] = set()

    def start(self, ids: Tensor, first: int) -> None:
        """Number the entries of an input, from ``first`` on."""
        numbers = torch.arange(first, first + ids.numel(), device=ids.device)
        self.note(ids, numbers.view(ids.shape))

    # ---- ids ---------------------------------------------------------------------------------
    def may_hold(self, x: Any) -> bool:
        """Whether a value is a tensor of a kind that ids may be in."""
        if not isinstance(x, Tensor):
            return False
        if x.is_floating_point():
            return self.has_floats and not x.requires_grad
        return x.dtype in INTEGERS or self.has_masks

    def of(self, x: Any) -> Tensor | Lost | None:
        """The trace of ids, as a view into that of their storage; None if they are no ids."""
        if not self._stored or not self.may_hold(x) or x.layout is not torch.strided:
            return None
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # masks that are made by vmap
            return None
        stored = self._stored.get(x.untyped_storage()._cdata)
        if stored is None or isinstance(stored.trace, Lost):
            return None if stored is None else stored.trace
        if stored.item != x.element_size():
            return Lost("view(dtype)")
        return stored.trace.as_strided(x.size(), x.stride(), x.storage_offset())

    def note(self, x: Tensor, trace: Tensor | Lost, is_one_hot: bool = False) -> None:
        """Keep the trace of a tensor that has a storage of its own, or of a part of one."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            return
        if isinstance(trace, Lost):
            key = x.untyped_storage()._cdata
            self._stored[key] = _Stored(x.detach(), trace, x.element_size())
            return
        view = self.target(x)
        if isinstance(view, Tensor):
            view.copy_(trace)
            self._stored[x.untyped_storage()._cdata].is_one_hot = is_one_hot
            self.has_floats = self.has_floats or x.is_floating_point()
            self.has_masks = self.has_masks or x.dtype is torch.bool
            self.has_one_hot = self.has_one_hot or is_one_hot

    def note_inverse(self, x: Tensor, trace: Tensor) -> None:
        """Keep the trace of what tells where distinct ids stand."""
        self.note(x, trace)
        self._inverses.add(x.untyped_storage()._cdata)

    def resolve(self, x: Tensor) -> None:
        """Called for indices of lookups: whether they hand out the rows of distinct ids."""
        if x.untyped_storage()._cdata in self._inverses:
            self.unresolved = ""

    def target(self, x: Tensor) -> Tensor | Lost:
        """The trace of a tensor, to be written to; one that says "none" is made if needed."""
        storage = x.untyped_storage()
        stored = self._stored.get(storage._cdata)
        if stored is None:
            count = storage.nbytes() // x.element_size()
            trace = torch.zeros(count, dtype=torch.int64, device=x.device)
            stored = _Stored(x.detach(), trace, x.element_size())
            self._stored[storage._cdata] = stored
        if isinstance(stored.trace, Lost):
            return stored.trace
        return stored.trace.as_strided(x.size(), x.stride(), x.storage_offset())

    def is_one_hot(self, x: Tensor) -> bool:
        """Whether a tensor holds ids as rows with a single one."""
        stored = self._stored.get(x.untyped_storage()._cdata)
        return stored is not None and stored.is_one_hot

    # ---- embedded tokens -----------------------------------------------------------------------
    def rows(self, x: Any) -> Tensor | None:
        """The trace of a sum of embedded tokens; None if a tensor is anything else."""
        found = getattr(x, _ROWS, None)
        return None if found is None or found[0] is not self else found[1]

    def note_rows(self, x: Any, trace: Tensor | None) -> None:
        """Keep the trace of a sum of embedded tokens."""
        if isinstance(x, Tensor) and trace is not None:
            setattr(x, _ROWS, (self, trace))

    def note_written(self, x: Tensor, trace: Tensor) -> None:
        """Keep the trace of tokens that are added to a constant, or to a part of one."""
        self.note_rows(x, trace)
        whole = x._base
        if whole is not None and whole.is_contiguous():
            known = self.rows(whole)
            held = torch.zeros_like(whole, dtype=torch.int64) if known is None else known.clone()
            offset = x.storage_offset() - whole.storage_offset()
            held.as_strided(x.size(), x.stride(), offset).copy_(trace)
            self.note_rows(whole, held)

    def forget_rows(self, x: Tensor) -> None:
        """What a tensor holds now is no sum of embedded tokens any more."""
        if hasattr(x, _ROWS):
            delattr(x, _ROWS)

    def tables(self, x: Any) -> tuple[Tensor, ...]:
        """The learned tables that a constant was read from; none for any other tensor."""
        found = getattr(x, _TABLES, None)
        return () if found is None or found[0] is not self else found[1]

    def note_tables(self, x: Any, tables: tuple[Tensor, ...]) -> None:
        """Remember which learned tables a constant was read from."""
        if tables and isinstance(x, Tensor):
            setattr(x, _TABLES, (self, tables))


def may_be_rows(x: Any) -> bool:
    """Whether a value is a sum of embedded tokens of this pass or of another; quickly told."""
    return hasattr(x, _ROWS)


def carry(source: Tensor, alias: Tensor) -> None:
    """Let an alias that this package makes of a tensor go by the same traces."""
    for name in (_ROWS, _TABLES):
        if hasattr(source, name):
            setattr(alias, name, getattr(source, name))


def by_rows(trace: Tensor) -> Tensor:
    """A trace with a last dimension of size 1 if every row of entries comes from one id."""
    if trace.dim() == 0 or trace.shape[-1] == 0:
        return trace
    first = trace[..., :1]
    return first if trace.stride(-1) == 0 or bool((trace == first).all()) else trace


def united(traces: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
    """The trace of entries made of several others, of which one at most comes from an id.

    Returns:
        Tensor: of the shape given, or None if an entry is made of more than one id.
    """
    result = traces[0].expand(shape)
    for other in traces[1:]:
        trace = other.expand(shape)
        if bool(((result != trace) & (result != 0) & (trace != 0)).any()):
            return None
        result = torch.maximum(result, trace)
    return result
