"""What :func:`captum_lrp_tx.explain` returns: relevance with all that is known about it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining import saving, showing
from captum_lrp_tx.explaining.segments import Segment, Segments, segments_of
from captum_lrp_tx.explaining.words import Span, Tokens, Word
from captum_lrp_tx.visualization.tokens import TokenHeatmap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from captum_lrp_tx.audit import Report


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """One explained output of a model: of a text, an image, both together, or audio.

    Attributes:
        task (str): What the model is made for, e.g. ``"sequence classification"``.
        explains (str): What is explained, in words: ``"logit of positive"``.
        target (str): Name of the explained output.
        value (float): The explained output.
        relevance (Tensor): On the CPU. Of a text one number for each token, shape ``(tokens,)``;
            of an image ``(channels, height, width)``; of audio ``(samples,)``, or ``(frequencies,
            frames)`` where the model takes a spectrogram.
        prediction (str): What the model predicts.
        probability (float, optional): Of the prediction.
        tokenized (Tokens, optional): The tokens of a text, their words and places.
        image (Tensor, optional): The pixels of an image as the model got them.
        image_relevance (Tensor, optional): Of a text with an image, the relevance of the image,
            shape ``(channels, height, width)``.
        audio (Tensor, optional): Samples or spectrogram as the model got them, in the shape of
            ``relevance``.
        seconds (float, optional): How long the audio is, where the feature extractor tells.
        absorbed (dict of str to float): Relevance that biases and other constants took, by name,
            the largest first.
        rules (str): The rule set.
        bias (str): What happened to the relevance of biases.
        warnings (tuple of str): What the reader should know, in plain words.
        embeddings (dict of str to Tensor): Of a text, relevance by what was embedded at each token
            (word, position, segment), by the name of the table; each of shape ``(tokens,)``.

    Example::

        >>> import captum_lrp_tx as lrp
        >>> from captum_lrp_tx.models import sentiment
        >>> explanation = lrp.explain(*sentiment(), "a charming and funny film")
        >>> [word.text for word in explanation.top(2)]
        ['charming', 'funny']
        >>> bool(abs(explanation.unaccounted) < 1e-4)
        True
    """

    task: str
    explains: str
    target: str
    value: float
    relevance: Tensor
    prediction: str = ""
    probability: float | None = None
    tokenized: Tokens | None = None
    image: Tensor | None = None
    image_relevance: Tensor | None = None
    audio: Tensor | None = None
    seconds: float | None = None
    absorbed: Mapping[str, float] = field(default_factory=dict)
    rules: str = "lrp"
    bias: str = "absorb"
    warnings: tuple[str, ...] = ()
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    _audit: Callable[[], Report] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model, as in a file: what is sent to another process is the explanation."""
        return {**self.__dict__, "_audit": None}

    # ---- numbers --------------------------------------------------------------------------------
    @property
    def sum(self) -> float:
        """Sum of relevance; of text and image together, of both."""
        return math.fsum(float(part.double().sum()) for part in self.all_relevance())

    def all_relevance(self) -> list[Tensor]:
        """The relevance of all that the model got: of a text with an image, two tensors."""
        return [self.relevance, *([] if self.image_relevance is None else [self.image_relevance])]

    @property
    def unaccounted(self) -> float:
        """The explained value minus relevance minus what constants absorbed.

        Zero, up to rounding, under rules that conserve relevance.
        """
        return self.value - self.sum - math.fsum(self.absorbed.values())

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> str | tuple[str, ...] | None:
        """The original text, or several; None where there is none, or only ids are known."""
        texts = tuple(self.tokenized.texts.values()) if self.tokenized is not None else ()
        return texts[0] if len(texts) == 1 else texts or None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of a text as the tokenizer names them; none for an image or audio."""
        return () if self.tokenized is None else self.tokenized.names

    @property
    def spans(self) -> tuple[Span | None, ...]:
        """Where each token stands in its text, ``text[start:end]``; None for special tokens."""
        return () if self.tokenized is None else self.tokenized.spans

    def __len__(self) -> int:
        """Number of tokens, or of pixels, samples or frames."""
        if self.tokenized is not None:
            return len(self.tokens)
        return self.relevance.shape[-1] if self.audio is not None else self.relevance[0].numel()

    def words(self, special: bool = False) -> list[Word]:
        """The words with their relevance, in the order of the text.

        Args:
            special (bool): Also the special tokens, such as ``[CLS]``; with them the relevance of
                the words adds up to :attr:`sum`.

        Returns:
            list of Word: Text, relevance, start, end, part, tokens.

        Raises:
            InputError: If this explains no text.

        Example::

            >>> for word in explanation.words():  # doctest: +SKIP
            ...     print(word.text, word.relevance)
        """
        tokens = self._text("words")
        values = self.relevance.double().tolist()
        return [
            word for word in showing.words_of(tokens, values)
            if special or not tokens.special[word.tokens[0]]
        ]  # fmt: skip

    def top(self, k: int = 5) -> list[Word]:
        """The words with the most relevance, for or against, the largest first.

        Args:
            k (int): How many.

        Raises:
            InputError: If this explains no text, or k is no positive number.
        """
        if k < 1:
            raise InputError(f"k must be a positive number, not {k}")
        return sorted(self.words(), key=lambda word: -abs(word.relevance))[:k]

    def by_segment(self, segments: Segments | None = None) -> list[Segment]:
        """Which message, document or other part of the text relevance is on.

        Args:
            segments (mapping of str to str, or chat messages, optional): Texts by name, as they
                stand in what was explained, or the messages that were. A token belongs to the
                segment that it begins in. Unless given, the texts of a pair, prompt and answer.

        Returns:
            list of Segment: Name, relevance, share of all positive relevance, tokens; an ``answer``
            and the ``rest`` (templates, special tokens) come last. Relevance adds up to
            :attr:`sum` of a text, shares to 1.

        Raises:
            InputError: If this explains no text, or a segment is not in it.

        Example::

            >>> for part in explanation.by_segment({"document 1": one, "document 2": two}):
            ...     print(part.name, f"{part.share:.0%}")  # doctest: +SKIP
        """
        return segments_of(self._text("segments"), self.relevance.double().tolist(), segments)

    def _text(self, what: str) -> Tokens:
        if self.tokenized is None:
            raise InputError(
                f"{'an image' if self.audio is None else 'audio'} has no {what}; its relevance is "
                f"the tensor .relevance, of shape {tuple(self.relevance.shape)}"
            )
        return self.tokenized

    def to_frame(self) -> pd.DataFrame:
        """A table of pandas: one row for each token, or for each pixel of an image.

        Returns:
            DataFrame: Columns ``token``, ``relevance``, ``word`` (number of its word), ``special``,
            ``part``, ``start``, ``end``; of an image ``row``, ``column``, ``relevance`` (summed
            over the channels); of audio ``sample``, ``relevance``, or ``frequency``, ``frame``,
            ``relevance``. Of a text with an image it is that of the text.

        Raises:
            MissingPackageError: If pandas is not installed.
        """
        return saving.frame(self)

    # ---- pictures -------------------------------------------------------------------------------
    def facts(self) -> list[tuple[str, str]]:
        """What is known about the explanation, as pairs of a name and a text."""
        return showing.facts(self)

    def heatmap(self) -> TokenHeatmap:
        """The text for the functions of :mod:`captum_lrp_tx.visualization`.

        Raises:
            InputError: If this explains no text.
        """
        return showing.heatmap(self, self._text("tokens"))

    def plot(self, **options: Any) -> Figure:
        """A figure: the text with a coloured box for each word, the image beside its heat map
        (below the text, where there are both), or the sound above its relevance.

        Args:
            **options: Of :func:`captum_lrp_tx.visualization.figure` (text),
                :func:`captum_lrp_tx.visualization.image_figure` or
                :func:`captum_lrp_tx.visualization.audio_figure`, such as ``width`` in inches.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return showing.plot(self, **options)

    def _repr_html_(self) -> str:
        return showing.fragment([self])

    def __str__(self) -> str:
        return showing.terminal_text(self)

    __repr__ = __str__

    # ---- files ----------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the explanation; the end of the name says how.

        Args:
            path (path): ``.html`` is a page, ``.png``, ``.pdf`` and ``.svg`` are pictures,
                ``.json`` and ``.parquet`` data that :meth:`load` reads.

        Raises:
            InputError: If the name ends in something else, or the file cannot be written.
            ImportError: If matplotlib (pictures) or pyarrow (Parquet) is not installed.

        Example::

            >>> explanation.save("film.html")  # doctest: +SKIP
        """
        saving.save([self], path, many=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Reads what :meth:`save` has written as ``.json`` or ``.parquet``.

        Raises:
            InputError: If the file is missing, is no explanation, or holds several.
            MissingPackageError: For Parquet, if pyarrow is not installed.
        """
        records = saving.read(path)
        if len(records) != 1:
            raise InputError(
                f"{path} holds {len(records)} explanations; read it with Explanations.load"
            )
        return cls(**saving.fields_of(records[0], path))

    # ---- trust ----------------------------------------------------------------------------------
    def audit(self) -> Report:
        """Says how far the explanation can be trusted.

        Explains once more, and reports which rule acted where, what no rule covers, what constants
        absorbed, and the conservation error of every module.

        Raises:
            InputError: If the explanation was read from a file, pickled or copied: the model is
                needed.
        """
        if self._audit is None:
            raise InputError(
                "an explanation from a file, another process or a copy has no model to audit; "
                "explain it again"
            )
        return self._audit()


