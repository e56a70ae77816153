"""Attention maps weighted by their gradients, layer by layer: Chefer et al., ICCV 2021 (GAE)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.attention_maps import (
    MapMethod,
    Maps,
    Query,
    residual_half,
    rolled_out,
    square,
)
from captum_lrp_tx.attr.attention_recorder import AttentionMap
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, TensorOrTuple
from captum_lrp_tx.attr.embedding_rows import are_shifted
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.propagation.autograd.functions import safe_ratio

GenericVariant = Literal["chefer", "ali"]


def weighted(pattern: Tensor, gradient: Tensor) -> Tensor:
    """Head mean of the positive part of gradient times pattern: ``(batch, queries, keys)``."""
    return (pattern * gradient).clamp(min=0).mean(1)


class ByGradient(MapMethod, GradientAttribution):
    """Attention maps and gradients: what the two methods of Chefer et al. share."""

    #: A ``Literal`` of the names of the variants.
    variants: Any

    def __init__(
        self,
        model: Callable[..., Any],
        variant: str,
        start_layer: int,
        query: Query,
        patches_only: bool,
    ) -> None:
        GradientAttribution.__init__(self, model)
        self._set_query(query, patches_only)
        check_choice("variant", variant, self.variants)
        self.variant = variant
        self.start_layer = start_layer

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> TensorOrTuple:
        r"""
        Relevance of each token or patch to the explained output.

        Args:
            inputs (Tensor, tuple of Tensor, or mapping): Token ids, embeddings, pixels, or a
                tokenizer's ``BatchEncoding``; see :meth:`~captum_lrp_tx.ConservativeGI.attribute`.
                Several inputs only with cross-attention, which :class:`GenericAttention` has: one
                for each sequence.
            target (int, tuple, Tensor, list or Target): The output to explain, as in Captum, or
                one of :mod:`captum_lrp_tx.attr.targets`.
            additional_forward_args (any): Passed to the model after the inputs.

        Returns:
            Tensor or tuple of Tensor: shape ``(batch, tokens)`` for each input, prefix tokens
            included unless ``patches_only``; padding gets 0. A tuple if ``inputs`` is one.

        Raises:
            UnsupportedModelError: no softmax attention between tokens, attention in windows
                (Swin) or between channels (XCiT), sequences that cannot be told apart, token ids
                that a model reads in both of its sequences, or cross-attention where the method
                is defined on one sequence.
            TargetError: the target is missing or does not fit.
            InputError: unsupported inputs, or a query position out of range or without a part in
                the output.

        Example::

            >>> gae = GenericAttention(model, variant="ali")
            >>> relevance = gae.attribute(tokenizer(text, return_tensors="pt"), target=1)
        """
        return self._relevance(inputs, target, additional_forward_args)

    @abstractmethod
    def _relevance(self, inputs: Any, target: Any, additional: Any) -> TensorOrTuple:
        """What the method computes."""


class GenericAttention(ByGradient):
    r"""
    Generic attention explainability (GAE): attention weighted by its gradient, layer by layer.

    With :math:`\bar A = \mathrm{mean}_h (\nabla A \odot A)^+` and R the identity at first:

    - self-attention: :math:`R^{ss} \leftarrow R^{ss} + \bar A R^{ss}` and
      :math:`R^{sq} \leftarrow R^{sq} + \bar A R^{sq}` (eq. 6 and 7);
    - attention of s to q (encoder-decoder, co-attention):
      :math:`R^{sq} \leftarrow R^{sq} + (\bar R^{ss})^T \bar A \bar R^{qq}` and
      :math:`R^{ss} \leftarrow R^{ss} + \bar A R^{qs}` (eq. 10 and 11), where
      :math:`\bar R = \hat R / \mathrm{rowsum}(\hat R) + I` and :math:`\hat R = R - I` (eq. 8, 9).

    With cross-attention there are two sequences: relevance is given for each input, read at the
    rows of the sequence that the output comes from.  The sequences are told apart by their lengths
    or, where these are equal, by ``decoder`` in the names of the modules.

    Source: Chefer et al., "Generic Attention-model Explainability", ICCV 2021.
    ``variant="ali"``: the form in the published code of Ali et al., ICML 2022: a rollout of
    :math:`\bar A + I` with rows normalised to one, entry (0, 0) of the product set to 0, and
    columns summed over all tokens that are no padding; ``query`` plays no part.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        variant (str): ``"chefer"`` or ``"ali"``.
        start_layer (int): First attention map that counts.
        query (int or str), patches_only (bool): See :class:`~captum_lrp_tx.AttentionLast`.

    Raises:
        InputError: not a variant or a query.

    Example::

        >>> relevance = GenericAttention(model).attribute(ids, target=1)
    """

    _title = "Generic Attention Explainability"

    variants = GenericVariant

    def __init__(
        self,
        model: Callable[..., Any],
        variant: GenericVariant = "chefer",
        start_layer: int = 0,
        query: Query = "auto",
        *,
        patches_only: bool = False,
    ) -> None:
        ByGradient.__init__(self, model, variant, start_layer, query, patches_only)

    def _relevance(self, inputs: Any, target: Any, additional: Any) -> TensorOrTuple:
        maps = self._maps(inputs, target, additional, gradients=True)
        if any(m.is_cross for m in maps.maps):
            if self.variant == "ali":
                raise UnsupportedModelError(
                    "variant='ali' is defined on one sequence, but this model has "
                    "cross-attention; use variant='chefer'."
                )
            return self._finished(self._bimodal(maps), maps)
        _, real, rows = maps.single_sequence("GenericAttention", self.query)
        layers = [
            square(m, weighted(m.pattern, given(m.gradient)), "GenericAttention") for m in maps.maps
        ]
        eye = torch.eye(real.shape[1], dtype=rows.dtype, device=rows.device)
        if self.variant == "chefer":
            _check_rows(maps.maps, rows)
            relevance = rolled_out([a + eye for a in layers], rows, self.start_layer)
            return self._finished([relevance * real], maps)
        normalised = residual_half(layers)
        columns = rolled_out(normalised, real.to(rows.dtype), self.start_layer)
        first = torch.zeros_like(rows).scatter_(1, real.long().argmax(1, keepdim=True), 1.0)
        corner = rolled_out(normalised, first, self.start_layer) * first
        return self._finished([(columns - corner) * real], maps)

    # ---- two sequences -----------------------------------------------------------------------
    def _bimodal(self, maps: Maps) -> list[Tensor]:
        _refuse_shifted(maps)
        found = maps.maps[self.start_layer :]
        names = _sequence_names(found)
        sizes: dict[str, int] = {}
        for m, (query, key) in zip(found, names, strict=True):
            sizes.setdefault(query, m.pattern.shape[-2])
            if m.is_cross:
                sizes.setdefault(key, m.pattern.shape[-1])
        example = found[0].pattern
        relevance = {
            (a, b): torch.eye(n, dtype=example.dtype, device=example.device).repeat(
                len(example), 1, 1
            )
            if a == b
            else example.new_zeros(len(example), n, sizes[b])
            for a, n in sizes.items()
            for b in sizes
        }
        position = 0
        while position < len(found):
            together = 2 if position + 1 < len(found) and found[position + 1].is_parallel else 1
            additions: list[tuple[tuple[str, str], Tensor]] = []
            for i in range(position, position + together):
                additions += self._additions(found[i], *names[i], relevance)
            for pair, addition in additions:
                relevance[pair] = relevance[pair] + addition
            position += together
        used = [i for i, m in enumerate(found) if bool(given(m.gradient).any())]
        explained = names[used[-1] if used else -1][0]
        return self._read(maps, found, names, relevance, explained, sizes)

    def _additions(
        self, found: AttentionMap, query: str, key: str, relevance: dict[tuple[str, str], Tensor]
    ) -> list[tuple[tuple[str, str], Tensor]]:
        layer = weighted(found.pattern, given(found.gradient))
        if not found.is_cross:
            layer = square(found, layer, "GenericAttention")
            return [(pair, layer @ r) for pair, r in relevance.items() if pair[0] == query]
        through = _normalised(relevance[query, query]).mT @ layer @ _normalised(relevance[key, key])
        return [((query, key), through), ((query, query), layer @ relevance[key, query])]

    def _read(
        self,
        maps: Maps,
        found: list[AttentionMap],
        names: list[tuple[str, str]],
        relevance: dict[tuple[str, str], Tensor],
        explained: str,
        sizes: dict[str, int],
    ) -> list[Tensor]:
        """Rows of the explained sequence, columns of each input's."""

        def patterns_of(name: str, square_only: bool = False) -> list[Tensor]:
            pairs = zip(found, names, strict=True)
            return [
                m.pattern[..., : sizes[name]]
                for m, (query, key) in pairs
                if key == name and (query == name or not square_only)
            ]

        taken = [_sequence_of(maps, i, sizes) for i in range(len(maps.inputs.leaves))]
        if explained in taken:
            leaf = taken.index(explained)
            real = maps.real(leaf, sizes[explained], patterns_of(explained))
        else:
            real = relevance[explained, explained].new_ones(
                len(found[0].pattern), sizes[explained], dtype=torch.bool
            )
        rows = maps.rows(self.query, real, patterns_of(explained, square_only=True))
        own = [m for m, (query, _) in zip(found, names, strict=True) if query == explained]
        _check_rows(own, rows)
        values = []
        for i, name in enumerate(taken):
            shown = maps.real(i, sizes[name], patterns_of(name))
            values.append(torch.einsum("bt,bts->bs", rows, relevance[explained, name]) * shown)
        return values


