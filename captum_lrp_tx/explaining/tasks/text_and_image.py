"""Tasks on a text and an image together: how similar they are, and questions about the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from captum_lrp_tx.errors import InputError, OutputError
from captum_lrp_tx.explaining.images import mask_of, pixels_of
from captum_lrp_tx.explaining.tasks.base import Case, Task, Wish, of_texts, refuse_answer
from captum_lrp_tx.explaining.tasks.classes import class_choice, each_class
from captum_lrp_tx.explaining.tasks.similarity import cosine, refuse_wishes, whole
from captum_lrp_tx.explaining.texts import Encoded, Reader, encode


class TextImageSimilarity(Task):
    """The cosine of the embeddings of a text and an image (CLIP, SigLIP, ALIGN)."""

    name = "similarity of text and image"

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        refuse_wishes(self.name, wish)
        encoded, inputs, warnings = _read(item, reader)
        model = reader.model

        def forward(**given: Any) -> Tensor:
            output = model(**given)
            text = getattr(output, "text_embeds", None)
            image = getattr(output, "image_embeds", None)
            if not isinstance(text, Tensor) or not isinstance(image, Tensor):
                raise OutputError(
                    f"{type(model).__name__} gives no text_embeds and image_embeds to compare"
                )
            return cosine(text, image)

        yield Case(
            self.name, forward, inputs, whole, of_texts(encoded.tokens),
            inputs["pixel_values"][0], warnings,
        )  # fmt: skip


class TextImageClassification(Task):
    """A class that a text and an image have together: the answer to a question (ViLT)."""

    name = "classification of text and image"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        encoded, inputs, warnings = _read(item, reader)
        # a question can have several right answers, and is trained so
        several = type(reader.model).__name__.endswith("ForQuestionAnswering") or None
        for one in each_class(wish, reader.model, inputs):
            yield Case(
                self.name, reader.model, inputs, class_choice(one, reader.config, several),
                of_texts(encoded.tokens), inputs["pixel_values"][0], warnings,
            )  # fmt: skip


def _read(item: Any, reader: Reader) -> tuple[Encoded, dict[str, Tensor], tuple[str, ...]]:
    """The text, all that the model is called with, and what the reader should know.

    Raises:
        InputError: If it is no text with an image.
    """
    more: dict[str, Tensor] = {}
    if isinstance(item, Mapping) and "input_ids" in item and "pixel_values" in item:
        text: Any = {k: v for k, v in item.items() if not str(k).startswith("pixel")}
        picture: Any = item["pixel_values"]
        more = mask_of(item, reader.model)
    elif isinstance(item, tuple) and len(item) == 2:
        text, picture = item
        if isinstance(picture, str) and not isinstance(text, str):
            text, picture = picture, text
    else:
        raise InputError(
            f"{type(reader.model).__name__} takes a text and an image: (text, image), or what its "
            "processor returns"
        )
    options: dict[str, Any] = {}
    if str(getattr(reader.config, "model_type", "")).startswith("siglip"):
        # its texts are as long as can be, and read at their last place
        length = reader.limit()
        options = {"padding": "max_length", "max_length": length} if length else {}
    encoded = encode(text, reader, **options)
    pixels, notes = pixels_of(picture, reader.image_processor, reader.config)
    inputs = {**encoded.inputs, "pixel_values": reader.for_model(pixels), **more}
    return encoded, inputs, (*encoded.warnings, *notes)
