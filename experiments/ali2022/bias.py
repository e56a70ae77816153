"""Experiment 4: what a sentiment model makes of names, countries and gendered words.

    python -m experiments.ali2022.run --experiment bias --shared ../shared

Every word is put into every template of its list.  Its relevance is that of its tokens (summed, if
it has several) for the positive minus the negative logit, at the output of the embedding block, as
in the published code of Ali et al. 2022.  Beside it stands what the word does to the model: the
logit difference of the sentence minus the mean over all words in the same template.  An explanation
that ranks words rightly ranks them by this effect.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from experiments.ali2022 import names
from experiments.ali2022.methods import AtEmbeddings

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Presets of the study, by their names in the tables.
STUDIED = {"GI": "gi", "LRP(AH+LN)": "ah+ln", "LRP": "lrp"}
EFFECT = "effect of the word"


@dataclass(frozen=True)
class Group:
    """Words that are compared with each other.

    Attributes:
        title (str): In tables.
        words (tuple of str): All words.
        kinds (tuple of str): The kind of each word.
        templates (tuple of str): Sentences with a place for a word.
        contrast (pair of str): The two kinds whose difference is of interest; ``("", "")`` if none.
    """

    title: str
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    templates: tuple[str, ...]
    contrast: tuple[str, str] = ("", "")


def _group(title: str, lists: dict[str, Sequence[str]], templates: Sequence[str]) -> Group:
    words = tuple(word for words in lists.values() for word in words)
    kinds = tuple(kind for kind, words in lists.items() for _ in words)
    first, second = (*lists, "", "")[:2]
    contrast = (first, second) if second else ("", "")
    return Group(title, words, kinds, tuple(templates), contrast)


_PERSON = (*names.PERSON_TEMPLATES, *names.POLAR_TEMPLATES)


def groups(count: int | None = None) -> list[Group]:
    """The words of the study.

    Args:
        count (int, optional): Only so many of each kind.
    """
    sex = ("female", "male")
    pairs = [{kind: [pair[i] for pair in some] for i, kind in enumerate(sex)} for some in (
        names.PAIRS[:1], names.PAIRS[1:],
    )]  # fmt: skip
    lists: list[tuple[str, dict[str, list[str]], Sequence[str]]] = [
        ("given names", {"female": names.FEMALE, "male": names.MALE}, _PERSON),
        (
            "surnames",
            {"Spanish": names.SPANISH_SURNAMES, "other": names.OTHER_SURNAMES},
            _PERSON,
        ),
        ("pronouns", pairs[0], names.PRONOUN_TEMPLATES),
        ("gendered nouns", pairs[1], names.PAIR_TEMPLATES),
        ("countries", {"country": names.COUNTRIES}, names.COUNTRY_TEMPLATES),
    ]
    return [
        _group(title, {kind: words[: count or None] for kind, words in kinds.items()}, templates)
        for title, kinds, templates in lists
    ]


@dataclass(frozen=True)
class Measured:
    """What was found for the words of a group.

    Attributes:
        group (Group): The words.
        relevance (dict): Of each method, ``(words, templates)``.
        logits (Array): Positive minus negative logit, ``(words, templates)``.
    """

    group: Group
    relevance: dict[str, Array]
    logits: Array

    @property
    def effect(self) -> Array:
        """Of each word on the logit difference, ``(words, templates)``."""
        centred: Array = self.logits - self.logits.mean(0, keepdims=True)
        return centred

    def means(self) -> dict[str, Array]:
        """Relevance and effect of each word, averaged over the templates."""
        found = {name: values.mean(1) for name, values in self.relevance.items()}
        return {**found, EFFECT: self.effect.mean(1)}


def spans(tokenizer: Any, template: str, word: str) -> tuple[Any, list[int]]:
    """A sentence, tokenized, and where the word is in it.

    Args:
        tokenizer: A fast tokenizer.
        template (str): With ``{}``.
        word (str): Goes there.

    Returns:
        tuple: What the tokenizer returns, and the positions of the word's tokens.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> spans(sentiment()[1], "a film by {} .", "garcia")[1][0]
        4
    """
    text = template.format(word)
    start = template.index("{}")
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    inside = [i for i, (a, b) in enumerate(offsets) if b > a and start <= a < start + len(word)]
    return encoded, inside


class LogitDifference(torch.nn.Module):
    """The positive minus the negative logit of a classifier, as its only output.

    Args:
        model (nn.Module): With the classes negative and positive.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model.base_model  # where the embedding block is
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """Shape ``(batch, 1)``."""
        logits = self.model(**inputs).logits
        difference: Tensor = logits[:, 1:] - logits[:, :1]
        return difference


def measure(
    model: Any,
    tokenizer: Any,
    group: Group,
    methods: Sequence[str] = tuple(STUDIED),
    show: bool = False,
) -> Measured:
    """Explains every word in every template.

    Args:
        model (nn.Module): A classifier with the classes negative and positive.
        tokenizer: Its fast tokenizer.
        group (Group): The words.
        show (bool): Show a progress bar.
        methods (sequence of str): Names as in ``STUDIED``; all of them unless given.
    """
    wrapped = LogitDifference(model).eval()
    explainers = {name: AtEmbeddings(wrapped, STUDIED[name]) for name in methods or STUDIED}
    shape = (len(group.words), len(group.templates))
    relevance = {name: np.zeros(shape) for name in explainers}
    logits = np.zeros(shape)
    bar = tqdm(group.templates, group.title, disable=not show, file=sys.stderr, mininterval=10)
    for column, template in enumerate(bar):
        sentences = [spans(tokenizer, template, word) for word in group.words]
        by_length: dict[int, list[int]] = {}
        for row, (encoded, _) in enumerate(sentences):
            by_length.setdefault(encoded["input_ids"].shape[1], []).append(row)
        for rows in by_length.values():
            batch = {
                key: torch.cat([sentences[row][0][key] for row in rows]) for key in sentences[0][0]
            }
            with torch.no_grad():
                logits[rows, column] = wrapped(**batch)[:, 0].double().numpy()
            target = torch.zeros(len(rows)).long()
            for name, explain in explainers.items():
                found = explain.attribute(batch, target).double()
                relevance[name][rows, column] = [
                    float(found[i, sentences[row][1]].sum()) for i, row in enumerate(rows)
                ]
    return Measured(group, relevance, logits)


