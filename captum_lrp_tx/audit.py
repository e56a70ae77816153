"""What can be trusted: which rule acted where, what no rule covers, where relevance is lost.

Example::

    >>> from captum_lrp_tx import audit
    >>> report = audit.explainability(model, inputs, target=1)  # prints
    >>> report.is_covered, report.conservation_error
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, TextIO

from torch import Tensor

from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    TargetType,
)
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.strictness import Strict, check_strict, refuse_conventions
from captum_lrp_tx.errors import UncoveredOperationError
from captum_lrp_tx.propagation.engine import propagate
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.judging.coverage import Finding, uncovered
from captum_lrp_tx.propagation.state.scope import Scope
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

__all__ = ["AppliedRule", "Finding", "Found", "LayerConservation", "Report", "explainability"]


@dataclass(frozen=True)
class AppliedRule:
    """A rule that acted in a module, and on how many operations."""

    module: str
    kind: str
    rule: str
    operations: int


@dataclass(frozen=True)
class Found:
    """What was recognised in a module by what it computes, and how often.

    ``what`` ends in ``(convention)`` where its rule is in none of the papers.
    """

    module: str
    what: str
    operations: int


@dataclass(frozen=True)
class LayerConservation:
    """Relevance at the boundary of one module call, in units of the explained output.

    Attributes:
        module (str): Name of the module.
        at_output (float): Relevance that arrives at its outputs.
        at_input (float): Relevance that leaves through its inputs.
        absorbed (float): Relevance that additive constants inside it absorb.
    """

    module: str
    at_output: float
    at_input: float
    absorbed: float

    @property
    def error(self) -> float:
        """Relevance lost (positive) or made up (negative) inside the module."""
        return self.at_output - self.at_input - self.absorbed


@dataclass(frozen=True)
class Report:
    """Result of :func:`explainability`; ``str(report)`` is the printed text.

    Attributes:
        rules (str): The rule set.
        applied (tuple of AppliedRule): Which rule each module got.
        findings (tuple of Finding): Non-linear operations that no rule covers.
        output (float): Explained output, summed over the batch.
        relevance (float): Relevance of the inputs, summed over the batch and all inputs.
        absorbed (dict of str to float): Relevance taken by biases and other additive constants, by
            name, the largest first.
        found (tuple of Found): What was recognised, so that over-recognition can be seen.
        layers (tuple of LayerConservation): The modules with tensors in and out that depend on the
            inputs, in the order in which they finished.
        written (tuple of str): Modules that ``layers`` says nothing of, because the model writes
            into what they take or give in place, and torch then tells no gradient at it.
    """

    rules: str
    output: float
    relevance: float
    applied: tuple[AppliedRule, ...] = ()
    findings: tuple[Finding, ...] = ()
    absorbed: dict[str, float] = field(default_factory=dict)
    layers: tuple[LayerConservation, ...] = ()
    written: tuple[str, ...] = ()
    found: tuple[Found, ...] = ()

    @property
    def is_covered(self) -> bool:
        """Whether the rule set covers all that it promises to cover."""
        return not any(f.is_fault for f in self.findings)

    @property
    def conservation_error(self) -> float:
        """Output minus input relevance minus absorbed relevance: zero for conserving rules."""
        return self.output - self.relevance - sum(self.absorbed.values())

    def _repr_html_(self) -> str:
        return f'<pre style="line-height:1.35">{escape(str(self))}</pre>'

    def __str__(self) -> str:
        lines = [f"Rules: {self.rules}", "", "Rules applied"]
        by_rule = _by_rule(self.applied)
        width = max([40, *(len(rule) for _, rule in by_rule)])
        for (kind, rule), modules in by_rule.items():
            lines.append(f"  {kind:<10} {rule:<{width}} {_shown(modules)}")
        if not self.applied:
            lines.append("  none: plain gradient x input")
        lines += ["", "Recognised"]
        for (what, _), modules in _by_rule(self.found).items():
            lines.append(f"  {what:<{width + 11}} {_shown(modules)}")
        if not self.found:
            lines.append("  nothing but linear maps and single functions")
        lines += ["", "Not covered by a rule"]
        for finding in self.findings:
            lines.append(f"  {'!' if finding.is_fault else '-'} {finding}")
        if not self.findings:
            lines.append("  nothing")
        lines += [
            "",
            "Conservation (in units of the explained output, summed over the batch)",
            f"  output                 {self.output:+.6f}",
            f"  relevance of inputs    {self.relevance:+.6f}",
            f"  absorbed by constants  {sum(self.absorbed.values()):+.6f}",
            f"  unaccounted for        {self.conservation_error:+.2e}",
        ]
        for name, value in list(self.absorbed.items())[:8]:
            lines.append(f"    {value:+.6f}  {name}")
        if len(self.absorbed) > 8:
            rest = sum(list(self.absorbed.values())[8:])
            lines.append(f"    {rest:+.6f}  {len(self.absorbed) - 8} other constants")
        scale = max(abs(self.output), 1e-12)
        lossy = [layer for layer in self.layers if abs(layer.error) > 1e-4 * scale]
        lossy.sort(key=lambda layer: -abs(layer.error))
        lines += ["", f"By layer: {len(self.layers) - len(lossy)} of {len(self.layers)} modules "
                  "conserve relevance to 1e-4 of the output"]  # fmt: skip
        if lossy:
            lines.append("    at output     at input     absorbed      error  module")
        for layer in lossy[:12]:
            lines.append(
                f"{layer.at_output:+13.5f}{layer.at_input:+13.5f}{layer.absorbed:+13.5f}"
                f"{layer.error:+11.2e}  {layer.module or '(model)'}"
            )
        if len(lossy) > 12:
            lines.append(f"    ... and {len(lossy) - 12} more in report.layers")
        if self.written:
            lines.append(
                f"{len(self.written)} more cannot be told: the model writes into what they take or "
                f"give in place ({_shown([name or '(model)' for name in self.written])}); with "
                "y = y + x in place of y += x they can"
            )
        return "\n".join(lines)


def _by_rule(items: tuple[AppliedRule | Found, ...]) -> dict[tuple[str, str], list[str]]:
    """Modules by kind and rule, or by what was recognised."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in items:
        key = (item.what, "") if isinstance(item, Found) else (item.kind, item.rule)
        grouped.setdefault(key, []).append(item.module or "(model)")
    return grouped


