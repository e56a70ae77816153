"""Running one method on a batch of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.comparing.run import Chosen
from captum_lrp_tx.errors import CaptumLRPError, InputError
from captum_lrp_tx.methods.registry import METHODS, Method, find_method
from captum_lrp_tx.metrics.blocks import transformer_blocks

At = Literal["embeddings", "input"]
#: The methods of the tables of Ali et al. 2022.
PAPER: tuple[str, ...] = (
    "Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)",
)  # fmt: skip
_LAYERED: dict[str, Any] = {
    "ConservativeGI": LayerConservativeGI, "ConservativeLRP": LayerConservativeLRP,
}  # fmt: skip


def chosen_methods(
    methods: str | Sequence[Chosen],
) -> list[tuple[str, Method | Callable[[Any], Any]]]:
    """Methods by name, each once.

    Args:
        methods (str or sequence): ``"paper"``, ``"all"``, or names and pairs of a name and a
            function that makes an attribution from the model.

    Raises:
        InputError: Unknown names, names given twice, or none.
    """
    if isinstance(methods, str):
        named = {"paper": PAPER, "all": tuple(method.name for method in METHODS)}
        if methods not in named:
            raise InputError(f"methods must be 'paper', 'all' or a list of names, not {methods!r}")
        methods = named[methods]
    found: dict[str, Method | Callable[[Any], Any]] = {}
    for entry in methods:
        maker: Method | Callable[[Any], Any]
        if isinstance(entry, str):
            maker = find_method(entry)
            name = maker.name
        elif (
            isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
            and callable(entry[1])
        ):  # fmt: skip
            name, maker = entry
        else:
            raise InputError(f"a method is a name, or a name with a function; not {entry!r}")
        if name in found:
            raise InputError(f"the method {name} is named twice")
        found[name] = maker
    if not found:
        raise InputError("no methods are named")
    return list(found.items())


def relevance(
    model: Callable[..., Any],
    method: Method | Callable[[Any], Any],
    inputs: Any,
    target: Tensor,
    *,
    at: At,
    blank: Tensor | None,
    seed: int,
) -> Tensor:
    """Relevance of a batch of examples by one method.

    Args:
        model (nn.Module or callable): What is explained.
        method (Method or callable): How.
        inputs (Tensor or mapping): The examples.
        target (Tensor): Class of each.
        at (str): Where gradient x input and LRP take relevance: at the ``"embeddings"``, which go
            into the first block, or at the ``"input"``. Other methods have no choice.
        blank (Tensor, optional): The fully masked inputs, baseline of Integrated Gradients and
            GradientShap.
        seed (int): Of random methods.

    Returns:
        Tensor: Relevance of tokens or pixels.

    Raises:
        Exception: Whatever the method raises if it does not apply.
    """
    if not isinstance(method, Method):
        return _first(method(model).attribute(inputs, target=target))
    layered = _LAYERED.get(method.cls)
    if at == "embeddings" and layered is not None:
        layer = transformer_blocks(model)[0]
        explainer = layered(model, layer, **method.options)
        found = explainer.attribute(inputs, target=target, attribute_to_layer_input=True)
        return _first(found).sum(-1)
    settings = {"baseline": blank, "seed": seed}
    options = {key: settings[key] for key in method.takes}
    explainer = method.load()(model, **method.options, **options)
    return _first(explainer.attribute(inputs, target=target))


def reason(error: Exception) -> str:
    """Why a method did not apply, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, (CaptumLRPError, NotImplementedError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}"[:300]


def _first(found: Any) -> Tensor:
    found = found[0] if isinstance(found, (tuple, list)) else found
    if not isinstance(found, Tensor):
        raise InputError(f"the method returned {type(found).__name__} instead of relevance")
    with torch.no_grad():
        return found.detach()