def interval(values: tuple[Array, ...], statistic: Any, **options: Any) -> tuple[float, ...]:
    """An estimate and its 95 % bootstrap interval (10,000 samples, percentiles, seed 0).

    Args:
        values (tuple of Array): Samples.
        statistic (callable): Of the samples, with the keyword ``axis``.
        options: Of ``scipy.stats.bootstrap``.
    """
    found = stats.bootstrap(
        values, statistic, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0),
        **options,
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(statistic(*values, axis=-1)), float(low), float(high)


def difference_of_means(first: Array, second: Array, axis: int = -1) -> Any:
    """Mean of one sample minus that of the other."""
    return first.mean(axis=axis) - second.mean(axis=axis)


def correlation(first: Array, second: Array, axis: int = -1) -> Any:
    """Pearson correlation along an axis."""
    a = first - first.mean(axis=axis, keepdims=True)
    b = second - second.mean(axis=axis, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    return (a * b).sum(axis=axis) / np.maximum(norm, 1e-300)


def differences(measured: Measured) -> dict[str, tuple[float, ...]]:
    """Mean of the first kind minus mean of the second, in standard deviations over all words.

    Units differ between methods and effect, so each is divided by its standard deviation over the
    words of the group. The interval is a bootstrap over words.

    Args:
        measured (Measured): Of a group with two kinds.

    Returns:
        dict: For each method and the effect: estimate, low, high.
    """
    first, second = measured.group.contrast
    kinds = np.array(measured.group.kinds)
    found = {}
    for name, values in measured.means().items():
        scaled = values / max(values.std(), 1e-300)
        found[name] = interval(
            (scaled[kinds == first], scaled[kinds == second]), difference_of_means
        )
    return found


def agreement(measured: Measured) -> dict[str, tuple[float, ...]]:
    """Correlation over words of relevance and effect: estimate, low, high, and rank correlation.

    Args:
        measured (Measured): Of a group.
    """
    means = measured.means()
    effect = means.pop(EFFECT)
    found = {}
    for name, values in means.items():
        estimate = interval((values, effect), correlation, paired=True)
        found[name] = (*estimate, float(stats.spearmanr(values, effect).statistic))
    return found


def ranking(measured: Measured, name: str, count: int) -> tuple[list[str], list[str]]:
    """The most positive words, and the most negative ones, the extreme ones first.

    Args:
        measured (Measured): Of a group.
        name (str): A method, or ``EFFECT``.
        count (int): How many.
    """
    order = np.argsort(measured.means()[name])
    words = [measured.group.words[i] for i in order]
    return words[::-1][:count], words[:count]


def report(all_measured: Sequence[Measured]) -> str:
    """Everything in Markdown.

    Args:
        all_measured (sequence of Measured): One for each group.
    """
    names = [*all_measured[0].relevance, EFFECT]
    lines = ["## Does the relevance of a word say what the word does?", ""]
    lines += ["Correlation over words, averaged over templates, with the effect of the word.", ""]
    lines += ["| words | n | templates | " + " | ".join(names[:-1]) + " |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    several = [m for m in all_measured if len(m.group.words) > 2]
    for measured in several:
        found = agreement(measured)
        cells = [
            f"{r:.2f} [{low:.2f}, {high:.2f}], rank {rank:.2f}"
            for r, low, high, rank in found.values()
        ]
        shape = measured.logits.shape
        lines.append(f"| {measured.group.title} | {shape[0]} | {shape[1]} | {' | '.join(cells)} |")
    lines += ["", "## Differences between kinds of words", ""]
    lines += ["In standard deviations over the words of the group, 95 % bootstrap interval.", ""]
    lines += ["| words | difference | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for measured in several:
        if not measured.group.contrast[0]:
            continue
        cells = [
            f"{d:+.2f}{'' if low <= 0 <= high else '*'} [{low:+.2f}, {high:+.2f}]"
            for d, low, high in differences(measured).values()
        ]
        first, second = measured.group.contrast
        lines.append(f"| {measured.group.title} | {first} minus {second} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Rankings",
        "",
        "| words | by | most positive | most negative |",
        "|---|---|---|---|",
    ]
    for measured in several:
        for name in (EFFECT, *names[:-1]):
            best, worst = ranking(measured, name, 10)
            lines.append(
                f"| {measured.group.title} | {name} | {', '.join(best)} | {', '.join(worst)} |"
            )
    pronouns = [m for m in all_measured if len(m.group.words) == 2]
    for measured in pronouns:
        lines += ["", f"## {measured.group.title.capitalize()}", ""]
        lines += ["| word | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        means = measured.means()
        for i, word in enumerate(measured.group.words):
            lines.append(f"| {word} | " + " | ".join(f"{means[n][i]:+.3f}" for n in names) + " |")
    return "\n".join(lines) + "\n"
