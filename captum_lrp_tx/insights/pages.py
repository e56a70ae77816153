"""Pages of Captum Insights for a text model and for an image model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.token_gradients import padding_id
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.insights.registration import insights_module
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.runs.subject import device_of, placed


class _Embeddings(TorchFunctionMode):
    """Collects what is looked up in embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.embedding:
            self.found.append(result)
        return result


class EmbeddedTokens(nn.Module):
    """A text model that takes embedded tokens instead of their ids, for methods that need floats.

    What it takes for a token is the sum of all that is embedded at its place: word, position,
    segment. So gradient x input and relevance of this sum, added up over the embedding dimension,
    are those of the token as the package gives them for token ids: ``ConservativeLRP(model)
    .attribute(ids)``. (The argument ``inputs_embeds`` of the model itself is the word alone; with
    it the share of the position would be missing.)

    Args:
        model (nn.Module): A Hugging Face model: with ``get_input_embeddings()`` and an argument
            ``inputs_embeds``. It is not changed.

    Raises:
        InputError: It is none.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
        >>> embedded = EmbeddedTokens(model)
        >>> embedded(embedded.embed(ids)).shape
        torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(model, "get_input_embeddings", None)):
            raise InputError(
                f"{type(model).__name__} has no get_input_embeddings(), so it cannot take embedded "
                "tokens; use a Hugging Face model."
            )
        self.model = model
        self._constants: dict[int, Tensor] = {}
        self._weights: list[tuple[int, int]] = []

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """What is embedded for token ids: from ``(batch, tokens)`` to ``(batch, tokens, dim)``."""
        model: Any = self.model
        words: Tensor = model.get_input_embeddings()(ids)
        return words + self._places(words)

    @torch.no_grad()
    def padding(self, embedded: Tensor) -> Tensor:
        """The padding token at every place: the usual baseline, in the shape of ``embedded``."""
        ids = torch.full(embedded.shape[:-1], padding_id(self.model), device=embedded.device)
        return self.embed(ids if ids.dim() > 1 else ids[None]).reshape(embedded.shape)

    def forward(self, embedded: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits for embedded tokens ``(batch, tokens, dim)`` and a mask ``(batch, tokens)``."""
        words = embedded - self._places(embedded)  # the model adds them again
        masks = {} if attention_mask is None else {"attention_mask": attention_mask}
        return output_tensor(self.model(inputs_embeds=words, **masks))

    def _places(self, embedded: Tensor) -> Tensor:
        """What the model adds to the words by their places alone: ``(1, tokens, dim)``."""
        tokens, width = embedded.shape[-2:]
        weights = [(id(p), 0 if p.is_inference() else p._version) for p in self.model.parameters()]
        if weights != self._weights:  # trained or loaded since
            self._weights, self._constants = weights, {}
        known = self._constants.get(tokens)
        if known is None:
            words = torch.zeros(1, tokens, width, dtype=embedded.dtype, device=embedded.device)
            with torch.no_grad(), _Embeddings() as lookups:
                self.model(inputs_embeds=words)
            known = words
            for found in lookups.found:
                if found.shape[-2:] == (tokens, width):
                    known = known + found.reshape(-1, tokens, width)
            self._constants[tokens] = known
        return known.to(embedded)


