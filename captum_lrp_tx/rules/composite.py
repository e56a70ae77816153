"""Which rule acts where: presets, and overrides by module type, name or predicate."""

from __future__ import annotations

import fnmatch
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Union, cast

from torch import nn

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.operations import Kind, PropagationRule
from captum_lrp_tx.rules.activation import PassActivationRule
from captum_lrp_tx.rules.attention import AHRule, UniformAttentionRule
from captum_lrp_tx.rules.depth import ByDepthRule, Depths, at_depth
from captum_lrp_tx.rules.gating import GateRule, UniformRule
from captum_lrp_tx.rules.linear import EpsilonRule, GeneralizedGammaRule, LinearRule
from captum_lrp_tx.rules.normalization import LNRule
from captum_lrp_tx.rules.rule import Bias, GradientRule, Rule
from captum_lrp_tx.rules.shared_activation import SharedActivationRule
from captum_lrp_tx.rules.sink import SinkRule
from captum_lrp_tx.rules.state_space import StateSpaceRule

Predicate = Callable[[str, nn.Module], bool]
Key = Union[str, "re.Pattern[str]", type[nn.Module], nn.Module, Predicate]
Value = Union[Rule, Sequence[Rule], None]
Entries = Union[Mapping[Key, Value], Iterable[tuple[Key, Value]]]
Table = dict[Kind, tuple[float, Union[PropagationRule, None]]]

#: Priority of what a base says of blocks: behind all entries, and before the base elsewhere.
_LAST = sys.float_info.max


def _whole(attention: Rule, product: Rule, linear: Rule) -> dict[Kind, Rule]:
    """A preset for every kind of operation; all of them agree on norms, activations and scans."""
    return {
        Kind.ATTENTION: attention,
        Kind.NORM: LNRule(),
        Kind.ACTIVATION: PassActivationRule(),
        Kind.PRODUCT: product,
        Kind.SCAN: StateSpaceRule(),
        Kind.LINEAR: linear,
    }


#: Linear maps need no epsilon: a modified gradient multiplies, and divides by no pre-activation.
_LRP_0 = EpsilonRule(0.0)
_LANGUAGE = ByDepthRule(SinkRule(UniformAttentionRule()), SinkRule(AHRule()))
#: The rule of every kind of operation in each preset; a kind that is missing is plain gradient.
PRESETS: dict[str, dict[Kind, Rule]] = {
    "gi": {},
    "ah": {Kind.ATTENTION: AHRule()},
    "ln": {Kind.NORM: LNRule()},
    "ah+ln": {Kind.ATTENTION: AHRule(), Kind.NORM: LNRule()},
    # products differ from "lrp-gated" in gated MLPs only: experiments/language_models
    "lrp": _whole(AHRule(), SharedActivationRule(), _LRP_0),
    "lrp-gated": _whole(AHRule(), GateRule(), _LRP_0),
    # 0.01 was chosen among 0.01 to 0.1 on validation sentences of SST-2 and TweetEval emotion
    "lrp-gamma": _whole(AHRule(), GateRule(), GeneralizedGammaRule(gamma=0.01)),
    "mambalrp": _whole(AHRule(), UniformRule(), _LRP_0),
    "attnlrp": _whole(UniformAttentionRule(), UniformRule(), _LRP_0),
    # best of ten on validation examples of seven data sets: experiments/ali2022/results/search.md
    "attnlrp-gamma": _whole(
        UniformAttentionRule(), UniformRule(), GeneralizedGammaRule(gamma=0.01)
    ),
    # chosen on training items of experiments/language_models
    "language": _whole(_LANGUAGE, SharedActivationRule(), _LRP_0),
    "language-ah": _whole(SinkRule(AHRule()), SharedActivationRule(), _LRP_0),
}


