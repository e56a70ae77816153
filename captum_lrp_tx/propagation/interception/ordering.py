"""Values that are chosen by their order: by indices of ``argsort``, ``argmax`` and their like.

Autograd sees a pick as if the indices were given.  That they were computed from the inputs tells a
spread of quantiles, which grows with what it divides, from two entries at fixed places.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
#: The attribute of indices that were computed from the inputs.
_OF_INPUTS = "_captum_lrp_tx_order"


def note(call: Call, result: Any) -> None:
    """Remember of a call that it ordered values, moved such indices, or picked by them."""
    name = call.name
    if name in _QUANTILES:
        mark_node(result, CHOSEN)
    elif name in _PICKING and depends(result):
        if any(map(_is_of_inputs, tensors_in((call.args[1:], call.kwargs)))):
            mark_node(result, CHOSEN)
    elif name in _ORDERING or not depends(result):
        made = [t for t in tensors_in(result) if not t.is_floating_point() and not t.is_complex()]
        given = tensors_in((call.args, call.kwargs)) if made else []
        if any(map(depends, given) if name in _ORDERING else map(_is_of_inputs, given)):
            for indices in made:
                setattr(indices, _OF_INPUTS, True)


def _is_of_inputs(x: Tensor) -> bool:
    return hasattr(x, _OF_INPUTS)
