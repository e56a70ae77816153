"""Captum's convention of setting ``module.rule``: its rules translated into ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum.attr._utils import lrp_rules as captum_rules
from torch import nn

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.propagation.state.scope import Scope
from captum_lrp_tx.rules.linear import EpsilonRule, GammaRule, PositiveWeightRule
from captum_lrp_tx.rules.rule import Bias, PassRule, Rule

Table = dict[Kind, tuple[float, Rule]]


def translate(rule: Any, module_name: str = "") -> Rule | None:
    """The rule of this package that does what a Captum ``PropagationRule`` does.

    Args:
        rule: A rule of ``captum.attr._utils.lrp_rules``, one of this package, or ``None``.
        module_name (str): For the message of the error.

    Raises:
        RuleError: neither, or a Captum rule of the user's own, whose in-place weight changes have
            no equivalent here.
    """
    if rule is None or isinstance(rule, Rule):
        return rule
    if isinstance(rule, captum_rules.IdentityRule):
        return PassRule()
    bias: Bias | None = "ignore" if getattr(rule, "set_bias_to_zero", False) else None
    kind = type(rule)
    if kind is captum_rules.EpsilonRule:
        return EpsilonRule(float(rule.STABILITY_FACTOR))
    if kind is captum_rules.GammaRule:
        return GammaRule(gamma=float(rule.gamma), bias=bias)
    if kind is captum_rules.Alpha1_Beta0_Rule:
        return PositiveWeightRule(bias=bias)
    hint = (
        "subclass captum_lrp_tx.rules.LinearRule instead"
        if isinstance(rule, captum_rules.PropagationRule)
        else "use one of captum_lrp_tx.rules or of Captum's PropagationRule classes"
    )
    raise RuleError(
        f"Module {module_name!r} has rule={rule!r}, which is not a rule that can be used here; "
        f"{hint}."
    )


def assigned_rules(modules: Sequence[tuple[str, nn.Module]]) -> list[tuple[nn.Module, Table]]:
    """Rule tables from ``module.rule`` attributes; inner modules come before outer ones.

    Raises:
        RuleError: see :func:`translate`.
    """
    tables: list[tuple[nn.Module, Table]] = []
    for name, module in modules:
        if "rule" not in module.__dict__:
            continue
        rule = translate(module.__dict__["rule"], name)
        if rule is not None:
            # below every entry of a composite; the deeper the module, the stronger
            priority = -1.0 - name.count(".")
            tables.append((module, dict.fromkeys(rule.kinds, (priority, rule))))
    return tables


def print_applied(scope: Scope) -> None:
    """What Captum's ``LRP`` prints under ``verbose``: which rule acted where."""
    for module, kind, rule in scope.applied:
        print(f"Applied {rule} ({kind.value}) on layer {module or 'the forward function'}")
