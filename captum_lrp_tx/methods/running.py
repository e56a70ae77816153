"""Running one method, and saying in one line why it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType
from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError
from captum_lrp_tx.methods.registry import Method

#: Relevance of no more than this part of the output is a rounding error.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Found:
    """What a method gives.

    Attributes:
        relevance (Tensor): Of the tokens, pixels or patches; the first dimension is that of the
            examples.
        left_out (Tensor, optional): What the relevance leaves out of each output; None for methods
            whose relevance is not meant to sum to anything, and unless it was asked for.
    """

    relevance: Tensor
    left_out: Tensor | None = None


def run(
    method: Method,
    model: Callable[..., Any],
    inputs: AttributionInputs,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    baseline: Any = None,
    seed: int = 0,
    layer: nn.Module | None = None,
    with_delta: bool = False,
) -> Found:
    """Explains inputs by one method.

    Args:
        method (Method): How.
        model (nn.Module or callable): What is explained.
        inputs (Tensor or mapping): One or several examples.
        target (int, tuple, Tensor, list or Target, optional): As for ``attribute``.
        additional_forward_args (Any, optional): Further arguments of the model.
        baseline (int, float or Tensor, optional): Of the methods that have one.
        seed (int): Of the methods that are random.
        layer (Module, optional): Take relevance where this module gets its input, summed over the
            last dimension, if the method has a form for layers. Maps of four dimensions, whose
            channels may come first, are left as they are.
        with_delta (bool): Also ask what is left out, which costs some methods further passes.

    Raises:
        InputError: The method returns something else than relevance.
        NonFiniteError: The relevance is NaN or infinite.
        Exception: Whatever the method raises if it does not apply; see :func:`reason`.

    Example::

        >>> from captum_lrp_tx.methods import find_method
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming film", return_tensors="pt")
        >>> run(find_method("LRP"), model, inputs, target=1).relevance.shape
        torch.Size([1, 5])
    """
    more: dict[str, Any] = {"target": target}
    if additional_forward_args is not None:
        more["additional_forward_args"] = additional_forward_args
    if layer is not None and method.at_layer is not None:
        explainer = method.at_layer(model, layer, **method.options)
        more["attribute_to_layer_input"] = True
    else:
        layer = None
        explainer = method.attribution(model, baseline=baseline, seed=seed)
    has_delta = getattr(explainer, "has_convergence_delta", None)
    left_out = None
    if with_delta and has_delta is not None and has_delta():
        found, delta = explainer.attribute(inputs, **more, return_convergence_delta=True)
        left_out = delta.detach().double()
    else:
        found = explainer.attribute(inputs, **more)
    relevance = found[0] if isinstance(found, (tuple, list)) else found
    if not isinstance(relevance, Tensor):
        raise InputError(f"the method returned {type(relevance).__name__} instead of relevance")
    relevance = relevance.detach()
    if not bool(torch.isfinite(relevance).all()):
        raise NonFiniteError(
            "the relevance is NaN or infinite; explain in single precision, or try another method"
        )
    is_summed = layer is not None and relevance.dim() != 4
    return Found(relevance.sum(-1) if is_summed else relevance, left_out)


def reason(error: Exception) -> str:
    """Why a method does not apply, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, (CaptumLRPError, NotImplementedError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}"[:300]


def is_signed(method: Method, relevance: Iterable[Tensor], sums_up: bool) -> bool:
    """Whether relevance is drawn with its sign: negative values show, whatever was expected.

    Args:
        method (Method): How it was made; not every one of a user's own says whether it has signs.
        relevance (iterable of Tensor): Its values.
        sums_up (bool): Whether it says what it leaves out of the output: what sums to a score has a
            sign, even where nothing happens to speak against the score.
    """
    known = sums_up if method.signed is None else method.signed
    return known or any(bool((values < 0).any()) for values in relevance)


def refuse_if_none(errors: dict[str, str], asked: int) -> None:
    """Complains if no method applies.

    Args:
        errors (dict): Why, by the name of the method.
        asked (int): How many methods there are.

    Raises:
        CaptumLRPError: With all reasons.
    """
    if len(errors) == asked:
        reasons = "; ".join(f"{name}: {why}" for name, why in errors.items())
        raise CaptumLRPError(f"none of the methods can be applied: {reasons}")


def replaced(ids: Tensor, token: int, kept: Sequence[bool] | None = None) -> Tensor:
    """Token ids ``(..., tokens)`` with another token in the place of all that are not kept."""
    flags = [False] * ids.shape[-1] if kept is None else list(kept)
    places = torch.tensor(flags, dtype=torch.bool, device=ids.device)
    return torch.where(places, ids, torch.full_like(ids, token))
