"""What all conservative classes share: composing rules, running a pass, warning once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Union

import torch
from captum._utils.common import _format_additional_forward_args
from captum._utils.gradient import compute_gradients
from torch import Tensor, nn

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.captum_rules import assigned_rules
from captum_lrp_tx.attr.class_names import by_number
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.padding import warn_of_padding
from captum_lrp_tx.attr.strictness import Strict as Strict
from captum_lrp_tx.attr.strictness import check_strict, refuse_conventions
from captum_lrp_tx.attr.target_lists import TargetsType as TargetsType
from captum_lrp_tx.attr.target_lists import select_targets
from captum_lrp_tx.attr.targets import Target
from captum_lrp_tx.attr.targets import TargetType as TargetType
from captum_lrp_tx.attr.targets import select_target as select_target
from captum_lrp_tx.attr.told import TOLD, Subject, tell_once
from captum_lrp_tx.errors import (
    HiddenSinksWarning,
    InputError,
    NoRuleAppliedWarning,
    RepeatedLayerWarning,
    RuleError,
    TrainingModeWarning,
    UncoveredOperationError,
    UncoveredOperationWarning,
    UnstableRelevanceWarning,
)
from captum_lrp_tx.propagation.engine import Pass, Propagated, propagate_targets
from captum_lrp_tx.propagation.graph import Node, node_name, parents
from captum_lrp_tx.propagation.judging.coverage import Finding, uncovered
from captum_lrp_tx.propagation.model.modules import find_modules, refuse_opaque
from captum_lrp_tx.propagation.recognition.axes import moved
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias, check_bias

TensorOrTuple = Union[Tensor, tuple[Tensor, ...]]
AttributionInputs = Union[Tensor, tuple[Tensor, ...], Mapping[str, Any]]
Positions = Literal["sum", "separate"]
Memory = Literal["standard", "low"]

#: What else to try against unstable relevance, by what is set.
_OTHER_BIAS = {
    "ignore": ", or use bias='absorb' or 'distribute'",
    "distribute": ", or use bias='absorb'",
}
#: Sum of |relevance| over |output| from which on an explanation is called unstable.
_UNSTABLE = 1e5


class Conservative(CaptumMethod):
    """Rules, one propagation pass and its checks; the base of the four attribution classes."""

    _gives_delta = True
    _honours_module_rules = False
    _memory: Memory = "standard"

    def _set_memory(self, memory: Memory) -> None:
        if memory not in ("standard", "low"):
            raise InputError(f"memory must be 'standard' or 'low', not {memory!r}.")
        self._memory = memory

    def _set_rules(
        self, rules: str | Composite, bias: Bias | None = None, epsilon: float | None = None
    ) -> None:
        if not isinstance(rules, (str, Composite)):
            hint = (
                "relevance at a layer is LayerConservativeLRP(model, layer)"
                if isinstance(rules, nn.Module)
                else "write Composite({nn.Linear: GammaRule()}, base='lrp')"
            )
            raise RuleError(
                f"rules must be a preset name or a Composite, not {type(rules).__name__}; {hint}."
            )
        composite = Composite(base=rules)
        if epsilon is not None:
            composite = composite.with_epsilon(epsilon)
        if bias is not None:
            check_bias(bias)
            composite = composite.with_bias(bias)
        self.composite = composite
        self._bias = bias

    def compute_convergence_delta(
        self, attributions: Tensor | tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """Explained output minus the sum of relevance, for each example.

        With a preset that conserves relevance this is what biases and other additive constants
        have absorbed; :func:`captum_lrp_tx.audit.explainability` names them.

        Where outputs and inputs have different numbers of rows (one output pooled from a batch or
        a graph, pixel patches beside token ids) no row belongs to one output: the delta is then
        one number, the sum of all outputs minus the sum of all relevance.

        Args:
            attributions (Tensor or tuple of Tensor): As :meth:`attribute` returned them.
            output (Tensor): The explained output, one value for each example.

        Returns:
            Tensor: shape ``(batch,)``, or ``(1,)`` if the numbers of rows differ.

        Raises:
            InputError: ``output`` has several values for each example.
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        if output.dim() > 1 and output[:1].numel() > 1:
            raise InputError(
                f"The output of shape {tuple(output.shape)} has several values for each example; "
                "pass those that were explained, e.g. model(inputs)[:, target]."
            )
        return left_out(output, parts)

    # ---- one pass -----------------------------------------------------------------------------
    def _pass(
        self,
        forward: Callable[..., Any],
        target: TargetType,
        additional_forward_args: Any,
        **more: Any,
    ) -> Pass:
        modules = find_modules(forward)
        refuse_opaque(modules, forward)
        target = by_number(target, modules)
        composite = self.composite
        if self._honours_module_rules:
            own = assigned_rules(modules)
            if self._bias is not None:
                own = [(m, {k: (p, r.with_bias(self._bias)) for k, (p, r) in t.items()})
                       for m, t in own]  # fmt: skip
        else:
            own = []
        owner = getattr(forward, "__self__", None)
        if any(module is owner for module, _ in own):
            raise RuleError(
                f"{type(owner).__name__} has a rule, which holds while the module is called; pass "
                "the module itself, not its method."
            )
        if not composite.is_preset and not modules:
            raise RuleError(
                "The composite has entries for modules, but no module was found behind the forward "
                "function; pass the model itself."
            )
        additional = _format_additional_forward_args(additional_forward_args)
        return Pass(
            forward=forward,
            modules=modules,
            base=composite.base_table(),
            assigned=[*composite.assign(modules), *own],
            select=lambda output: select_target(output, target),
            additional_args=() if additional is None else additional,
            recompute=self._memory == "low",
            meet=self._meet if self._honours_module_rules or not composite.is_preset else None,
            **more,
        )

    def _meet(self, module: nn.Module) -> None:
        """Refuse a module that would need a rule but was not found in time to get it."""
        named = list(module.named_modules())
        refuse_opaque(named)
        if (self._honours_module_rules and assigned_rules(named)) or (
            self.composite.matches_any(named)
        ):
            raise RuleError(
                f"A rule is set for {type(module).__name__} (or a part of it), but the forward "
                "function reaches this module in a way that cannot be followed, so the rule would "
                "have no effect. Pass the model itself, or a function with the module in its "
                "closure, its arguments or an attribute that nn.Module registers."
            )

    def _refuse_gradient_func(self) -> None:
        """Complain about Captum's way to exchange what computes gradients."""
        if getattr(self, "gradient_func", compute_gradients) is not compute_gradients:
            raise InputError(
                f"gradient_func of {type(self).__name__} was set, and would have no effect: "
                "relevance is computed by rules. Leave it as it is. For a neuron, explain a "
                "function that returns its layer's output, with the neuron as target."
            )

    def _propagate(
        self,
        forward: Callable[..., Any],
        inputs: AttributionInputs,
        target: TargetType,
        additional_forward_args: Any,
        strict: Strict,
        **more: Any,
    ) -> tuple[Propagated, Inputs]:
        (result,), prepared = self._propagate_targets(
            forward, inputs, [target], additional_forward_args, strict, **more
        )
        return result, prepared

    def _propagate_targets(
        self,
        forward: Callable[..., Any],
        inputs: AttributionInputs,
        targets: TargetsType,
        additional_forward_args: Any,
        strict: Strict,
        per_pass: int | None = None,
        **more: Any,
    ) -> tuple[list[Propagated], Inputs]:
        """One forward pass, and relevance of each target."""
        check_strict(strict)
        self._refuse_gradient_func()
        prepared = inputs_of(inputs)
        job = self._pass(forward, None, additional_forward_args, **more)
        if isinstance(targets, Sequence) and not isinstance(targets, str):
            targets = [by_number(target, job.modules) for target in targets]
        subject = Subject(forward, job.modules)
        layers = tuple(id(layer) for layer in job.layers or ())
        given = targets if isinstance(targets, Sequence) else ()
        kinds = tuple(type(t) for t in given if isinstance(t, Target))
        checked = ("checked", repr(self.composite), layers, job.at_layer_input, kinds)
        # names of modules cost hooks on all of them: the first time, they may be needed
        named = job.trace = job.trace or bool(strict) or not TOLD.knows(subject, checked)
        findings: list[Finding] = []

        def inspect(scope: Scope, roots: list[Node], leaves: list[Tensor]) -> None:
            ran = (*checked, scope.ran)
            if not strict and TOLD.knows(subject, ran):
                return
            if type(forward).__module__.startswith("captum."):
                roots = [_before_log_softmax(root) for root in roots]
            findings.extend(uncovered(scope, roots, leaves, self.composite.base))
            faults = [str(f) for f in findings if f.is_fault]
            if strict == "papers":
                refuse_conventions(scope)
            if strict:
                self._refuse(faults, nothing=not layers and not scope.applied)
            if named or not faults:  # not job.trace: the job would lead to itself
                TOLD.first_time(subject, checked)
                TOLD.first_time(subject, ran)

        selected: list[Tensor] = []

        def select(output: Tensor) -> list[Tensor]:
            selected[:] = select_targets(output, targets)
            warn_of_padding(forward, inputs, additional_forward_args, output, given)
            return list(selected)

        def inspect_and_go_on(scope: Scope, roots: list[Node], leaves: list[Tensor]) -> None:
            inspect(scope, roots, leaves)
            self._before_backward(scope, selected, leaves)
            selected.clear()

        job.inspect = inspect_and_go_on
        with told_misfits(forward, inputs, job.additional_args):
            results = propagate_targets(job, prepared, select, per_pass)
        scope = results[0].scope
        if strict and scope.hides_sinks:  # only the backward pass knows whether it was reached
            raise UncoveredOperationError(self._hidden_sinks("refused under strict"))
        if not job.trace and any(f.is_fault for f in findings):
            # the function went another way than before: once more, to name the modules
            findings.clear()
            named = job.trace = True
            with torch.random.fork_rng(enabled=bool(scope.random)):
                propagate_targets(replace(job, backward=False), prepared.again(), select)
        self._warn(subject, scope, findings, "the layers" if layers else "the inputs")
        _warn_of_calls(subject, results[0])
        for result in results:
            self._warn_if_unstable(subject, result)
        return results, prepared

    def _before_backward(self, scope: Scope, targets: list[Tensor], leaves: list[Tensor]) -> None:
        """Look at the graph of a forward pass while it is alive, and what is to be explained."""

    def _refuse(self, faults: list[str], nothing: bool) -> None:
        """What ``strict`` refuses: operations without a rule, or inputs that no rule acts on."""
        if faults:
            raise UncoveredOperationError(
                f"No rule of {self.composite!r} covers: {'; '.join(faults)}. Give these modules a "
                "rule in a Composite, choose another preset, or pass strict=False to accept their "
                "plain gradient.",
                tuple(faults),
            )
        if nothing and self.composite.base:
            raise UncoveredOperationError(
                f"{self._nothing_matched('the inputs')} If that is what you want, choose the "
                "preset gi; if a part should have matched, captum_lrp_tx.audit.explainability("
                "model, inputs) lists what was recognised."
            )

    def _warn_if_unstable(self, subject: Subject, result: Propagated) -> None:
        """Divisions by almost zero show as relevance far beyond the output it came from."""
        output = float(result.output.abs().sum())
        relevance = sum(float(r.abs().sum()) for r in result.relevances)
        if output > 0 and relevance > _UNSTABLE * output:
            tell_once(
                subject,
                f"unstable {self.composite!r}",
                f"The magnitudes of the relevance under {self.composite!r} sum to {relevance:.1e} "
                f"for an output of {output:.1e}: some rule divides by values close to zero. Raise "
                f"epsilon{'' if self._bias != 'ignore' else ' (to 0.1 or 0.3)'}"
                f"{_OTHER_BIAS.get(self._bias or 'absorb', '')}.",
                UnstableRelevanceWarning,
            )

    def _warn(self, subject: Subject, scope: Scope, findings: list[Finding], start: str) -> None:
        rule_set = repr(self.composite)
        faults = [str(f) for f in findings if f.is_fault]
        if faults:
            tell_once(
                subject,
                f"uncovered {rule_set} {faults}",
                f"{len(faults)} operation(s) on the path to {start} have no rule in "
                f"{self.composite!r} and are left to the plain gradient, so relevance is not "
                f"conserved there: {'; '.join(faults[:5])}{' ...' if len(faults) > 5 else ''}. "
                "See captum_lrp_tx.audit.explainability(model, inputs).",
                UncoveredOperationWarning,
            )
        if self.composite.base and not scope.applied:
            tell_once(
                subject,
                f"nothing {rule_set} {start}",
                self._nothing_matched(start),
                NoRuleAppliedWarning,
            )
        if scope.hides_sinks:
            told = self._hidden_sinks("they keep their relevance")
            tell_once(subject, f"hidden sinks {rule_set}", told, HiddenSinksWarning)
        if scope.mixes_examples:
            tell_once(
                subject,
                "mixes examples",
                "A batch norm without running statistics takes batch statistics, so outputs and "
                "relevance of one example depend on the others. Explain examples one at a time "
                "where that is not meant.",
                TrainingModeWarning,
            )
        if scope.random:
            tell_once(
                subject,
                "random",
                f"Active in this pass: {', '.join(sorted(scope.random))}. The explanation is "
                "random; call model.eval() first (and torch.manual_seed() if the model draws "
                "numbers even then).",
                TrainingModeWarning,
            )

    def _hidden_sinks(self, consequence: str) -> str:
        return (
            "Causal attention runs in parts (a query, a block of queries or a key at a time, "
            "on a cache of earlier tokens) or in one product with more than values, where "
            f"{self.composite!r} cannot tell attention sinks: {consequence}. Explain a whole text "
            "without a cache, with attention that is fused or a product of pattern and values "
            "(attn_implementation='sdpa' or 'eager'), or choose lrp or attnlrp, without sinks."
        )

    def _nothing_matched(self, start: str) -> str:
        kinds = ", ".join(sorted(kind.value for kind in self.composite.base))
        return (
            f"No operation between {start} and the output matched a rule of {self.composite!r} "
            f"(kinds: {kinds}); the result equals plain gradient x input."
        )


