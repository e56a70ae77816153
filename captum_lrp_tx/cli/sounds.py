"""Sounds from files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from captum_lrp_tx.errors import InputError

_TYPES = {2: "<i2", 4: "<i4"}


def read_sound(file: Path) -> dict[str, Any]:
    """Samples of a WAV file, from -1 to 1.

    Args:
        file (Path): One channel, 16 or 32 bits.

    Returns:
        dict: ``"array"`` (float32, shape ``(samples,)``) and ``"sampling_rate"``.

    Raises:
        InputError: If it cannot be read, or is another kind of file.
    """
    try:
        with wave.open(str(file)) as stream:
            channels, size = stream.getnchannels(), stream.getsampwidth()
            rate, content = stream.getframerate(), stream.readframes(stream.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        why = getattr(error, "strerror", None) or str(error) or "it is cut off"
        raise InputError(
            f"cannot read {file}: {why}; a WAV file with 16 bits a sample is needed, as "
            "ffmpeg -i FILE -ac 1 -c:a pcm_s16le sound.wav writes it"
        ) from error
    if channels != 1 or size not in _TYPES:
        raise InputError(
            f"{file} has {channels} channels of {8 * size} bits; one of 16 or 32 bits is needed, "
            f"as ffmpeg -i {file} -ac 1 -c:a pcm_s16le sound.wav writes it"
        )
    samples = np.frombuffer(content, _TYPES[size]).astype(np.float32) / 2 ** (8 * size - 1)
    return {"array": samples, "sampling_rate": rate}
