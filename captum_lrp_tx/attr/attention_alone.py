"""Attention itself as an explanation: the last layer's, rollout, and flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.attention_maps import MapMethod, Maps, Query, residual_half, rolled_out
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, TensorOrTuple
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import needed

HeadFusion = Literal["mean", "max", "min"]


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
            ``"last"`` under a causal mask, the mean over patches for models of images, videos and
            sounds that declare no class token or pool their patches, and ``"cls"`` otherwise.
        layer (int): Which attention map in the order of the forward pass.
        patches_only (bool): For images, videos and sounds, leave out class, distillation and
            register tokens, and queries; see :mod:`captum_lrp_tx.attr.prefix_tokens`.

    Raises:
        InputError: not a query.

    Example::

        >>> AttentionLast(model, query="mean", layer=0).attribute(ids)
    """

    _title = "Last Attention"

    def __init__(
        self,
        model: Callable[..., Any],
        query: Query = "auto",
        layer: int = -1,
        *,
        patches_only: bool = False,
    ) -> None:
        MapMethod.__init__(self, model)
        self._set_query(query, patches_only)
        self.layer = layer

    def _relevance(self, maps: Maps) -> Tensor:
        patterns, real, rows = maps.single_sequence("AttentionLast", self.query)
        if not -len(patterns) <= self.layer < len(patterns):
            raise InputError(f"layer={self.layer} is out of range: {len(patterns)} attention maps.")
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

    _title = "Attention Rollout"

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
        MapMethod.__init__(self, model)
        self._set_query(query, patches_only)
        if head_fusion not in ("mean", "max", "min"):
            raise InputError(f"head_fusion must be 'mean', 'max' or 'min', not {head_fusion!r}.")
        if not 0 <= discard_ratio < 1:
            raise InputError(f"discard_ratio must be in [0, 1), not {discard_ratio!r}.")
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.start_layer = start_layer

    def _relevance(self, maps: Maps) -> Tensor:
        patterns, real, rows = maps.single_sequence("AttentionRollout", self.query)
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

    _title = "Attention Flow"

    def __init__(
        self, model: Callable[..., Any], query: Query = "auto", *, patches_only: bool = False
    ) -> None:
        MapMethod.__init__(self, model)
        self._set_query(query, patches_only)
        _import_scipy()

    def _relevance(self, maps: Maps) -> Tensor:
        patterns, real, rows = maps.single_sequence("AttentionFlow", self.query)
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
    purpose, hint = "AttentionFlow needs scipy", "pip install scipy"
    names = ("scipy.sparse", "scipy.sparse.csgraph")
    sparse, csgraph = (needed(name, purpose, hint) for name in names)
    return sparse, csgraph


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
