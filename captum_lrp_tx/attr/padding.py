"""Which tokens are padding, as masks tell, and targets that read an output there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from captum._utils.common import _format_additional_forward_args
from torch import Tensor

from captum_lrp_tx.attr.targets import TargetType, indices_of
from captum_lrp_tx.attr.told import Subject, tell_once
from captum_lrp_tx.errors import PaddedTargetWarning
from captum_lrp_tx.propagation.model.modules import find_modules


def mask_of(inputs: Any, key: str, x: Tensor) -> Tensor | None:
    """The entry of a mapping that says which tokens of ``x`` are real, as booleans."""
    if not key.endswith("input_ids"):
        return None
    mask = inputs.get(key.removesuffix("input_ids") + "attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != x.shape:
        return None
    return mask.detach() > 0


def named_arguments(forward: Callable[..., Any], inputs: Any, additional: Any) -> dict[str, Any]:
    """What a forward function is called with, by the names of its parameters.

    Args:
        forward (callable): The model, or a function that runs it.
        inputs (Tensor, tuple of Tensor, or mapping): As the user passed them.
        additional: Captum's ``additional_forward_args``, which follow the inputs.

    Returns:
        dict: Empty if the function does not say its parameters.
    """
    function = getattr(forward, "forward", forward)
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}
    more = _format_additional_forward_args(additional) or ()
    if isinstance(inputs, Mapping):
        return {**dict(zip(names, more)), **{str(k): v for k, v in inputs.items()}}
    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return dict(zip(names, (*given, *more)))


def warn_of_padding(
    forward: Callable[..., Any],
    inputs: Any,
    additional: Any,
    output: Tensor,
    targets: Sequence[TargetType],
    rows: Tensor | None = None,
) -> None:
    """Warn if a target ``(position, class)`` reads an output at padding.

    Texts of a batch that are padded on the right end at different positions, so that ``(-1,
    token)`` does not ask for the token that comes next.

    Args:
        forward (callable): The model, or a function that runs it.
        inputs (Tensor, tuple of Tensor, or mapping): As the user passed them.
        additional: Captum's ``additional_forward_args``, which follow the inputs.
        output (Tensor): Of the model, one row for each example.
        targets (sequence): What of it is explained.
        rows (Tensor, optional): Numbers of the examples that the output is for, unless it is for
            all of them in order.
    """
    if output.dim() != 3:
        return
    chosen = [
        (example, index[0])
        for target in targets
        for example, indices in enumerate(indices_of(target, len(output)))
        for index in indices
        if isinstance(index, tuple) and len(index) == 2
    ]
    values = named_arguments(forward, inputs, additional) if chosen else {}
    mask = values.get("attention_mask")
    if any(name.startswith("decoder_") or name == "labels" for name in values):
        mask = values.get("decoder_attention_mask")  # of the sequence that the output goes with
    if isinstance(mask, Tensor) and rows is not None:
        mask = mask[rows]
    if not isinstance(mask, Tensor) or mask.shape != output.shape[:2]:
        return
    examples, positions = zip(*chosen)
    hidden = (mask[list(examples), list(positions)] == 0).tolist()
    if not any(hidden):
        return
    example, position = chosen[hidden.index(True)]
    number = example if rows is None else int(rows[example])
    tokens = mask[example].nonzero().flatten().tolist()
    last = f"The last token of this example is at {tokens[-1]}: g" if tokens else "G"
    tell_once(
        Subject(forward, find_modules(forward)),
        "padded target",
        f"The target of example {number} reads the output at position {position}, where "
        f"attention_mask hides padding; what is explained there is no answer to the text. {last}"
        "ive each example its own position, as in target=[(2, token), (5, token)], or pad on the "
        "left (tokenizer.padding_side = 'left').",
        PaddedTargetWarning,
    )
