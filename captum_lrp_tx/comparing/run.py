"""Running several methods on one prediction."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Union

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor
from tqdm import tqdm

from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, select_target
from captum_lrp_tx.attr.token_gradients import Baseline, padding_id
from captum_lrp_tx.comparing.comparison import Comparison, Row
from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError, TargetError
from captum_lrp_tx.methods.registry import METHODS, Method, find_method
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.visualization.patch_maps import token_grid
from captum_lrp_tx.visualization.tokens import TokenHeatmap

#: A method by name, or a name with a function that makes an attribution from the model.
Chosen = Union[str, tuple[str, Callable[[Any], Any]]]
#: Relevance of no more than this part of the output is a rounding error.
ROUNDING = 1e-5
ALL: tuple[str, ...] = tuple(method.name for method in METHODS)


def compare(
    model: Callable[..., Any],
    inputs: AttributionInputs,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    methods: Sequence[Chosen] = ALL,
    tokens: Sequence[str] | None = None,
    baseline: Baseline = None,
    special: Sequence[bool] | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> Comparison:
    r"""
    Explains one output of a model by several methods.

    A method that does not apply to the model (attention maps of a model without attention, say)
    gives a row with the reason instead of relevance.

    Args:
        model (nn.Module or callable): As for every attribution class of this package.
        inputs (Tensor or mapping): One example: token ids, pixels, or what a tokenizer returns.
        target (int, tuple, Tensor or list, optional): Of the output to explain; unless given, the
            only output, or the largest of the classes.
        additional_forward_args (Any, optional): Further arguments of the forward function.
        methods (sequence): Names as in the papers' tables, in any spelling (see
            ``captum_lrp_tx.methods.METHODS``), or pairs of a name and a function that gets the
            model and returns an attribution, e.g.
            ``("LRP gamma", lambda m: ConservativeLRP(m, composite))``.
        tokens (sequence of str, optional): Names of the tokens, as the tokenizer gives them.
        baseline (int, float or Tensor, optional): Where Integrated Gradients and GradientShap
            start. For token ids a token id that replaces every token that is not special, or all
            ids; the padding token of the model's configuration or 0 unless given. For float
            inputs a number or a tensor; 0 unless given.
        special (sequence of bool, optional): Which tokens are special; guessed from their names
            unless given.
        seed (int): Of the methods that are random.
        show_progress (bool): Show a progress bar on standard error if it takes more than a second.

    Returns:
        Comparison: With one row for each method; :meth:`Comparison.terminal`, ``html``, ``png``
        and ``figure`` show it.

    Raises:
        InputError: Unknown methods, more than one example or input, lengths that do not fit.
        TargetError: The target is out of range, or missing for a model with several outputs for
            each class.
        NonFiniteError: NaN or infinity in the inputs or the output.
        CaptumLRPError: None of the methods applies. If only one was asked for, its own error.

    Example::

        >>> import captum_lrp_tx
        >>> comparison = captum_lrp_tx.compare(model, inputs, methods=["Rollout", "GI", "LRP"])
        >>> print(comparison.terminal())  # doctest: +SKIP
    """
    chosen = _chosen(methods)
    prepared = Inputs(inputs)
    if len(prepared.leaves) != 1:
        raise InputError(
            f"a comparison takes one input, not {len(prepared.leaves)}; pass the others in "
            "additional_forward_args"
        )
    leaf = prepared.leaves[0]
    given = leaf.original
    if given.dim() < 2 or given.shape[0] != 1:
        raise InputError(
            f"a comparison takes one example, not a batch of shape {tuple(given.shape)}; the first "
            "dimension must be 1"
        )
    count = given.shape[-1] if leaf.is_ids else given.shape[1]
    names = _names(tokens, given, count) if leaf.is_ids or tokens is not None else ()
    flags = _special(special, names, tokens is not None)
    target, output = _output(model, prepared, target, additional_forward_args)
    start, told = _baseline(model, given, baseline, flags)
    if not any(isinstance(m, Method) and "baseline" in m.takes for _, m in chosen):
        told = ""
    settings = {"baseline": start, "seed": seed}
    rows: list[Row] = []
    failures: list[Exception] = []
    bar = tqdm(
        chosen, desc="comparing", unit="method", delay=1, leave=False,
        disable=not (show_progress and sys.stderr.isatty()),
    )  # fmt: skip
    for name, method in bar:
        bar.set_postfix_str(name)
        begun = time.perf_counter()
        try:
            relevance, delta = _attribute(
                model, method, inputs, target, additional_forward_args, settings
            )
            _wait_for(relevance)
            seconds = time.perf_counter() - begun
            row = _row(name, method, relevance, delta, seconds, given, names)
            rows.append(_marked(row, output))
        except Exception as error:
            failures.append(error)
            seconds = time.perf_counter() - begun
            rows.append(Row(name, None, seconds, error=_reason(error)))
    if len(failures) == len(chosen):
        if len(failures) == 1:
            raise failures[0]
        reasons = "; ".join(f"{row.name}: {row.error}" for row in rows)
        raise CaptumLRPError(f"none of the methods can be applied: {reasons}") from failures[0]
    image = given[0] if not leaf.is_ids and tokens is None else None
    return Comparison(names, target, output, tuple(rows), flags, told, image)


def _chosen(methods: Sequence[Chosen]) -> list[tuple[str, Method | Callable[[Any], Any]]]:
    if isinstance(methods, str):
        methods = [methods]
    found: dict[str, Method | Callable[[Any], Any]] = {}
    for item in methods:
        if isinstance(item, str):
            method = find_method(item)
            found.setdefault(method.name, method)
        elif isinstance(item, tuple) and len(item) == 2 and callable(item[1]):
            found[str(item[0])] = item[1]
        else:
            raise InputError(
                f"{item!r} is no method: use a name, or a pair of a name and a function that makes "
                "an attribution from the model"
            )
    if not found:
        raise InputError(f"no method to compare; the methods are: {', '.join(ALL)}")
    return list(found.items())


def _names(tokens: Sequence[str] | None, given: Tensor, count: int) -> tuple[str, ...]:
    if tokens is None:
        return tuple(map(str, given[0].tolist()))
    if len(tokens) != count:
        raise InputError(f"{len(tokens)} names of tokens for {count} tokens")
    return tuple(map(str, tokens))


def _special(
    special: Sequence[bool] | None, names: tuple[str, ...], named: bool
) -> tuple[bool, ...] | None:
    if special is None:
        if not named:
            return (False,) * len(names) if names else None
        guessed = TokenHeatmap(names, [0.0] * len(names)).special
        assert guessed is not None
        return tuple(guessed)
    if len(special) != len(names):
        raise InputError(f"{len(special)} entries of special for {len(names)} tokens")
    return tuple(map(bool, special))


@torch.no_grad()
def _output(
    model: Callable[..., Any], prepared: Inputs, target: TargetType, additional: Any
) -> tuple[Any, float]:
    """The target and the value of the output to explain."""
    args, kwargs = prepared.call_arguments()
    more = _format_additional_forward_args(additional) or ()
    output = output_tensor(model(*args, *more, **kwargs))
    if target is None and output.dim() == 2:
        target = int(output[0].argmax())
    selected = select_target(output, target)
    if selected.numel() != 1:
        raise TargetError(
            f"The output has the shape {tuple(output.shape)}, so a target is needed, e.g. "
            f"target={(0,) * (output.dim() - 1)}."
        )
    value = float(selected)
    if not math.isfinite(value):
        raise NonFiniteError("The explained output is NaN or infinite.")
    return target, value


def _baseline(
    model: Callable[..., Any],
    given: Tensor,
    baseline: Baseline,
    special: tuple[bool, ...] | None,
) -> tuple[Baseline, str]:
    """The baseline of every entry, and what it is in words."""
    if given.is_floating_point():
        if isinstance(baseline, Tensor):
            return baseline, "a tensor of its own"
        return baseline, f"{0 if baseline is None else baseline:g} everywhere"
    if isinstance(baseline, Tensor) and baseline.dim() > 0:
        return baseline, "token ids of its own"
    source = ""
    if baseline is None:
        baseline, source = padding_id(model), " (padding)"
    replaced = given.clone()
    kept = torch.zeros(given.shape[-1], dtype=torch.bool, device=given.device)
    if special is not None:
        kept = torch.tensor(special, device=given.device)
    replaced[..., ~kept] = int(baseline)
    rest = ", special tokens as they are" if bool(kept.any()) else ""
    return replaced, f"token {int(baseline)}{source} everywhere{rest}"


def _attribute(
    model: Callable[..., Any],
    method: Method | Callable[[Any], Any],
    inputs: AttributionInputs,
    target: Any,
    additional: Any,
    settings: dict[str, Any],
) -> tuple[Tensor, float | None]:
    if isinstance(method, Method):
        options = {key: settings[key] for key in method.takes}
        explainer: Any = method.load()(model, **method.options, **options)
    else:
        explainer = method(model)
    more: dict[str, Any] = {"target": target, "additional_forward_args": additional}
    delta = None
    if explainer.has_convergence_delta():
        result, deltas = explainer.attribute(inputs, **more, return_convergence_delta=True)
        delta = float(deltas.sum())
    else:
        result = explainer.attribute(inputs, **more)
    relevance = result[0] if isinstance(result, tuple) else result
    assert isinstance(relevance, Tensor)
    return relevance.detach(), delta


def _row(
    name: str,
    method: Method | Callable[[Any], Any],
    relevance: Tensor,
    delta: float | None,
    seconds: float,
    given: Tensor,
    names: tuple[str, ...],
) -> Row:
    if relevance.shape[0] != 1:
        raise InputError(f"the relevance has the shape {tuple(relevance.shape)}, not (1, ...)")
    if not bool(torch.isfinite(relevance).all()):
        raise NonFiniteError("the relevance is NaN or infinite")
    total = float(relevance.double().sum())
    values = relevance[0]
    if names:
        if values.dim() == 2 and given.is_floating_point():  # embedded tokens
            values = values.sum(-1)
        if tuple(values.shape) != (len(names),):
            raise InputError(
                f"the relevance has the shape {tuple(relevance.shape)} for {len(names)} tokens"
            )
    elif values.dim() == 1 and given.dim() > 2:
        values = token_grid(values[None], (given.shape[-2], given.shape[-1]))[0]
    signed = method.signed if isinstance(method, Method) else None
    if not signed and bool((values < 0).any()):
        signed = True  # whatever was expected, negative relevance must show
    if signed is None:
        signed = False
    return Row(name, values, seconds, total, delta, signed=signed)


def _marked(row: Row, output: float) -> Row:
    """Says so if there is nothing but rounding errors, which colours would make look like more.

    Gradient x input is exactly zero for the tokens of models with a norm right behind the
    embeddings: it is blind to their scale.
    """
    assert row.relevance is not None
    if row.delta is not None and float(row.relevance.abs().max()) <= ROUNDING * abs(output):
        return replace(row, note="zero up to rounding")
    return row


def _wait_for(relevance: Tensor) -> None:
    if relevance.is_cuda:
        torch.cuda.synchronize(relevance.device)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (CaptumLRPError, NotImplementedError)) and text:
        return text
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("captum_lrp_tx."):
        return "not part of this version"
    if isinstance(error, ImportError):
        return f"not available: {text}"
    return f"{type(error).__name__}: {text}"[:300]
