"""Images from files, in the form that a model takes."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.cli.models import Source, transformers
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.errors import InputError


def read_image(file: Path, source: Source, config: Any) -> Tensor:
    """Reads an image and scales it as the model wants it.

    Args:
        file (Path): PNG, JPEG or whatever Pillow reads, or a NumPy array (``.npy``).
        source (Source): The model; its image processor is used if it has one.
        config (PretrainedConfig): Of the model, for the size and the channels otherwise.

    Returns:
        Tensor: Shape (1, channels, height, width).

    Raises:
        InputError: If the file is missing or no image, or its shape does not fit.
        ImportError: If Pillow is needed and not installed.
    """
    if file.is_dir():
        raise InputError(f"{file} is a folder, not an image")
    if not file.exists():
        raise InputError(f"there is no image {file}")
    vision = getattr(config, "vision_config", config)  # of CLIP, SigLIP and others
    channels = int(getattr(vision, "num_channels", 3))
    size = getattr(vision, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if file.suffix.lower() == ".npy":
        return _array(file, channels, height, width)
    picture = _picture(file)
    picture = picture.convert("L" if channels == 1 else "RGB")
    has_processor = (Path(source.name) / "preprocessor_config.json").is_file()
    if has_processor or not source.is_local:
        loader = transformers().AutoImageProcessor.from_pretrained

        def prepare(name: str, **options: Any) -> Tensor:
            prepared = loader(name, **options)(images=picture, return_tensors="pt")["pixel_values"]
            assert isinstance(prepared, Tensor)
            return prepared

        return source.load("image processor", prepare)
    if picture.size != (width, height):
        old_width, old_height = picture.size
        note(f"the image is scaled from {old_width} x {old_height} to {width} x {height}")
        picture = picture.resize((width, height))
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return _scaled(values.view(height, width, channels).permute(2, 0, 1).float() / 255)


def _picture(file: Path) -> Any:
    try:
        image = importlib.import_module("PIL.Image")
        operations = importlib.import_module("PIL.ImageOps")
    except ImportError as error:
        raise ImportError(
            f"reading images needs Pillow, which cannot be imported ({error}); install it with: "
            'pip install "captum_lrp_tx[viz]", or give the image as a .npy file'
        ) from error
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
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = image.new("RGBA", picture.size, "black")
        picture = image.alpha_composite(ground, picture)
    return picture


def _array(file: Path, channels: int, height: int, width: int) -> Tensor:
    import numpy as np

    try:
        loaded = np.load(file, allow_pickle=False)
        values = torch.from_numpy(np.ascontiguousarray(loaded))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {file} as an array: {reason[:200]}") from error
    shape = tuple(values.shape)
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise InputError(f"{file} holds {loaded.dtype} values; an image has numbers")
    if values.dim() == 4 and shape[0] == 1:
        values = values[0]
    if values.dim() == 2:
        values = values.unsqueeze(0)
    elif values.dim() == 3 and values.shape[0] != channels and values.shape[2] == channels:
        values = values.permute(2, 0, 1)
    if tuple(values.shape) != (channels, height, width):
        raise InputError(
            f"{file} has the shape {shape}, but the model takes ({channels}, {height}, {width})"
        )
    is_integer = not values.is_floating_point()
    values = values.float()
    low, high = float(values.min()), float(values.max())
    if not low >= -1e4 or not high <= 1e4:
        raise InputError(f"{file} has values that are not finite or far out of range")
    if low < 0:  # as the model takes it
        return values.unsqueeze(0)
    return _scaled(values / 255 if is_integer or high > 1 else values)


def _scaled(values: Tensor) -> Tensor:
    """From 0..1 to -1..1, with a dimension for the example."""
    return ((values - 0.5) / 0.5).unsqueeze(0)
