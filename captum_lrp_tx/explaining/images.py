"""From pictures, files and arrays to the pixels that a model takes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import needed
from captum_lrp_tx.runs.subject import device_of


def pixels_of(item: Any, processor: Any, config: Any) -> tuple[Tensor, list[str]]:
    """An image as the model takes it.

    Args:
        item: A file (PNG, JPEG, whatever Pillow reads, or a NumPy array as ``.npy``), a picture of
            Pillow, an array, pixels as the model takes them (a float tensor), or what an image
            processor returns.
        processor: The image processor of the model, a transform of torchvision, or None: then
            pictures are scaled to the size of the model and to values from -1 to 1.
        config (PretrainedConfig): Of the model, for the size and the channels.

    Returns:
        (Tensor, list of str): Shape ``(1, channels, height, width)``, and what was done that the
        user may not expect.

    Raises:
        InputError: If the file is missing or no image, or its shape does not fit.
        MissingPackageError: If Pillow is needed and not installed.
    """
    if hasattr(item, "keys") and "pixel_values" in item:
        item = item["pixel_values"]
    if isinstance(item, Tensor) and item.is_floating_point():
        return _as_given(item), []
    if isinstance(item, (str, os.PathLike)):
        file = Path(item)
        check_file(file)
        if file.suffix.lower() == ".npy":
            return array_pixels(load_array(file), str(file), config), []
        picture = open_picture(file)
    elif type(item).__module__.startswith("PIL."):
        picture = flattened(item)
        if item.getexif().get(_ORIENTATION, 1) > 1:
            pixels, notes = picture_pixels(picture, processor, config)
            return pixels, [*notes, _TURNED]
    elif isinstance(item, Tensor) or hasattr(item, "__array_interface__"):
        values = item.numpy() if isinstance(item, Tensor) else item
        if processor is None or not _is_picture(values):
            pixels = array_pixels(values, "the array", config)
            # what goes below zero stays as it is, as a model takes it
            left_out = processor is not None and float(values.min()) >= 0
            return pixels, [_LEFT_OUT] if left_out else []
        picture = flattened(_from_array(values.astype("uint8")))
    else:
        raise InputError(
            f"cannot explain {type(item).__name__} as an image: give a file, a picture of Pillow, "
            "an array or a tensor"
        )
    return picture_pixels(picture, processor, config)


def mask_of(item: Any, model: Any) -> dict[str, Tensor]:
    """Which pixels are no padding, where an image processor has padded images to one size.

    Args:
        item: As of :func:`pixels_of`.
        model (nn.Module): Where the mask is to be.
    """
    mask = item.get("pixel_mask") if hasattr(item, "keys") else None
    if not isinstance(mask, Tensor):
        return {}
    mask = mask.unsqueeze(0) if mask.dim() == 2 else mask
    return {"pixel_mask": mask.to(device_of(model)).long()}


_ORIENTATION = 0x0112  # in EXIF
_TURNED = (
    "the picture says that the camera was turned, and is explained as it is stored; a file is "
    "turned when it is read, as PIL.ImageOps.exif_transpose(picture) does it"
)
_LEFT_OUT = (
    "the values of the array were scaled to -1 to 1, and the image processor was left out; it gets "
    "whole numbers from 0 to 255"
)


def _is_picture(values: Any) -> bool:
    """Whether an array holds a picture as files have it."""
    is_whole = values.dtype.kind in "iu" and values.size > 0
    return is_whole and int(values.min()) >= 0 and int(values.max()) <= 255


def picture_pixels(picture: Any, processor: Any, config: Any) -> tuple[Tensor, list[str]]:
    """A picture as the model takes it; see :func:`pixels_of`."""
    channels, height, width = image_shape(config)
    picture = picture.convert("L" if channels == 1 else "RGB")
    processor = getattr(processor, "image_processor", processor)
    if processor is not None:
        if hasattr(processor, "preprocess"):
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        else:
            pixels = processor(picture)
        if not isinstance(pixels, Tensor):
            raise InputError("the image processor gives no tensor")
        return _as_given(pixels), []
    notes = ["no image processor was given: the values of the image were scaled to -1 to 1"]
    if picture.size != (width, height):
        old_width, old_height = picture.size
        notes.append(f"the image is scaled from {old_width} x {old_height} to {width} x {height}")
        picture = picture.resize((width, height))
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = values.view(1, height, width, channels).permute(0, 3, 1, 2).float()
    return scaled(pixels, True, "the image"), notes


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model takes."""
    vision = getattr(config, "vision_config", config)  # of CLIP, SigLIP and others
    size = getattr(vision, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(getattr(vision, "num_channels", 3)), height, width


def check_file(file: Path) -> None:
    """Complains if there is no such file.

    Raises:
        InputError: If it is missing or a folder.
    """
    if str(file).startswith(("http:/", "https:/")):
        raise InputError(f"{file} is an address, not a file; download the image first")
    if file.is_dir():
        raise InputError(f"{file} is a folder, not an image")
    if not file.exists():
        raise InputError(f"there is no image {file}")


def _as_given(pixels: Tensor) -> Tensor:
    pixels = pixels.unsqueeze(0) if pixels.dim() == 3 else pixels
    if pixels.dim() != 4 or len(pixels) != 1:
        raise InputError(
            f"the pixels of one image have the shape (channels, height, width), not "
            f"{tuple(pixels.shape)}"
        )
    return pixels


def _pillow(name: str) -> Any:
    hint = "pip install pillow, or give the image as a .npy file"
    return needed(f"PIL.{name}", "reading images needs Pillow", hint)


def open_picture(file: Path) -> Any:
    """A file as a picture of Pillow, turned as the camera was held.

    Raises:
        InputError: If it is no image.
        MissingPackageError: If Pillow is not installed.
    """
    image, operations = _pillow("Image"), _pillow("ImageOps")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            picture = image.open(file)
            # cameras store the orientation beside the pixels
            picture = operations.exif_transpose(picture)
            picture.load()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {file} as an image: {reason[:200]}") from error
    return flattened(picture)


def flattened(picture: Any) -> Any:
    """A picture of 8 bits, on black ground where it is transparent."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _of_eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        image = _pillow("Image")
        picture = picture.convert("RGBA")
        picture = image.alpha_composite(image.new("RGBA", picture.size, "black"), picture)
    return picture


def _of_eight_bits(picture: Any) -> Any:
    """Grey values of more bits, which Pillow would cut at 255: nearly all of them white."""
    import numpy as np

    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    is_16 = picture.mode != "F" and (picture.mode != "I" or high > 255)
    if not (low >= 0 and high <= (65535 if is_16 else 255)):
        raise InputError(
            f"the picture has values from {low:g} to {high:g}; give it with values from 0 to 255"
        )
    scaled_down = np.round(values / (257 if is_16 else 1)).astype("uint8")
    return _pillow("Image").fromarray(scaled_down)


def _from_array(values: Any) -> Any:
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    try:
        return _pillow("Image").fromarray(values)
    except TypeError as error:
        raise InputError(f"an array of the shape {values.shape} is no image") from error


def load_array(file: Path) -> Any:
    """A NumPy array from a file.

    Raises:
        InputError: If it is none, or holds objects.
    """
    import numpy as np

    try:
        return np.load(file, allow_pickle=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {file} as an array: {reason[:200]}") from error


def array_pixels(loaded: Any, name: str, config: Any) -> Tensor:
    """An array as the model takes it: of values 0 to 255, 0 to 1, or -1 to 1.

    Args:
        loaded (array): Of the shape of the model's images, with or without channels.
        name (str): For messages.
        config (PretrainedConfig): Of the model.

    Raises:
        InputError: If its shape or its values do not fit.
    """
    import numpy as np

    channels, height, width = image_shape(config)
    try:
        values = torch.from_numpy(np.array(loaded))
    except TypeError as error:
        raise InputError(f"cannot read {name} as an array: {error}") from error
    shape = tuple(values.shape)
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise InputError(f"{name} holds {loaded.dtype} values; an image has numbers")
    if values.dim() == 4 and shape[0] == 1:
        values = values[0]
    if values.dim() == 2:
        values = values.unsqueeze(0)
    elif values.dim() == 3 and values.shape[0] != channels and values.shape[2] == channels:
        values = values.permute(2, 0, 1)
    if tuple(values.shape) != (channels, height, width):
        raise InputError(
            f"{name} has the shape {shape}, but the model takes ({channels}, {height}, {width})"
        )
    return scaled(values.unsqueeze(0).float(), not values.is_floating_point(), name)


def scaled(values: Tensor, is_integer: bool, name: str) -> Tensor:
    """Pixels from 0 to 255, 0 to 1 or -1 to 1, as far as can be told from them, to -1 to 1.

    Args:
        values (Tensor): Of any shape.
        is_integer (bool): Whether they were stored as whole numbers.
        name (str): For messages.

    Raises:
        InputError: If they are none of these.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e4 and high <= 1e4):
        raise InputError(f"{name} has values that are not finite or far out of range")
    if low < 0 and not is_integer:  # as a model takes it
        return values
    if low < 0 or high > 255:
        raise InputError(
            f"{name} has values from {low:g} to {high:g}: give values from 0 to 255, or floats "
            "from 0 to 1 or -1 to 1"
        )
    return (values / (255 if is_integer or high > 1 else 1) - 0.5) / 0.5
