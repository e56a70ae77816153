"""Values that are chosen by their order: by indices of ``argsort``, ``argmax`` and their like.

Autograd sees a pick as if the indices were given.  That they were computed from the inputs tells a
spread of quantiles, which grows with what it divides, from two entries at fixed places.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from captum_lrp_tx.propagation.graph import mark_node
from captum_lrp_tx.propagation.interception.calls import Call, depends, tensors_in
from captum_lrp_tx.propagation.recognition.degrees import CHOSEN

#: Give indices that tell the order of values, alone or beside the values.
_ORDERING = frozenset(
    "argsort sort topk kthvalue median nanmedian mode argmax argmin max min cummax cummin".split()
)
#: Take entries at indices.
_PICKING = frozenset("gather take_along_dim take index_select __getitem__".split())
#: Pick inside, in some versions of torch without a trace.
_QUANTILES = frozenset("quantile nanquantile".split())


class Ordering:
    """The indices of one forward pass that tell the order of values computed from the inputs."""

    def __init__(self) -> None:
        # not an attribute of the tensors: a buffer that such indices are copied into is the model's
        self._indices: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()

    def note(self, call: Call, result: Any) -> None:
        """Remember of a call that it ordered values, moved such indices, or picked by them."""
        name = call.name
        if name in _QUANTILES:
            mark_node(result, CHOSEN)
        elif name in _ORDERING:
            if any(map(depends, tensors_in((call.args, call.kwargs)))):
                self._remember(result)
        elif self._indices:
            is_pick = name in _PICKING and depends(result)
            if not is_pick and depends(result):
                return
            given = tensors_in((call.args[1:] if is_pick else call.args, call.kwargs))
            if any(t in self._indices for t in given):
                if is_pick:
                    mark_node(result, CHOSEN)
                else:
                    self._remember(result)

    def _remember(self, result: Any) -> None:
        for t in tensors_in(result):
            if not t.is_floating_point() and not t.is_complex():
                self._indices[t] = True
