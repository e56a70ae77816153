"""Which entries of what a tokenizer or an image processor returns are explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.state.inputs import Inputs


def inputs_of(inputs: Any) -> Inputs:
    """The inputs of one explained pass.

    Args:
        inputs (Tensor, tuple of Tensor, or mapping): Float tensors are attributed to entry by
            entry, integer tensors as token ids.  In a mapping (a tokenizer's ``BatchEncoding``,
            an image processor's ``BatchFeature``) the entries named ``*input_ids`` and the float
            entries that are no masks are attributed to, everything goes to the model by keyword.

    Returns:
        Inputs: with a leaf for each tensor that is attributed to.

    Raises:
        InputError: nothing that can be attributed to, or an unsupported type.
        NonFiniteError: NaN or infinity in a float input.
        UnsupportedModelError: inside ``torch.vmap`` or a transform of ``torch.func``.

    Example::

        >>> inputs_of({"input_ids": ids, "attention_mask": mask}).keys
        ['input_ids']
    """
    if not isinstance(inputs, Mapping):
        return Inputs(inputs)
    keys = [str(key) for key, value in inputs.items() if _is_attributed(str(key), value)]
    if not keys:
        for key in ("input_ids", "pixel_values", "inputs_embeds", "input_values", "input_features"):
            if key in inputs:  # and is no tensor: what comes next says so
                return Inputs(inputs, [key])
        ordinary = ("mask", "label", "labels")
        names = [str(key) for key, value in inputs.items() if _is_float(value)]
        skipped = [name for name in names if name.split("_")[-1] not in ordinary]
        if skipped:
            raise InputError(
                f"The mapping holds nothing to attribute to: the float tensors {skipped} are taken "
                "for masks or labels, by their names, and get no relevance. Pass the tensor itself "
                f"as inputs, with a function that names it: lambda x: model({skipped[0]}=x)."
            )
        whole = [
            str(key) for key, value in inputs.items()
            if isinstance(value, Tensor) and "mask" not in str(key)
        ]  # fmt: skip
        advice = (
            "Token ids are explained under names that end in 'input_ids', with a function that "
            f"passes them on: lambda input_ids, **others: model({whole[0]}=input_ids, **others)."
            if whole
            else "Tokenizers must be called with return_tensors='pt'."
        )
        raise InputError(
            "The mapping holds nothing to attribute to: no entry named 'input_ids' and no "
            f"float tensor (keys: {sorted(map(str, inputs))}). {advice}"
        )
    return Inputs(inputs, keys)


def _is_attributed(key: str, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    if key.endswith("input_ids"):
        return True
    return _is_float(value) and "mask" not in key and "label" not in key


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
