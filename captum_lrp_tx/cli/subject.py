"""What is explained: a model from a folder or the Hub, its input, and the output asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_lrp_tx.cli.images import read_image
from captum_lrp_tx.cli.models import Kind, Source, find, kind_of, load_model, load_tokenizer
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.explaining import case_of
from captum_lrp_tx.explaining.tasks import Case, Choice
from captum_lrp_tx.explaining.texts import Reader, encode

#: What models do, as :func:`captum_lrp_tx.explain` calls it.
TASKS: dict[str, str] = {
    "text": "sequence classification",
    "next token": "next token",
    "image": "image classification",
}


@dataclass(frozen=True)
class Loaded:
    """A model with what it needs to read its inputs.

    Attributes:
        kind (str): ``"text"``, ``"next token"`` or ``"image"``.
        source (Source): Where it comes from.
        model (nn.Module): In evaluation mode.
        config (PretrainedConfig): Of the model.
        tokenizer: Of a model of texts.
    """

    kind: Kind
    source: Source
    model: Any
    config: Any
    tokenizer: Any = None

    @property
    def task(self) -> str:
        """What the model does, as :func:`captum_lrp_tx.explain` calls it."""
        return TASKS[self.kind]

    def input(self, text: str | None, arguments: argparse.Namespace) -> Any:
        """The text, once its tokenizer has read it; without one ``arguments.image`` as pixels.

        Raises:
            InputError: If it cannot be read or does not fit.
        """
        if text is None:
            return read_image(Path(arguments.image), self.source, self.config)
        # a damaged tokenizer shows now
        self.source.use("tokenizer", lambda: encode(text, Reader(self.model, self.tokenizer)))
        return text


@dataclass(frozen=True)
class Subject:
    """One prediction.

    Attributes:
        case (Case): The model and its input.
        choice (Choice): What it predicts, and which output is explained.
        score (float): The explained output.
    """

    case: Case
    choice: Choice
    score: float


def load(text: str | None, name: str | None) -> Loaded:
    """Loads the model that is meant.

    Args:
        text (str, optional): The text; without one the model is for images.
        name (str, optional): Folder or name on the Hub; a shipped model unless given.

    Raises:
        InputError: If it cannot be loaded, or is for other inputs.
    """
    if text is None:
        source = find(name, "digits")
        kind, config = kind_of(source, ("image",))
        return Loaded(kind, source, load_model(source, kind), config)
    source = find(name, "sentiment")
    kind, config = kind_of(source, ("text", "next token"))
    tokenizer = load_tokenizer(source)
    return Loaded(kind, source, load_model(source, kind), config, tokenizer)


def load_subject(text: str | None, arguments: argparse.Namespace) -> Subject:
    """Loads what the arguments name and runs the model once.

    Args:
        text (str, optional): The text; without one ``arguments.image`` is explained.
        arguments (Namespace): With ``model``, ``image`` and ``target``.

    Raises:
        InputError: If a model or an input cannot be loaded or does not fit.
        TargetError: If the model has no such class or token.
    """
    loaded = load(text, arguments.model)
    item = loaded.input(text, arguments)
    return loaded.source.use("model", lambda: subject_of(loaded, item, arguments.target))


def subject_of(loaded: Loaded, item: Any, target: str | None) -> Subject:
    """The prediction for one input, and the output that was asked for.

    Args:
        loaded (Loaded): The model.
        item (str or Tensor): A text, or pixels.
        target (str, optional): Class or token to explain.

    Raises:
        InputError: If the input does not fit.
        TargetError: If there is no such class or token.
    """
    with status("running the model"):
        case = case_of(loaded.model, loaded.tokenizer, item, target, loaded.task)
        return Subject(case, *case.run())
