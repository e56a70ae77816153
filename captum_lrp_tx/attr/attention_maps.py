"""The attention maps of one call, and what all methods that read them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Union

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor, nn

from captum_lrp_tx.attr.attention_recorder import AttentionMap, MapPass, attention_maps
from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    TargetType,
    TensorOrTuple,
    formatted,
    forward_of,
    select_target,
)
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.padding import mask_of, named_arguments, warn_of_padding
from captum_lrp_tx.attr.prefix_tokens import pools_patches, prefix_tokens, tokens_behind
from captum_lrp_tx.attr.targets import indices_of
from captum_lrp_tx.attr.told import Subject, tell_once
from captum_lrp_tx.errors import InputError, LeftOutPatternWarning, UnsupportedModelError
from captum_lrp_tx.propagation.engine import Pass
from captum_lrp_tx.propagation.model.modules import find_modules, refuse_opaque
from captum_lrp_tx.propagation.operations import RuleTable
from captum_lrp_tx.propagation.state.inputs import Inputs

#: The row of an attention map that is read; see :class:`AttentionLast`.
Query = Union[int, Literal["auto", "cls", "last", "mean"]]
#: What models of audio call what they hear: samples, or a spectrogram.
AUDIO_INPUTS = ("input_values", "input_features")


@dataclass
class Maps:
    """The attention maps of one call, and what is needed to read them.

    Attributes:
        result (MapPass): What the pass brought.
        inputs (Inputs): What was attributed to.
        given: The inputs as the user passed them.
        additional (tuple): Positional arguments after the inputs.
        modules (list of Module): Modules behind the forward function.
        forward (callable): The forward function.
        output_shape (tuple of int): Shape of the model's output.
        target: The target as the user passed it.
    """

    result: MapPass
    inputs: Inputs
    given: Any
    additional: tuple[Any, ...]
    modules: list[nn.Module]
    forward: Callable[..., Any]
    output_shape: tuple[int, ...]
    target: Any

    @property
    def maps(self) -> list[AttentionMap]:
        """In the order of the forward pass."""
        return self.result.maps

    def is_sensed(self) -> bool:
        """Whether the only input is images, videos or sounds; embedded tokens are none."""
        original = self.inputs.leaves[0].original
        if not original.is_floating_point() or original.dim() > 3:
            return original.is_floating_point()
        return any(getattr(m, "main_input_name", None) in AUDIO_INPUTS for m in self.modules)

    def patches(self, tokens: int) -> slice:
        """Which of so many tokens are patches."""
        return slice(prefix_tokens(self.modules), tokens - tokens_behind(self.modules))

    def single_sequence(self, method: str, query: Query) -> tuple[list[Tensor], Tensor, Tensor]:
        """Patterns of a model of one sequence, from each token to each.

        Args:
            method (str): Name of the method, for messages.
            query (int or str): Which row is read.

        Returns:
            tuple: Patterns ``(batch, heads, tokens, tokens)``, which tokens are no padding and the
            weight of each row in the result, both ``(batch, tokens)``.

        Raises:
            UnsupportedModelError: cross-attention, several sequences, or maps that are not token
                by token of one sequence.
            InputError: a position out of range.
        """
        crossed = [m for m in self.maps if m.is_cross]
        if crossed:
            raise UnsupportedModelError(
                f"{method} is defined on one sequence, but {crossed[0].module or 'the model'!r} is "
                "cross-attention between two. GenericAttention has rules for those."
            )
        if len(self.inputs.leaves) > 1:
            raise UnsupportedModelError(
                f"{method} gives one relevance per token of one sequence, but "
                f"{len(self.inputs.leaves)} inputs were passed. Pass the others in "
                "additional_forward_args."
            )
        sizes = {m.pattern.shape[-2] for m in self.maps}
        if len(sizes) > 1:
            raise UnsupportedModelError(
                f"{method} needs attention maps of one size, but this model has rows of "
                f"{sorted(sizes)} tokens (pooling between stages, class attention, windows). Use "
                "a method that needs no attention maps, such as ConservativeLRP."
            )
        tokens = sizes.pop()
        expected = self.tokens_of(0)
        if self.inputs.leaves[0].is_ids and expected != tokens:
            raise UnsupportedModelError(
                f"The attention maps have {tokens} rows, the input has {expected} tokens, so rows "
                "are not tokens (pooled or extended inside the model)."
            )
        patterns = [square(m, m.pattern, method) for m in self.maps]
        real = self.real(0, tokens, patterns)
        return patterns, real, self.rows(query, real, patterns)

    def tokens_of(self, leaf: int) -> int | None:
        """Tokens of an input as far as its shape tells."""
        original = self.inputs.leaves[leaf].original
        if not original.is_floating_point():
            return original.shape[-1]
        return original.shape[1] if original.dim() == 3 else None

    def real(self, leaf: int, tokens: int, patterns: list[Tensor]) -> Tensor:
        """Which tokens are no padding, shape ``(batch, tokens)``.

        Told by the ``attention_mask`` of a mapping or of ``additional_forward_args``; without one,
        a token that no token attends to in any layer is padding.
        """
        key = self.inputs.keys[leaf] if self.inputs.keys else ""
        batch, device = self.maps[0].pattern.shape[0], self.maps[0].pattern.device
        x = self.inputs.leaves[leaf].original
        found = mask_of(self.given, key, x)
        if found is None and leaf == 0:
            found = self._passed_mask((batch, tokens))
        if found is not None and found.numel() == batch * tokens:
            return found.reshape(batch, tokens).to(device)
        if not patterns:
            return torch.ones(batch, tokens, dtype=torch.bool, device=device)
        attended = torch.stack([p.sum((1, 2)) for p in patterns]).sum(0)
        return attended[:, :tokens] > 0

    def _passed_mask(self, shape: tuple[int, int]) -> Tensor | None:
        mask = named_arguments(self.forward, self.given, self.additional).get("attention_mask")
        if isinstance(mask, Tensor) and tuple(mask.shape) == shape:
            return mask.detach() > 0
        return None

    def rows(self, query: Query, real: Tensor, patterns: list[Tensor]) -> Tensor:
        """Weight of each row in the result, shape ``(batch, tokens)``.

        Raises:
            InputError: a position out of range.
        """
        batch, tokens = real.shape
        weights = torch.zeros(batch, tokens, dtype=self.maps[0].pattern.dtype, device=real.device)
        positions = self._positions(query, real, patterns)
        if positions is None:
            chosen = real.clone()
            if query == "auto" and self.is_sensed():
                chosen = torch.zeros_like(real)
                chosen[:, self.patches(tokens)] = real[:, self.patches(tokens)]
            kept = chosen.to(weights.dtype)
            return kept / kept.sum(1, keepdim=True).clamp(min=1)
        if bool(((positions < -tokens) | (positions >= tokens)).any()):
            raise InputError(
                f"query={query!r} is out of range for {tokens} tokens; use a position, 'cls', "
                "'last', 'mean' or 'auto'."
            )
        return weights.scatter_(1, (positions % tokens)[:, None], 1.0)

    def _positions(self, query: Query, real: Tensor, patterns: list[Tensor]) -> Tensor | None:
        """The row of each example, ``None`` for their mean."""
        batch, tokens = real.shape
        if query == "mean":
            return None
        if not isinstance(query, str):
            return torch.full((batch,), int(query), device=real.device)
        numbers = torch.arange(tokens, device=real.device)
        if query == "cls":
            return real.long().argmax(1)
        if query == "last":
            return (real * numbers).argmax(1)
        explained = self._explained_positions(batch, tokens)
        if explained is not None:
            return explained.to(real.device)
        if tokens > 1 and patterns and all(not bool(p.triu(1).any()) for p in patterns):
            return self._positions("last", real, patterns)
        if self.is_sensed() and (not prefix_tokens(self.modules) or pools_patches(self.modules)):
            return None
        return self._positions("cls", real, patterns)

    def _explained_positions(self, batch: int, tokens: int) -> Tensor | None:
        """With one output per token, or per token behind the patches, the target names the row.

        Raises:
            InputError: a target of several positions.
        """
        outputs = self.output_shape[1] if len(self.output_shape) == 3 else 0
        if outputs == 0 or outputs not in (tokens, tokens_behind(self.modules)):
            return None
        named = indices_of(self.target, batch)
        if not all(named) or not all(isinstance(t, tuple) for ts in named for t in ts):
            return None
        first = tokens - outputs
        rows = [{first + int(t[0]) % outputs for t in ts} for ts in named]
        if any(len(row) > 1 for row in rows):
            raise InputError(
                f"target={self.target!r} is about several positions, but one row of the attention "
                "maps is read; choose it by query=, a position or 'mean'."
            )
        return torch.tensor([row.pop() for row in rows])


def square(found: AttentionMap, values: Tensor, method: str) -> Tensor:
    """Values of a map without keys that are no tokens (added biases).

    Raises:
        UnsupportedModelError: fewer keys than queries, or many more.
    """
    queries, keys = values.shape[-2:]
    if not 0 <= keys - queries <= 2 or (queries == 1 and keys > 1):
        raise UnsupportedModelError(
            f"{method} needs maps from each token to each token, but the map of "
            f"{found.module or 'the model'!r} is {queries} x {keys} (class attention, pooling, or "
            "a cache of earlier tokens)."
        )
    return values[..., :queries]


class MapMethod(CaptumMethod):
    """What all methods that read attention maps share; the subclasses say what they compute."""

    query: Query = "auto"
    patches_only: bool = False

    def _set_query(self, query: Query, patches_only: bool) -> None:
        if isinstance(query, bool) or not (
            isinstance(query, int) or query in ("auto", "cls", "last", "mean")
        ):
            raise InputError(
                f"query must be a position, 'auto', 'cls', 'last' or 'mean', not {query!r}."
            )
        self.query = query
        self.patches_only = patches_only

    def _maps(
        self,
        inputs: AttributionInputs,
        target: TargetType,
        additional_forward_args: Any,
        *,
        base: RuleTable | None = None,
        gradients: bool = False,
        relevance: bool = False,
        unit: bool = False,
    ) -> Maps:
        """One pass; ``unit`` starts the backward pass with relevance one."""
        forward = forward_of(self)
        found = find_modules(forward)
        refuse_opaque(found, forward)
        shape: list[int] = []

        def select(output: Tensor) -> Tensor:
            shape[:] = output.shape
            if target is None and not (gradients or relevance):  # nothing is explained
                return output.reshape(output.shape[0], -1).sum(1) if output.dim() else output
            selected = select_target(output, target)
            warn_of_padding(forward, inputs, additional_forward_args, output, [target])
            if not unit:
                return selected
            tiny = torch.finfo(selected.dtype).tiny ** 0.5
            value = selected.detach()
            return selected / torch.where(value == 0, torch.full_like(value, tiny), value)

        additional = _format_additional_forward_args(additional_forward_args)
        prepared = inputs_of(inputs)
        job = Pass(
            forward=forward,
            modules=found,
            base=base or {},
            assigned=(),
            select=select,
            additional_args=() if additional is None else additional,
        )
        with told_misfits(forward, inputs, job.additional_args):
            result = attention_maps(job, prepared, gradients=gradients, relevance=relevance)
        if result.left_out:
            tell_once(
                Subject(forward, found),
                "left out",
                "Not every softmax that weights a matrix product has a row and a column for each "
                f"token: {', '.join(result.left_out)}. They are taken for routers and take no "
                "part in methods that combine attention maps. If they are attention to pooled "
                "tokens, use a method that needs no maps, such as ConservativeLRP.",
                LeftOutPatternWarning,
            )
        return Maps(
            result, prepared, inputs, job.additional_args, [m for _, m in found], forward,
            tuple(shape), target,
        )  # fmt: skip

    def _finished(self, values: list[Tensor], maps: Maps) -> TensorOrTuple:
        """The relevance as Captum returns it, without prefix tokens where asked for."""
        if self.patches_only and maps.is_sensed():
            values = [v[:, maps.patches(v.shape[1])] for v in values]
        values = [v.detach() for v in values]
        original = maps.inputs.leaves[0].original
        if original.dim() == 1 and not original.is_floating_point():
            values = [v.reshape(v.shape[-1]) for v in values]
        return formatted(values, maps.inputs.is_tuple)


def residual_half(layers: list[Tensor]) -> list[Tensor]:
    """Half attention, half identity, rows normalised to one."""
    mixed = []
    for layer in layers:
        with_identity = layer + torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)
        mixed.append(with_identity / with_identity.sum(-1, keepdim=True))
    return mixed


def rolled_out(layers: list[Tensor], rows: Tensor, start_layer: int = 0) -> Tensor:
    """Rows of the product of ``layers`` from the last to ``start_layer``: ``(batch, tokens)``.

    Raises:
        InputError: ``start_layer`` out of range.
    """
    if not -len(layers) <= start_layer < len(layers):
        raise InputError(f"start_layer={start_layer} is out of range: {len(layers)} layers.")
    for layer in reversed(layers[start_layer:]):  # a row times matrices, not matrices
        rows = torch.einsum("bt,bts->bs", rows, layer)
    return rows
