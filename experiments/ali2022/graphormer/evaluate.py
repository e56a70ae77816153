"""Activation and pruning curves over atoms, of every method."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from captum_lrp_tx import audit
from captum_lrp_tx.methods.registry import Method
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.curves import (
    Curve,
    activation_curve,
    perturbation_curve,
    pruning_curve,
)
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.metrics.perturbation import Perturbation
from experiments.ali2022.graphormer.explain import relevance_of
from experiments.ali2022.graphormer.model import Graphormer
from experiments.ali2022.graphormer.molecules import VNODE, Example, Graphs

#: How atoms are taken away: nothing is known of them; nothing attends to them; or nothing is known
#: of them, but all attention is as in the whole molecule, which is what the AH rule explains.
How = Literal["masked", "removed", "frozen"]
HOW: tuple[How, ...] = ("masked", "removed", "frozen")


class HideAtoms(Masker):
    """Atoms that are masked or removed; the virtual node always stays.

    Args:
        how (str): ``"masked"`` or ``"removed"``, see :class:`~.molecules.Graphs`; or ``"frozen"``:
            masked, with the attention patterns of the whole molecule.

    Example::

        >>> graphs = graph_of("CCO")
        >>> HideAtoms("masked").features(Batch.of(graphs.atoms, graphs.structure))
        tensor([[False,  True,  True,  True]])
    """

    def __init__(self, how: How) -> None:
        self.how = how

    def __repr__(self) -> str:
        return f"HideAtoms({self.how!r})"

    def features(self, batch: Batch) -> Tensor:
        """The atoms, as booleans of shape (examples, T)."""
        graphs = _graphs(batch)
        return graphs.attention_mask & (graphs.atoms != VNODE)

    def scores(self, attributions: Tensor, batch: Batch) -> Tensor:
        """Relevance as it is: one number for each atom."""
        return attributions

    def masked(self, batch: Batch, hidden: Tensor) -> Batch:
        """The molecules without the atoms ``hidden``."""
        graphs = _graphs(batch)
        left = graphs.removed(hidden) if self.how == "removed" else graphs.masked(hidden)
        return replace(batch, main=left.atoms, extra=left.structure)

    def run(self, model: Callable[..., Any], batch: Batch, hidden: Tensor) -> Tensor:
        """The model's output without the atoms ``hidden``."""
        if self.how != "frozen":
            return Masker.run(self, model, batch, hidden)
        patterns: list[Tensor] = []
        with _Patterns(patterns, replay=False):
            batch.call(model)
        with _Patterns(patterns, replay=True):
            return Masker.run(self, model, batch, hidden)


class _Patterns(TorchFunctionMode):
    """Keeps the pattern of every attention, or puts the kept ones in its place."""

    def __init__(self, patterns: list[Tensor], replay: bool) -> None:
        super().__init__()
        self._patterns = patterns
        self._kept = iter(list(patterns)) if replay else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        if self._kept is not None:
            return next(self._kept) @ value
        scores = query @ key.mT * query.shape[-1] ** -0.5 + kwargs["attn_mask"]
        self._patterns.append(scores.softmax(-1))
        return func(*args, **kwargs)


def _graphs(batch: Batch) -> Graphs:
    return Graphs(batch.main, *batch.extra)


@dataclass(frozen=True, eq=False)
class Result:
    """What one method reached.

    Attributes:
        method (str): Name in tables.
        how (str): How atoms were taken away.
        activation (Curve): Probability of the class as atoms appear; its mean area is the AUAC.
        pruning (Curve): Squared change of the logits as atoms disappear, those of the smallest
            absolute relevance first; its mean area is the AU-MSE.
        pruning_signed (Curve): The same, atoms that speak most against the class first.
        seconds (float): For an explanation, on average.
    """

    method: str
    how: How
    activation: Curve
    pruning: Curve
    pruning_signed: Curve
    seconds: float


