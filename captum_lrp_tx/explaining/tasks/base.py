"""What a task is made of: something to run, and what of its output is explained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Union

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets import Contrast, Target, TargetType, select_target
from captum_lrp_tx.errors import TargetError
from captum_lrp_tx.explaining.names import Names
from captum_lrp_tx.explaining.texts import Reader
from captum_lrp_tx.explaining.words import Tokens
from captum_lrp_tx.propagation.model.outputs import output_tensor

#: Why a wish for many outputs is refused where one is explained.
ONE_AT_A_TIME = (
    "'all' stands for every output of the model, and here one is explained at a time: give the "
    "name or number of one, or call captum_lrp_tx.explain in Python, which explains every one"
)
#: What is explained, as a user writes it: a name, a number, or a target of ``attribute``.
Wanted = Any


@dataclass(frozen=True)
class Wish:
    """What the user wants to know.

    Attributes:
        target: Name or number of an output, or a target of ``attribute``; None for the prediction.
        contrast (bool, int or str): Against the runner-up, or against the output of that name.
        answer (int or str, optional): Of a language model: how many tokens to generate, or a text.
        hops (int or str, optional): Explain the answer as a whole, and pass on what lies on it.
    """

    target: Wanted = None
    contrast: bool | int | str = False
    answer: int | str | None = None
    hops: int | str | None = None


@dataclass(frozen=True)
class Written:
    """An answer that is explained as a whole.

    Attributes:
        start (int): Place of its first token.
        hops (int, optional): How many at most, see :class:`~captum_lrp_tx.AnswerLRP`.
    """

    start: int
    hops: int | None


@dataclass(frozen=True)
class Choice:
    """The output that is explained, chosen once the model has run.

    Attributes:
        target: As ``attribute`` takes it.
        name (str): Of the explained output.
        explains (str): What its value is, in words.
        prediction (str): What the model predicts.
        probability (float, optional): Of the prediction.
        rows (tuple of int): Of several texts those that are shown (multiple choice).
    """

    target: TargetType
    name: str
    explains: str
    prediction: str = ""
    probability: float | None = None
    rows: tuple[int, ...] = ()


#: Relevance of each attributed input, by its name ("" for a tensor), and what was chosen.
Arrange = Callable[[Mapping[str, Tensor], Choice], tuple[Union[Tokens, None], Tensor]]


@dataclass(frozen=True)
class Case:
    """One thing to explain.

    Attributes:
        task (str): Name of the task.
        forward (callable): What is explained.
        inputs (mapping or Tensor): What it is called with.
        choose (callable): From the output to what is explained.
        arrange (callable): From relevance of the inputs to tokens and their relevance, or to None
            and the relevance of an image or of audio.
        pixels (Tensor, optional): The image, as the model got it; beside a text, the relevance of
            ``"pixel_values"`` belongs to it.
        audio (Tensor, optional): Samples or a spectrogram, as the model got it.
        seconds (float, optional): How long the audio is.
        warnings (tuple of str): What the reader of the result should know.
        tokens (Tokens, optional): Of a text, if it is the only input.
        written (Written, optional): The answer that is explained as a whole.
    """

    task: str
    forward: Callable[..., Any]
    inputs: Any
    choose: Callable[[Tensor], Choice]
    arrange: Arrange
    pixels: Tensor | None = None
    warnings: tuple[str, ...] = ()
    audio: Tensor | None = None
    seconds: float | None = None
    tokens: Tokens | None = None
    written: Written | None = None

    def run(self) -> tuple[Choice, float]:
        """Runs the model without explaining it: what would be explained, and its value."""
        with torch.no_grad():
            if isinstance(self.inputs, Tensor):
                output = output_tensor(self.forward(self.inputs))
            else:
                output = output_tensor(self.forward(**self.inputs))
            choice = self.choose(output)
            return choice, float(select_target(output, choice.target).sum())


class Task(ABC):
    """What a model is made for.

    Attributes:
        name (str): In words.
        rules (str): The preset that explains it unless another is named.
        has_all (bool): Whether ``target="all"`` stands for each of its outputs.
    """

    name: str
    rules = "lrp"
    has_all = False

    @abstractmethod
    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        """What is explained of one input.

        Args:
            item: One text, pair, image, ...
            reader (Reader): Model and tokenizer.
            wish (Wish): What the user wants to know.

        Raises:
            InputError: If the input does not fit the task.
            TargetError: If there is no such output.
        """

    def asks_for_many(self, wish: Wish) -> bool:
        """Whether a sequence is the answer, however many outputs there turn out to be."""
        return self.has_all and isinstance(wish.target, str) and wish.target == "all"


def refuse_answer(task: str, wish: Wish) -> None:
    """Complains about an answer where the model gives none.

    Raises:
        TargetError: With the tasks that have one.
    """
    if wish.answer is not None:
        raise TargetError(
            f"answer= is for models that generate text; this model does {task}: name the output "
            "with target="
        )


def choose(
    scores: Tensor,
    wish: Wish,
    names: Names,
    place: tuple[int, ...] = (),
    *,
    several: bool = False,
    where: str = "",
) -> Choice:
    """One of the scores at one place of the output, or the difference of two.

    Args:
        scores (Tensor): Shape ``(outputs,)``.
        wish (Wish): What the user wants to know.
        names (Names): Of the outputs.
        place (tuple of int): Where the scores are in the output of an example.
        several (bool): Whether several outputs can be true at once.
        where (str): What follows the name of the output in words, e.g. ``" for the word 'Rome'"``.

    Raises:
        TargetError: If there is no such output.
    """
    predicted = int(scores.argmax())
    probability: float | None = None
    if scores.numel() > 1:
        odds = scores.double().sigmoid() if several else scores.double().softmax(-1)
        probability = float(odds[predicted])
    if wish.target is None:
        index = predicted
    elif isinstance(wish.target, str):
        index = names.index(wish.target, scores)
    elif isinstance(wish.target, Integral) and not isinstance(wish.target, bool):
        index = names.index(int(wish.target), scores)
    else:
        if wish.contrast is not False:
            raise TargetError("contrast= goes with the name or number of an output as target=")
        name = repr(wish.target)
        return Choice(
            wish.target, name, f"{name} of the output", names.name(predicted), probability
        )
    target: TargetType = (*place, index) if place else index
    name, explains = names.name(index), f"logit of {names.name(index)}"
    if wish.contrast is not False:
        other = rival(scores, index, wish.contrast, names)
        target = Contrast(target, (*place, other) if place else other)
        name = f"{name} rather than {names.name(other)}"
        explains += f" minus that of {names.name(other)}"
    return Choice(target, name, explains + where, names.name(predicted), probability)


def rival(scores: Tensor, index: int, contrast: bool | int | str, names: Names) -> int:
    """What an output is contrasted with: the best of the others, or the one that is named.

    Raises:
        TargetError: If there is no such output.
    """
    if contrast is not True:
        other = names.index(contrast, scores)
        if other == index:
            raise TargetError(f"{names.name(index)} cannot be contrasted with itself")
        return other
    if scores.numel() < 2:
        raise TargetError("the model has a single output; there is none to contrast it with")
    rest = scores.clone().float()
    rest[index] = -torch.inf
    return int(rest.argmax())


class Chosen(Target):
    """The target of a case, found in the pass that explains it.

    Args:
        choose (callable): From the output to what is explained.
    """

    def __init__(self, choose: Callable[[Tensor], Choice]) -> None:
        self._choose = choose
        self.choice: Choice | None = None

    def __repr__(self) -> str:
        return "the explained output"

    def select(self, output: Tensor) -> Tensor:
        self.choice = self._choose(output.detach())
        return select_target(output, self.choice.target).reshape(len(output))


def of_texts(tokens: Tokens, *keys: str) -> Arrange:
    """The relevance of texts, one behind the other; of the only one unless their inputs are named.

    Args:
        tokens (Tokens): Of all of them.
        *keys (str): What the model calls their ids.
    """

    def arrange(relevances: Mapping[str, Tensor], _: Choice) -> tuple[Tokens, Tensor]:
        return tokens, torch.cat([relevances[key][0] for key in keys or ("input_ids",)])

    return arrange


def only_image(relevances: Mapping[str, Tensor], _: Choice) -> tuple[None, Tensor]:
    """The relevance of the only image."""
    (relevance,) = relevances.values()
    return None, relevance[0]