class Composite:
    """An ordered mapping from modules to rules on top of a preset.

    An entry covers the modules that its key matches and everything that runs inside them; it
    governs the kinds of operation that its rule is for.  Of several entries that cover one
    operation the first wins; where none does, the base decides.

    Args:
        rules (mapping, or iterable of pairs): Keys are a module type, a module of the model
            itself, a name pattern (shell wildcards, ``"encoder.layer.*.attention.*"``, or a
            compiled regular expression that must match the whole name), or a predicate
            ``(name, module) -> bool``. Values are a rule, a sequence of rules, or ``None`` for
            the plain gradient.
        base (str or Composite): What holds elsewhere: ``"gi"``, ``"ah"``, ``"ln"``, ``"ah+ln"``,
            ``"lrp"``, ``"lrp-gated"``, ``"lrp-gamma"``, ``"mambalrp"``, ``"attnlrp"``,
            ``"attnlrp-gamma"``, ``"language"``, ``"language-ah"`` or another composite, whose
            entries come after these.

    Raises:
        RuleError: unknown preset, or a key or value of the wrong kind.

    Example::

        >>> from captum_lrp_tx import Composite, ConservativeLRP, rules
        >>> gamma = rules.GeneralizedGammaRule(gamma=0.05)
        >>> composite = Composite(
        ...     {"*.self.value": gamma, "*.attention.output.dense": gamma, "*pooler": None},
        ...     base="lrp",
        ... )
        >>> ConservativeLRP(model, rules=composite)
    """

    def __init__(self, rules: Entries = (), *, base: str | Composite = "gi") -> None:
        pairs = rules.items() if isinstance(rules, Mapping) else rules
        try:
            self._entries = [(_checked_key(k), _checked_value(v)) for k, v in pairs]
        except (TypeError, ValueError) as error:
            if isinstance(error, RuleError):
                raise
            raise RuleError(
                "rules must map module types, name patterns or predicates to rules, e.g. "
                "{nn.Linear: GammaRule()}."
            ) from error
        if isinstance(base, Composite):
            self._entries += base._entries
            self._base: dict[Kind, Rule] = dict(base._base)
            self._base_name: str = base._base_name
        elif isinstance(base, str) and base.lower() in PRESETS:
            self._base = dict(PRESETS[base.lower()])
            self._base_name = base.lower()
        else:
            raise RuleError(f"Unknown preset {base!r}; choose one of {', '.join(PRESETS)}.")

    @property
    def base(self) -> dict[Kind, Rule]:
        """Rule of each kind where no entry matches, outside of blocks if it goes by depth."""
        return {kind: at_depth(rule, None) for kind, rule in self._base.items()}

    @property
    def is_preset(self) -> bool:
        """Whether this is a preset without entries of its own."""
        return not self._entries

    def extend(self, rules: Entries) -> Composite:
        """A new composite whose entries ``rules`` come before those of this one."""
        return Composite(rules, base=self)

    def with_bias(self, bias: Bias) -> Composite:
        """A copy in which rules that leave their bias handling open use this one."""
        return self._with_each(lambda rule: rule.with_bias(bias))

    def absorbing(self) -> Composite:
        """A copy of rules that hand relevance to no other places than it comes from."""
        return self._with_each(lambda rule: rule.absorbing())

    def _with_each(self, change: Callable[[Rule], Rule]) -> Composite:
        copy = Composite(base=self)
        copy._base = {kind: change(rule) for kind, rule in self._base.items()}
        copy._entries = [(key, tuple(map(change, rules))) for key, rules in self._entries]
        return copy

    def with_epsilon(self, epsilon: float) -> Composite:
        """A copy whose base uses this epsilon on linear layers.

        Raises:
            RuleError: if the base has no rule for linear layers.
        """
        if Kind.LINEAR not in self._base:
            raise RuleError(
                f"The preset {self._base_name!r} has no rule for linear layers, so epsilon has no "
                "effect; use rules='lrp', 'lrp-gamma' or 'attnlrp'."
            )
        copy = Composite(base=self)
        copy._base[Kind.LINEAR] = replace(
            cast(LinearRule, copy._base[Kind.LINEAR]), epsilon=epsilon
        )
        return copy

    def base_table(self) -> Table:
        """The engine's view of the base."""
        return {kind: (float("inf"), rule) for kind, rule in self.base.items()}

    def matches_any(self, modules: Sequence[tuple[str, nn.Module]]) -> bool:
        """Whether an entry is for one of these modules."""
        return any(
            _matches(key, name, module) for key, _ in self._entries for name, module in modules
        )

    def assign(self, modules: Sequence[tuple[str, nn.Module]]) -> list[tuple[nn.Module, Table]]:
        """The engine's view of the entries: a rule table for each module that a key matches.

        Rules by depth are resolved here; those of the base give a table for each upper block.

        Raises:
            RuleError: a name pattern matches no module, or a module is none of the model's.
        """
        depths = Depths(modules) if self._go_by_depth() else Depths(())
        tables = _base_by_depth(self._base, depths)
        if not self._entries:
            return tables
        used = [False] * len(self._entries)
        for name, module in modules:
            table: Table = {}
            for number, (key, rules) in enumerate(self._entries):
                if _matches(key, name, module):
                    used[number] = True
                    for rule in rules:
                        tables += _fill(table, float(number), rule, module, depths)
            if table:
                tables.append((module, table))
        for hit, (key, _) in zip(used, self._entries, strict=True):
            if not hit and isinstance(key, nn.Module):
                raise RuleError(
                    f"The {type(key).__name__} that the composite has a rule for is no module of "
                    "this model; use one of model.modules(), or its name."
                )
            if not hit and isinstance(key, (str, re.Pattern)):
                pattern = key if isinstance(key, str) else key.pattern
                examples = ", ".join(repr(n) for n, _ in modules[1:4])
                raise RuleError(
                    f"The name pattern {pattern!r} matches no module (names look like {examples}). "
                    "List them with [name for name, _ in model.named_modules()]."
                )
        return tables

    def _go_by_depth(self) -> bool:
        given = [*self._base.values(), *(rule for _, rules in self._entries for rule in rules)]
        return any(isinstance(rule, ByDepthRule) for rule in given)

    def __repr__(self) -> str:
        if not self._entries:
            return f"Composite(base={self._base_name!r})"
        shown = ", ".join(f"{_shown(k)}: {_joined(v)}" for k, v in self._entries)
        return f"Composite({{{shown}}}, base={self._base_name!r})"


