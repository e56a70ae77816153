"""The rows that token ids are looked up in, recorded or replaced while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.hygiene.isolation import isolated
from captum_lrp_tx.propagation.interception import Context, Interception
from captum_lrp_tx.propagation.state.inputs import Inputs, Looking
from captum_lrp_tx.propagation.state.scope import Scope
from captum_lrp_tx.propagation.state.tracing import by_rows


class EmbeddingRows(Inputs):
    """Token ids whose rows are recorded, or replaced by others, where the model looks them up.

    Args:
        ids (Tensor): The token ids.
        replacements (sequence of Tensor, optional): Rows for each lookup, in the shape of the ids
            and one dimension more. Unless given, the rows are recorded.
    """

    def __init__(self, ids: Tensor, replacements: Sequence[Tensor] | None = None) -> None:
        super().__init__(ids)
        self._replacements = None if replacements is None else iter(replacements)
        self.rows: list[Tensor] = []

    def run(self, call: Callable[..., Tensor], *more: Any) -> Tensor:
        """Call a function with the ids, which are followed to their lookups."""
        (ids,), _ = self.call_arguments()
        scope = Scope({})
        with isolated([]) as kept:
            context = Context(scope, self, lambda _: "embedding", kept)
            with scope, Interception(context):
                return call(ids, *more)

    def look_up(self, values: Tensor, trace: Tensor, name: str, context: Looking) -> Tensor:
        trace = by_rows(trace)
        if trace.shape[-1] > 1:
            if bool((trace == 0).any()):
                raise InputError(
                    "The model multiplies one-hot rows of its token ids, which Integrated "
                    "Gradients, GradientShap and Saliency cannot replace; pass float inputs."
                )
            single = self.look_up(values.unsqueeze(-1), trace.unsqueeze(-1), name, context)
            return single.squeeze(-1)
        ids, places = self.leaves[0].original, trace[..., 0]
        if self._replacements is None:
            width = values.shape[-1]
            rows = values.new_zeros(ids.numel() + 1, width)
            rows.index_copy_(0, places.flatten(), values.detach().reshape(-1, width))
            self.rows.append(rows[1:].view(*ids.shape, width))
            return values
        replaced = next(self._replacements).flatten(0, ids.dim() - 1)[(places - 1).clamp(min=0)]
        return torch.where((places != 0).unsqueeze(-1), replaced, values)


def are_shifted(traces: Sequence[Tensor]) -> bool:
    """Whether token ids were looked up at other places, too, as decoders do that shift them.

    Args:
        traces (sequence of Tensor): For each lookup the number of the id that an entry is of.
    """
    return any(t.shape == traces[0].shape and not t.equal(traces[0]) for t in traces)


class _Places(EmbeddingRows):
    """Which ids were looked up where."""

    def __init__(self, ids: Tensor) -> None:
        super().__init__(ids)
        self.places: list[Tensor] = []

    def look_up(self, values: Tensor, trace: Tensor, name: str, context: Looking) -> Tensor:
        self.places.append(by_rows(trace))
        return values


def shifts_ids(call: Callable[..., Tensor], ids: Tensor, *more: Any) -> bool:
    """Whether a function looks its token ids up a second time, shifted.

    Args:
        call (callable): ``call(ids, *more)`` runs the model.
        ids (Tensor): Token ids.
        *more: Further arguments.
    """
    seen = _Places(ids)
    with torch.inference_mode(False), torch.no_grad():
        seen.run(call, *more)
    return are_shifted(seen.places)