class _Logits(nn.Module):
    """A model whose output is a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        return output_tensor(self.model(*inputs))


def text_page(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str] | None = None,
    name: str = "Text",
) -> Any:
    """A page of Captum Insights for a text classifier.

    The feature is the embedded tokens, see :class:`EmbeddedTokens`: what the page shows for a
    token is its relevance as ``ConservativeLRP(model).attribute(ids)`` gives it, positions
    included. Integrated Gradients and the other methods with a baseline start from padding.

    Args:
        model (nn.Module): A Hugging Face classifier.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        texts (sequence of str): Examples, each of which goes through the model alone.
        labels (sequence of int): Their classes.
        classes (sequence of str, optional): Names of the classes; those of the model's
            configuration unless given.
        name (str): Of the feature.

    Returns:
        AttributionVisualizer: for :func:`serve`, or its own ``serve()`` or ``render()``.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
        InputError: No texts, labels that do not fit, or a model that takes no embeddings.
        UnsupportedModelError: What the model adds for the position of a token cannot be told.

    Example::

        >>> from captum_lrp_tx import insights
        >>> from captum_lrp_tx.models import sentiment
        >>> page = insights.text_page(*sentiment(), ["a fine film"], [1])  # doctest: +SKIP
        >>> insights.serve({"reviews": page})  # doctest: +SKIP
    """
    insights_module("app")
    from captum.insights import Batch

    from captum_lrp_tx.insights.display import Page, TokenFeature

    names = _class_names(model, classes)
    _check_labels(len(texts), labels, len(names))
    embedded = EmbeddedTokens(model)
    device = device_of(model)
    batches = []
    for text, label in zip(texts, labels, strict=True):
        encoded = placed(tokenizer(text, return_tensors="pt"), device)
        ids = encoded["input_ids"]
        mask = encoded.get("attention_mask", torch.ones_like(ids))
        batches.append(Batch(ids, torch.tensor([label]), mask))
    _check_embedding(model, embedded, batches[0].inputs, batches[0].additional_args)
    feature = TokenFeature(
        name,
        baseline_transforms=[embedded.padding],
        input_transforms=[lambda ids: embedded.embed(ids[None])[0]],
        visualization_transform=lambda ids: tokenizer.convert_ids_to_tokens(ids[0].tolist()),
    )
    return Page(embedded, names, [feature], batches, nn.Softmax(-1))


def image_page(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    classes: Sequence[str] | None = None,
    name: str = "Image",
    *,
    baseline: float = 0.0,
    visualization_transform: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """A page of Captum Insights for an image classifier.

    Relevance is drawn with its sign, also for images of one channel, which the image feature of
    Captum Insights 0.8 does neither.

    Args:
        model (nn.Module): Takes images, returns logits or something with ``.logits``.
        images (Tensor): Examples, shape ``(count, channels, height, width)``.
        labels (sequence of int, or Tensor): Their classes.
        classes (sequence of str, optional): Names of the classes; those of the model's
            configuration unless given.
        name (str): Of the feature.
        baseline (float): Value of every pixel where Integrated Gradients and the other methods
            with a baseline start.
        visualization_transform (callable, optional): From ``(1, channels, height, width)`` to
            what is to be shown, e.g. to undo a normalisation. The range of an image is stretched
            to that of the screen in any case.

    Returns:
        AttributionVisualizer: for :func:`serve`, or its own ``serve()`` or ``render()``.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
        InputError: No images, or labels that do not fit.

    Example::

        >>> from captum_lrp_tx import insights
        >>> from captum_lrp_tx.models import digit_samples, digits
        >>> page = insights.image_page(digits(), *digit_samples())  # doctest: +SKIP
        >>> insights.serve({"digits": page})  # doctest: +SKIP
    """
    insights_module("app")
    from captum.insights import Batch

    from captum_lrp_tx.insights.display import Page, SignedImageFeature

    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            "images must be a float tensor of shape (count, channels, height, width), not "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
    names = _class_names(model, classes)
    numbers = [int(label) for label in labels]
    _check_labels(len(images), numbers, len(names))
    feature = SignedImageFeature(
        name,
        baseline_transforms=[lambda image: torch.full_like(image, baseline)],
        input_transforms=None,
        visualization_transform=visualization_transform,
    )
    batches = [
        Batch(image[None], torch.tensor([label]))
        for image, label in zip(images, numbers, strict=True)
    ]
    return Page(_Logits(model), names, [feature], batches, nn.Softmax(-1))


def _class_names(model: Any, classes: Sequence[str] | None) -> list[str]:
    if classes is not None:
        return [str(name) for name in classes]
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not names:
        raise InputError("the model names no classes; pass classes=[...]")
    return [str(names[index]) for index in sorted(names)]


def _check_labels(examples: int, labels: Sequence[int], classes: int) -> None:
    if not examples:
        raise InputError("there is no example to show; give at least one")
    if len(labels) != examples:
        raise InputError(f"{len(labels)} labels for {examples} examples; give one for each")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise InputError(f"there is no class {wrong[0]}; classes go from 0 to {classes - 1}")


def _check_embedding(model: Any, embedded: EmbeddedTokens, ids: Tensor, mask: Tensor) -> None:
    """Positions may enter otherwise than by a sum with the words; then the page would mislead.

    Raises:
        UnsupportedModelError: The relevance of the embedded tokens is not that of their ids.
    """
    inputs = {"input_ids": ids, "attention_mask": mask}
    expected = ConservativeLRP(model).attribute(inputs, target=0)
    found = ConservativeLRP(embedded).attribute(
        embedded.embed(ids), target=0, additional_forward_args=(mask,)
    )
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)
    if float((found.sum(-1) - expected).abs().max()) > 1e-2 * float(expected.abs().max()):
        raise UnsupportedModelError(
            f"{type(model).__name__} uses the positions of tokens otherwise than by adding them to "
            "the embedded words, so that its tokens cannot be shown in Captum Insights; use "
            "captum_lrp_tx.report(...) instead."
        )
