"""One explained pass: forward under the rules, then one backward pass to the leaves."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import CaptumLRPError, NonFiniteError, TargetError, UnreachedInputError
from captum_lrp_tx.propagation.backward.packing import Gradients, gradients, pack_size
from captum_lrp_tx.propagation.backward.recomputation import Recomputation, repeated_blocks
from captum_lrp_tx.propagation.backward.seeds import forget
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.hygiene.isolation import isolated
from captum_lrp_tx.propagation.interception import Context, Interception
from captum_lrp_tx.propagation.interception.opaque_layers import OpaqueLayers, candidates
from captum_lrp_tx.propagation.interception.underived import refuse_underived
from captum_lrp_tx.propagation.judging import diagnosis
from captum_lrp_tx.propagation.judging.obstacles import explained_failure
from captum_lrp_tx.propagation.model.modules import named_tensors
from captum_lrp_tx.propagation.model.outputs import call_explained, output_tensor
from captum_lrp_tx.propagation.model.strangers import Strangers
from captum_lrp_tx.propagation.model.table_names import TableNames
from captum_lrp_tx.propagation.operations import RuleTable
from captum_lrp_tx.propagation.recognition.undecided import settle_by_gradients
from captum_lrp_tx.propagation.state.inputs import Inputs, Leaf
from captum_lrp_tx.propagation.state.layers import LayerProbe
from captum_lrp_tx.propagation.state.ledger import Ledger, encloses, relevance_sum
from captum_lrp_tx.propagation.state.scope import Boundary, Scope, next_sequence_number, suspended

NamedModules = Sequence[tuple[str, nn.Module]]


@dataclass
class Pass:
    """What to run, and under which rules.

    Args:
        forward (callable): The forward function.
        modules (sequence of (str, Module)): The modules it runs, by name.
        base (mapping): Rules where no module has one of its own.
        assigned (sequence): Rule tables of modules.
        select (callable): From the output tensor to one value per example (the target).
        additional_args (tuple): Positional arguments after the inputs.
        layers (sequence of Module): If given, relevance is computed at these layers, not at the
            inputs.
        at_layer_input (bool): At the layers' inputs instead of their outputs.
        trace (bool): Record which module made which operation.
        keep_ledger (bool): Book what additive constants absorb, and the relevance that enters and
            leaves every module. Implies ``trace``.
        inspect (callable): Called with ``(scope, root nodes, leaf tensors)`` before the backward
            pass, while the graph is alive.
        zeros_if_unreached (bool): Zero relevance for layers that do not influence the output.
        backward (bool): Run the backward pass; without it the result has no relevance.
        recompute (bool): Keep the inputs of the model's blocks only, and run them twice.
        meet (callable, optional): Told of every module with parameters that runs although it is
            none of ``modules``; may raise.
        check_finite (bool): Raise if the output or the relevance is NaN or infinite.
    """

    forward: Callable[..., Any]
    modules: NamedModules
    base: RuleTable
    assigned: Sequence[tuple[nn.Module, RuleTable]]
    select: Callable[[Tensor], Tensor]
    additional_args: tuple[Any, ...] = ()
    layers: Sequence[nn.Module] | None = None
    at_layer_input: bool = False
    trace: bool = False
    keep_ledger: bool = False
    inspect: Callable[[Scope, list[Node], list[Tensor]], None] | None = None
    check_finite: bool = True
    zeros_if_unreached: bool = False
    backward: bool = True
    recompute: bool = False
    meet: Callable[[nn.Module], None] | None = None


@dataclass
class Propagated:
    """Result of a pass.

    Attributes:
        output (Tensor): The explained value of each example, detached.
        relevances (list of Tensor): One for each input, in its shape (layer mode: empty).
        parts (list of dict): For token ids the relevance by embedding, if modules are traced; one
            for each input.
        layer_values (list of list of tuple): The layers' activations: one tuple of tensors for
            each call that counts, of each layer (layer mode only).
        layer_gradients (list of list of tuple): The modified gradients there.
        left_out (list of tuple): Layers some of whose calls do not count: class, number of calls
            that do, number of all.
        scope (Scope): What was applied, traced and booked.
    """

    output: Tensor
    scope: Scope
    relevances: list[Tensor] = field(default_factory=list)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    layer_values: list[list[tuple[Tensor, ...]]] = field(default_factory=list)
    layer_gradients: list[list[tuple[Tensor, ...]]] = field(default_factory=list)
    left_out: list[tuple[str, int, int]] = field(default_factory=list)


def propagate(job: Pass, inputs: Inputs) -> Propagated:
    """Run one pass.  The model is left exactly as it was, also on any exception.

    Raises:
        OutputError: the forward function returned no tensor.
        TargetError: several values per example are left after target selection.
        NonFiniteError: NaN or infinity in the output or the relevance.
        UnreachedInputError: the output does not depend on an input.
        InputError: see :class:`~captum_lrp_tx.propagation.state.inputs.Inputs`.
    """
    return propagate_targets(job, inputs, lambda output: [job.select(output)])[0]


def propagate_targets(
    job: Pass,
    inputs: Inputs,
    select: Callable[[Tensor], Sequence[Tensor]],
    per_pass: int | None = None,
) -> list[Propagated]:
    """Run one forward pass, and a backward pass for every target (several packed into one).

    Args:
        job (Pass): What to run; its own target is not used. A ledger books one target only.
        inputs (Inputs): What to run it on.
        select (callable): From the output to one value per example, for each target.
        per_pass (int, optional): How many targets share a backward pass; chosen by size unless
            given.

    Returns:
        list of Propagated: One for each target; they share the scope.

    Raises:
        Exception: As :func:`propagate`.
    """
    ledger = Ledger(named_tensors(job.modules)) if job.keep_ledger else None
    trace = list(job.modules) if job.trace or job.keep_ledger else []
    scope = Scope(job.base, job.assigned, trace, ledger)
    probe = None
    if job.layers is not None:
        probe = LayerProbe(job.layers, job.at_layer_input, job.modules)
    names = TableNames(job.modules)

    def name_of(table: Tensor) -> str:
        # nobody asks for the names of parts in a pass that records no modules
        return names.of(table, scope.running()) if trace else "embedding"

    isolation = isolated(job.modules)
    with suspended(), isolation, torch.inference_mode(False), torch.enable_grad():
        args, kwargs = inputs.call_arguments()
        additional = [fresh(a) for a in job.additional_args]
        strangers = Strangers(job.modules, job.meet) if job.meet is not None else None
        context = Context(scope, inputs, name_of, isolation, strangers)
        if probe is not None:
            probe.at_first = context.begin_here
        explained = call_explained(job.forward, (*args, *job.additional_args), kwargs)
        with _under_rules(job, context, probe), explained:
            returned = job.forward(*args, *additional, **kwargs)
        _note_what_ran(scope, context, inputs)
        context.forget()
        output = output_tensor(returned)
        refuse_underived(context, [] if output.grad_fn is None else [output.grad_fn])
        targets = [_selected(job, s, output, inputs) for s in select(output)]
        jobs = [
            replace(job, select=functools.partial(_nth, select, i)) for i in range(len(targets))
        ]
        del args, kwargs, returned  # not to be held during the backward pass
        leaves = _leaves(inputs, probe)
        with _failures_explained():
            if settle_by_gradients(context.undecided, targets):
                forget(scope)
        if not job.backward:
            _inspect(job, scope, targets, leaves)
            return [Propagated(selected.detach(), scope) for selected in targets]
        for i, selected in enumerate(targets):
            if not selected.requires_grad:
                _check_reached(jobs[i], inputs, [[None] for _ in leaves], probe)
                targets[i] = _held_constant(selected, leaves, scope)
        _inspect(job, scope, targets, leaves)
        count = pack_size(output, leaves, len(targets)) if per_pass is None else per_pass
        with _failures_explained():
            rows = gradients(output, targets, leaves, count, scope)
            return [
                _collected(one, inputs, probe, scope, selected, row)
                for one, selected, row in zip(jobs, targets, rows, strict=True)
            ]


@contextlib.contextmanager
def _under_rules(job: Pass, context: Context, probe: LayerProbe | None) -> Iterator[None]:
    """What runs in this block is explained: hooks on the modules, and every call of torch seen."""
    opaque = OpaqueLayers(context, candidates(job.modules))
    saving: AbstractContextManager[Any] = nullcontext()
    if job.recompute:
        blocks = repeated_blocks(job.modules)
        saving = Recomputation(
            blocks, context.scope, context.inputs, lambda: _second_run(context, opaque)
        )
    mode = Interception(context)
    with context.scope, probe or nullcontext(), saving, opaque, mode, _failures_explained():
        yield


def _held_constant(selected: Tensor, leaves: list[Tensor], scope: Scope) -> Tensor:
    """A target that nothing but rules cut off from the leaves: no relevance reaches them."""
    scope.holds_everything = True
    connected = selected + sum(0.0 * leaf.sum() for leaf in leaves)
    if scope.ledger is not None:  # values that do not depend on the inputs, weighted
        scope.ledger.absorb(connected, selected, None, "")
    return connected


def _inspect(job: Pass, scope: Scope, targets: list[Tensor], leaves: list[Tensor]) -> None:
    if job.inspect is not None:
        roots = [selected.grad_fn for selected in targets]
        job.inspect(scope, [root for root in roots if root is not None], leaves)


def _note_what_ran(scope: Scope, context: Context, inputs: Inputs) -> None:
    """Fill :attr:`Scope.ran`: the calls of torch, and what they do not show."""
    acted: dict[tuple[str, str], int] = {}
    for (_, kind, rule), count in scope.applied.items():
        acted[kind.value, rule] = acted.get((kind.value, rule), 0) + count
    nodes = next_sequence_number() - inputs.first_node
    cut = tuple(name for name, *_ in scope.cut)
    scope.ran = hash((context.ran, nodes, frozenset(acted.items()), cut))


@contextlib.contextmanager
def _second_run(context: Context, opaque: OpaqueLayers) -> Iterator[None]:
    """The rules for a second run of a part of the model; nothing of it is kept afterwards."""
    again = context.again()
    try:
        with opaque.again(again), Interception(again):
            yield
    finally:
        again.forget()


def _nth(select: Callable[[Tensor], Sequence[Tensor]], index: int, output: Tensor) -> Tensor:
    return select(output)[index]


def _collected(
    job: Pass,
    inputs: Inputs,
    probe: LayerProbe | None,
    scope: Scope,
    selected: Tensor,
    grads: Gradients,
) -> Propagated:
    """Relevance from the gradients of one target."""
    result = Propagated(selected.detach(), scope)
    groups = _grouped(grads, inputs, probe)
    _check_reached(job, inputs, groups, probe)
    if probe is not None:
        _collect_layers(result, probe, groups)
        return result
    for leaf, group in zip(inputs.leaves, groups, strict=True):
        parts = inputs.parts(leaf, group, scope.gives_to_zero_inputs)
        if scope.ledger is not None and leaf.is_ids:
            _book_lookups(leaf, group, scope)
        by_table: dict[str, Tensor] = {}
        for name, part in parts:
            by_table[name] = by_table[name] + part if name in by_table else part
        result.parts.append(by_table)
        total = parts[0][1] if len(parts) == 1 else torch.stack([p for _, p in parts]).sum(0)
        if job.check_finite and not bool(torch.isfinite(total).all()):
            raise NonFiniteError(
                "The relevance contains NaN or infinity although inputs and outputs are finite. "
                + diagnosis.of_relevance(_boundaries(job, inputs))
                + " Raise epsilon or give the module another rule."
            )
        result.relevances.append(total)
    return result


@contextlib.contextmanager
def _failures_explained() -> Iterator[None]:
    """Say what to do about models that torch cannot differentiate."""
    try:
        yield
    except Exception as error:
        told = None if isinstance(error, CaptumLRPError) else explained_failure(error)
        if told is None:
            raise
        raise told from error


def _book_lookups(leaf: Leaf, grads: list[Tensor | None], scope: Scope) -> None:
    """Relevance of token lookups leaves the modules that made them, as if through an input."""
    for lookup, grad in zip(leaf.lookups, grads, strict=True):
        if grad is None:
            continue
        relevance = relevance_sum(lookup.leaf, grad)
        for boundary in scope.boundaries:
            if encloses(boundary.module, lookup.module):
                boundary.enter(relevance)


def _grouped(
    grads: list[Tensor | None], inputs: Inputs, probe: LayerProbe | None
) -> list[list[Tensor | None]]:
    """Gradients by input, or by layer."""
    sizes = (
        [sum(map(len, calls)) for calls in probe.captured()]
        if probe is not None
        else [len(leaf.tensors()) for leaf in inputs.leaves]
    )
    remaining = iter(grads)
    return [list(itertools.islice(remaining, size)) for size in sizes]


def _wanted(output: Tensor) -> str:
    """What a target for this output looks like."""
    if output.dim() < 3:
        return "Pass target=, e.g. target=output.argmax(-1)."
    indices = "(position, token)" if output.dim() == 3 else f"a tuple of {output.dim() - 1} indices"
    return (
        f"Pass target={indices}, e.g. target={(*(-1,) * (output.dim() - 2), 0)}, or a list with "
        "one such tuple for each example."
    )


def _selected(job: Pass, selected: Tensor, output: Tensor, inputs: Inputs) -> Tensor:
    """The values of a target, if there is one for each example and all are finite."""
    per_example = selected[0] if selected.dim() > 0 and selected.shape[0] > 0 else selected
    if per_example.numel() != 1:
        raise TargetError(
            f"Target not provided when necessary: the output has shape {tuple(output.shape)} and "
            f"{per_example.numel()} values per example are left to explain. {_wanted(output)}"
        )
    if job.check_finite and not bool(torch.isfinite(selected).all()):
        args, kwargs = inputs.again().call_arguments()
        more = map(fresh, job.additional_args)
        raise NonFiniteError(
            "The explained output is NaN or infinite. "
            + diagnosis.of_output(job.modules, lambda: job.forward(*args, *more, **kwargs))
        )
    return selected


def _leaves(inputs: Inputs, probe: LayerProbe | None) -> list[Tensor]:
    if probe is not None:
        return probe.tensors()
    inputs.check_lookups()
    return [t for leaf in inputs.leaves for t in leaf.tensors()]


def _check_reached(
    job: Pass, inputs: Inputs, groups: list[list[Tensor | None]], probe: LayerProbe | None
) -> None:
    """Complain about inputs or layers that the output does not depend on.

    A rule may have cut an input off on purpose (queries under the AH-rule): its relevance is zero.
    Whether that is so shows in the plain gradient.
    """
    missing = [i for i, group in enumerate(groups) if all(g is None for g in group)]
    if not missing or job.zeros_if_unreached:
        return
    if job.base or job.assigned:
        plain = replace(
            job, base={}, assigned=(), inspect=None, check_finite=False, keep_ledger=False
        )
        propagate(plain, inputs.again())  # raises the error below if the plain gradient has none
        return
    if len(missing) == len(groups) or probe is not None:
        what = "any of the layers" if probe is not None else "the inputs"
        raise UnreachedInputError(
            f"The output does not depend on {what}. Was it computed under torch.no_grad(), "
            "detached, or by another module?"
        )
    raise UnreachedInputError(
        f"The output does not depend on input number {missing[0]}; pass it in "
        "additional_forward_args if it needs no relevance."
    )


def _collect_layers(
    result: Propagated, probe: LayerProbe, groups: list[list[Tensor | None]]
) -> None:
    result.left_out = probe.left_out
    for calls, group in zip(probe.captured(), groups, strict=True):
        given = iter(group)
        grads = [[next(given) for _ in call] for call in calls]
        result.layer_values.append([tuple(t.detach() for t in call) for call in calls])
        result.layer_gradients.append(
            [
                tuple(torch.zeros_like(t) if g is None else g for t, g in zip(call, row))
                for call, row in zip(calls, grads)
            ]
        )


def _boundaries(job: Pass, inputs: Inputs) -> list[Boundary]:
    """The same pass once more, with the relevance at every module's boundary."""
    again = replace(job, keep_ledger=True, check_finite=False, inspect=None)
    return propagate(again, inputs.again()).scope.boundaries
