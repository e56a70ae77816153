"""Tasks on images alone: their class, the objects in them, the class of a region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.class_names import labels_of
from captum_lrp_tx.attr.targets import Contrast, Target
from captum_lrp_tx.errors import InputError, OutputError, TargetError, UnsupportedModelError
from captum_lrp_tx.explaining.images import mask_of, pixels_of
from captum_lrp_tx.explaining.names import ClassNames
from captum_lrp_tx.explaining.tasks.base import (
    Case,
    Choice,
    Task,
    Wish,
    choose,
    only_image,
    refuse_answer,
    rival,
)
from captum_lrp_tx.explaining.tasks.classes import class_choice, each_class
from captum_lrp_tx.explaining.texts import Reader, for_the_model

#: How sure a model is of what counts as an object, as in ``post_process_object_detection``.
_SURE = 0.5


class ImageClassification(Task):
    """Classes of an image."""

    name = "image classification"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        pixels, warnings = pixels_of(item, reader.image_processor, reader.config)
        inputs = reader.for_model(pixels)
        for one in each_class(wish, reader.model, inputs):
            yield Case(
                self.name, reader.model, inputs,
                class_choice(one, reader.config), only_image, pixels[0], tuple(warnings),
            )  # fmt: skip


class ObjectDetection(Task):
    """The class of one of the objects that a model finds (DETR, YOLOS): of one query of it."""

    name = "object detection"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        model = reader.model
        if getattr(reader.config, "text_config", None) is not None:
            raise UnsupportedModelError(
                f"explain() knows detectors with classes of their own; {type(model).__name__} is "
                "told by texts what to look for. Use ConservativeLRP(model).attribute(inputs, "
                "target=(query, text))."
            )
        pixels, warnings = pixels_of(item, reader.image_processor, reader.config)
        inputs = for_the_model(
            {"pixel_values": reader.for_model(pixels), **mask_of(item, model)}, model
        )
        boxes: list[Tensor] = []

        def forward(**given: Tensor) -> Tensor:
            output = model(**given)
            boxes[:] = [output.pred_boxes]
            logits: Tensor = output.logits
            return logits

        wishes = [wish]
        if isinstance(wish.target, str) and wish.target == "all":
            with torch.no_grad():
                _, odds = _found(forward(**inputs)[0], reader.config)
            sure = (odds.max(-1).values > _SURE).nonzero().flatten().tolist()
            if not sure:
                raise TargetError(
                    f"the model is sure of no object (of none with a probability over {_SURE}); "
                    f"name a class, or a query from 0 to {len(odds) - 1}"
                )
            wishes = [replace(wish, target=query) for query in sure]
        for one in wishes:
            choice = _object_choice(one, reader.config, boxes, _size(inputs))
            yield Case(
                self.name, forward, inputs, choice, only_image, pixels[0], tuple(warnings)
            )  # fmt: skip


def _size(inputs: dict[str, Tensor]) -> tuple[int, int]:
    """Height and width of the picture, of which boxes are shares: without padding behind it."""
    if "pixel_mask" not in inputs:
        return inputs["pixel_values"].shape[2], inputs["pixel_values"].shape[3]
    shown = inputs["pixel_mask"][0].bool()
    return int(shown.any(1).sum()), int(shown.any(0).sum())


def _found(scores: Tensor, config: Any) -> tuple[list[str], Tensor]:
    """Names of the classes, and their probability in each query.

    Detectors with a class for "no object" (DETR, YOLOS) have it behind the others.
    """
    classes = len(getattr(config, "id2label", None) or {})
    if scores.shape[-1] == classes + 1:
        return labels_of(config, classes), scores.double().softmax(-1)[:, :-1]
    return labels_of(config, scores.shape[-1]), scores.double().sigmoid()


def _object_choice(
    wish: Wish, config: Any, boxes: list[Tensor], size: tuple[int, int]
) -> Callable[[Tensor], Choice]:
    """Chooses a query and a class of an output ``(1, queries, classes)``."""

    def of(output: Tensor) -> Choice:
        if output.dim() != 3:
            raise OutputError(
                f"the output has the shape {tuple(output.shape)}, not (1, queries, classes)"
            )
        labels, odds = _found(output[0], config)
        names = ClassNames(labels)
        query, label = wish.target, None
        if isinstance(query, tuple) and len(query) == 2:
            query, label = query
        if query is None:
            number = int(odds.max(-1).values.argmax())
        elif isinstance(query, str):
            label = names.index(query, odds[0])
            number = int(odds[:, label].argmax())  # the query that is most sure of it
        elif isinstance(query, Integral) and 0 <= int(query) < len(odds):
            number = int(query)
        else:
            raise TargetError(
                f"target={wish.target!r} is no object; give a class by name, a query from 0 to "
                f"{len(odds) - 1}, a pair (query, class), or 'all'"
            )
        best = int(odds[number].argmax())
        where = f" for query {number}, {_place(boxes[0][0, number], size)}"
        scores = output[0, number, : len(labels)]
        one = replace(wish, target=best if label is None else label)
        choice = choose(scores, one, names, (number,), where=where)
        return replace(choice, prediction=labels[best], probability=float(odds[number, best]))

    return of


def _place(box: Tensor, size: tuple[int, int]) -> str:
    """A box of centre and size, as shares of the image, in pixels of what the model got."""
    x, y, width, height = box.detach().double().tolist()
    left, right = (x - width / 2) * size[1], (x + width / 2) * size[1]
    top, bottom = (y - height / 2) * size[0], (y + height / 2) * size[0]
    return f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"


class Segmentation(Task):
    """The class of a region of the image: its logit, summed over the pixels of the region."""

    name = "semantic segmentation"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        pixels, warnings = pixels_of(item, reader.image_processor, reader.config)
        inputs = reader.for_model(pixels)
        wishes = [wish]
        if isinstance(wish.target, str) and wish.target == "all":
            with torch.no_grad():
                present = reader.model(inputs).logits[0].argmax(0).unique().tolist()
            wishes = [replace(wish, target=index) for index in present]
        for one in wishes:
            yield Case(
                self.name, reader.model, inputs,
                _region_choice(one, reader.config, (pixels.shape[2], pixels.shape[3])),
                only_image, pixels[0], tuple(warnings),
            )  # fmt: skip


class _InRegion(Target):
    """The logit of a class, summed over a region of an output ``(batch, classes, rows, columns)``.

    Args:
        index (int): Of the class.
        region (Tensor): Boolean, ``(rows, columns)``.
    """

    def __init__(self, index: int, region: Tensor) -> None:
        self._index, self._region = index, region

    def __repr__(self) -> str:
        return f"class {self._index} in {int(self._region.sum())} pixels"

    def select(self, output: Tensor) -> Tensor:
        return output[:, self._index][:, self._region].sum(-1)


def _region_choice(wish: Wish, config: Any, size: tuple[int, int]) -> Callable[[Tensor], Choice]:
    """Chooses a class and a region of an output ``(1, classes, rows, columns)``."""

    def of(output: Tensor) -> Choice:
        if output.dim() != 4:
            raise OutputError(
                f"the output has the shape {tuple(output.shape)}, not (1, classes, rows, columns)"
            )
        names = ClassNames(labels_of(config, output.shape[1]))
        map_of_classes = output[0].argmax(0)
        counts = map_of_classes.flatten().bincount(minlength=output.shape[1])
        largest = int(counts.argmax())
        share = int(counts[largest]) / map_of_classes.numel()
        predicted = f"{names.name(largest)} in {share:.0%} of the picture".replace("%", " %")
        wanted, mask = wish.target, None
        if isinstance(wanted, tuple) and len(wanted) == 2:
            wanted, mask = wanted
        elif isinstance(wanted, (tuple, Target)):  # a pixel, or a target of attribute
            if wish.contrast is not False:
                raise TargetError("contrast= goes with the name or number of a class as target=")
            if isinstance(wanted, tuple) and wanted and isinstance(wanted[0], str):
                wanted = (names.index(wanted[0], output[0, :, 0, 0]), *wanted[1:])
            return Choice(wanted, repr(wanted), f"{wanted!r} of the output", predicted)
        index = largest if wanted is None else names.index(wanted, output[0, :, 0, 0])
        if mask is None:
            region, where = map_of_classes == index, "where it is predicted"
        else:
            region, where = _region(mask, (output.shape[2], output.shape[3]), size), "of the region"
            region = region.to(output.device)
        count = int(region.sum())
        if not count:
            raise TargetError(
                f"{names.name(index)} is predicted nowhere in this picture; name a region as well: "
                f"target=({names.name(index)!r}, mask)"
                if mask is None
                else "the region holds no pixel of the output; give a larger one"
            )
        name = names.name(index)
        explains = f"logit of {name}"
        target: Target = _InRegion(index, region)
        if wish.contrast is not False:
            other = rival(output[0][:, region].sum(-1), index, wish.contrast, names)
            target = Contrast(target, _InRegion(other, region))
            name += f" rather than {names.name(other)}"
            explains += f" minus that of {names.name(other)}"
        explains += f", summed over {count} of {region.numel()} pixels {where}"
        return Choice(target, name, explains, predicted)

    return of


def _region(mask: Any, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A region of the picture, or of the output, in pixels of the output."""
    region = torch.as_tensor(mask)
    if tuple(region.shape) not in (grid, size):
        raise InputError(
            f"the region has the shape {tuple(region.shape)}; give True and False for each pixel "
            f"of the picture as the model gets it, {size}, or of its output, {grid}"
        )
    region = region.bool()
    if tuple(region.shape) == grid:
        return region
    small = nn.functional.interpolate(region[None, None].float(), grid, mode="nearest-exact")
    return small[0, 0].bool()
