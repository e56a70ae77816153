"""Models drawn at random from the table of parts and their spellings (:mod:`spellings`)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import spellings
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import NonFiniteError, UncoveredOperationError
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
#: Spellings written for batches of ``spellings.BATCH``.
OF_A_BATCH = {
    ("attention", "gathered"), ("pooling", "index_add"),
    ("graph attention", "index_add"), ("graph attention", "index_add in place"),
    ("graph attention", "scatter_add"), ("graph attention", "weights on the right"),
    ("linear attention", "loop"), ("linear attention", "loop of products"),
    ("biased linear map", "bmm"), ("biased linear map", "baddbmm"), ("memory slots", "expanded"),
}  # fmt: skip
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Step:
    """One part of a drawn model.

    Attributes:
        part (str): Its name.
        weights (int): Which set of weights it has; two steps may share one.
        wrapped (str): ``""``, ``"residual"`` or ``"scaled"``.
        reads (int): The input that it goes on from; both are added up in the end.
        joins (bool): Whether it reads the sum of both.
    """

    part: str
    weights: int
    wrapped: str
    reads: int = 0
    joins: bool = False


#: What a drawn model may be inside of: ``(model, *inputs) -> output``.
WRAPPERS: dict[str, Callable[..., Tensor]] = {
    "none": lambda model, *inputs: model(*inputs),
    "called twice": lambda model, *inputs: model(*inputs) + model(*(i.flip(1) for i in inputs)) / 2,
    "one by one": lambda model, *inputs: torch.cat(
        [model(*(i[None] for i in one)) for one in zip(*inputs, strict=True)]),
}  # fmt: skip


class Drawn(nn.Module):
    """Steps in chosen spellings, a pool over the tokens and a head of two classes."""

    def __init__(
        self, steps: list[Step], names: list[str], seed: int, freeze: str = "",
        wrapper: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.wrapper = WRAPPERS[wrapper]
        self.sets = nn.ModuleList(Weights() for _ in range(3))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64))  # fmt: skip
        self.steps, self.names, self.freeze = steps, names, freeze

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.wrapper(self._run, *inputs)

    def _run(self, *inputs: Tensor) -> Tensor:
        streams = list(inputs)
        for step, name in zip(self.steps, self.names, strict=True):
            at = step.reads if step.reads < len(streams) else 0
            streams[at] = self._step(step, name, sum(streams) if step.joins else streams[at])
        x = self.sets[0].d(sum(streams)).mean(1)
        return torch.stack([x.sum(1), (x * torch.linspace(-1, 1, WIDTH).to(x)).sum(1)], 1)

    def _step(self, step: Step, name: str, x: Tensor) -> Tensor:
        marks = [spellings.frozen if m in self.freeze else spellings.live for m in "pn"]
        spelling: Spelling = PARTS[step.part][name]
        y = spelling(self.sets[step.weights], x, *marks)  # type: ignore[arg-type]
        if y.dim() == 2:  # pooled: added to every token, since copies of one are no data
            return x + y[:, None]
        if y.shape[-1] != WIDTH:
            return x + torch.tanh(y).mean(-1, keepdim=True)
        if step.wrapped == "residual":
            return x + y
        return 0.5 * y - x if step.wrapped == "scaled" else y


@dataclass(frozen=True)
class Drawing:
    """A drawn model in two spellings.

    Attributes:
        steps (list of Step): Its parts.
        first, second (list of str): Spellings of each.
        inputs (int): One or two.
        wrapper (str): A key of ``WRAPPERS``.
    """

    steps: list[Step]
    first: list[str]
    second: list[str]
    inputs: int
    wrapper: str


def draw(seed: int) -> Drawing:
    """What this seed stands for."""
    chance, apart = random.Random(seed), random.Random(-1 - seed)
    inputs = apart.choice([1, 1, 2])
    wrapper = apart.choice(["none", "none", *WRAPPERS])
    steps, first, second = [], [], []
    for _ in range(chance.randint(1, 4)):
        part = chance.choice(list(PARTS))
        steps.append(Step(
            part, chance.randrange(3), chance.choice(["", "residual", "scaled"]),
            apart.randrange(inputs), apart.random() < 0.3,
        ))  # fmt: skip
        names = [n for n in PARTS[part] if (part, n) not in NOT_ALIKE]
        if wrapper == "one by one":
            names = [n for n in names if (part, n) not in OF_A_BATCH]
        first.append(chance.choice(names))
        second.append(chance.choice(names))
    return Drawing(steps, first, second, inputs, wrapper)


Relevance = tuple[Tensor, ...]


def _relevance(model: nn.Module, inputs: Relevance, preset: str) -> Relevance | None:
    """Relevance under a preset, or None if it is refused by name or not finite."""
    explainer = ConservativeLRP(model, preset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            relevance = explainer.attribute(inputs, target=1, strict=True)
        except NonFiniteError:
            return None
        except UncoveredOperationError as error:
            if error.operations:
                return None
            try:
                relevance = explainer.attribute(inputs, target=1)  # nothing was to be recognised
            except NonFiniteError:
                return None
    assert isinstance(relevance, tuple)
    return relevance


def _differs(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    scale = max(float(other.abs().max().clamp_min(1e-12)) for other in others)
    differences = [(one - other).abs().max() for one, other in zip(ones, others, strict=True)]
    return not all(float(d) <= TOLERANCE * scale for d in differences)


class Verdict(NamedTuple):
    """What came out for one drawn model.

    Attributes:
        faults (list of str): What is silently wrong.
        refused (int): How many explanations were refused by name.
        is_determined (bool): Whether torch's own output and gradient are the same in both
            spellings. Where they are not (patterns that saturate, values that grow beyond
            precision), nothing can be said.
    """

    faults: list[str]
    refused: int = 0
    is_determined: bool = True


def faults(seed: int) -> Verdict:
    """What is silently wrong with one drawn model, and how many explanations were refused."""
    drawn = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randn(
            spellings.BATCH, spellings.TOKENS, WIDTH, dtype=torch.float64, generator=generator
        )
        for _ in range(drawn.inputs)
    )

    def model(names: list[str], freeze: str = "") -> nn.Module:
        return Drawn(drawn.steps, names, seed, freeze, drawn.wrapper).eval()

    def by_autograd(names: list[str], freeze: str = "") -> Relevance:
        leaves = tuple(x.clone().requires_grad_() for x in inputs)
        gradients = torch.autograd.grad(model(names, freeze)(*leaves)[:, 1].sum(), leaves)
        return tuple(x * g for x, g in zip(inputs, gradients, strict=True))

    with torch.no_grad():
        outputs = [model(names)(*inputs)[:, 1] for names in (drawn.first, drawn.second)]
    if _differs(outputs[:1], outputs[1:]):
        return Verdict([], is_determined=False)
    plain = by_autograd(drawn.first)
    if all(r.isfinite().all() for r in plain) and _differs(by_autograd(drawn.second), plain):
        return Verdict([], is_determined=False)
    ones, others = model(drawn.first), model(drawn.second)
    found, refused = [], 0
    for preset in (*FROZEN, *OTHERS):
        got, other = _relevance(ones, inputs, preset), _relevance(others, inputs, preset)
        refused += (got is None) + (other is None)
        expected = by_autograd(drawn.first, FROZEN[preset]) if preset in FROZEN else None
        if got is not None and expected is not None and _differs(got, expected):
            found.append(f"{seed} {preset}: not the frozen function: {drawn}")
        if got is not None and other is not None and _differs(got, other):
            found.append(f"{seed} {preset}: spelling matters: {drawn}")
    return Verdict(found, refused)
