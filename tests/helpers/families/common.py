"""What the walkers of all libraries share: a case, its check, and the row it becomes.

A walker (one module for each library) has two functions::

    def names() -> list[str]: ...        # its families, in the order of the library
    def cases(name: str) -> list[Case]:  # one for each attention implementation, eval mode

``cases`` raises :class:`NotBuilt` with the reason where no tiny random model can be made.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import oracle
from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.errors import CaptumLRPError, UncoveredOperationError

#: Relative to the largest relevance. Input noise of 5e-7 moves some nets by 2e-5: do not tighten.
TOLERANCE = 1e-4
#: An error up to here may be rounding, amplified by a random model (by much where it moves an
#: activation across a kink or exchanges the largest of a pooling window): float64 decides.
NOISE = 1.0
#: The rule sets that every family is checked with.
PRESETS = ("ah+ln", "lrp")


class NotBuilt(Exception):
    """No tiny random model of this family could be made; the message is the reason."""


@dataclass
class Case:
    """A tiny random model together with what to explain.

    ``forward(inputs)`` is the whole call, batch first; everything else that the model needs is
    closed over. ``inputs`` are token ids (batch, tokens) or floats (pixels, waveforms, ...).
    """

    library: str
    family: str
    model_class: str
    attention: str  # "eager", "sdpa", or "" where there is no choice
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    inputs: Tensor
    target: int | tuple[int, ...]
    #: What holds for this family beyond the rules of the papers, as the walker knows it.
    convention: str = ""
    #: Judges what the oracle cannot judge whole: takes the case and the preset.
    in_part: Callable[[Case, str], Outcome] | None = None
    #: What the oracle recorded of the model as it is; all rule sets are judged by it.
    trace: oracle.OracleTrace | None = None

    def __str__(self) -> str:
        return f"{self.library}-{self.family}" + (f"-{self.attention}" if self.attention else "")

    def select(self, output: Tensor) -> Tensor:
        """The explained value of each example."""
        for index in self.target if isinstance(self.target, tuple) else (self.target,):
            output = output[:, index]
        return output


@dataclass(frozen=True)
class Outcome:
    """What became of one case under one preset.

    ``verified``: equal to the oracle. ``convention``: so, and ``reason`` states a convention that
    was needed. ``refused``: ``strict=True`` raised, ``reason`` says what.
    ``wrong``: explained without complaint and different from the oracle (a fault of the package).
    ``unjudged``: explained, but the oracle cannot judge it.
    """

    status: str
    reason: str = ""
    error: float = 0.0


@dataclass
class Row:
    """A family in the shipped table; the fields of the JSON file."""

    library: str
    family: str
    model: str
    status: str  # verified | convention | refused
    note: str = ""  # the convention, or the reason of the refusal
    attention: list[str] = field(default_factory=list)


def check(case: Case, preset: str) -> Outcome:
    """Explain a case strictly and compare it with an independent computation.

    Where float32 is too noisy to tell, both are computed once more in float64 and with epsilon 0
    (which the oracle does not know), for which the model of the case is converted meanwhile.
    """
    outcome = _check(case, preset, Composite(base=preset))
    if outcome.status == "wrong" and case.in_part is not None:
        return case.in_part(case, preset)
    if outcome.status != "wrong" or outcome.error >= NOISE:
        return outcome
    inputs, dtype = case.inputs, next(case.model.parameters()).dtype
    case.model.double()
    case.trace = None
    eager_experts = getattr(case.model, "set_experts_implementation", None)
    if eager_experts is not None:  # grouped products know no float64
        eager_experts("eager")
    if inputs.is_floating_point():
        case.inputs = inputs.double()
    composite = Composite(base=preset)
    if preset == "lrp":
        composite = composite.with_epsilon(0.0)
    try:
        again = _check(case, preset, composite)
    except (RuntimeError, TypeError):  # the model insists on float32
        return outcome
    finally:  # other cases may share the model
        case.model.to(dtype)
        case.inputs, case.trace = inputs, None
    return outcome if again.status == "refused" else again


def _check(case: Case, preset: str, composite: Composite) -> Outcome:
    explainer = ConservativeLRP(case.forward, composite)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                relevance = explainer.attribute(case.inputs, target=case.target, strict=True)
            except UncoveredOperationError as error:
                if error.operations:
                    return Outcome("refused", _shortened(error.operations))
                # the model has nothing that the preset is for: plain gradient x input is right
                relevance = explainer.attribute(case.inputs, target=case.target)
    except CaptumLRPError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    assert isinstance(relevance, Tensor)
    notes = {case.convention} - {""}
    try:
        expected, scale = _expected(case, preset, notes)
    except oracle.OracleError as error:
        return Outcome("unjudged", str(error))
    error = float((relevance - expected).abs().max() / scale)
    if not error <= TOLERANCE:
        scanned = _of_state_space(case) if preset == "lrp" else None
        return scanned or Outcome("wrong", "", error)
    return Outcome("convention" if notes else "verified", "; ".join(sorted(notes)), error)


def _shortened(operations: tuple[str, ...]) -> str:
    """Each operation once, without the modules that made it."""
    return "; ".join(
        dict.fromkeys(re.sub(r" in \S+ \(", " (", line, count=1) for line in operations)
    )


def _expected(case: Case, preset: str, notes: set[str]) -> tuple[Tensor, Tensor]:
    """The oracle's relevance, and what an error is relative to."""
    if case.trace is None:
        case.trace = oracle.trace_function(case.forward, (case.inputs,))
    options: Any = {
        "double": case.inputs.dtype == torch.float64, "notes": notes, "trace": case.trace
    }  # fmt: skip
    if case.inputs.is_floating_point():
        (expected,) = oracle.oracle_relevance(
            case.forward, (case.inputs,), preset, case.select, **options
        )
        return expected, expected.abs().max()
    parts = oracle.oracle_lookup_relevance(
        case.forward, case.inputs, preset, case.select, notes=notes, trace=case.trace
    )
    return torch.stack(parts).sum(0), torch.stack([p.abs().max() for p in parts]).max()


