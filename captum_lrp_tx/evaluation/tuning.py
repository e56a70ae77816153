"""Choosing gamma for each kind of linear layer from a few examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_lrp_tx import audit
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.evaluation.examples import Examples
from captum_lrp_tx.evaluation.run import evaluate
from captum_lrp_tx.methods.registry import Chosen
from captum_lrp_tx.metrics.blocks import transformer_blocks
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.state.ledger import encloses
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.linear import EpsilonRule, GeneralizedGammaRule
from captum_lrp_tx.rules.rule import Bias, Rule
from captum_lrp_tx.runs.subject import device_of, placed

#: Gammas that are tried unless others are given; 0 is LRP-0.
GAMMAS = (0.0, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Trial:
    """What was measured with some gammas.

    Attributes:
        gammas (mapping): Of each kind of layer.
        auac (float): Mean area under the activation curve.
        au_mse (float): Mean area under the pruning curve.
    """

    gammas: Mapping[str, float]
    auac: float
    au_mse: float

    @property
    def loss(self) -> float:
        """``(1 - auac) * au_mse``: smaller is better, and a per cent of either counts the same."""
        return (1 - self.auac) * self.au_mse


@dataclass(frozen=True)
class Tuned:
    """The best gammas, and everything that was tried.

    Attributes:
        best (Trial): With the smallest loss.
        trials (tuple of Trial): In the order in which they were made.
        composite (Composite): To explain with: ``ConservativeLRP(model, tuned.composite)``. Its
            rules treat biases as they did when they were measured.
        layers (mapping): Names of the modules of each kind.
    """

    best: Trial
    trials: tuple[Trial, ...]
    composite: Composite
    layers: Mapping[str, tuple[str, ...]]

    def markdown(self) -> str:
        """A table of all trials, the best one bold."""
        kinds = list(self.layers)
        lines = [f"| gamma: {' | '.join(kinds)} | AUAC | AU-MSE |", "|---" * (len(kinds) + 2) + "|"]
        for trial in self.trials:
            mark = "**" if trial == self.best else ""
            cells = [f"{trial.gammas[kind]:g}" for kind in kinds]
            cells += [f"{mark}{value:.3f}{mark}" for value in (trial.auac, trial.au_mse)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return self.markdown()


def linear_layers(model: Callable[..., Any], inputs: Any) -> dict[str, tuple[str, ...]]:
    """Modules with linear operations by kind, as one explained pass finds them.

    ``"attention"``: beside an attention pattern, in the module that computes it or in one around
    it that is smaller than the block. ``"mlp"``: others in the blocks. ``"rest"``: outside of the
    blocks, embeddings and head.

    Args:
        model (nn.Module or callable): What is explained.
        inputs (Tensor or mapping): A few examples.

    Returns:
        dict: Names of modules; kinds without any are left out.

    Raises:
        InputError: No blocks were found.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> found = linear_layers(model, tokenizer("dull", return_tensors="pt"))
        >>> found["attention"][0], found["rest"]
        ('bert.encoder.layer.0.attention.self.query', ('bert.pooler.dense', 'classifier'))
    """
    report = audit.explainability(model, inputs, file=None)
    patterns = [rule.module for rule in report.applied if rule.kind == "attention"]
    blocks = transformer_blocks(model)
    tops = [name for name, module in find_modules(model) if any(module is b for b in blocks)]
    found: dict[str, list[str]] = {"attention": [], "mlp": [], "rest": []}
    for name in dict.fromkeys(rule.module for rule in report.applied if rule.kind == "linear"):
        block = next((top for top in tops if encloses(top, name)), None)
        if block is None:
            found["rest"].append(name)
        else:
            kind = "attention" if _attends(name, block, patterns) else "mlp"
            found[kind].append(name)
    return {kind: tuple(names) for kind, names in found.items() if names}


def _attends(name: str, block: str, patterns: Sequence[str]) -> bool:
    parent = name.rpartition(".")[0]
    if name in patterns or parent in patterns:
        return True
    while parent != block and encloses(block, parent):
        if any(encloses(parent, pattern) for pattern in patterns):
            return True
        parent = parent.rpartition(".")[0]
    return False


def tune(
    model: Callable[..., Any],
    examples: Examples,
    *,
    masker: Masker,
    gammas: Sequence[float] = GAMMAS,
    layers: Mapping[str, Sequence[str]] | None = None,
    base: str | Composite = "lrp",
    bias: Bias = "distribute",
    limit: int | None = None,
    show_progress: bool = False,
) -> Tuned:
    """
    Chooses the gamma of the generalised gamma rule for each kind of linear layer.

    First all kinds get the same gamma, each of ``gammas`` in turn; then one kind after the other
    tries the others. What counts is ``(1 - AUAC) * AU-MSE`` (see :class:`Trial`), the faithfulness
    metrics of Ali et al., on ``examples``: take a few validation examples, not those that results
    are reported on.

    Args:
        model (nn.Module or callable): In evaluation mode and single precision.
        examples (Examples): A few, say 20 to 50.
        masker (Masker): What is hidden, and how.
        gammas (sequence of float): What is tried; 0 is LRP-0.
        layers (mapping, optional): Names of modules by kind; :func:`linear_layers` unless given.
            Linear layers that are not named follow ``base``.
        base (str or Composite): Rules for everything else.
        bias (str): See :class:`~captum_lrp_tx.ConservativeLRP`.
        limit (int, optional): Only the first examples.
        show_progress (bool): Show a progress bar on standard error.

    Returns:
        Tuned: With ``composite`` and all trials.

    Raises:
        InputError: No gammas, no layers, or no blocks found.

    Example::

        >>> from captum_lrp_tx.evaluation import TextExamples, tune
        >>> from captum_lrp_tx.metrics import MaskTokens
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> examples = TextExamples(["a charming film", "a dull mess"], tokenizer)
        >>> masker = MaskTokens.from_tokenizer(tokenizer)
        >>> tuned = tune(model, examples, masker=masker, gammas=[0.0, 0.05])
        >>> sorted(tuned.best.gammas)
        ['attention', 'mlp', 'rest']
    """
    if not gammas:
        raise InputError("there are no gammas to try; give gammas= at least one number")
    if layers is None:
        layers = linear_layers(model, placed(examples.inputs([0]), device_of(model)))
    kinds = {kind: tuple(names) for kind, names in layers.items() if names}
    if not kinds:
        raise InputError("there are no linear layers to choose gammas for; name some in layers=")

    trials: dict[tuple[float, ...], Trial] = {}

    def measured(wanted: Sequence[Mapping[str, float]]) -> list[Trial]:
        new = {tuple(g.values()): g for g in wanted if tuple(g.values()) not in trials}
        methods: list[Chosen] = [
            (" ".join(f"{v:g}" for v in key), _maker(composite_of(kinds, chosen, base), bias))
            for key, chosen in new.items()
        ]
        if methods:
            found = evaluate(
                model, examples, methods, masker=masker, limit=limit, show_progress=show_progress
            )
            for method, (key, chosen) in zip(found, new.items(), strict=True):
                auac, au_mse = (float(method.values(m).mean()) for m in ("activation", "pruning"))
                trials[key] = Trial(dict(chosen), auac, au_mse)
        return [trials[tuple(g.values())] for g in wanted]

    best = min(measured([dict.fromkeys(kinds, g) for g in gammas]), key=lambda t: t.loss)
    for kind in kinds if len(kinds) > 1 else ():
        wanted = [{**best.gammas, kind: gamma} for gamma in gammas]
        best = min([best, *measured(wanted)], key=lambda t: t.loss)
    composite = composite_of(kinds, best.gammas, base).with_bias(bias)
    return Tuned(best, tuple(trials.values()), composite, kinds)


def composite_of(
    layers: Mapping[str, Sequence[str]],
    gammas: Mapping[str, float],
    base: str | Composite = "lrp",
) -> Composite:
    """A composite with a gamma for each kind of layer.

    Args:
        layers (mapping): Names of modules by kind.
        gammas (mapping): Gamma by kind; 0 is LRP-0.
        base (str or Composite): What holds elsewhere.
    """
    return Composite(
        [(_Named(kind, names), _rule(gammas[kind])) for kind, names in layers.items()], base=base
    )


class _Named:
    """Whether a module is one of those with certain names."""

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        self.__name__ = kind
        self._names = frozenset(names)

    def __call__(self, name: str, module: nn.Module) -> bool:
        return name in self._names


def _rule(gamma: float) -> Rule:
    return GeneralizedGammaRule(gamma=gamma) if gamma else EpsilonRule(0.0)


def _maker(composite: Composite, bias: Bias) -> Callable[[Any], Any]:
    return lambda model: ConservativeLRP(model, composite, bias=bias)