class Explanations(Sequence[Explanation]):
    """Explanations of many inputs, or of the tokens of an answer: a sequence.

    Args:
        items (iterable of Explanation): In their order.

    Example::

        >>> import captum_lrp_tx as lrp
        >>> from captum_lrp_tx.models import sentiment
        >>> many = lrp.explain(*sentiment(), ["great fun", "a dull mess"])
        >>> len(many), [explanation.target for explanation in many]
        (2, ['positive', 'negative'])
    """

    def __init__(self, items: Sequence[Explanation]) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...

    @overload
    def __getitem__(self, index: slice) -> Explanations: ...

    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        """One explanation, or several for a slice."""
        if isinstance(index, slice):
            return Explanations(self._items[index])
        return self._items[index]

    def to_frame(self) -> pd.DataFrame:
        """All tables of :meth:`Explanation.to_frame`, with a column ``example`` in front.

        Raises:
            MissingPackageError: If pandas is not installed.
        """
        return saving.frames(self._items)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all of them to one file: ``.html``, ``.json`` or ``.parquet``.

        Raises:
            InputError: If the name ends in something else, or the file cannot be written.
            ImportError: For Parquet, if pyarrow is not installed.
        """
        saving.save(self._items, path, many=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanations:
        """Reads what :meth:`save` has written as ``.json`` or ``.parquet``.

        Raises:
            InputError: If the file is missing or holds no explanations.
            MissingPackageError: For Parquet, if pyarrow is not installed.
        """
        return cls([Explanation(**saving.fields_of(row, path)) for row in saving.read(path)])

    def _repr_html_(self) -> str:
        return showing.fragment(self._items)

    def __str__(self) -> str:
        return "\n\n".join(f"[{i}] {item}" for i, item in enumerate(self._items))

    __repr__ = __str__
