"""``BiLRP``: which pairs of tokens or patches make two inputs similar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Union

import torch
from captum._utils.common import _format_additional_forward_args
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.conservative import AttributionInputs, Strict, check_per_pass
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.errors import InputError, NonFiniteError, OutputError
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

Measure = Literal["cosine", "dot"]
#: From what a model returns to one row of features for each example.
Pooling = Union[Literal["mean", "first"], Callable[[Any], Tensor]]

#: Entries of the relevance of several features that are held at once, before patches are summed.
_ENTRIES = 1 << 25


class BiLRP(CaptumMethod):
    r"""
    Relevance of pairs: which token or patch of one input meets which of the other.

    A similarity of two inputs is a sum of products of their features,
    :math:`s = \sum_m \phi_m(x)\, \phi_m(x')`.  Each feature is explained by layer-wise relevance
    propagation on its side, and the products are added up:

    .. math:: R_{jj'} = \sum_m R_j[\phi_m(x)]\; R_{j'}[\phi_m(x')]

    All pairs add up to the similarity where the rules conserve, nothing but biases is constant
    and ``bias="distribute"`` (the default).  What constants absorb on either side is the
    convergence delta, and ``constants=True`` shows it as a row and a column of their own.  The
    lengths by which the cosine divides are constants, as divisors of norms are.

    Source: Eberle et al., "Building and Interpreting Deep Similarity Models", IEEE TPAMI 2020;
    for sentence encoders Vasileiou & Eberle, "Explaining Text Similarity in Transformer Models",
    NAACL 2024.

    Args:
        model (nn.Module or callable): Gives one row of features for each example, shape ``(batch,
            features)``; or what ``pooling`` makes that of.
        rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.
        similarity (str): ``"cosine"`` or ``"dot"``, the product of the features as they are.
        pooling (str or callable, optional): ``"mean"`` of ``last_hidden_state`` (or of an output of
            shape ``(batch, tokens, features)``) over the tokens that the ``attention_mask`` of the
            inputs keeps, their ``"first"`` token, or a function of what the model returns.
        other_model (nn.Module or callable, optional): What gives the features of the second input,
            if not the same model (the two towers of CLIP).

    Raises:
        RuleError: unknown preset.
        InputError: unknown similarity or pooling.

    Example::

        >>> from captum_lrp_tx import BiLRP
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> first = tokenizer("a charming film", return_tensors="pt")
        >>> second = tokenizer("this movie has great charm", return_tensors="pt")
        >>> pairs = BiLRP(model.bert, pooling="mean").attribute(first, second)
        >>> pairs.shape  # (batch, tokens of the first, tokens of the second)
        torch.Size([1, 5, 7])
    """

    _title = "BiLRP"
    _gives_delta = True

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        similarity: Measure = "cosine",
        pooling: Pooling | None = None,
        other_model: Callable[..., Any] | None = None,
        bias: Bias = "distribute",
        epsilon: float | None = None,
    ) -> None:
        if similarity not in ("cosine", "dot"):
            raise InputError(f"similarity must be 'cosine' or 'dot', not {similarity!r}.")
        if not (pooling in ("mean", "first", None) or callable(pooling)):
            raise InputError(f"pooling must be 'mean', 'first' or a function, not {pooling!r}.")
        CaptumMethod.__init__(self, model)
        self.similarity = similarity
        self.pooling = pooling
        self._sides = tuple(
            ConservativeLRP(_features(side, pooling), rules, bias=bias, epsilon=epsilon)
            for side in (model, model if other_model is None else other_model)
        )

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        others: AttributionInputs,
        additional_forward_args: Any = None,
        other_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        patch_size: int | None = None,
        constants: bool = False,
        strict: Strict = False,
        targets_per_pass: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""
        Relevance of every pair for the similarity.

        It takes one forward pass a side, and one backward pass for each feature, several of which
        are packed into one.

        Args:
            inputs, others (Tensor, tuple of one Tensor, or mapping): The two inputs, each as
                :meth:`ConservativeLRP.attribute <captum_lrp_tx.ConservativeLRP.attribute>` takes
                them, as many examples on both sides; the first is compared with the first.
            additional_forward_args, other_forward_args (any): Passed to the model after either.
            return_convergence_delta (bool): Also return the similarity minus the sum of all pairs.
            patch_size (int, optional): For images: sum over square patches of so many pixels.
            constants (bool): Add a last row and a last column with what the constants of either
                side absorb (biases, class tokens, positions): the sum is then the similarity.
            strict (bool or "papers"): See :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.
            targets_per_pass (int, optional): How many features are packed into one backward pass.

        Returns:
            Tensor of **attributions**, or 2-element tuple of **attributions**, **delta**:

            - **attributions**: shape ``(batch, n, n')``. Token ids count by token, embeddings of
              shape ``(batch, tokens, features)`` by token, images by patch in the order of rows,
              all else by entry.
            - **delta** (Tensor, shape ``(batch,)``).

        Raises:
            InputError: several inputs on one side, other numbers of examples, an image without
                ``patch_size`` or whose size is no multiple of it.
            OutputError: no features of shape ``(batch, features)``, or not as many on both sides.
            Exception: As :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.

        Example::

            >>> pairs, delta = BiLRP(vit_features).attribute(
            ...     pixels, other_pixels, patch_size=16, return_convergence_delta=True
            ... )
        """
        check_per_pass(targets_per_pass)
        given = ((inputs, additional_forward_args), (others, other_forward_args))
        features = self._both(given)
        sides = []
        for side, (one, more), phi in zip(self._sides, given, features, strict=True):
            found = _relevance(side, one, more, phi, strict, targets_per_pass)
            shares = torch.cat([_by_unit(some, one, patch_size) for some in found])
            if constants:
                rest = phi.T.to(shares) - shares.sum(-1)
                shares = torch.cat([shares, rest.unsqueeze(-1)], -1)
            sides.append(shares)
        size = self._size(*features)
        pairs = torch.einsum("mbi,mbj->bij", *sides) / size[:, None, None]
        if not return_convergence_delta:
            return pairs
        return pairs, (features[0] * features[1]).sum(1) / size - pairs.sum((1, 2))

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_each(
        self,
        inputs: AttributionInputs,
        others: AttributionInputs,
        additional_forward_args: Any = None,
        other_forward_args: Any = None,
        *,
        strict: Strict = False,
    ) -> tuple[Tensor, Tensor]:
        r"""
        Relevance of each token or pixel for the similarity, by one backward pass a side.

        The features of the other side are constants, :math:`R_j = \sum_m R_j[\phi_m(x)]\,
        \phi_m(x')`: what all pairs of ``j`` add up to, those with constants of the other side
        among them.

        Args:
            inputs, others, additional_forward_args, other_forward_args, strict: See
                :meth:`attribute`.

        Returns:
            tuple of Tensor: Relevance of the first and of the second input, in their shapes (token
            ids: ``(batch, tokens)``).

        Raises:
            Exception: As :meth:`attribute`.

        Example::

            >>> first, second = BiLRP(model.bert, pooling="mean").attribute_each(ids, other_ids)
        """
        given = ((inputs, additional_forward_args), (others, other_forward_args))
        features = self._both(given)
        size = self._size(*features)
        found = []
        for i, (one, more) in enumerate(given):
            side = self._sides[i]
            toward = _weighted(side.forward_func, features[1 - i] / size[:, None])
            explainer = ConservativeLRP(toward, side.composite, bias=side._bias or "absorb")
            found.append(_single(explainer.attribute(one, None, more, strict=strict)))
        return found[0], found[1]

    def _both(self, given: tuple[tuple[AttributionInputs, Any], ...]) -> list[Tensor]:
        """The features of both sides, without a graph.

        Raises:
            InputError, OutputError: they do not fit together.
        """
        found = []
        for side, (one, more) in zip(self._sides, given, strict=True):
            prepared = inputs_of(one)
            if len(prepared.leaves) != 1:
                raise InputError(
                    f"Pairs need one input a side, not {len(prepared.leaves)}; pass the others in "
                    "additional_forward_args, or keep them in the forward function."
                )
            if self.pooling == "mean" and more is not None:
                raise InputError(
                    "With pooling='mean' pass a mapping, whose attention_mask says which tokens "
                    "count, or a function as pooling."
                )
            args, kwargs = prepared.call_arguments()
            extra = _format_additional_forward_args(more) or ()
            with torch.no_grad(), told_misfits(side.forward_func, one, extra):
                found.append(output_tensor(side.forward_func(*args, *extra, **kwargs)).detach())
        shapes = [tuple(phi.shape) for phi in found]
        if any(phi.dim() != 2 for phi in found) or shapes[0] != shapes[1]:
            advice = "For one row of states for each token pass pooling='mean'."
            if all(phi.dim() == 2 for phi in found):
                advice = "Pass as many examples on one side as on the other, with features alike."
            raise OutputError(
                f"Features of the two sides have shapes {shapes[0]} and {shapes[1]}; both must be "
                f"(batch, features). {advice}"
            )
        if not all(bool(torch.isfinite(phi).all()) for phi in found):
            raise NonFiniteError("The features contain NaN or infinity.")
        return found

    def _size(self, first: Tensor, second: Tensor) -> Tensor:
        """What the product of the features is divided by, shape ``(batch,)``."""
        if self.similarity == "dot":
            return torch.ones_like(first[:, 0])
        size: Tensor = first.norm(dim=1) * second.norm(dim=1)
        if not bool((size > 0).all()):
            raise NonFiniteError("The cosine of features that are all zero is not defined.")
        return size


def _features(model: Callable[..., Any], pooling: Pooling | None) -> Callable[..., Any]:
    """The forward function from inputs to features."""
    if pooling is None:
        return model

    def features(*args: Any, **kwargs: Any) -> Any:
        returned = model(*args, **kwargs)
        if callable(pooling):
            return pooling(returned)
        return pooled(returned, pooling, kwargs.get("attention_mask"))

    return features


def pooled(returned: Any, how: Literal["mean", "first"], mask: Tensor | None = None) -> Tensor:
    """One row of features for each example.

    Args:
        returned: A tensor of shape ``(batch, tokens, features)``, or something with such a
            ``last_hidden_state``.
        how (str): The mean over tokens, or the first token that is no padding.
        mask (Tensor, optional): Shape ``(batch, tokens)``, 0 for padding.

    Returns:
        Tensor: shape ``(batch, features)``.

    Raises:
        OutputError: no such tensor.

    Example::

        >>> pooled(torch.ones(1, 3, 2), "mean")
        tensor([[1., 1.]])
    """
    states = returned if isinstance(returned, Tensor) else None
    states = getattr(returned, "last_hidden_state", states)
    if not isinstance(states, Tensor) or states.dim() != 3:
        raise OutputError(
            f"The forward function returned {type(returned).__name__} without a last_hidden_state "
            "of shape (batch, tokens, features); pass a function of it as pooling."
        )
    if how == "first":
        if mask is None or bool(mask[:, 0].all()):
            return states[:, 0]
        first = mask.to(states.device).argmax(1)  # behind padding on the left
        return states[torch.arange(len(states), device=states.device), first]
    if mask is None:
        return states.mean(1)
    weights = mask.unsqueeze(-1).to(states.dtype)
    mean: Tensor = (states * weights).sum(1) / weights.sum(1)
    return mean


def _weighted(features: Callable[..., Any], weights: Tensor) -> Callable[..., Tensor]:
    """The product of the features with constants, one number for each example."""

    def similarity(*args: Any, **kwargs: Any) -> Tensor:
        return (output_tensor(features(*args, **kwargs)) * weights).sum(1)

    return similarity


def _relevance(
    side: ConservativeLRP,
    inputs: AttributionInputs,
    more: Any,
    features: Tensor,
    strict: Strict,
    per_pass: int | None,
) -> Iterator[Tensor]:
    """Relevance for some features at a time, shape ``(some features, batch, ...)``."""
    count, size = features.shape[1], inputs_of(inputs).leaves[0].original.numel()
    step = max(1, _ENTRIES // size)
    for start in range(0, count, step):
        targets = list(range(start, min(start + step, count)))
        yield _single(
            side.attribute_targets(inputs, targets, more, strict=strict, targets_per_pass=per_pass)
        )


def _single(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _by_unit(relevance: Tensor, inputs: AttributionInputs, patch_size: int | None) -> Tensor:
    """Relevance of tokens, patches or entries, shape ``(features, batch, n)``.

    Raises:
        InputError: an image without a size of patches that fits.
    """
    x = inputs_of(inputs).leaves[0].original
    if not x.is_floating_point() or x.dim() == 2:
        return relevance
    if x.dim() == 3 and patch_size is None:
        return relevance.sum(-1)
    if x.dim() != 4:
        return relevance.flatten(2)
    height, width = x.shape[-2:]
    if patch_size is None or patch_size < 1 or height % patch_size or width % patch_size:
        raise InputError(
            f"Pairs of images of {height} x {width} pixels are given by patch: pass patch_size, "
            f"which divides both, not {patch_size!r} (1 for single pixels)."
        )
    rows, columns = height // patch_size, width // patch_size
    blocks = relevance.sum(2).reshape(-1, len(x), rows, patch_size, columns, patch_size)
    return blocks.sum((3, 5)).flatten(2)
