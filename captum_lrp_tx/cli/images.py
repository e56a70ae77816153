"""Images from files, in the form that a model from a folder or the Hub takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from captum_lrp_tx.cli.models import Source, transformers
from captum_lrp_tx.cli.status import note
from captum_lrp_tx.explaining.images import check_file, pixels_of


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
    check_file(file)
    processor = None if file.suffix.lower() == ".npy" else image_processor(source)
    pixels, notes = source.use("image processor", lambda: pixels_of(file, processor, config))
    for text in notes[1:]:  # without a processor the folder says how it is done
        note(text)
    return pixels


def image_processor(source: Source) -> Any:
    """The image processor of a model; None for a folder without one."""
    if source.is_local and not (Path(source.name) / "preprocessor_config.json").is_file():
        return None
    return source.load("image processor", transformers().AutoImageProcessor.from_pretrained)