def _base_by_depth(base: Mapping[Kind, Rule], depths: Depths) -> list[tuple[nn.Module, Table]]:
    """A table for every block in which a rule of the base is another than outside of blocks."""
    found = []
    for block, depth in depths.blocks:
        table: Table = {
            kind: (_LAST, rule.at(depth))
            for kind, rule in base.items()
            if isinstance(rule, ByDepthRule)
        }
        found.append((block, table))
    return [(block, table) for block, table in found if table]


def _fill(
    table: Table, priority: float, rule: Rule, module: nn.Module, depths: Depths
) -> list[tuple[nn.Module, Table]]:
    """Enters a rule for a module into its table; returns tables of the blocks inside of it."""
    depth = depths.of(module)
    goes_on = isinstance(rule, ByDepthRule) and depth is None
    chosen = at_depth(rule, depth)
    kinds = [kind for kind in rule.kinds if kind not in table]
    # blocks, which are inside, come before what is around them, and both before other entries
    table.update(dict.fromkeys(kinds, (priority + 0.5 * goes_on, chosen)))
    if not goes_on:
        return []
    inside = {id(part) for part in module.modules()}
    return [
        (block, {kind: (priority, at_depth(rule, depth)) for kind in kinds})
        for block, depth in depths.blocks
        if id(block) in inside
    ]


def _joined(rules: tuple[Rule, ...]) -> str:
    return repr(rules[0]) if len(rules) == 1 else repr(list(rules))


def _shown(key: Key) -> str:
    if isinstance(key, (str, re.Pattern)):
        return repr(key)
    if isinstance(key, nn.Module):
        return f"this {type(key).__name__}"
    return getattr(key, "__name__", repr(key))


def _checked_key(key: Key) -> Key:
    if isinstance(key, (str, re.Pattern, nn.Module)):
        return key
    if inspect.isclass(key):
        if issubclass(key, nn.Module):
            return key
    elif callable(key):
        return key
    raise RuleError(
        f"{key!r} is no key of a composite: use a module type, a module, a name pattern or a "
        "predicate (name, module) -> bool."
    )


def _checked_value(value: Value) -> tuple[Rule, ...]:
    if value is None:
        return (GradientRule(),)
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for rule in values:
        if not isinstance(rule, Rule):
            hint = " (an instance, not the class)" if inspect.isclass(rule) else ""
            raise RuleError(f"{rule!r} is no rule; use one of captum_lrp_tx.rules{hint}.")
    return values


def _matches(key: Key, name: str, module: nn.Module) -> bool:
    if isinstance(key, str):
        return fnmatch.fnmatchcase(name, key)
    if isinstance(key, re.Pattern):
        return key.fullmatch(name) is not None
    if isinstance(key, nn.Module):
        return module is key
    if inspect.isclass(key):
        return isinstance(module, key)
    return bool(key(name, module))
