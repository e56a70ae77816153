"""Attention itself as an explanation: the last layer's, rollout, and flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Union

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_tx.attr.attention_recorder import AttentionMap, MapPass, attention_maps
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    TargetType,
    TensorOrTuple,
    WithoutFutures,
    forward_of,
    select_target,
)
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.prefix_tokens import pools_patches, prefix_tokens
from captum_lrp_tx.attr.random import mask_of
from captum_lrp_tx.attr.targets import indices_of
from captum_lrp_tx.attr.told import Subject, tell_once
from captum_lrp_tx.errors import (
    InputError,
    LeftOutPatternWarning,
    MissingPackageError,
    UnsupportedModelError,
)
from captum_lrp_tx.propagation.engine import Pass
from captum_lrp_tx.propagation.model.modules import find_modules, refuse_opaque
from captum_lrp_tx.propagation.operations import RuleTable
from captum_lrp_tx.propagation.state.inputs import Inputs

#: The row of an attention map that is read; see :class:`AttentionLast`.
Query = Union[int, Literal["auto", "cls", "last", "mean"]]
HeadFusion = Literal["mean", "max", "min"]


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

    def is_image(self) -> bool:
        """Whether the only input is a batch of images."""
        leaf = self.inputs.leaves[0]
        return leaf.original.is_floating_point() and leaf.original.dim() == 4

    def single_sequence(self, method: str) -> list[Tensor]:
        """Patterns ``(batch, heads, tokens, tokens)`` of a model of one sequence.

        Raises:
            UnsupportedModelError: cross-attention, several sequences, or maps that are not token
                by token of one sequence.
        """
        return [square(m, m.pattern, method) for m in self.checked(method)]

    def checked(self, method: str) -> list[AttentionMap]:
        """The maps, if all are from each token to each of one sequence."""
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
        for m in self.maps:
            square(m, m.pattern, method)
        return self.maps

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
        found = mask_of(self.given, key, x) if key else None
        if found is None and leaf == 0:
            found = self._passed_mask((batch, tokens))
        if found is not None and found.numel() == batch * tokens:
            return found.reshape(batch, tokens).to(device)
        if not patterns:
            return torch.ones(batch, tokens, dtype=torch.bool, device=device)
        attended = torch.stack([p.sum((1, 2)) for p in patterns]).sum(0)
        return attended[:, :tokens] > 0

    def _passed_mask(self, shape: tuple[int, int]) -> Tensor | None:
        function = self.forward.forward if isinstance(self.forward, nn.Module) else self.forward
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return None
        values: dict[str, Any] = dict(
            zip(names[len(self.inputs.leaves) :], self.additional, strict=False)
        )
        if isinstance(self.given, dict) or hasattr(self.given, "get"):
            values.update({str(k): v for k, v in self.given.items()})
        mask = values.get("attention_mask")
        if isinstance(mask, Tensor) and tuple(mask.shape) == shape:
            return mask.detach() > 0 if mask.dtype != torch.bool else mask.detach()
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
            if query == "auto" and self.is_image():
                chosen[:, : prefix_tokens(self.modules)] = False
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
        if self.is_image() and (not prefix_tokens(self.modules) or pools_patches(self.modules)):
            return None
        return self._positions("cls", real, patterns)

    def _explained_positions(self, batch: int, tokens: int) -> Tensor | None:
        """With one output per token the target names the row.

        Raises:
            InputError: a target of several positions.
        """
        if len(self.output_shape) != 3 or self.output_shape[1] != tokens:
            return None
        named = indices_of(self.target, batch)
        if not all(named) or not all(isinstance(t, tuple) for ts in named for t in ts):
            return None
        rows = [{int(t[0]) % tokens for t in ts} for ts in named]
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


class MapMethod(WithoutFutures, Attribution):
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
        result = attention_maps(job, prepared, gradients=gradients, relevance=relevance)
        if result.left_out:
            tell_once(
                Subject(forward, found), "left out",
                "Not every softmax that weights a matrix product has a row and a column for each "
                f"token: {', '.join(result.left_out)}. They are taken for routers and take no "
                "part in methods that combine attention maps. If they are attention to pooled "
                "tokens, use a method that needs no maps, such as ConservativeLRP.",
                LeftOutPatternWarning,
            )  # fmt: skip
        return Maps(
            result, prepared, inputs, job.additional_args, [m for _, m in found], forward,
            tuple(shape), target,
        )  # fmt: skip

    def _finished(self, values: list[Tensor], maps: Maps) -> TensorOrTuple:
        """The relevance as Captum returns it, without prefix tokens where asked for."""
        if self.patches_only and maps.is_image():
            values = [v[:, prefix_tokens(maps.modules) :] for v in values]
        values = [v.detach() for v in values]
        original = maps.inputs.leaves[0].original
        if original.dim() == 1 and not original.is_floating_point():
            values = [v.reshape(v.shape[-1]) for v in values]
        return tuple(values) if maps.inputs.is_tuple or len(values) != 1 else values[0]


class _AttentionOnly(MapMethod):
    """Methods that need no target."""

    def _relevance(self, maps: Maps) -> Tensor:
        raise NotImplementedError

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> TensorOrTuple:
        r"""
        Relevance of each token or patch.

        Args:
            inputs (Tensor, tuple of one Tensor, or mapping): Token ids, embeddings, pixels, or a
                tokenizer's ``BatchEncoding``; see :meth:`~captum_lrp_tx.ConservativeGI.attribute`.
            target: Does not matter, but that for outputs of one score per token its position is
                the row which ``query="auto"`` reads.
            additional_forward_args (any): Passed to the model after the inputs.

        Returns:
            Tensor: shape ``(batch, tokens)``, prefix tokens included unless ``patches_only``;
            padding gets 0. A tuple of one if ``inputs`` is a tuple.

        Raises:
            UnsupportedModelError: no softmax attention between tokens (a state-space model),
                attention in windows (Swin) or between channels (XCiT), cross-attention.
            InputError: unsupported inputs, or a query position out of range.

        Example::

            >>> relevance = AttentionRollout(model).attribute(tokenizer(text, return_tensors="pt"))
        """
        maps = self._maps(inputs, target, additional_forward_args)
        return self._finished([self._relevance(maps)], maps)


class AttentionLast(_AttentionOnly):
    r"""
    Attention of one layer, the last unless told otherwise, averaged over heads.

    .. math:: R_j = \frac{1}{H} \sum_h A^{(h)}_{qj}

    Source: the baseline of Abnar & Zuidema, ACL 2020 ("raw attention"); Ali et al., ICML 2022, run
    it with the mean over all rows (``query="mean"``; their column sums, divided by the tokens).

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        query (int or str): The row that is read: a position, ``"cls"`` (the first token that is no
            padding), ``"last"`` (the last), ``"mean"`` (over all tokens that are no padding), or
            ``"auto"``: the position in ``target`` if the output has one score per token, else
            ``"last"`` under a causal mask, the mean over patches for image models that declare no
            class token or pool their patches, and ``"cls"`` otherwise.
        layer (int): Which attention map in the order of the forward pass.
        patches_only (bool): For images, leave out class, distillation and register tokens; see
            :mod:`captum_lrp_tx.attr.prefix_tokens`.

    Raises:
        InputError: not a query.

    Example::

        >>> AttentionLast(model, query="mean", layer=0).attribute(ids)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        query: Query = "auto",
        layer: int = -1,
        *,
        patches_only: bool = False,
    ) -> None:
        Attribution.__init__(self, model)
        self._set_query(query, patches_only)
        self.layer = layer

    @classmethod
    def get_name(cls) -> str:
        """Readable name."""
        return "Last Attention"

    def _relevance(self, maps: Maps) -> Tensor:
        patterns = maps.single_sequence("AttentionLast")
        if not -len(patterns) <= self.layer < len(patterns):
            raise InputError(f"layer={self.layer} is out of range: {len(patterns)} attention maps.")
        real = maps.real(0, patterns[0].shape[-1], patterns)
        rows = maps.rows(self.query, real, patterns)
        relevance = torch.einsum("bt,bhts->bs", rows, patterns[self.layer])
        return relevance / patterns[self.layer].shape[1] * real


