"""The families of transformers, by its auto-model mappings: tiny, random, built generically."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import oracle
import zoo
from captum_lrp_tx import ConservativeLRP
from families import arguments, by_hand
from families.common import TOLERANCE, Case, NotBuilt, Outcome, check
from families.configs import SIZES, Size, tiny

LIBRARY = "transformers"
#: Larger ones take seconds; some sizes are fixed in the code of a family.
MOST_PARAMETERS = 8_000_000
#: Which head to take: the first of these mappings that knows the family; then the bare model.
_HEADS = (
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION",
    "VIDEO_CLASSIFICATION", "CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "CTC",
    "MASKED_LM", "QUESTION_ANSWERING", "IMAGE_TEXT_TO_TEXT",
)  # fmt: skip
#: What the oracle does not know: divisions by a mean modulus or by a running deviation are norms,
#: so only presets without a rule for norms are compared.
_OTHER_NORMS = ("autoformer", "time_series_transformer", "timesfm2_5")
#: The oracle takes the softmax over the best lags for a router.
_HAND_WRITTEN = ("autoformer",)
#: The oracle differs from a computation by hand under ah+ln alone; the package does not.
_BY_HAND = ("convbert", "rwkv")
#: Attention over layers: along an axis that parameters made a pattern is a mixture and stays as it
#: is, which the oracle does not see; so only the rule for norms is compared, and full LRP.
_OVER_LAYERS = ("inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text")
#: Rows that are added to words without having been looked up place by place (interpolated, one for
#: all, a slice of the table, behind a concatenation), so only the words are compared; by what their
#: table is called.
_OTHER_ROWS = {
    "kosmos-2.5": "embed_tokens", "sam3_lite_text": "token_embedding",
    "sam3_lite_text_text_model": "token_embedding", "udop": "embed_tokens",
    "whisper": "embed_tokens",
}  # fmt: skip


@functools.lru_cache(None)
def _auto() -> Any:
    return importlib.import_module("transformers.models.auto.modeling_auto")


def names() -> list[str]:
    """The model types of the bare auto-model mapping."""
    return list(_auto().MODEL_MAPPING_NAMES)


def _classes(name: str, heads: Sequence[str] = _HEADS) -> list[type[nn.Module]]:
    transformers = importlib.import_module("transformers")
    mappings = [getattr(_auto(), f"MODEL_FOR_{head}_MAPPING_NAMES", {}) for head in heads]
    found: list[type[nn.Module]] = []
    for mapping in (*mappings, _auto().MODEL_MAPPING_NAMES):
        entry = mapping.get(name)
        for class_name in entry if isinstance(entry, (tuple, list)) else (entry,):
            if class_name and hasattr(transformers, class_name):
                found.append(getattr(transformers, class_name))
    # a few heads are enough: the first, and the bare model
    return list(dict.fromkeys([*found[:2], *found[-1:]]))


def causal_names() -> list[str]:
    """The model types that predict the next token."""
    return list(_auto().MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def cases(name: str, heads: Sequence[str] = _HEADS) -> list[Case]:
    """One case for each attention implementation that the family has.

    Token ids are explained wherever the family takes them: beside images and sounds, or by another
    of its classes.  ``heads`` are tried in their order, the bare model at last.

    Raises:
        NotBuilt: no tiny random model of this family runs.
    """
    reasons: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in SIZES:
            for model_class in _classes(name, heads):
                try:
                    built = [_case(name, model_class, "eager", size)]
                except NotBuilt as error:
                    reasons.append(str(error))
                    if "ImportError" in reasons[-1]:  # another size would not help
                        raise
                    continue
                with contextlib.suppress(NotBuilt):
                    built.append(_case(name, model_class, "sdpa", size))
                if built[0].inputs.is_floating_point():
                    built += _cases_of_ids(name, size)
                return built
    raise NotBuilt(reasons[0] if reasons else "no model class")


def _cases_of_ids(name: str, size: Size) -> list[Case]:
    """The same for the token ids of a family whose main input is something else."""
    for model_class in _classes(name):
        if "input_ids" not in inspect.signature(model_class.forward).parameters:
            continue
        built: list[Case] = []
        for implementation in ("eager", "sdpa"):
            with contextlib.suppress(NotBuilt):
                built.append(_case(name, model_class, implementation, size, only="input_ids"))
        if built:
            return built
    return []


def _config(name: str, size: Size) -> Any:
    configuration = importlib.import_module("transformers.models.auto.configuration_auto")
    try:
        return tiny(configuration.CONFIG_MAPPING[name](), size)
    except Exception as error:
        raise NotBuilt(f"configuration: {type(error).__name__}: {error}") from error


def _model(config: Any, model_class: type[nn.Module], implementation: str) -> nn.Module:
    try:
        with torch.device("meta"):
            entries = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
    except Exception:
        entries = 0  # some models cannot be made without values
    if entries > MOST_PARAMETERS:
        raise NotBuilt(f"model: {entries} parameters are left")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class._from_config(config, attn_implementation=implementation)
    except Exception as error:
        raise NotBuilt(f"model: {type(error).__name__}: {error}") from error
    return zoo.randomise(model.float().eval())


def _case(
    name: str,
    model_class: type[nn.Module],
    implementation: str,
    size: Size,
    only: str | None = None,
) -> Case:
    model = _model(_config(name, size), model_class, implementation)
    reason = "no suitable input"
    for explained, call in arguments.candidates(model):
        if only not in (None, explained):
            continue
        value = call.pop(explained)
        forward = _Forward(model, explained, call)
        try:
            output = forward(value)
            if arguments.is_usable(output, len(value)):
                reason = _objection(forward, value, output) or ""
                if reason:
                    continue
        except Exception as error:
            if reason == "no suitable input":
                reason = f"forward: {type(error).__name__}: {str(error)[:200]}"
            continue
        if not arguments.is_usable(output, len(value)):
            continue
        return Case(
            LIBRARY, name, model_class.__name__, implementation, model, forward, value,
            arguments.target_of(output), in_part=_in_part(name),
        )  # fmt: skip
    raise NotBuilt(reason)


def _in_part(name: str) -> Callable[[Case, str], Outcome] | None:
    if name in _BY_HAND:
        return by_hand.judged
    if name in _OTHER_NORMS:
        return _without_norms
    if name in _OVER_LAYERS:
        return _without_patterns
    return _words_only if name in _OTHER_ROWS else None


def _without_norms(case: Case, _: str) -> Outcome:
    judge = by_hand.judged if case.family in _HAND_WRITTEN else None
    found = check(replace(case, in_part=judge), "ah")
    if found.status not in ("verified", "convention"):
        return found
    reason = "norms that the independent computation does not know: compared under ah"
    return Outcome("convention", reason, found.error)


def _without_patterns(case: Case, preset: str) -> Outcome:
    found = check(replace(case, in_part=None), "ln" if preset == "ah+ln" else preset)
    if preset != "ah+ln" or found.status not in ("verified", "convention"):
        return found
    reason = "attention over layers that the independent computation does not know: compared "
    return Outcome("convention", reason + "under ln and lrp", found.error)


def _words_only(case: Case, preset: str) -> Outcome:
    rules: Any = preset
    if case.inputs.is_floating_point():
        return Outcome("wrong", "no token ids")
    words = torch.stack(
        oracle.oracle_lookup_relevance(case.forward, case.inputs, preset, case.select)
    ).sum(0)
    parts = ConservativeLRP(case.forward, rules).attribute(
        case.inputs, target=case.target, strict=True, positions="separate"
    )
    table = _OTHER_ROWS[case.family]
    got = torch.stack([v for k, v in parts.items() if table in k]).sum(0)
    error = float((got - words).abs().max() / words.abs().max())
    reason = "rows that the independent computation does not know: compared for words only"
    return Outcome("convention" if error <= TOLERANCE else "wrong", reason, error)


def _objection(forward: _Forward, value: Tensor, output: Tensor) -> str | None:
    """Why this output cannot be explained with these inputs, by the plain model."""
    if not torch.equal(output, forward(value)):
        return "random in eval mode"
    if not value.is_floating_point():
        return None
    leaf = value.clone().requires_grad_()
    target = arguments.entry(forward(leaf))
    (grad,) = torch.autograd.grad(target.sum(), leaf, allow_unused=True)
    if grad is None or not float(grad.abs().max()) > 1e-8:
        return "the output does not depend on this input"
    return None


class _Forward:
    """The model's call as a function of the explained argument alone."""

    def __init__(self, model: nn.Module, explained: str, arguments_: dict[str, Any]) -> None:
        self.model, self.explained, self.arguments = model, explained, arguments_

    def __call__(self, value: Tensor) -> Tensor:
        returned = self.model(**{self.explained: value}, **self.arguments)
        output = arguments.read(returned, of_ids=not value.is_floating_point())
        if output is None:
            raise TypeError("no float tensor in the output")
        if output.shape[0] != len(value) and value.is_floating_point():
            output = output.reshape(len(value), -1) if len(value) == 1 else output[None]
        return output