def _refuse_shifted(maps: Maps) -> None:
    """Complain about token ids that go to both sequences.

    Raises:
        UnsupportedModelError: with the way to explain both.
    """
    for leaf in maps.inputs.leaves:
        if are_shifted([lookup.trace for lookup in leaf.lookups]):
            raise UnsupportedModelError(
                "The model reads the token ids a second time, shifted, in its decoder, and "
                "GenericAttention gives the relevance of each sequence by itself. Pass what the "
                "decoder reads as an input of its own: 'decoder_input_ids', in a padded batch "
                "with 'decoder_attention_mask'."
            )


def _check_rows(found: list[AttentionMap], rows: Tensor) -> None:
    """Complain if the output of an example does not depend on the row that is read for it.

    Raises:
        InputError: with the way to name another one.
    """
    slopes = torch.stack([given(m.gradient).abs().sum((1, 3)) for m in found]).sum(0)
    unread = ((slopes * rows).sum(1) == 0) & slopes.any(1)
    if bool(unread.any()):
        example = int(unread.nonzero()[0])
        raise InputError(
            f"The output of example {example} does not depend on row {int(rows[example].argmax())} "
            "of its attention maps, which would be read. Say which tokens are padding (in a "
            "mapping 'attention_mask', or 'decoder_attention_mask'), or name the row by query=."
        )


