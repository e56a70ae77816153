"""What models are made for, as their classes say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.explaining.audio import is_audio_model
from captum_lrp_tx.explaining.tasks.audio import AudioClassification
from captum_lrp_tx.explaining.tasks.base import ONE_AT_A_TIME, Case, Choice, Chosen, Task, Wish
from captum_lrp_tx.explaining.tasks.classes import (
    MultipleChoice,
    SequenceClassification,
    TokenClassification,
)
from captum_lrp_tx.explaining.tasks.language import MaskedToken, NextToken, SequenceToSequence
from captum_lrp_tx.explaining.tasks.similarity import Similarity
from captum_lrp_tx.explaining.tasks.spans import QuestionAnswering
from captum_lrp_tx.explaining.tasks.text_and_image import (
    TextImageClassification,
    TextImageSimilarity,
)
from captum_lrp_tx.explaining.tasks.vision import (
    ImageClassification,
    ObjectDetection,
    Segmentation,
)

__all__ = ["ONE_AT_A_TIME", "Case", "Choice", "Chosen", "Task", "Wish", "task_of"]

#: By what the names of classes of transformers end in; the first that fits counts.
_TASKS: tuple[tuple[str, type[Task]], ...] = (
    ("ForSequenceClassification", SequenceClassification),
    ("ForNextSentencePrediction", SequenceClassification),
    ("ForTokenClassification", TokenClassification),
    ("ViltForQuestionAnswering", TextImageClassification),
    ("ForImageAndTextRetrieval", TextImageClassification),
    ("ForQuestionAnswering", QuestionAnswering),
    ("ForQuestionAnsweringSimple", QuestionAnswering),
    ("ForMultipleChoice", MultipleChoice),
    ("ForMaskedLM", MaskedToken),
    ("ForCausalLM", NextToken),
    ("LMHeadModel", NextToken),
    ("ForImageClassification", ImageClassification),
    ("ForImageClassificationWithTeacher", ImageClassification),
    ("ForObjectDetection", ObjectDetection),
    ("ForSemanticSegmentation", Segmentation),
    ("ForAudioClassification", AudioClassification),
)

#: The same for models that read a text and write another one.
_WRITERS = ("ForConditionalGeneration", "ForSeq2SeqLM", "MTModel", "EncoderDecoderModel")


def task_of(model: Any, item: Any, name: str | None = None) -> Task:
    """What a model is made for.

    Args:
        model: The model.
        item: What is explained; says it where the class of the model does not.
        name (str, optional): Of the task, if the user says it.

    Raises:
        InputError: If there is no task of this name.
        UnsupportedModelError: If it is made for something that is not known here.
    """
    if name is not None:
        return _named(name)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(inner).__name__
    for suffix, task in _TASKS:
        if name.endswith(suffix):
            listens = task is SequenceClassification and is_audio_model(inner)
            return AudioClassification() if listens else task()
    config = getattr(inner, "config", None)
    if name.endswith(_WRITERS):
        reads_text = getattr(inner, "main_input_name", "input_ids") == "input_ids"
        if getattr(config, "is_encoder_decoder", False) and reads_text:
            return SequenceToSequence()
    elif hasattr(model, "encode") and hasattr(model, "tokenize"):
        return Similarity()
    elif config is None or not hasattr(config, "model_type"):
        # a model of the user's own, of timm or torchvision
        return ImageClassification() if is_image(item) else SequenceClassification()
    elif name.endswith("Model") and "For" not in name:
        has_both = hasattr(config, "text_config") and hasattr(config, "vision_config")
        return TextImageSimilarity() if has_both else Similarity()
    known = ", ".join(f"...{suffix}" for suffix, _ in _TASKS)
    raise UnsupportedModelError(
        f"explain() does not know what a {name} predicts; it knows {known}, "
        "...ForConditionalGeneration of texts, and models without a head. If it does one of these "
        "things, name it with task=. Any model can be explained with "
        "ConservativeLRP(model).attribute(inputs, target)."
    )


def _named(name: str) -> Task:
    others: tuple[type[Task], ...] = (SequenceToSequence, Similarity, TextImageSimilarity)
    kinds = {task.name: task for task in (*(task for _, task in _TASKS), *others)}
    if name not in kinds:
        raise InputError(f"there is no task {name!r}; there are: {', '.join(kinds)}")
    return kinds[name]()


def is_image(item: Any) -> bool:
    """Whether something can only be an image: floating-point values, or a picture."""
    if isinstance(item, Tensor):
        return item.is_floating_point() or (item.dtype == torch.uint8 and item.dim() >= 3)
    if type(item).__module__.startswith("PIL."):
        return True
    return hasattr(item, "__array_interface__") and getattr(item, "ndim", 0) >= 2
