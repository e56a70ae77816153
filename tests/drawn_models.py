"""Models drawn at random from the table of parts and their spellings (:mod:`spellings`)."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import spellings
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import UncoveredOperationError
from spellings import PARTS, WIDTH, Spelling, Weights

#: Rules that are defined by what is frozen, and the marks that the oracle freezes.
FROZEN = {"gi": "", "ah": "p", "ln": "n", "ah+ln": "pn"}
OTHERS = ("lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma")
#: Spellings that are other rules by definition (see ``test_spellings.py``).
NOT_ALIKE = {
    ("sigmoid gate", "by its divisor"), ("sigmoid gate", "half a tanh"),
    ("biased linear map", "product and sum"), ("memory slots", "product and sum"),
    ("memory slots", "fused"), ("attention", "divided afterwards"),
}  # fmt: skip
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Step:
    """One part of a drawn model.

    Attributes:
        part (str): Its name.
        weights (int): Which set of weights it has; two steps may share one.
        wrapped (str): ``""``, ``"residual"``, ``"scaled"`` or ``"gated"`` by the input.
    """

    part: str
    weights: int
    wrapped: str


class Drawn(nn.Module):
    """Steps in chosen spellings, a pool over the tokens and a head of two classes."""

    def __init__(self, steps: list[Step], names: list[str], seed: int, freeze: str = "") -> None:
        super().__init__()
        self.sets = nn.ModuleList(Weights() for _ in range(3))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64))  # fmt: skip
        self.steps, self.names, self.freeze = steps, names, freeze

    def forward(self, x: Tensor) -> Tensor:
        marks = [spellings.frozen if m in self.freeze else spellings.live for m in "pn"]
        for step, name in zip(self.steps, self.names, strict=True):
            weights = self.sets[step.weights]
            spelling: Spelling = PARTS[step.part][name]
            y = spelling(weights, x, *marks)  # type: ignore[arg-type]
            if y.dim() == 2:  # pooled: read by every token
                y = y[:, None]
            elif y.shape[-1] != WIDTH:
                y = torch.tanh(y).mean(-1, keepdim=True)
            if step.wrapped == "residual":
                y = x + y
            elif step.wrapped == "scaled":
                y = 0.5 * y - x
            elif y.shape != x.shape:
                y = y.expand(x.shape)
            x = y
        x = self.sets[0].d(x).mean(1)
        return torch.stack([x.sum(1), (x * torch.linspace(-1, 1, WIDTH).to(x)).sum(1)], 1)


def draw(seed: int) -> tuple[list[Step], list[str], list[str]]:
    """The steps of a model and two spellings of each."""
    chance = random.Random(seed)
    steps, first, second = [], [], []
    for _ in range(chance.randint(1, 4)):
        part = chance.choice(list(PARTS))
        steps.append(Step(part, chance.randrange(3), chance.choice(["", "residual", "scaled"])))
        names = [n for n in PARTS[part] if (part, n) not in NOT_ALIKE]
        first.append(chance.choice(names))
        second.append(chance.choice(names))
    return steps, first, second


def _relevance(model: nn.Module, x: Tensor, preset: str) -> Tensor | None:
    """Relevance under a preset, or None if it is refused by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            relevance = ConservativeLRP(model, preset).attribute(x, target=1, strict=True)
        except UncoveredOperationError:
            return None
    assert isinstance(relevance, Tensor)
    return relevance


def _differs(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max().clamp_min(1e-12))
    return not float((one - other).abs().max()) <= TOLERANCE * scale


def faults(seed: int) -> tuple[list[str], int]:
    """What is silently wrong with one drawn model, and how many explanations were refused."""
    steps, first, second = draw(seed)
    x = torch.randn(
        spellings.BATCH, spellings.TOKENS, WIDTH, dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    model, again = Drawn(steps, first, seed).eval(), Drawn(steps, second, seed).eval()
    found, refused = [], 0
    for preset in (*FROZEN, *OTHERS):
        got, other = _relevance(model, x, preset), _relevance(again, x, preset)
        refused += (got is None) + (other is None)
        if got is not None and preset in FROZEN:
            frozen = Drawn(steps, first, seed, FROZEN[preset]).eval()
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(frozen(leaf)[:, 1].sum(), leaf)
            if _differs(got, x * gradient):
                found.append(f"{seed} {preset}: not the frozen function: {steps} {first}")
        if got is not None and other is not None and _differs(got, other):
            found.append(f"{seed} {preset}: spelling matters: {steps} {first} / {second}")
    return found, refused
