"""What a report holds: examples, explanations by each method, and how faithful they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from torch import Tensor

from captum_lrp_tx.attr.class_names import class_number
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.files import check_writable, write_atomically
from captum_lrp_tx.methods.registry import result_of
from captum_lrp_tx.metrics.curves import Curve
from captum_lrp_tx.reporting.samples import Kind
from captum_lrp_tx.visualization.wording import Scheme

#: An example and a class.
Key = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Example:
    """One example and what the model makes of it.

    Attributes:
        text (str): Of a text; empty if only token ids are known.
        tokens (tuple of str): Of a text, as the tokenizer names them.
        special (tuple of bool): Which of them are special, and drawn dimmed.
        image (Tensor, optional): Of an image, ``(channels, height, width)``.
        output (Tensor): Of the model, ``(classes,)``: usually logits.
        probabilities (Tensor, optional): ``(classes,)``; None for a model with one output.
        prediction (int): The class with the largest output.
        label (int, optional): The true class.
        classes (tuple of int): The explained ones, the prediction first.
    """

    text: str
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    image: Tensor | None
    output: Tensor
    probabilities: Tensor | None
    prediction: int
    label: int | None
    classes: tuple[int, ...]

    @property
    def is_correct(self) -> bool | None:
        """Whether the prediction is the true class; None if that is not known."""
        return None if self.label is None else self.label == self.prediction


@dataclass(frozen=True, eq=False)
class Explanations:
    """One method's relevance for all examples and explained classes.

    Attributes:
        name (str): Of the method.
        about (str): What it is, in one line.
        signed (bool): Whether relevance can speak against the output.
        uses_target (bool): Whether it depends on the class; attention alone does not.
        relevance (mapping): By example and class: ``(tokens,)``, or for images ``(height, width)``
            of the pixels, summed over channels, or ``(rows, columns)`` of the patches.
        sums (mapping): By example and class, of all relevance.
        deltas (mapping): By example and class: what the relevance leaves out of the output (for
            methods with a baseline, of its difference to the baseline's output); empty for
            methods whose relevance is not meant to sum to anything.
        errors (mapping): By example, why there is no relevance.
        absorbed (mapping): By example and class: what constants of the model, each known by name,
            take of the output; empty for methods that do not book it.
        activation (Curve, optional): Probability of the class while tokens or patches are
            inserted, most relevant first; of the predicted class of each example.
        pruning (Curve, optional): Squared change of the logits while they are removed, least
            relevant first.
        unmeasured (str): Why there are no curves.
        seconds (float): How long the explanations took.
    """

    name: str
    about: str
    signed: bool
    uses_target: bool
    relevance: Mapping[Key, Tensor]
    sums: Mapping[Key, float]
    deltas: Mapping[Key, float]
    errors: Mapping[int, str]
    absorbed: Mapping[Key, float] = field(default_factory=dict)
    activation: Curve | None = None
    pruning: Curve | None = None
    unmeasured: str = ""
    seconds: float = 0.0

    @property
    def error(self) -> str:
        """Why the method does not apply to the model; empty if it does to some example."""
        if self.relevance or not self.errors:
            return ""
        return "; ".join(dict.fromkeys(self.errors.values()))


@dataclass(frozen=True, eq=False)
class Report:
    """Many examples, explained by several methods.

    Attributes:
        kind (str): ``"text"`` or ``"image"``.
        examples (tuple of Example): In the order given.
        methods (tuple of Explanations): In the order asked for.
        class_names (tuple of str): Of all classes.
        title (str): Headline of the page.
        facts (tuple of (str, str)): What else is known, for the page.
        baseline (str): Where methods with a baseline start, in words.
        masking (str): How tokens or patches were hidden for the curves, in words.
        scheme (str): How tokens mark the borders of words.
    """

    kind: Kind
    examples: tuple[Example, ...]
    methods: tuple[Explanations, ...]
    class_names: tuple[str, ...]
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    baseline: str = ""
    masking: str = ""
    scheme: Scheme = "auto"

    def __getitem__(self, name: str) -> Explanations:
        """The explanations by a method, by its name in any spelling.

        Raises:
            KeyError: If there are none.
        """
        return result_of(name, {method.name: method for method in self.methods})

    @property
    def errors(self) -> Mapping[str, str]:
        """Methods that do not apply to the model, with the reason."""
        return {method.name: method.error for method in self.methods if method.error}

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions among the examples with a label; None without labels."""
        known = [e.is_correct for e in self.examples if e.is_correct is not None]
        return sum(known) / len(known) if known else None

    def html(self) -> str:
        """The report as a self-contained page.

        Returns:
            str: An HTML document that fetches nothing; all texts are escaped. The same report
            gives the same document.
        """
        from captum_lrp_tx.reporting.page import page

        return page(self)

    def _repr_html_(self) -> str:
        # a frame: the page has scripts and a style of its own
        page = escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="report" '
            'style="width:100%;height:40rem;border:1px solid #8884"></iframe>'
        )

    def save(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Writes :meth:`html` to a file, complete or not at all.

        Args:
            path (str or PathLike): Where to; a file of that name is replaced.

        Returns:
            Path: The file.

        Raises:
            InputError: If there is no such folder, or it is not writable.
            OSError: If the file cannot be written; an older one is then still there.
        """
        file = Path(path)
        check_writable(file)
        write_atomically(file, self.html().encode("utf-8"))
        return file


def check_labels(
    labels: Sequence[int | str | None] | Tensor | None, names: Sequence[str], count: int
) -> list[int | None]:
    """The true classes as numbers.

    Args:
        labels: Numbers or names of classes, None where unknown.
        names (sequence of str): Of the classes.
        count (int): Of the examples.

    Raises:
        InputError: Another number of labels than of examples, or a label that is no class.
    """
    if labels is None:
        return [None] * count
    if isinstance(labels, str):
        raise InputError("labels is a text; pass one label for each example")
    listed = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(listed) != count:
        raise InputError(
            f"{len(listed)} labels for {count} examples; "
            "give one for each, None where it is unknown"
        )
    if len(names) == 1:
        raise InputError(
            "labels need a model with several classes, but this one has one output; leave them out"
        )
    found: list[int | None] = []
    for index, label in enumerate(listed):
        if label is None:
            found.append(None)
            continue
        try:
            found.append(class_number(label, names))
        except TargetError as error:
            raise InputError(f"label {index}: {error}") from error
    return found
