"""The families of transformers, by its auto-model mappings: tiny, random, built generically."""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from families import arguments
from families.common import Case, NotBuilt
from families.configs import tiny

LIBRARY = "transformers"
IMPLEMENTATIONS = ("eager", "sdpa")
#: Which head to take: the first of these mappings that knows the family; then the bare model.
_HEADS = (
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION",
    "VIDEO_CLASSIFICATION", "CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "CTC",
    "MASKED_LM", "QUESTION_ANSWERING", "IMAGE_TEXT_TO_TEXT",
)  # fmt: skip


@functools.lru_cache(None)
def _auto() -> Any:
    return importlib.import_module("transformers.models.auto.modeling_auto")


def names() -> list[str]:
    """The model types of the bare auto-model mapping."""
    return list(_auto().MODEL_MAPPING_NAMES)


def _classes(name: str) -> list[type[nn.Module]]:
    transformers = importlib.import_module("transformers")
    mappings = [getattr(_auto(), f"MODEL_FOR_{head}_MAPPING_NAMES", {}) for head in _HEADS]
    found: list[type[nn.Module]] = []
    for mapping in (*mappings, _auto().MODEL_MAPPING_NAMES):
        entry = mapping.get(name)
        for class_name in entry if isinstance(entry, (tuple, list)) else (entry,):
            if class_name and hasattr(transformers, class_name):
                found.append(getattr(transformers, class_name))
    # a few heads are enough: the first, and the bare model
    return list(dict.fromkeys([*found[:2], *found[-1:]]))


def _config(name: str) -> Any:
    configuration = importlib.import_module("transformers.models.auto.configuration_auto")
    try:
        return tiny(configuration.CONFIG_MAPPING[name]())
    except Exception as error:
        raise NotBuilt(f"configuration: {type(error).__name__}: {error}") from error


def cases(name: str) -> list[Case]:
    """One case for each attention implementation that the family has.

    Raises:
        NotBuilt: no tiny random model of this family runs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "no model class"
        for model_class in _classes(name):
            try:
                first = _case(name, model_class, "eager")
            except NotBuilt as error:
                reason = reason if reason != "no model class" else str(error)
                continue
            built = [first]
            with contextlib.suppress(NotBuilt):
                built.append(_case(name, model_class, "sdpa"))
            return built
    raise NotBuilt(reason)


def _case(name: str, model_class: type[nn.Module], implementation: str) -> Case:
    config = _config(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class._from_config(config, attn_implementation=implementation)
    except Exception as error:
        raise NotBuilt(f"model: {type(error).__name__}: {error}") from error
    model = zoo.randomise(model.float().eval())
    reason = "no suitable input"
    for explained, call in arguments.candidates(model):
        value = call.pop(explained)
        forward = _Forward(model, explained, call)
        try:
            with torch.no_grad():
                output = forward(value)
        except Exception as error:
            if reason == "no suitable input":
                reason = f"forward: {type(error).__name__}: {str(error)[:200]}"
            continue
        if not arguments.is_usable(output, len(value)):
            continue
        return Case(
            LIBRARY, name, model_class.__name__, implementation, model, forward, value,
            arguments.target_of(output),
        )  # fmt: skip
    raise NotBuilt(reason)


class _Forward:
    """The model's call as a function of the explained argument alone."""

    def __init__(self, model: nn.Module, explained: str, arguments_: dict[str, Any]) -> None:
        self.model, self.explained, self.arguments = model, explained, arguments_

    def __call__(self, value: Tensor) -> Tensor:
        output = arguments.read(self.model(**{self.explained: value}, **self.arguments))
        if output is None:
            raise TypeError("no float tensor in the output")
        if output.shape[0] != len(value) and value.is_floating_point():
            output = output.reshape(len(value), -1) if len(value) == 1 else output[None]
        return output