def evaluate(
    model: Graphormer,
    examples: Sequence[Example],
    targets: Tensor,
    methods: Sequence[Method],
    *,
    seed: int = 0,
    show_progress: bool = False,
) -> list[Result]:
    """Explains molecules one at a time by all methods and measures how faithful that was.

    Args:
        model (Graphormer): In evaluation mode.
        examples (sequence of Example): The molecules.
        targets (Tensor): Class of each that is explained, shape ``(molecules,)``.
        methods (sequence of Method): Of :data:`captum_lrp_tx.methods.METHODS`.
        seed (int): Of methods that are random.
        show_progress (bool): Show a progress bar on standard error.

    Returns:
        list of Result: For each method one for each way of hiding atoms; examples in their order.
    """
    curves: dict[tuple[str, How], list[tuple[Curve, Curve, Curve]]] = {}
    seconds = dict.fromkeys((method.name for method in methods), 0.0)
    bar = tqdm(
        list(zip(examples, targets, strict=True)), desc="evaluating", unit="molecule",
        disable=not show_progress, file=sys.stderr,
    )  # fmt: skip
    for example, target in bar:
        graph, wanted = example.graph, target.reshape(1)
        relevances: dict[str, Tensor] = {}
        for method in methods:
            begun = time.perf_counter()
            relevances[method.name] = relevance_of(model, method, graph, wanted, seed)
            seconds[method.name] += time.perf_counter() - begun
        for how in HOW:
            job = Perturbation(model, graph.atoms, wanted, graph.structure, masker=HideAtoms(how))
            for name, relevance in relevances.items():
                curves.setdefault((name, how), []).append(
                    (
                        activation_curve(job, attributions=relevance),
                        pruning_curve(job, attributions=relevance),
                        perturbation_curve(
                            job,
                            attributions=relevance,
                            start="whole",
                            order="lerf",
                            measure="squared change",
                            name="pruning, signed",
                        ),
                    )
                )
    results = []
    for (name, how), found in curves.items():
        activation, pruning, signed = map(Curve.joined, zip(*found, strict=True))
        mean = seconds[name] / len(examples)
        results.append(Result(name, how, activation, pruning, signed, mean))
    return results


@dataclass(frozen=True, eq=False)
class Conservation:
    """How much of the explained logit a rule set accounts for.

    Attributes:
        rules (str): The preset.
        left_out (Tensor): |logit - relevance of the atoms| / |logit| of each molecule.
        error (Tensor): The same with what named constants (biases) absorb counted too.
    """

    rules: str
    left_out: Tensor
    error: Tensor


def conservation(
    model: Graphormer,
    examples: Sequence[Example],
    targets: Tensor,
    show_progress: bool = False,
) -> list[Conservation]:
    """Conservation of gradient x input and the rules of the paper; see :func:`evaluate`."""
    found = []
    for rules in ("gi", "ah", "ln", "ah+ln", "lrp"):
        rows = []
        bar = tqdm(
            list(zip(examples, targets, strict=True)), desc=f"conservation of {rules}",
            unit="molecule", disable=not show_progress, file=sys.stderr,
        )  # fmt: skip
        for example, target in bar:
            graph = example.graph
            made = audit.explainability(
                model, graph.atoms, target.reshape(1), graph.structure, rules=rules, file=None
            )
            missing = made.output - made.relevance
            rows.append([abs(missing), abs(made.conservation_error), abs(made.output)])
        values = torch.tensor(rows, dtype=torch.float64)
        found.append(Conservation(rules, values[:, 0] / values[:, 2], values[:, 1] / values[:, 2]))
    return found


@torch.no_grad()
def blank_probabilities(model: Graphormer, examples: Sequence[Example]) -> dict[How, Tensor]:
    """Probability of class 1 without any atom: where every activation curve starts.

    Returns:
        dict: For each way of hiding atoms, shape ``(molecules,)``.
    """
    found: dict[How, Tensor] = {}
    for how in HOW:
        masker = HideAtoms(how)
        outputs = []
        for example in examples:
            batch = Batch.of(example.graph.atoms, example.graph.structure)
            outputs.append(masker.run(model, batch, masker.features(batch)))
        found[how] = torch.cat(outputs).softmax(1)[:, 1]
    return found
