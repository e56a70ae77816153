"""Running several methods on one prediction."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor
from tqdm import tqdm

from captum_lrp_tx.attr.class_names import by_number, refuse_argmax_of_numbers
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, select_target
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.token_gradients import Baseline, padding_in_words
from captum_lrp_tx.comparing.comparison import Comparison, Row
from captum_lrp_tx.errors import InputError, NonFiniteError, TargetError
from captum_lrp_tx.methods.registry import ALL, Chosen, Method, choose_methods
from captum_lrp_tx.methods.running import (
    ROUNDING,
    Found,
    is_signed,
    reason,
    refuse_if_none,
    replaced,
    run,
)
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.visualization.patch_maps import token_grid
from captum_lrp_tx.visualization.tokens import looks_special


def compare(
    model: Callable[..., Any],
    inputs: AttributionInputs,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    methods: str | Sequence[Chosen] = ALL,
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
        target (int, str, tuple, Tensor or list, optional): Of the output to explain, or the name of
            a class; unless given, the only output, or the largest of the classes.
        additional_forward_args (Any, optional): Further arguments of the forward function.
        methods (str or sequence): See :func:`captum_lrp_tx.methods.choose_methods`.
        tokens (sequence of str, optional): Names of the tokens, as the tokenizer gives them.
        baseline (int, float or Tensor, optional): Where Integrated Gradients and GradientShap
            start. Unless given, the padding token of the model's configuration (or 0) at every
            place, as in :class:`~captum_lrp_tx.TokenIntegratedGradients`. A token id replaces every
            token that is not special; a tensor holds all ids. For float inputs a number or a
            tensor; 0 unless given.
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
    chosen = choose_methods(methods)
    prepared = inputs_of(inputs)
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
    if not any("baseline" in method.takes for method in chosen):
        told = ""
    rows: list[Row] = []
    failures: list[Exception] = []
    bar = tqdm(
        chosen, desc="comparing", unit="method", delay=1, leave=False,
        disable=not (show_progress and sys.stderr.isatty()),
    )  # fmt: skip
    for method in bar:
        bar.set_postfix_str(method.name)
        begun = time.perf_counter()
        try:
            found = run(
                method, model, inputs, target, additional_forward_args,
                baseline=start, seed=seed, with_delta=True,
            )  # fmt: skip
            rows.append(_row(method, found, time.perf_counter() - begun, given, names, output))
        except Exception as error:
            failures.append(error)
            rows.append(Row(method.name, None, time.perf_counter() - begun, error=reason(error)))
    if len(failures) == len(chosen) == 1:
        raise failures[0]
    refuse_if_none({row.name: row.error for row in rows if row.error is not None}, len(rows))
    image = given[0] if not leaf.is_ids and tokens is None else None
    return Comparison(names, target, output, tuple(rows), flags, told, image)


def _names(tokens: Sequence[str] | None, given: Tensor, count: int) -> tuple[str, ...]:
    if tokens is None:
        return tuple(map(str, given[0].tolist()))
    if len(tokens) != count:
        raise InputError(
            f"{len(tokens)} names of tokens for {count} tokens; give tokens= one name for each"
        )
    return tuple(map(str, tokens))


def _special(
    special: Sequence[bool] | None, names: tuple[str, ...], named: bool
) -> tuple[bool, ...] | None:
    if special is None:
        if not named:
            return (False,) * len(names) if names else None
        return tuple(map(looks_special, names))
    if len(special) != len(names):
        raise InputError(
            f"{len(special)} entries of special for {len(names)} tokens; give one for each"
        )
    return tuple(map(bool, special))


@torch.no_grad()
def _output(
    model: Callable[..., Any], prepared: Inputs, target: TargetType, additional: Any
) -> tuple[Any, float]:
    """The target and the value of the output to explain."""
    modules = find_modules(model)
    target = by_number(target, modules)
    args, kwargs = prepared.call_arguments()
    more = tuple(map(fresh, _format_additional_forward_args(additional) or ()))
    with told_misfits(model, kwargs or args, more):
        output = output_tensor(model(*args, *more, **kwargs))
    if target is None and output.dim() == 2:
        if output.shape[1] > 1:
            refuse_argmax_of_numbers(modules)
        target = int(output[0].argmax())
    selected = select_target(output, target)
    if selected.numel() != 1:
        raise TargetError(
            f"The output has the shape {tuple(output.shape)}, so a target is needed, e.g. "
            f"target={(0,) * (output.dim() - 1)}."
        )
    value = float(selected)
    if not math.isfinite(value):
        raise NonFiniteError(
            "The explained output is NaN or infinite; look at the inputs and the weights."
        )
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
    if baseline is None:  # as the classes themselves, and Captum's TokenReferenceBase
        return None, f"{padding_in_words(model)} everywhere"
    rest = ", special tokens as they are" if any(special or ()) else ""
    start = replaced(given, int(baseline), special)
    return start, f"token {int(baseline)} everywhere{rest}"


def _row(
    method: Method,
    found: Found,
    seconds: float,
    given: Tensor,
    names: tuple[str, ...],
    output: float,
) -> Row:
    relevance = found.relevance
    if relevance.shape[0] != 1:
        raise InputError(f"the relevance has the shape {tuple(relevance.shape)}, not (1, ...)")
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
        if given.dim() != 4:  # where patches of sounds and videos lie is not known
            raise InputError(
                f"the relevance of {len(values)} tokens has no place in an input of shape "
                f"{tuple(given.shape)}; of embedded tokens give the names, tokens=[...]"
            )
        values = token_grid(values[None], (given.shape[-2], given.shape[-1]))[0]
    delta, note = None, ""
    if found.left_out is not None:
        delta = float(found.left_out.sum())
        # gradient x input is exactly zero for the tokens of models with a norm right behind the
        # embeddings, being blind to their scale: colours would make rounding errors look like more
        if float(values.abs().max()) <= ROUNDING * abs(output):
            note = "zero up to rounding"
    signed = is_signed(method, [values], delta is not None)
    return Row(method.name, values, seconds, total, delta, note=note, signed=signed)
