"""From samples to what a model of audio takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.attention_maps import AUDIO_INPUTS
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.explaining.texts import Reader, for_the_model

#: Samples go a little beyond 1 where sounds were mixed or resampled; larger ones are whole numbers.
_LOUDEST = 100.0


@dataclass(frozen=True)
class Sound:
    """Audio as a model takes it.

    Attributes:
        key (str): What the model calls it.
        inputs (dict of str to Tensor): Keyword arguments of the model.
        seconds (float, optional): How long it is, where that is known.
        turned (bool): Whether it is a spectrogram with a row for each frame; pictures have a row
            for each frequency.
        stacked (int): How many frames stand one behind the other in such a row.
        warnings (tuple of str): What the reader of the result should know.
    """

    key: str
    inputs: dict[str, Tensor]
    seconds: float | None
    turned: bool
    stacked: int = 1
    warnings: tuple[str, ...] = ()

    def arranged(self, values: Tensor) -> Tensor:
        """Without the dimension for the example: ``(samples,)`` or ``(frequencies, frames)``."""
        if not self.turned:
            return values[0]
        frames, width = values.shape[1] * self.stacked, values.shape[2] // self.stacked
        return values[0].reshape(frames, width).T


def is_audio_model(model: Any) -> bool:
    """Whether a model listens."""
    return getattr(model, "main_input_name", None) in AUDIO_INPUTS


def sound_of(item: Any, reader: Reader) -> Sound:
    """Audio as the model takes it.

    Args:
        item: Samples of one channel (array, tensor or list of numbers), a mapping with ``"array"``
            and ``"sampling_rate"`` as columns of ``datasets.Audio`` have it, or what the feature
            extractor returns.
        reader (Reader): The model and its feature extractor.

    Raises:
        InputError: If it is none of these, or was sampled at another rate.
    """
    extractor, key = reader.feature_extractor, reader.model.main_input_name
    rate = getattr(extractor, "sampling_rate", None)
    warnings: tuple[str, ...] = ()
    if isinstance(item, Mapping) and key in item:
        made = {str(k): torch.as_tensor(v) for k, v in item.items() if v is not None}
    else:
        samples = _samples(item, rate)
        if extractor is None:
            raise InputError(
                "an array of samples needs the feature extractor of the model: explain(model, "
                "AutoFeatureExtractor.from_pretrained(name), samples)"
            )

        def read(samples: Tensor) -> dict[str, Any]:
            return dict(extractor(samples.numpy(), sampling_rate=rate, return_tensors="pt"))

        made = read(samples)
        other = _with_another_end(samples, rate)
        if other is not None and torch.equal(read(other)[key], made[key]):
            warnings = (_CUT,)
    values = made[key]
    bins = _bins(reader.config)
    if values.dim() == (2 if bins is not None else 1):
        values = values.unsqueeze(0)
    if values.dim() not in (2, 3) or len(values) != 1 or not values.numel():
        raise InputError(
            f"{key} of one sound has the shape (1, samples), or (1, rows, columns) of a "
            f"spectrogram, not {tuple(values.shape)}"
        )
    values = reader.for_model(values.float())
    turned = values.dim() == 3 and bins is not None and values.shape[2] == bins
    if turned and values.shape[1] == bins:  # a square: as many channels as frequencies (Whisper)
        modules: Any = getattr(reader.model, "modules", tuple)
        first = next((m for m in modules() if isinstance(m, nn.Conv1d)), None)
        turned = first is None or first.in_channels != bins
    stacked, heights = 1, getattr(extractor, "num_mel_bins", None)
    if turned and isinstance(heights, int) and values.shape[2] % heights == 0:
        stacked = values.shape[2] // heights  # two frames in a row (w2v-BERT)
    seconds = None
    if isinstance(rate, int):
        hop = 1 if values.dim() == 2 else getattr(extractor, "hop_length", None)
        steps = values.shape[1 if turned else -1]
        seconds = stacked * steps * hop / rate if isinstance(hop, int) else None
    others = {k: v.to(values.device) for k, v in made.items() if k != key}
    inputs = for_the_model({key: values, **others}, reader.model)
    return Sound(key, inputs, seconds, turned, stacked, warnings)


_CUT = (
    "the sound was cut: its end is not in what the feature extractor gives the model, and is not "
    "explained"
)


def _with_another_end(samples: Tensor, rate: int | None) -> Tensor | None:
    """A sound whose last twentieth of a second is another one; None if it is shorter."""
    end = (rate or 16000) // 20  # more than the window of a spectrogram
    if len(samples) <= end:
        return None
    return torch.cat([samples[:-end], torch.linspace(0, 400, end).sin() - samples[-end:]])


def _samples(item: Any, rate: int | None) -> Tensor:
    """Samples of one channel, checked; shape ``(samples,)``."""
    if isinstance(item, Mapping):
        samples = item.get("array", item.get("raw"))
        given = item.get("sampling_rate")
        if samples is None:
            raise InputError(
                f"audio as a mapping has 'array' and 'sampling_rate'; this one has {sorted(item)}"
            )
        if rate is not None and given is not None and given != rate:
            raise InputError(
                f"the audio has {given} samples a second, but the model takes {rate}; resample "
                f"it: torchaudio.functional.resample(samples, {given}, {rate})"
            )
    else:
        samples = item
    is_array = isinstance(samples, (Tensor, Sequence)) or hasattr(samples, "__array__")
    if isinstance(samples, (str, bytes)) or not is_array:
        raise InputError(
            f"cannot explain {type(samples).__name__} as audio: give an array of samples; "
            "soundfile.read(file) returns one, and the sampling rate"
        )
    try:
        values = torch.as_tensor(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the audio holds no numbers ({error})") from error
    if values.dim() == 2 and len(values) == 1:
        values = values[0]
    if not values.numel():
        raise InputError(f"the audio holds no samples: its shape is {tuple(values.shape)}")
    if values.dim() != 1:
        raise InputError(
            f"audio of one channel has the shape (samples,), not {tuple(values.shape)}; of several "
            "channels take the mean, and many sounds are a list"
        )
    largest = float(values.float().abs().max())
    if not values.is_floating_point() or largest > _LOUDEST:
        raise InputError(
            f"samples are numbers from -1 to 1, not {values.dtype} up to {largest:g}; divide those "
            "of 16 bits by 32768"
        )
    return values.detach().float().cpu()


def _bins(config: Any) -> int | None:
    """How many frequencies the model's spectrograms have; None if it takes samples."""
    names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
    found = (getattr(config, name, None) for name in names)
    return next((int(n) for n in found if isinstance(n, int)), None)