#: What a state space model is judged by: the oracle does not know its coefficients.
STATE_SPACE = (
    "lrp: coefficients of the scan are constants (MambaLRP); judged by conservation, and by a loop "
    "over the scan on a tiny Mamba"
)


def _of_state_space(case: Case) -> Outcome | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = audit.explainability(
            case.forward, case.inputs, target=case.target, file=None, strict=True
        )
    if not any(item.kind == "scan" for item in report.applied):
        return None
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    error = abs(report.conservation_error) / max(scale, 1e-30)
    return Outcome("convention" if error <= TOLERANCE else "wrong", STATE_SPACE, error)


def in_turns(place: int, cases: int) -> list[tuple[str, ...]]:
    """The rule sets of each case of a family for the daily tests.

    Of two attention implementations one runs, under one rule set, and the next families take the
    other three turns; ``benchmarks/families.py``, which makes the shipped tables, and tests with
    ``CAPTUM_LRP_TX_THOROUGH`` run both under both.
    """
    if "CAPTUM_LRP_TX_THOROUGH" in os.environ:
        return [PRESETS] * cases
    turn = (PRESETS[place % 2],)
    return [turn if cases == 1 or (place // 2 + i) % 2 == 0 else () for i in range(cases)]


def _outcomes(case: Case, presets: Sequence[str]) -> list[tuple[str, str, Outcome]]:
    found = [(case.attention, preset, check(case, preset)) for preset in presets]
    case.trace = None  # a second model
    return found


def row_of(cases: Iterable[Case], presets: Sequence[Sequence[str]] | None = None) -> Row:
    """Check all cases of a family, and what became of them in one row.

    A family that only one of the rule sets explains counts as explained with a convention.

    Args:
        cases: One for each attention implementation.
        presets: The rule sets of each case, if not both.
    """
    cases = list(cases)
    presets = [PRESETS] * len(cases) if presets is None else presets
    checked = [_outcomes(c, p) for c, p in zip(cases, presets, strict=True)]
    outcomes = sorted((o for row in checked for o in row), key=lambda o: PRESETS.index(o[1]))
    row = Row(cases[0].library, cases[0].family, cases[0].model_class, "verified")
    wrong = [
        f"{a}, {p}: {o.status} {o.error:.1e} {o.reason}"
        for a, p, o in outcomes
        if o.status not in ("verified", "convention", "refused")
    ]
    if wrong:
        row.status, row.note = "wrong", "; ".join(wrong)
        return row
    refused = [(a, p, o.reason) for a, p, o in outcomes if o.status == "refused"]
    without = {a for a, _, _ in refused}
    working = [p for p in PRESETS if all(p != q for _, q, _ in refused)]
    complete = [c for c in cases if c.attention not in without]
    reasons = _joined(f"{p}: {reason}" for _, p, reason in refused)
    conventions = _joined(
        note for *_, o in outcomes if o.status == "convention" for note in o.reason.split("; ")
    )
    names = list(dict.fromkeys(c.attention for c in cases if c.attention))
    if not refused:
        row.attention, row.note = names, conventions
        row.status = "convention" if conventions else "verified"
    elif complete:  # some attention implementations
        row.status, row.attention = "convention", [n for n in names if n not in without]
        row.note = _joined([f"only {', '.join(row.attention)}", conventions, reasons])
    elif working:
        row.status, row.attention = "convention", names
        row.note = _joined([f"only {working[0]}", conventions, f"refused {reasons}"])
    else:
        row.status = "refused"
        same = {p: _joined(r for _, q, r in refused if q == p) for p in PRESETS}
        row.note = same[PRESETS[0]] if len(set(same.values())) == 1 else reasons
    return row


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(part for part in parts if part))