class AttentionRollout(_AttentionOnly):
    r"""
    Attention multiplied over layers, with half of each layer given to the residual connection.

    .. math:: \hat A_l = \mathrm{rows}(\tfrac12 \bar A_l + \tfrac12 I), \quad
              R = \hat A_L \cdots \hat A_1

    with :math:`\bar A` fused over heads and rows normalised to one.

    Source: Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        head_fusion (str): ``"mean"`` (the paper), ``"max"`` or ``"min"`` over heads.
        discard_ratio (float): Share of the entries of each fused map that are set to 0, smallest
            first, before the identity is added; entries of padding do not count.
        start_layer (int): First layer of the product; earlier ones are left out.
        query (int or str), patches_only (bool): See :class:`AttentionLast`.

    Raises:
        InputError: an option out of its range.

    Example::

        >>> AttentionRollout(model, head_fusion="max", discard_ratio=0.9).attribute(pixels)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        head_fusion: HeadFusion = "mean",
        discard_ratio: float = 0.0,
        start_layer: int = 0,
        query: Query = "auto",
        *,
        patches_only: bool = False,
    ) -> None:
        Attribution.__init__(self, model)
        self._set_query(query, patches_only)
        if head_fusion not in ("mean", "max", "min"):
            raise InputError(f"head_fusion must be 'mean', 'max' or 'min', not {head_fusion!r}.")
        if not 0 <= discard_ratio < 1:
            raise InputError(f"discard_ratio must be in [0, 1), not {discard_ratio!r}.")
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.start_layer = start_layer

    @classmethod
    def get_name(cls) -> str:
        """Readable name."""
        return "Attention Rollout"

    def _relevance(self, maps: Maps) -> Tensor:
        patterns = maps.single_sequence("AttentionRollout")
        real = maps.real(0, patterns[0].shape[-1], patterns)
        rows = maps.rows(self.query, real, patterns)
        layers = [self._discarded(self._fused(p), real) for p in patterns]
        return rolled_out(residual_half(layers), rows, self.start_layer) * real

    def _fused(self, pattern: Tensor) -> Tensor:
        if self.head_fusion == "mean":
            return pattern.mean(1)
        return pattern.amax(1) if self.head_fusion == "max" else pattern.amin(1)

    def _discarded(self, fused: Tensor, real: Tensor) -> Tensor:
        if not self.discard_ratio:
            return fused
        fused = fused.clone()
        for example, shown in zip(fused, real, strict=True):
            pairs = (shown[:, None] & shown[None, :]).flatten()
            values = example.flatten()
            count = int(self.discard_ratio * int(pairs.sum()))
            order = values.masked_fill(~pairs, float("inf")).argsort(stable=True)
            example.view(-1)[order[:count]] = 0.0
        return fused


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


class AttentionFlow(_AttentionOnly):
    r"""
    Maximum flow from an output token to each input token through the layers.

    The graph has a node for each token of each layer, and from token i of layer l to token j of
    layer l-1 an edge of capacity :math:`\tfrac12 \bar A_{l,ij} + \tfrac12 \delta_{ij}`.  The
    relevance of an input token is the largest flow from the query's node in the last layer to it.

    One query row needs one maximum flow for each input token, so ``query="mean"`` costs as many
    times more as there are tokens.  The flows are computed by ``scipy.sparse.csgraph`` on
    capacities rounded to multiples of :math:`2^{-30}`.

    Source: Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        query (int or str), patches_only (bool): See :class:`AttentionLast`.

    Raises:
        MissingPackageError: scipy is not installed.

    Example::

        >>> AttentionFlow(model, query="cls").attribute(ids)
    """

    def __init__(
        self, model: Callable[..., Any], query: Query = "auto", *, patches_only: bool = False
    ) -> None:
        Attribution.__init__(self, model)
        self._set_query(query, patches_only)
        _import_scipy()

    @classmethod
    def get_name(cls) -> str:
        """Readable name."""
        return "Attention Flow"

    def _relevance(self, maps: Maps) -> Tensor:
        patterns = maps.single_sequence("AttentionFlow")
        real = maps.real(0, patterns[0].shape[-1], patterns)
        rows = maps.rows(self.query, real, patterns)
        layers = residual_half([p.mean(1) for p in patterns])
        relevance = torch.zeros_like(rows)
        for example, shown in enumerate(real):
            kept = shown.nonzero()[:, 0]
            cropped = [a[example][kept][:, kept] for a in layers]
            for row in (rows[example, kept] > 0).nonzero()[:, 0].tolist():
                flows = maximum_flows(cropped, row).to(relevance)
                relevance[example, kept] += rows[example, kept[row]] * flows
        return relevance


def _import_scipy() -> tuple[Any, Any]:
    try:
        return import_module("scipy.sparse"), import_module("scipy.sparse.csgraph")
    except ImportError as error:
        raise MissingPackageError(
            "AttentionFlow needs scipy: pip install 'captum_lrp_tx[flow]'."
        ) from error


#: Capacities are integers in this unit, so that the flow out of one token fits 32 bits.
_UNIT = 2**30


def maximum_flows(layers: list[Tensor], row: int) -> Tensor:
    """Largest flow from token ``row`` of the last layer to each input token.

    Args:
        layers (list of Tensor): Capacities ``(tokens, tokens)`` of each layer, first layer first;
            rows sum to at most one.
        row (int): The source.

    Returns:
        Tensor: shape ``(tokens,)``, in double precision.
    """
    sparse, csgraph = _import_scipy()
    import numpy as np

    tokens, depth = layers[0].shape[-1], len(layers)
    scaled = [(a.detach().double().cpu().numpy() * _UNIT).round().astype(np.int32) for a in layers]
    if depth == 1:
        return torch.from_numpy(scaled[0][row] / _UNIT)
    # node (l, i) of the layers between source and sink: l in 0 .. depth - 2, from top to bottom
    middle = (depth - 1) * tokens
    source, sink = middle, middle + 1
    starts, ends, capacities = [np.full(tokens, source)], [np.arange(tokens)], [scaled[-1][row]]
    for level, layer in enumerate(reversed(scaled[1:-1])):
        i, j = np.nonzero(layer)
        starts.append(level * tokens + i)
        ends.append((level + 1) * tokens + j)
        capacities.append(layer[i, j])
    # the layer above the input has one edge from each token to the sink, whichever that is
    starts.append((depth - 2) * tokens + np.arange(tokens))
    ends.append(np.full(tokens, sink))
    capacities.append(np.ones(tokens, dtype=np.int32))
    edges = (np.concatenate(capacities), (np.concatenate(starts), np.concatenate(ends)))
    graph = sparse.csr_matrix(edges, shape=(middle + 2, middle + 2))
    to_sink = graph.indices == sink
    flows = np.zeros(tokens)
    for token in range(tokens):
        graph.data[to_sink] = scaled[0][:, token]
        flows[token] = csgraph.maximum_flow(graph, source, sink).flow_value / _UNIT
    return torch.from_numpy(flows)
