"""From what attribution classes take to what Captum's own functions take.

``captum.metrics`` and ``captum.attr.NoiseTunnel`` call a forward function with tensors in a fixed
order, read its output as a tensor, and add noise to the inputs.  Here are

* :func:`captum_inputs`: a tokenizer's ``BatchEncoding`` (or any mapping, or tensors) as a forward
  function with inputs and further arguments;
* :func:`embedded_inputs`: the same with embedded tokens as inputs, which noise can be added to;
* :func:`explanation`: an attribution as ``sensitivity_max`` wants it;
* :func:`spread_over_pixels`: relevance of patches in the shape of the images, for ``infidelity``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_lrp_tx.attr.conservative import AttributionInputs
from captum_lrp_tx.attr.embedding_rows import shifts_ids
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.visualization.patch_maps import pixels_of_patches

_LOOKUPS = ("embedding", "__getitem__", "index_select")


class CaptumForward:
    """A model as a function of tensors in a fixed order: what Captum calls.

    Args:
        model (nn.Module or callable): As for every attribution class of this package.
        key (str, optional): Name that the model takes its first argument by.
        names (sequence of str): Names of the last arguments, which go to the model by keyword.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> forward = CaptumForward(model, "input_ids", ("attention_mask",))
        >>> inputs = tokenizer("a moving film", return_tensors="pt")
        >>> forward(inputs["input_ids"], inputs["attention_mask"]).shape  # the logits
        torch.Size([1, 2])
    """

    def __init__(
        self, model: Callable[..., Any], key: str | None = None, names: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.key = key
        self.names = tuple(names)

    def __call__(self, inputs: Tensor, *more: Any) -> Tensor:
        positional, named = self.arguments(more)
        return Batch(inputs, self.key, named, positional).call(self.model)

    def arguments(self, more: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Further arguments, told apart into positional ones and those with a name."""
        count = len(more) - len(self.names)
        if count < 0:
            raise InputError(
                f"{len(more)} additional arguments for the names {', '.join(self.names)}; pass the "
                "additional_forward_args that came with this forward function"
            )
        return tuple(more[:count]), dict(zip(self.names, more[count:], strict=True))


class EmbeddedForward(CaptumForward):
    """A model as a function of embedded tokens: ``forward(embeddings, ids, ...)``.

    While the model runs on the token ids, what it looks up for them in its word embeddings is
    replaced by ``embeddings``.  Everything else that depends on the ids stays as it is: masks,
    padding, position and segment embeddings, factors on the embeddings.  Nothing of the model is
    touched; the replacement acts in the calling thread only.
    """

    def __call__(self, inputs: Tensor, *more: Any) -> Tensor:
        ids, *rest = self._ids(more)
        with _ReplacedRows(ids, inputs) as mode:
            output = super().__call__(ids, *rest)
        mode.check()
        return output

    def explanation(self, attribution: Any) -> Callable[..., tuple[Tensor, ...]]:
        """Relevance of the tokens as a function of their embeddings, for ``sensitivity_max``.

        Unlike ``attribution.attribute`` with :class:`EmbeddedForward` as forward function, which
        explains by the word embeddings alone, this is what ``attribute`` on token ids returns: one
        relevance for each token, summed over word, position and segment.  It works with every
        class, those that read attention maps included.

        Args:
            attribution (Attribution): An attribution **of the model**, not of this function.

        Returns:
            callable: ``explain(embeddings, additional_forward_args=(ids, ...), target=...)``, which
            returns a tuple of tensors ``(batch, tokens)``.

        Example::

            >>> forward, embeddings, more = embedded_inputs(model, inputs)
            >>> explain = forward.explanation(ConservativeLRP(model))
            >>> changes = sensitivity_max(
            ...     explain, embeddings, target=1, additional_forward_args=more
            ... )
        """

        def explain(
            inputs: Any, *, additional_forward_args: Any = None, **options: Any
        ) -> tuple[Tensor, ...]:
            embeddings = inputs[0] if isinstance(inputs, tuple) else inputs
            more = additional_forward_args
            ids, *rest = self._ids(more if isinstance(more, tuple) else (more,))
            positional, named = self.arguments(rest)
            options["additional_forward_args"] = positional or None
            # no check that they were used: random relevance runs no model
            with _ReplacedRows(ids, embeddings):
                given = Batch(ids, self.key, named).inputs
                return _tuple_of(attribution.attribute(given, **options))

        return explain

    def _ids(self, more: Sequence[Any]) -> tuple[Any, ...]:
        if not more or not isinstance(more[0], Tensor) or more[0].is_floating_point():
            raise InputError(
                "the token ids must be the first of the additional_forward_args; pass those that "
                "embedded_inputs returned"
            )
        return tuple(more)