def _normalised(relevance: Tensor) -> Tensor:
    """Eq. 8 and 9: what was added to the identity, with rows summing to one, plus the identity."""
    eye = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    added = relevance - eye
    return safe_ratio(added, added.sum(-1, keepdim=True).expand_as(added)) + eye


def _sequence_names(found: list[AttentionMap]) -> list[tuple[str, str]]:
    """Names of the query and key sequence of each map.

    Raises:
        UnsupportedModelError: sequences of one length and no ``decoder`` in the modules' names.
    """
    crossed = [m for m in found if m.is_cross]
    if all(m.pattern.shape[-1] != m.pattern.shape[-2] for m in crossed):
        return [
            (str(m.pattern.shape[-2]), str(m.pattern.shape[-1 if m.is_cross else -2]))
            for m in found
        ]
    if not all("decoder" in m.module for m in crossed):
        raise UnsupportedModelError(
            "The two sequences have the same number of tokens and no module of the "
            f"cross-attention ({crossed[0].module!r}) is part of a 'decoder', so they cannot be "
            "told apart. Pad one of the inputs to another length."
        )
    return [
        ("decoder", "encoder" if m.is_cross else "decoder")
        if "decoder" in m.module
        else ("encoder", "encoder")
        for m in found
    ]


def _sequence_of(maps: Maps, leaf: int, sizes: dict[str, int]) -> str:
    """The sequence that an input is."""
    if "encoder" in sizes:
        key = maps.inputs.keys[leaf] if maps.inputs.keys else ""
        return "decoder" if key.startswith("decoder") or (not key and leaf) else "encoder"
    tokens = maps.tokens_of(leaf)
    if str(tokens) in sizes:
        return str(tokens)
    known = {str(maps.tokens_of(i)) for i in range(len(maps.inputs.leaves)) if i != leaf}
    left = [name for name in sizes if name not in known]
    if len(left) > 1:  # a learned query that pools is no input
        left = [n for n in left if any(str(m.pattern.shape[-1]) == n for m in maps.maps)]
    if len(left) != 1 or tokens is not None:
        raise UnsupportedModelError(
            f"Input number {leaf} ({tokens or 'unknown'} tokens) is none of the sequences of the "
            f"attention maps (of {sorted(sizes.values())} tokens)."
        )
    return left[0]


def given(values: Tensor | None) -> Tensor:
    """What a pass was asked for, such as the gradient of a map."""
    assert values is not None
    return values


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise :class:`InputError` unless a value is one of a ``Literal``."""
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {get_args(choices)}, not {value!r}.")