def _shown(modules: list[str]) -> str:
    return ", ".join(modules[:3]) + (f" ... ({len(modules)} modules)" * (len(modules) > 3))


def explainability(
    model: Callable[..., Any],
    inputs: AttributionInputs,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    rules: str | Composite = "lrp",
    bias: Bias = "absorb",
    strict: Strict = False,
    file: TextIO | Literal["stdout"] | None = "stdout",
) -> Report:
    """Explain one input and say how far the explanation can be trusted.

    Runs one explained pass and reports which rule each module got, which non-linear operations on
    the path to the inputs no rule covers (by module name), how much relevance biases, class tokens,
    position tables and other additive constants absorb (by name), and the conservation error of
    every module.

    Args:
        model, inputs, target, additional_forward_args: See
            :meth:`captum_lrp_tx.ConservativeLRP.attribute`. If the model has several outputs and
            ``target`` is None, the largest output of each example is explained.
        rules, bias: See :class:`captum_lrp_tx.ConservativeLRP`.
        strict (bool or "papers"): Raise if the rule set leaves an operation uncovered that it
            should cover; with ``"papers"`` also for conventions that are in none of the papers.
        file (text stream, optional): Where to print, standard output unless given; ``None`` prints
            nothing.

    Returns:
        Report: everything that is printed, as data.

    Raises:
        UncoveredOperationError: with ``strict=True``; otherwise as ``attribute``.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> report = explainability(model, tokenizer("great fun", return_tensors="pt"), target=1)
        >>> report.is_covered
        True
    """
    check_strict(strict)
    explainer = ConservativeLRP(model, rules, bias=bias)
    prepared = inputs_of(inputs)
    findings: list[Finding] = []

    def inspect(scope: Scope, roots: list[Node], leaves: list[Tensor]) -> None:
        findings.extend(uncovered(scope, roots, leaves, explainer.composite.base))

    job = explainer._pass(model, target, additional_forward_args, keep_ledger=True, inspect=inspect)
    if target is None:
        select = job.select

        def largest(output: Tensor) -> Tensor:
            if output.dim() == 2 and output.shape[1] > 1:
                return output.max(1).values
            return select(output)

        job.select = largest
    with told_misfits(model, inputs, job.additional_args):
        result = propagate(job, prepared)
    ledger = result.scope.ledger
    assert ledger is not None
    report = Report(
        rules=repr(explainer.composite),
        output=float(result.output.double().sum()),
        relevance=sum(float(r.double().sum()) for r in result.relevances),
        applied=tuple(
            AppliedRule(module, kind.value, rule, count)
            for (module, kind, rule), count in result.scope.applied.items()
        ),
        findings=tuple(findings),
        found=tuple(
            Found(module, what, count) for (module, what), count in result.scope.found.items()
        ),
        absorbed=ledger.by_name(),
        layers=tuple(
            LayerConservation(b.module, b.at_output, b.at_input, ledger.inside(b.module))
            for b in result.scope.boundaries
            if (b.at_output or b.at_input) and not b.written
        ),
        written=tuple(dict.fromkeys(b.module for b in result.scope.boundaries if b.written)),
    )
    if file is not None:  # standard output as it is now, not as it was when this was imported
        print(report, file=sys.stdout if file == "stdout" else file)
    if strict == "papers":
        refuse_conventions(result.scope)
    faults = tuple(str(f) for f in report.findings if f.is_fault)
    if strict and faults:
        raise UncoveredOperationError(
            f"No rule of {report.rules} covers: {'; '.join(faults)}.", faults
        )
    return report