class CaptumInputs(NamedTuple):
    """What Captum's functions are called with.

    Attributes:
        forward (CaptumForward): Returns the model's output as a tensor.
        inputs (Tensor): What is explained or perturbed.
        additional_forward_args (tuple): All other arguments.
    """

    forward: CaptumForward
    inputs: Tensor
    additional_forward_args: tuple[Any, ...]


class EmbeddedInputs(NamedTuple):
    """What Captum's functions are called with to add noise to embedded tokens.

    Attributes:
        forward (EmbeddedForward): Takes embedded tokens.
        inputs (Tensor): Word embeddings ``(batch, tokens, dim)``.
        additional_forward_args (tuple): The token ids and all other arguments.
    """

    forward: EmbeddedForward
    inputs: Tensor
    additional_forward_args: tuple[Any, ...]


def captum_inputs(
    model: Callable[..., Any], inputs: AttributionInputs, additional_forward_args: Any = None
) -> CaptumInputs:
    """A model and its inputs as Captum's functions take them.

    Args:
        model (nn.Module or callable): Anything that returns a tensor or something with ``.logits``.
        inputs (Tensor or mapping): Token ids, pixels, or what a tokenizer returns.
        additional_forward_args (Any, optional): Further positional arguments of the model.

    Returns:
        CaptumInputs: ``(forward, inputs, additional_forward_args)``.

    Raises:
        InputError: Nothing that can be explained in a mapping.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer(["a moving film", "a mess"], return_tensors="pt", padding=True)
        >>> forward, ids, more = captum_inputs(model, inputs)
        >>> forward(ids, *more).shape
        torch.Size([2, 2])
    """
    batch = Batch.of(inputs, additional_forward_args)
    more = (*batch.extra, *batch.named.values())
    return CaptumInputs(CaptumForward(model, batch.key, tuple(batch.named)), batch.main, more)


def embedded_inputs(
    model: Callable[..., Any], inputs: AttributionInputs, additional_forward_args: Any = None
) -> EmbeddedInputs:
    """A text model as a function of its word embeddings, and these for some token ids.

    Noise on token ids means nothing; noise on their embeddings does.  ``NoiseTunnel``,
    ``infidelity`` with noise, and gradient methods that know no token ids all work on the result.

    Args:
        model (nn.Module or callable): Anything that looks token ids up in a table of embeddings.
        inputs (Tensor or mapping): Token ids ``(batch, tokens)``, or what a tokenizer returns.
        additional_forward_args (Any, optional): Further positional arguments of the model.

    Returns:
        EmbeddedInputs: ``(forward, embeddings, additional_forward_args)``; the token ids come
        first among the additional arguments.

    Raises:
        InputError: Inputs that are no token ids, a model that looks nothing up, or one that shifts
            the ids for a decoder.

    Example::

        >>> from captum.attr import NoiseTunnel
        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer(["a moving film", "a mess"], return_tensors="pt", padding=True)
        >>> forward, embeddings, more = embedded_inputs(model, inputs)
        >>> tunnel = NoiseTunnel(ConservativeLRP(forward))
        >>> relevance = tunnel.attribute(
        ...     embeddings, nt_samples=20, stdevs=0.05, target=1, additional_forward_args=more
        ... ).sum(-1)  # (batch, tokens)
    """
    plain, ids, more = captum_inputs(model, inputs, additional_forward_args)
    if ids.is_floating_point():
        raise InputError(
            f"embedded_inputs needs token ids, not {ids.dtype} of shape {tuple(ids.shape)}; float "
            "inputs can be perturbed as they are (captum_inputs)"
        )
    with torch.no_grad(), _ReplacedRows(ids, None) as mode:
        plain(ids, *more)
    embedded = mode.check().detach().clone()
    if shifts_ids(plain, ids, *more):
        raise InputError(
            "the model looks its token ids up a second time, shifted, for its decoder, where "
            "other embeddings cannot be put. Explain a function that is given what the decoder "
            "reads: lambda input_ids, shifted: model(input_ids, decoder_input_ids=shifted), with "
            "'shifted' in the mapping"
        )
    forward = EmbeddedForward(model, plain.key, plain.names)
    return EmbeddedInputs(forward, embedded, (ids, *more))


