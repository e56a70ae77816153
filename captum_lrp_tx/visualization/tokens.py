"""Tokens with their relevance, and what is known about the explained output."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captum_lrp_tx.visualization.wording import (
    Scheme,
    belong_together,
    guess_scheme,
    printable,
    raw_text,
    scheme_of,
    special_ids,
)

#: Names that are special tokens in every model known; ``[UNK]`` stands for text.
_SPECIAL = re.compile(
    r"""\[(?!UNK\])/?[A-Z][A-Z_]+\]            # [CLS], [INST], [/INST], [TOOL_CALLS]
    | </?s> | <</?SYS>>
    | </?(pad|mask|bos|eos|cls|sep|eod|endoftext|extra_id_\d+|fim_[a-z]+)>
    | <(start|end)_of_[a-z]+>               # Gemma
    | <\|[^|<>]*\|> | <\uff5c[^\uff5c<>]*\uff5c>  # <|im_start|>, and DeepSeek's wide bars
    """,
    re.VERBOSE,
)
_BLANK = "\u2423"


def looks_special(token: str) -> bool:
    """Whether the name of a token is that of a special one, such as ``[CLS]``."""
    return _SPECIAL.fullmatch(token) is not None


@dataclass(frozen=True, slots=True)
class Piece:
    """What is drawn as one box: a token, or a word made of several tokens.

    Attributes:
        text (str): Readable text, without control characters.
        relevance (float): Summed over its tokens.
        special (bool): Whether it is a special token such as ``[CLS]``.
        space (bool): Whether a space precedes it in the text.
        tokens (tuple of int): Indices of its tokens.
    """

    text: str
    relevance: float
    special: bool
    space: bool
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenHeatmap:
    """Tokens, their relevance, and what is known about the explained output.

    Args:
        tokens (sequence of str): As the tokenizer names them, with its marks (``##``, ``▁``,
            ``Ġ``).
        relevance (sequence of float, or Tensor): One number for each token.
        title (str): Headline.
        prediction (str): Name of the predicted class.
        probability (float, optional): Its probability.
        target (str): Name of the explained class; the predicted one unless given.
        score (float, optional): The explained output (a logit).
        delta (float, optional): ``score`` minus the sum of relevance.
        delta_label (str): What the delta is.
        special (sequence of bool, optional): Which tokens are special and drawn dimmed; guessed
            from their names unless given.
        scheme (str): How tokens mark the borders of words: ``"wordpiece"``, ``"sentencepiece"``,
            ``"bytes"`` (byte-level BPE), ``"end-of-word"`` (``</w>``), ``"continued"`` (``@@``),
            ``"words"`` (not at all), or ``"auto"``, by the marks that occur. A text of one word
            may have no mark; then :meth:`from_ids` asks the tokenizer.
        words (sequence of (str, bool, tuple of int), optional): The words where they are known:
            text, whether a space precedes it, and its tokens; else the marks of the tokens tell.
        told (sequence of (str, str), optional): What :meth:`facts` says, instead of the above.

    Raises:
        ValueError: If the lengths differ or a relevance is not finite.

    Example::

        >>> TokenHeatmap(["Ġvirt", "ues"], [1.0, 0.5]).pieces()[0].text
        'virtues'
    """

    tokens: Sequence[str]
    relevance: Sequence[float]
    title: str = ""
    prediction: str = ""
    probability: float | None = None
    target: str = ""
    score: float | None = None
    delta: float | None = None
    delta_label: str = "absorbed by biases"
    special: Sequence[bool] | None = None
    scheme: Scheme = "auto"
    words: Sequence[tuple[str, bool, tuple[int, ...]]] | None = None
    told: Sequence[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        """Makes tuples of what was given, and checks it."""
        values = self.relevance.tolist() if hasattr(self.relevance, "tolist") else self.relevance
        try:
            relevance = tuple(float(value) for value in values)
        except TypeError as error:
            raise ValueError("relevance must be one number for each token (one example)") from error
        tokens = tuple(self.tokens)
        if len(tokens) != len(relevance):
            raise ValueError(f"{len(tokens)} tokens, but {len(relevance)} relevances")
        if not all(map(math.isfinite, relevance)):
            raise ValueError("relevance has values that are not finite")
        special = self.special
        if special is None:
            special = tuple(map(looks_special, tokens))
        elif len(special) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens, but {len(special)} entries of special")
        # the way round `frozen`, which the dataclass documentation gives for __post_init__
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "relevance", relevance)
        object.__setattr__(self, "special", tuple(bool(item) for item in special))

    @classmethod
    def from_ids(cls, tokenizer: Any, ids: Any, relevance: Any, **more: Any) -> TokenHeatmap:
        """The tokens of one text, with what their tokenizer knows of them.

        Args:
            tokenizer: A tokenizer of transformers.
            ids (sequence of int, or Tensor): Token ids of one text, shape ``(tokens,)``.
            relevance (sequence of float, or Tensor): One number for each token.
            **more: Further arguments of the class; they go before what the tokenizer says.

        Returns:
            TokenHeatmap: With the tokenizer's special tokens and marks of words.

        Example::

            >>> TokenHeatmap.from_ids(tokenizer, inputs["input_ids"][0], relevance[0])
        """
        if getattr(ids, "ndim", 1) != 1:
            raise ValueError(
                f"ids of the shape {tuple(ids.shape)} are a batch; give those of one text, and "
                "their relevance: ids[0], relevance[0]"
            )
        numbers = [int(i) for i in ids]
        hidden = special_ids(tokenizer)
        known = {"special": [i in hidden for i in numbers], "scheme": scheme_of(tokenizer)}
        tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(numbers)]
        return cls(tokens, relevance, **{**known, **more})

    @property
    def total(self) -> float:
        """Sum of relevance over all tokens."""
        return math.fsum(self.relevance)

    def scale(self, merge: bool = True) -> float:
        """Relevance at which the colours saturate: the largest one outside special tokens.

        Special tokens often collect far more than any word and would leave the text pale.

        Args:
            merge (bool): For words, or for single tokens.

        Returns:
            float: A positive number, 1 if there is no relevance at all.
        """
        pieces = self.pieces(merge)
        words = [abs(piece.relevance) for piece in pieces if not piece.special]
        return max(words, default=0.0) or max((abs(p.relevance) for p in pieces), default=0) or 1.0

    def facts(self) -> list[tuple[str, str]]:
        """What is known about the output, as pairs of a name and a text."""
        if self.told is not None:
            return [*self.told]
        return summary(
            self.total,
            prediction=self.prediction,
            probability=self.probability,
            target=self.target,
            score=self.score,
            delta=self.delta,
            delta_label=self.delta_label,
        )

    def pieces(self, merge: bool = True) -> list[Piece]:
        """The boxes to draw.

        Args:
            merge (bool): Join the pieces of a word and sum their relevance. Punctuation stays on
                its own.

        Returns:
            list of Piece: In the order of the text; every token is in exactly one.
        """
        assert self.special is not None
        if merge and self.words is not None:
            return [
                Piece(
                    printable(text) or _BLANK, math.fsum(self.relevance[i] for i in members),
                    bool(self.special[members[0]]), space, members,
                )
                for text, space, members in self.words
            ]  # fmt: skip
        scheme = self.scheme if self.scheme != "auto" else guess_scheme(self.tokens)
        groups: list[tuple[bytes, bool, bool, list[int]]] = []  # text, special, space, tokens
        for index, (token, special) in enumerate(zip(self.tokens, self.special, strict=True)):
            last = groups[-1] if groups else None
            before = self.tokens[index - 1] if last and not last[1] else ""
            raw, space = raw_text(token, "words" if special else scheme, before)
            if (
                merge and last and not special and not last[1] and not space
                and belong_together(last[0], raw, token, scheme, before)
            ):  # fmt: skip
                groups[-1] = (last[0] + raw, False, last[2], [*last[3], index])
            else:
                groups.append((raw, special, space, [index]))
        return [
            Piece(
                printable(raw.decode("utf-8", "backslashreplace")) or _BLANK,
                math.fsum(self.relevance[i] for i in members),
                special,
                space,
                tuple(members),
            )
            for raw, special, space, members in groups
        ]


def summary(
    total: float,
    *,
    prediction: str = "",
    probability: float | None = None,
    target: str = "",
    score: float | None = None,
    delta: float | None = None,
    delta_label: str = "absorbed by biases",
) -> list[tuple[str, str]]:
    """Says in words what was predicted and how relevance adds up.

    Args:
        total (float): Sum of relevance.
        prediction (str): Name of the predicted class.
        probability (float, optional): Its probability.
        target (str): Name of the explained class; the predicted one unless given.
        score (float, optional): The explained output.
        delta (float, optional): ``score`` minus ``total``.
        delta_label (str): What the delta is.

    Returns:
        list of (str, str): Pairs of a name and a text, without the facts that are not known.

    Example::

        >>> summary(3.0, prediction="positive", score=2.5, delta=-0.5)[-1]
        ('sum', 'relevance +3.0000, absorbed by biases -0.5000')
    """
    facts = []
    if prediction:
        known = "" if probability is None else f" (probability {probability:.3f})"
        facts.append(("prediction", printable(prediction) + known))
    if score is not None:
        name = printable(target or prediction)
        facts.append(("explained", f"logit of {name} {score:+.4f}" if name else f"{score:+.4f}"))
    rest = "" if delta is None else f", {delta_label} {delta:+.4f}"
    facts.append(("sum", f"relevance {total:+.4f}{rest}"))
    return facts
