"""Does relevance add up to the output, layer by layer?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.attr.token_gradients import named_padding
from captum_lrp_tx.errors import InputError, NonFiniteError
from captum_lrp_tx.methods.registry import METHODS
from captum_lrp_tx.metrics.absorbed import absorbed_by_constants
from captum_lrp_tx.metrics.batches import Batch, of_one_length
from captum_lrp_tx.metrics.blocks import common_blocks, rows_first
from captum_lrp_tx.metrics.masking import MaskTokens
from captum_lrp_tx.metrics.perturbation import logit
from captum_lrp_tx.metrics.sums_figure import conservation_figure
from captum_lrp_tx.metrics.targets import (
    counts_from_end,
    split_target,
    target_classes,
    target_outputs,
    wide,
)
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A preset or composite, or one with a treatment of biases for ``ConservativeLRP``.
Rules = Union[str, Composite, tuple[Union[str, Composite], Bias]]
_WAY_OUT = (
    "audit.explainability tells what its inputs and constants get together. If all that is "
    "explained goes through the blocks of the encoder, give these as layers="
)
RULES: Mapping[str, Rules] = {
    **{m.name: m.options["rules"] for m in METHODS if m.make is ConservativeGI},
    "LRP": ("lrp", "absorb"),
    "LRP, biases distributed": ("lrp", "distribute"),
}


@dataclass(frozen=True)
class LevelConservation:
    """How well the sum of relevance at one level of the model agrees with the output.

    Attributes:
        rules (str): Name of the rule set.
        level (str): Where: ``"input"``, ``"embeddings"`` (what goes into the first block), or
            ``"block 1"`` and so on (what comes out of it).
        correlation (float): Pearson's, of sum and output over the examples; NaN if the sum is the
            same for all.
        slope (float): Of the least-squares line of the sum over the output.
        error (float): Mean of abs(output - sum), divided by the mean of abs(output).
    """

    rules: str
    level: str
    correlation: float
    slope: float
    error: float


@dataclass(frozen=True, eq=False)
class Conservation:
    """Sums of relevance at every level; ``str()`` is a table.

    Attributes:
        output (Tensor): The explained output of each example, ``(examples,)``, float64.
        sums (mapping): Sum of relevance, ``(examples,)``, by rule set and level.
        levels (tuple of str): From the input to the last block.
        absorbed (mapping): By rule set what biases and other named constants behind the embeddings
            absorb, ``(examples,)``; empty unless asked for.
    """

    output: Tensor
    sums: Mapping[str, Mapping[str, Tensor]]
    levels: tuple[str, ...]
    absorbed: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, rules: str, level: str = "embeddings") -> LevelConservation:
        """Numbers of one rule set at one level.

        Args:
            rules (str): Name of the rule set.
            level (str): Name of the level.

        Raises:
            KeyError: There is no such rule set or level.
        """
        sums, output = self.sums[rules][level], self.output
        spread = output - output.mean()
        slope = float((spread * (sums - sums.mean())).sum() / spread.square().sum())
        constant = float(sums.std(correction=0)) <= 1e-9 * float(sums.abs().max())
        pair = torch.stack([output, sums])
        correlation = float("nan") if constant else float(torch.corrcoef(pair)[0, 1])
        error = float((output - sums).abs().mean() / output.abs().mean())
        return LevelConservation(rules, level, correlation, slope, error)

    def unaccounted(self, rules: str) -> float:
        """Relative error of relevance at the embeddings and absorbed relevance together.

        Args:
            rules (str): Name of the rule set.

        Raises:
            KeyError: There is no such rule set, or absorbed relevance was not measured.
        """
        account = self.sums[rules]["embeddings"] + self.absorbed[rules]
        return float((self.output - account).abs().mean() / self.output.abs().mean())

    def markdown(self, level: str | None = "embeddings") -> str:
        """A table in Markdown.

        Args:
            level (str, optional): Correlation, slope and relative error there; None for the
                relative error at all levels.
        """
        if level is None:
            head = self.levels
            rows = [[self.at(name, each).error for each in self.levels] for name in self.sums]
        else:
            head = ("correlation", "slope", "relative error")
            found = [self.at(name, level) for name in self.sums]
            rows = [[each.correlation, each.slope, each.error] for each in found]
        lines = [["rules", *head]]
        lines += [[name, *map(_short, row)] for name, row in zip(self.sums, rows, strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        made = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
                for line in lines]  # fmt: skip
        made.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(made) + "\n"

    def __str__(self) -> str:
        return self.markdown()

    def figure(self, **options: Any) -> Figure:
        """Sums against outputs, and the relative error by depth.

        Args:
            options: See :func:`~captum_lrp_tx.metrics.conservation_figure`.
        """
        return conservation_figure(self, **options)

    def png(self, path: Any, *, dpi: int = 200, **options: Any) -> None:
        """Writes :meth:`figure` as a PNG file.

        Args:
            path (str, PathLike or binary file): Where to write.
            dpi (int): Dots per inch.
            options: See :meth:`figure`.
        """
        self.figure(**options).savefig(path, format="png", dpi=dpi)


def conservation(
    model: Callable[..., Any],
    inputs: AttributionInputs,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    rules: Mapping[str, Rules] = RULES,
    layers: Sequence[nn.Module] | None = None,
    absorbed: bool = False,
    batch_size: int = 32,
    show_progress: bool = False,
) -> Conservation:
    r"""
    Sum of relevance against the explained output, at the input and between all blocks.

    A rule set that conserves relevance gives sums that equal the output, but for what biases
    absorb on the way down (``("lrp", "distribute")`` spreads that too).

    Source: Ali et al., "XAI for Transformers", ICML 2022, section 5.1 and figure 3: they compare
    gradient x input with LRP(AH+LN) at the output of the embedding block.

    Args:
        model (nn.Module or callable): As for every attribution class of this package.
        inputs (Tensor or mapping): A batch of examples; a tokenizer's output may be padded on the
            right.
        target (int, str, tuple, Tensor or list, optional): Captum's targets, or names of classes;
            the predicted classes unless given. A place counted from the end, ``(-1, token)``,
            counts padding, as for ``attribute``.
        additional_forward_args (Any, optional): Further positional arguments of the model.
        rules (mapping): By name a preset or ``Composite`` (as of ``ConservativeGI``), or a pair of
            one and a treatment of biases (as of ``ConservativeLRP``).
        layers (sequence of Module, optional): The blocks, in order; found unless given.
        absorbed (bool): Also measure what named constants absorb, which takes a pass more for each
            example and rule set.
        batch_size (int): How many examples of one length at once.
        show_progress (bool): Show a progress bar on standard error if it takes long.

    Returns:
        Conservation: With :meth:`~Conservation.markdown`, :meth:`~Conservation.at` and
        :meth:`~Conservation.png`.

    Raises:
        InputError: No rules, or no blocks found.
        UnsupportedModelError: An encoder and a decoder, and no ``layers``.
        TargetError, NonFiniteError: As for every attribution class.

    Example::

        >>> from captum_lrp_tx.metrics.sums import conservation
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> texts = ["a charming and funny film", "a dull mess", "not bad"]
        >>> inputs = tokenizer(texts, padding=True, return_tensors="pt")
        >>> print(conservation(model, inputs))  # doctest: +SKIP
    """
    if not rules:
        raise InputError("no rule set is named; give rules= some, e.g. {'LRP': 'lrp'}")
    blocks = list(layers) if layers is not None else common_blocks(model, _WAY_OUT)
    batch = Batch.of(inputs, additional_forward_args)
    lengths = None
    if not batch.main.is_floating_point() and not counts_from_end(target):
        lengths = MaskTokens(0, pad_id=named_padding(model)).lengths(batch)
    levels = ("input", "embeddings", *(f"block {i + 1}" for i in range(len(blocks))))
    position, classes = split_target(target, len(batch), model)
    outputs = torch.zeros(len(batch), dtype=torch.float64)
    sums = {
        name: {level: torch.zeros(len(batch), dtype=torch.float64) for level in levels}
        for name in rules
    }
    taken = {name: torch.zeros(len(batch), dtype=torch.float64) for name in rules if absorbed}
    sizes = [0] * len(batch) if lengths is None else lengths.tolist()
    chunks = [torch.tensor(rows) for rows in of_one_length(sizes, batch_size)]
    with tqdm(
        total=len(chunks) * len(rules), desc="conservation", unit="batch", delay=1, leave=False,
        disable=not (show_progress and sys.stderr.isatty()),
    ) as bar:  # fmt: skip
        for rows in chunks:
            part = batch.take(rows, sizes[int(rows[0])] or None)
            with torch.no_grad():
                found = wide(target_outputs(part.call(model), position, rows)).cpu()
            if not bool(torch.isfinite(found).all()):
                raise NonFiniteError(
                    "the output is NaN or infinite; look at the inputs and the weights"
                )
            wanted = target_classes(_rows_of(classes, rows, len(batch)), found, model)
            outputs[rows] = logit(found, found, wanted).double()
            goal: Any = wanted.to(part.main.device)
            if position is not None:
                goal = [(*position[row], int(c)) for row, c in zip(rows.tolist(), wanted)]
            for name, rule in rules.items():
                for level, value in zip(levels, _sums(model, part, goal, rule, blocks)):
                    sums[name][level][rows] = value
                for i, row in enumerate(rows.tolist() if absorbed else ()):
                    one, at = part.take(torch.tensor([i])), goal[i : i + 1]
                    taken[name][row] = absorbed_by_constants(
                        _at_layers(model, blocks[:1], rule), one.inputs, at, one.extra or None,
                        layers=blocks[:1], at_layer_input=True,
                    )  # fmt: skip
                bar.update(1)
    return Conservation(outputs, sums, levels, taken)


def _at_layers(
    model: Callable[..., Any], layers: list[nn.Module], rules: Rules
) -> LayerConservativeGI:
    if isinstance(rules, tuple):
        return LayerConservativeLRP(model, layers, rules[0], bias=rules[1])
    return LayerConservativeGI(model, layers, rules)


def _sums(
    model: Callable[..., Any], batch: Batch, target: Any, rules: Rules, blocks: list[nn.Module]
) -> list[Tensor]:
    """Sums at the input, at the first block's input and at every block's output."""
    at_input: ConservativeGI
    if isinstance(rules, tuple):
        at_input = ConservativeLRP(model, rules[0], bias=rules[1])
    else:
        at_input = ConservativeGI(model, rules)
    layers: Any = _at_layers(model, blocks, rules)
    call: Any = {"target": target, "additional_forward_args": batch.extra or None}
    first = layers.attribute(batch.inputs, **call, attribute_to_layer_input=True)[0]
    outputs = layers.attribute(batch.inputs, **call)
    # at layers the hidden states come first; others are masks and position biases
    states = [r[0] if isinstance(r, (tuple, list)) else r for r in (first, *outputs)]
    found = [rows_first(relevance, len(batch)) for relevance in states]
    if any(relevance is None for relevance in found):
        rows = torch.arange(len(batch))
        parts = [
            _sums(model, batch.take(rows[some]), target[some], rules, blocks)
            for some in (slice(1), slice(1, None))
        ]
        return [torch.cat(pair) for pair in zip(*parts, strict=True)]
    at_inputs = _total(at_input.attribute(batch.inputs, **call), len(batch))
    return [at_inputs, *(_total(relevance, len(batch)) for relevance in found)]


def _total(relevance: Any, examples: int) -> Tensor:
    tensors = list(relevance) if isinstance(relevance, (tuple, list)) else [relevance]
    total = torch.zeros(examples, dtype=torch.float64)
    for tensor in tensors:
        if examples > 1 and tensor.shape[:1] != (examples,):
            raise InputError(
                f"relevance of shape {tuple(tensor.shape)} has no row for each of the {examples} "
                "examples, so conservation cannot be told by example; measure one at a time"
            )
        total += tensor.detach().reshape(examples, -1).double().sum(1).cpu()
    return total


def _rows_of(classes: Any, rows: Tensor, count: int) -> Any:
    if not isinstance(classes, (list, Tensor)):
        return classes
    found = torch.as_tensor(classes)
    return found[rows] if found.dim() == 1 and len(found) == count else classes


def _short(value: float) -> str:
    if value != value:
        return "none"
    return f"{value:.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