def explanation(attribution: Any) -> Callable[..., tuple[Tensor, ...]]:
    """An attribution as ``captum.metrics.sensitivity_max`` wants it: always a tuple of tensors.

    ``sensitivity_max`` calls its function with a tuple first and takes the result apart as one;
    layer attributions, like Captum's own, return a bare tensor for one layer, and a list for
    several.

    Args:
        attribution (Attribution or callable): With an ``attribute`` method, or such a method.

    Returns:
        callable: With the arguments of ``attribute``. A tuple of one input is passed on as a
        tensor.

    Example::

        >>> from captum.metrics import sensitivity_max
        >>> from captum_lrp_tx import LayerConservativeLRP
        >>> from captum_lrp_tx.models import digit_samples, digits
        >>> model, (pixels, labels) = digits(), digit_samples()
        >>> layer = LayerConservativeLRP(model, model.vit.embeddings)
        >>> changes = sensitivity_max(explanation(layer), pixels[:2], target=labels[:2])
    """
    attribute = getattr(attribution, "attribute", attribution)

    def explain(inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        if isinstance(inputs, tuple) and len(inputs) == 1:
            inputs = inputs[0]
        return _tuple_of(attribute(inputs, **options))

    return explain


def spread_over_pixels(
    relevance: Tensor,
    images: Tensor,
    *,
    patch_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Relevance of patches in equal shares for the pixels and channels of each patch.

    ``captum.metrics.infidelity`` wants relevance in the shape of the inputs.  The sum over the
    pixels of a patch is the relevance of the patch, so the result fits perturbations that hide
    whole patches.

    Args:
        relevance (Tensor): Shape ``(batch, tokens)``; class and register tokens are dropped.
            Relevance in the shape of the images is returned as it is.
        images (Tensor): Shape ``(batch, channels, height, width)``.
        patch_size (int or (int, int), optional): See
            :func:`captum_lrp_tx.visualization.patch_heatmap`.

    Returns:
        Tensor: In the shape of ``images``.

    Raises:
        InputError: Numbers of tokens that fit no grid of patches on the images.

    Example::

        >>> spread = spread_over_pixels(torch.ones(1, 50), torch.zeros(1, 3, 28, 28))
        >>> spread.shape, round(float(spread.sum()), 3)  # 49 patches and a class token
        (torch.Size([1, 3, 28, 28]), 49.0)
    """
    if images.dim() != 4:
        raise InputError(f"images must have 4 dimensions, not the shape {tuple(images.shape)}")
    if relevance.shape == images.shape:
        return relevance
    channels, height, width = images.shape[1:]
    pixels, area = pixels_of_patches(relevance, (height, width), patch_size)
    spread = pixels[:, None] / (channels * area)
    return spread.expand(-1, channels, -1, -1).contiguous()


class _ReplacedRows(TorchFunctionMode):
    """Puts other rows in place of those that token ids are looked up as.

    The first table that the ids are looked up in holds the words. It is remembered, for a method
    may run the model more than once, and other tables (of positions) may be indexed by numbers that
    happen to equal the ids.
    """

    def __init__(self, ids: Tensor, rows: Tensor | None) -> None:
        super().__init__()
        self._ids = ids
        self._rows = rows
        self._found: Tensor | None = None
        self._table: tuple[int, torch.Size] | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") not in _LOOKUPS or not isinstance(result, Tensor):
            return result
        flat = [b for a in args for b in (a if isinstance(a, tuple) else (a,))]
        given = [value for value in (*flat, *kwargs.values()) if isinstance(value, Tensor)]
        indices = [value for value in given if self._are_ids(value)]
        tables = [value for value in given if value.is_floating_point()]
        if not indices or not tables or result.shape[:-1] != indices[0].shape:
            return result
        table = (tables[0].data_ptr(), tables[0].shape)
        if self._table not in (None, table):
            return result
        self._table = table
        if self._rows is not None:
            result = self._rows.reshape(result.shape).to(result.dtype)
        self._found = result.reshape(*self._ids.shape, result.shape[-1])
        return result

    def _are_ids(self, value: Tensor) -> bool:
        return (
            not value.is_floating_point()
            and value.dtype != torch.bool
            and value.numel() == self._ids.numel()
            and value.device == self._ids.device
            and torch.equal(value.reshape(-1).long(), self._ids.reshape(-1).long())
        )

    def check(self) -> Tensor:
        """The embeddings of the ids; complains if none were looked up."""
        if self._found is None:
            raise InputError(
                f"the model did not look up the token ids (shape {tuple(self._ids.shape)}) in an "
                "embedding, or in another order (tokens first); pass embedded tokens as float "
                "inputs, or one example at a time"
            )
        return self._found


def _tuple_of(relevance: Any) -> tuple[Tensor, ...]:
    """All tensors of an attribution, lists and tuples taken apart."""
    if isinstance(relevance, Tensor):
        return (relevance.contiguous(),)
    return tuple(tensor for part in relevance for tensor in _tuple_of(part))
