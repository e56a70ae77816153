"""Transformer Attribution and its ablations: Chefer et al., CVPR 2021."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from captum_lrp_tx.attr.attention_maps import Maps, Query, residual_half, rolled_out, square
from captum_lrp_tx.attr.conservative import TensorOrTuple
from captum_lrp_tx.attr.gradient_attention import ByGradient, check_choice, given, weighted
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.targets.first_example import (
    EveryExample,
    FirstExample,
    counts_examples,
)
from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation.operations import Kind, RuleTable
from captum_lrp_tx.rules.deep_taylor import SeenAttention, SquareStreams, deep_taylor

TransformerVariant = Literal[
    "transformer_attribution", "rollout", "last_layer", "full_lrp", "attn_gradcam"
]
Form = Literal["bert", "vit"]


class TransformerAttribution(ByGradient):
    r"""
    Deep-Taylor relevance of attention maps times their gradients, rolled out over layers.

    .. math:: \bar A_l = I + \mathrm{mean}_h (\nabla A_l \odot R^{A_l})^+, \quad
              C = \bar A_L \cdots \bar A_1

    where :math:`R^{A_l}` is the relevance of the attention map, started as one at the explained
    logit: z+ rule without bias on linear layers, norms, activations and softmax handing relevance
    on place by place, each factor of a matrix product getting half, and residual sums shared by
    eq. 8 and 9.  The published code takes the sums of those two equations over the whole batch;
    here each example has its own, so a batch gives what its examples give alone.  Additive
    constants (masks, position biases, biases of hand-written norms) keep their share.

    The published code has two forms:

    - ``form="bert"``: the rows of :math:`\bar A_l` are normalised to one, and in the result the
      query's own entry is set to 0;
    - ``form="vit"``: neither.

    Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR
    2021, eq. 3 to 14 and published code.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        variant (str): ``"transformer_attribution"``; or a baseline of the paper: ``"rollout"``
            (attention without gradient or relevance, rows normalised in both forms),
            ``"last_layer"`` ("partial LRP": positive part of the relevance of the last map),
            ``"full_lrp"`` (relevance of the embeddings, or of what enters the transformer for
            images, summed over features), ``"attn_gradcam"`` (last map weighted by its mean
            gradient, positive part; the mean is over the map in ``"bert"`` and over the query's
            row without prefix tokens in ``"vit"``; not rescaled to [0, 1]).
        form (str): ``"bert"`` or ``"vit"``.
        start_layer (int): First layer of the rollout.
        query (int or str), patches_only (bool): See :class:`~captum_lrp_tx.AttentionLast`.

    Raises:
        InputError: not a variant, a form or a query.

    Example::

        >>> method = TransformerAttribution(vit, form="vit", patches_only=True)
        >>> relevance = method.attribute(pixels, target=3)
    """

    _title = "Transformer Attribution"

    variants = TransformerVariant

    def __init__(
        self,
        model: Callable[..., Any],
        variant: TransformerVariant = "transformer_attribution",
        form: Form = "bert",
        start_layer: int = 0,
        query: Query = "auto",
        *,
        patches_only: bool = False,
    ) -> None:
        ByGradient.__init__(self, model, variant, start_layer, query, patches_only)
        check_choice("form", form, Form)
        self.form = form

    def _relevance(self, inputs: Any, target: Any, additional: Any) -> TensorOrTuple:
        relevance = self._deep_taylor(inputs, target, additional)
        gradient = self._gradient(inputs, target, additional)
        maps = relevance or gradient
        assert maps is not None
        patterns, real, rows = maps.single_sequence("TransformerAttribution", self.query)
        if self.variant == "full_lrp":
            result = _entering(maps)
        elif self.variant == "last_layer":
            last = maps.maps[-1]
            positive = square(last, given(last.relevance), "TransformerAttribution").clamp(min=0)
            result = torch.einsum("bt,bts->bs", rows, positive.mean(1))
        elif self.variant == "attn_gradcam":
            result = self._gradcam(maps, rows, real)
        else:
            result = self._rollout(relevance, gradient, patterns, rows)
        if self.form == "bert":
            result = result.masked_fill(rows == 1, 0.0)
        return self._finished([result * real], maps)

    def _deep_taylor(self, inputs: Any, target: Any, additional: Any) -> Maps | None:
        if self.variant in ("rollout", "attn_gradcam"):
            return None
        original = inputs_of(inputs).leaves[0].original
        batch = original.shape[0] if original.dim() > 1 else 1
        seen = SeenAttention()
        base = deep_taylor(batch, seen)
        maps = self._maps(inputs, target, additional, base=base, relevance=True, unit=True)
        if not seen.is_square:
            return maps
        # as many examples as tokens: which is which shows in what the first output depends on
        kept: list[list[Tensor]] = []
        streams: list[Tensor] = []
        for target_of in (EveryExample(), FirstExample()):
            rule = SquareStreams(batch)
            plain: RuleTable = {Kind.RESIDUAL: (float("inf"), rule)}
            found = self._maps(inputs, target_of, additional, base=plain, gradients=True).result
            kept.append(list(rule.gradients.values()))
            streams += [] if found.stream_gradient is None else [found.stream_gradient]
        if not all(map(counts_examples, *kept)):
            base = deep_taylor(batch, SeenAttention(), sequence_first=True)
            maps = self._maps(inputs, target, additional, base=base, relevance=True, unit=True)
        if len(streams) == 2 and not counts_examples(*streams):
            maps.result.transpose_stream()
        return maps

    def _gradient(self, inputs: Any, target: Any, additional: Any) -> Maps | None:
        if self.variant in ("full_lrp", "last_layer"):
            return None
        wanted = self.variant != "rollout"
        return self._maps(inputs, target, additional, gradients=wanted)

    def _rollout(
        self, relevance: Maps | None, gradient: Maps | None, patterns: list[Tensor], rows: Tensor
    ) -> Tensor:
        if relevance is None or gradient is None:
            return rolled_out(residual_half([p.mean(1) for p in patterns]), rows, self.start_layer)
        layers = [
            square(m, weighted(given(m.relevance), given(g.gradient)), "TransformerAttribution")
            for m, g in zip(relevance.maps, gradient.maps, strict=True)
        ]
        if self.form == "bert":
            return rolled_out(residual_half(layers), rows, self.start_layer)
        eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return rolled_out([a + eye for a in layers], rows, self.start_layer)

    def _gradcam(self, maps: Maps, rows: Tensor, real: Tensor) -> Tensor:
        last = maps.maps[-1]
        pattern = square(last, last.pattern, "TransformerAttribution")
        gradient = square(last, given(last.gradient), "TransformerAttribution")
        shown = real.to(pattern.dtype)
        if self.form == "bert":
            weight = torch.einsum("bhts,bt,bs->bh", gradient, shown, shown)
            weight = weight / shown.sum(1, keepdim=True) ** 2
        else:
            patches, places = torch.zeros_like(shown), maps.patches(shown.shape[1])
            patches[:, places] = shown[:, places]
            weight = torch.einsum("bhts,bt,bs->bh", gradient, rows, patches)
            weight = weight / patches.sum(1, keepdim=True).clamp(min=1)
        cam = torch.einsum("bh,bhts->bts", weight, pattern) / pattern.shape[1]
        return torch.einsum("bt,bts->bs", rows, cam.clamp(min=0))


def _entering(maps: Maps) -> Tensor:
    """Relevance of what enters the transformer, summed over features."""
    if not maps.is_sensed():
        relevance = maps.result.propagated.relevances[0]
        original = maps.inputs.leaves[0].original
        if not original.is_floating_point():
            return relevance.reshape(-1, relevance.shape[-1])
        if relevance.dim() == 3:
            return relevance.sum(-1)
    if maps.result.stream is None or maps.result.stream_gradient is None:
        raise UnsupportedModelError(
            "variant='full_lrp' reads the hidden states that enter the transformer's modules, but "
            "no module takes a tensor (batch, tokens, features)."
        )
    return (maps.result.stream * maps.result.stream_gradient).sum(-1)
