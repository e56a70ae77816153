"""What the walkers of all libraries share: a case, its check, and the row it becomes.

A walker (one module for each library) has two functions::

    def names() -> list[str]: ...        # its families, in the order of the library
    def cases(name: str) -> list[Case]:  # one for each attention implementation, eval mode

``cases`` raises :class:`NotBuilt` with the reason where no tiny random model can be made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import oracle
from captum_lrp_tx import ConservativeGI, ConservativeLRP
from captum_lrp_tx.errors import CaptumLRPError, UncoveredOperationError

#: Relative to the largest relevance. Input noise of 5e-7 moves some nets by 2e-5: do not tighten.
TOLERANCE = 1e-4
#: An error up to here may be rounding, amplified by a random model: float64 decides.
NOISE = 3e-2
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

    ``verified``: equal to the oracle. ``refused``: ``strict=True`` raised, ``reason`` says what.
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

    Where float32 is too noisy to tell, both are computed once more in float64, for which the
    model of the case is converted.
    """
    outcome = _check(case, preset)
    noisy = outcome.status == "wrong" and outcome.error < NOISE
    if noisy and next(case.model.parameters()).dtype == torch.float32:
        case.model.double()
        eager_experts = getattr(case.model, "set_experts_implementation", None)
        if eager_experts is not None:  # grouped products know no float64
            eager_experts("eager")
        if case.inputs.is_floating_point():
            case.inputs = case.inputs.double()
        try:
            again = _check(case, preset)
        except (RuntimeError, TypeError):  # the model insists on float32
            return outcome
        return again if again.status == "verified" else outcome
    return outcome


def _check(case: Case, preset: str) -> Outcome:
    explainer = (
        ConservativeLRP(case.forward)
        if preset == "lrp"
        else ConservativeGI(case.forward, rules=preset)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            relevance = explainer.attribute(case.inputs, target=case.target, strict=True)
    except UncoveredOperationError as error:
        return Outcome("refused", "; ".join(dict.fromkeys(error.operations)))
    except CaptumLRPError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    assert isinstance(relevance, Tensor)
    try:
        expected, scale = _expected(case, preset)
    except oracle.OracleError as error:
        return Outcome("unjudged", str(error))
    error = float((relevance - expected).abs().max() / scale)
    return Outcome("verified" if error <= TOLERANCE else "wrong", "", error)


def _expected(case: Case, preset: str) -> tuple[Tensor, Tensor]:
    """The oracle's relevance, and what an error is relative to."""
    if case.inputs.is_floating_point():
        (expected,) = oracle.oracle_relevance(case.forward, (case.inputs,), preset, case.select)
        return expected, expected.abs().max()
    parts = oracle.oracle_lookup_relevance(case.forward, case.inputs, preset, case.select)
    return torch.stack(parts).sum(0), torch.stack([p.abs().max() for p in parts]).max()


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a survey file: a JSON list, one row a line."""
    lines = [json.dumps(asdict(row)) for row in rows]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a survey file."""
    return [Row(**row) for row in json.loads(path.read_text())]
