"""Explanations as text for a terminal, as HTML for a notebook, and as figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.explaining.words import Tokens, Word
from captum_lrp_tx.visualization import (
    TokenHeatmap,
    audio_figure,
    figure,
    image_figure,
    image_terminal,
    supports_colour,
    terminal,
)
from captum_lrp_tx.visualization.page import (
    Section,
    figure_section,
    image_section,
    page,
    sections,
    text_section,
)
from captum_lrp_tx.visualization.tokens import Piece
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from captum_lrp_tx.explaining.explanation import Explanation

#: More are not drawn in a notebook; files hold all.
_MOST = 20


def words_of(tokens: Tokens, values: Sequence[float]) -> list[Word]:
    """All words, special tokens among them, as they stand in the original text.

    Args:
        tokens (Tokens): The tokens.
        values (sequence of float): Relevance of each token.
    """
    plain = _single(tokens)
    words = []
    for members in tokens.words:
        spans = [span for i in members if (span := tokens.spans[i]) is not None]
        start = min((s for s, _ in spans), default=None)
        end = max((e for _, e in spans), default=None)
        part = tokens.parts[members[0]]
        if start is not None and end is not None and start < end:
            text = tokens.texts[part][start:end]
        else:
            text = _joined(tokens, members, [plain[i].text for i in members])
        relevance = math.fsum(values[i] for i in members)
        words.append(Word(text, relevance, start, end, part, members))
    return words


def _single(tokens: Tokens) -> list[Piece]:
    """Each token by itself, with the space that its own mark tells."""
    nothing = [0.0] * len(tokens)
    heatmap = TokenHeatmap(tokens.names, nothing, special=tokens.special, scheme=tokens.scheme)
    return heatmap.pieces(merge=False)


def _joined(tokens: Tokens, members: Sequence[int], texts: Sequence[str]) -> str:
    """A word of which no place is known, from the names of its tokens."""
    if len(members) == 1:
        return texts[0]
    heatmap = TokenHeatmap(
        [tokens.names[i] for i in members], [0.0] * len(members),
        special=[False] * len(members), scheme=tokens.scheme,
    )  # fmt: skip
    return "".join(piece.text for piece in heatmap.pieces())


def heatmap(explanation: Explanation, tokens: Tokens) -> TokenHeatmap:
    """A text as a heat map."""
    values, plain = explanation.relevance.double().tolist(), _single(tokens)
    words = words_of(tokens, values)
    drawn = [
        (word.text, _has_space(tokens, before, word, plain), word.tokens)
        for before, word in zip([None, *words], words)
    ]
    return TokenHeatmap(
        tokens.names, values, title=f"Relevance for {explanation.target}", special=tokens.special,
        scheme=tokens.scheme, words=drawn, told=facts(explanation),
    )  # fmt: skip


def _has_space(tokens: Tokens, before: Word | None, word: Word, plain: Sequence[Piece]) -> bool:
    """Whether a word is to be drawn with a space before it."""
    if before is None or before.part != word.part:
        return True
    if word.start is None or before.end is None:
        if word.start is None and before.end is None and not tokens.special[word.tokens[0]]:
            return plain[word.tokens[0]].space
        return True
    return any(char.isspace() for char in tokens.texts[word.part][before.end : word.start])


def facts(explanation: Explanation) -> list[tuple[str, str]]:
    """What is known about an explanation, the sum last."""
    made = []
    if explanation.prediction:
        odds = explanation.probability
        known = "" if odds is None else f" (probability {odds:.3f})"
        made.append(("prediction", printable(explanation.prediction) + known))
    made.append(("explained", f"{printable(explanation.explains)} {explanation.value:+.4f}"))
    made.append(("task", explanation.task))
    made.append(("rules", f"{explanation.rules}, bias {explanation.bias}"))
    made += [("warning", printable(text)) for text in explanation.warnings]
    total, absorbed = explanation.sum, math.fsum(explanation.absorbed.values())
    added = f"relevance {total:+.4f}, absorbed by constants {absorbed:+.4f}"
    if is_lossy(explanation):
        added += f", unaccounted for {explanation.unaccounted:+.4f}"
    return [*made, ("sum", added)]


def is_lossy(explanation: Explanation) -> bool:
    """Whether relevance and what constants absorbed do not add up to the explained value."""
    largest = max(float(part.abs().max()) for part in explanation.all_relevance())
    size = max(abs(explanation.value), largest)
    return abs(explanation.unaccounted) > 2e-3 * size


def plot(explanation: Explanation, **options: Any) -> Figure:
    """An explanation as a figure."""
    if explanation.tokenized is not None:
        made = figure(heatmap(explanation, explanation.tokenized), **options)
        if explanation.image_relevance is not None:
            options.pop("merge", None)
            image_figure(explanation.image, explanation.image_relevance, below=made, **options)
        return made
    options.pop("merge", None)  # there are no words to be made of pieces
    options.setdefault("title", f"Relevance for {explanation.target}")
    if explanation.audio is not None:
        return audio_figure(
            explanation.audio, explanation.relevance, seconds=explanation.seconds, **options
        )
    return image_figure(explanation.image, explanation.relevance, **options)


def terminal_text(explanation: Explanation) -> str:
    """An explanation for a terminal, in colours if it has them."""
    colour = supports_colour()
    shown = ["\n".join(f"{name:<12}{text}" for name, text in facts(explanation))]
    if explanation.tokenized is not None:
        shown.append(terminal(heatmap(explanation, explanation.tokenized), colour=colour))
    if (seen := map_of_picture(explanation)) is not None:
        shown.append(image_terminal(seen, colour=colour))
    return "\n\n".join(shown)


def map_of_picture(explanation: Explanation) -> Tensor | None:
    """Relevance that is shown as a picture: of an image, or of audio with low tones below."""
    if explanation.audio is not None:
        relevance = explanation.relevance
        return relevance[None] if relevance.dim() == 1 else relevance.flip(0)
    return explanation.relevance if explanation.tokenized is None else explanation.image_relevance


def _section(explanation: Explanation, merge: bool) -> Section:
    title = f"Relevance for {explanation.target}"
    options: dict[str, Any] = {"title": title, "facts": facts(explanation)}
    if explanation.audio is not None:
        drawing = plot(explanation, title="")
        return figure_section(drawing, alt="sound and its relevance", **options)
    if explanation.tokenized is None:
        return image_section(explanation.image, explanation.relevance, **options)
    text = text_section(heatmap(explanation, explanation.tokenized), merge=merge)
    if explanation.image_relevance is None:
        return text
    below = image_section(explanation.image, explanation.image_relevance)
    return replace(text, body=text.body + below.body)


def fragment(explanations: Sequence[Explanation]) -> str:
    """Explanations as HTML for a notebook."""
    made = sections([_section(item, True) for item in explanations[:_MOST]])
    if len(explanations) > _MOST:
        made += f"<p>{len(explanations) - _MOST} more, which save('x.html') writes</p>"
    return made


def whole_page(explanations: Sequence[Explanation], merge: bool = True) -> str:
    """Explanations as a page of its own."""
    return page([_section(item, merge) for item in explanations])