def _warn_of_calls(subject: Subject, result: Propagated) -> None:
    for name, counting, calls in result.left_out:
        tell_once(
            subject,
            f"repeated {name}",
            f"The layer {name} runs {calls} times in one pass, on its own results. Relevance is "
            f"given for the last call, as in Captum ({counting} of {calls} calls count); calls "
            "that do not build on each other would be added up.",
            RepeatedLayerWarning,
        )


def _before_log_softmax(root: Node) -> Node:
    """Where the logits come from that Captum's ``LLMGradientAttribution`` turns into a target.

    The log-softmax is part of the question there, not of the model.
    """
    node = moved(root)
    before = parents(node) if node_name(node) == "LogSoftmax" else []
    return before[0] if before else root


def left_out(output: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Output minus the sum of relevance: by row where all have as many, else one number.

    Args:
        output (Tensor): The explained output, one value for each example.
        parts (sequence of Tensor): Relevance of each input, examples in the first dimension.

    Returns:
        Tensor: shape ``(batch,)`` or ``(1,)``.
    """
    values = output.flatten()
    if any(part.shape[:1] != values.shape for part in parts):
        return values.sum(0, keepdim=True) - sum(part.sum() for part in parts)
    return values - sum(part.reshape(len(values), -1).sum(1) for part in parts)


def formatted(values: list[Tensor], as_tuple: bool) -> TensorOrTuple:
    """A tuple if the inputs were one, or if there are several; else the only tensor."""
    return tuple(values) if as_tuple or len(values) != 1 else values[0]


def stacked(rows: list[list[Tensor]], as_tuple: bool) -> TensorOrTuple:
    """:func:`formatted`, with one row for each target in a first dimension."""
    return formatted([torch.stack(column) for column in zip(*rows, strict=True)], as_tuple)


def check_per_pass(per_pass: int | None) -> None:
    """Complain about a number of targets that cannot share a backward pass.

    Raises:
        InputError: it is no positive integer.
    """
    if per_pass is not None and (not isinstance(per_pass, int) or per_pass < 1):
        raise InputError(f"targets_per_pass must be a positive integer, not {per_pass!r}.")


def single_parts(result: Propagated, prepared: Inputs) -> dict[str, Tensor]:
    """``positions="separate"``: the parts of the only token-id input.

    Raises:
        InputError: the inputs are not token ids.
    """
    if len(prepared.leaves) != 1 or not prepared.leaves[0].is_ids:
        raise InputError(
            "positions='separate' needs token ids as the only input; float inputs have one part."
        )
    return result.parts[0]


def forward_of(attribution: Any) -> Callable[..., Any]:
    """The forward function at call time (Captum's LLM attribution swaps it on a copy)."""
    forward: Callable[..., Any] = attribution.forward_func
    if not callable(forward) or isinstance(forward, type):
        kind = f"the class {forward.__name__}" if callable(forward) else type(forward).__name__
        raise InputError(f"The model must be an nn.Module or a callable, not {kind}.")
    return forward
