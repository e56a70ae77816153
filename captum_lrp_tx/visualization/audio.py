"""Sounds above their relevance: samples in steps of time, or spectrograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrp_tx.visualization.arrays import floats_of, scale_of
from captum_lrp_tx.visualization.canvas import (
    GREY,
    colormap,
    colour_bar,
    frame,
    headline,
    new_figure,
)
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def audio_figure(
    audio: Any,
    relevance: Any,
    *,
    seconds: float | None = None,
    title: str = "",
    steps: int = 100,
    width: float = 6.5,
    percentile: float = 99.5,
) -> Figure:
    """A sound above its relevance: red speaks for the explained output, blue against it.

    Args:
        audio (Tensor or array): Samples ``(samples,)``, or a spectrogram ``(frequencies, frames)``
            with the lowest frequency first.
        relevance (Tensor or array): In the same shape.
        seconds (float, optional): How long the sound is; unless given, the axis counts samples or
            frames.
        title (str): Headline, e.g. the prediction.
        steps (int): Of samples, in how many steps of time relevance is summed.
        width (float): In inches.
        percentile (float): Of the absolute relevance of a spectrogram, at which colours saturate.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes differ, or are not those of a sound, or a value is not finite.

    Example::

        >>> import torch
        >>> drawing = audio_figure(torch.randn(1600), torch.randn(1600), seconds=0.1)
        >>> drawing.savefig("sound.png", dpi=200)  # doctest: +SKIP
    """
    import numpy as np

    sound, values = floats_of(audio), floats_of(relevance)
    if sound.shape != values.shape or sound.ndim not in (1, 2) or not sound.size:
        raise ValueError(
            f"a sound of shape (samples,) or (frequencies, frames) and relevance of the same shape "
            f"are needed, not {sound.shape} and {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("the relevance has values that are not finite")
    head, panel = (0.42 if title else 0.22), (0.75 if sound.ndim == 1 else 1.15)
    height = head + 2 * panel + 0.65
    drawing = new_figure(width, height)
    left, share = 0.62 / width, (width - 1.35) / width
    upper = drawing.add_axes((left, (height - head - panel) / height, share, panel / height))
    lower = drawing.add_axes((left, 0.42 / height, share, panel / height))
    end = float(seconds) if seconds is not None else float(sound.shape[-1])
    if sound.ndim == 1:
        _samples(upper, lower, sound, values, end, steps)
    else:
        _spectrogram(drawing, upper, lower, sound, values, end, percentile, width)
    unit = "samples" if sound.ndim == 1 else "frames"
    lower.set_xlabel("seconds" if seconds is not None else unit, fontsize=8, color=GREY)
    for axes, name in ((upper, "input"), (lower, "relevance")):
        axes.set_xlim(0, end)
        axes.set_ylabel(name, fontsize=8, color=GREY)
        axes.tick_params(labelsize=7, length=2, colors=GREY)
        frame(axes)
    upper.set_xticklabels([])
    if title:
        headline(drawing, 0.1 / width, 1 - 0.22 / height, title)
    return drawing


def _samples(upper: Any, lower: Any, sound: Any, values: Any, end: float, steps: int) -> None:
    """The wave, and a bar of summed relevance for each step of time."""
    import numpy as np

    count = len(values)
    borders = np.unique(np.linspace(0, count, min(steps, count) + 1).round().astype(int))
    sums = np.add.reduceat(values, borders[:-1])
    times = borders * (end / count)
    upper.plot((np.arange(count) + 0.5) * (end / count), sound, color=GREY, linewidth=0.5)
    largest = float(np.abs(sums).max()) or 1.0
    colours = [hexadecimal(colour_of(float(total), largest)[0]) for total in sums]
    lower.bar(times[:-1], sums, np.diff(times), align="edge", color=colours, linewidth=0)
    lower.axhline(0, color="#c8c8c8", linewidth=0.6)
    lower.set_ylim(-1.1 * largest, 1.1 * largest)


def _spectrogram(
    drawing: Any, upper: Any, lower: Any, sound: Any, values: Any, end: float, percentile: float,
    width: float,
) -> None:  # fmt: skip
    """The spectrogram in grey, and its relevance with a scale of colours."""
    scale = scale_of(values, percentile)
    options = {
        "origin": "lower", "aspect": "auto", "interpolation": "nearest",
        "extent": (0, end, 0, len(sound)),
    }  # fmt: skip
    upper.imshow(sound, cmap="gray", **options)
    shown = lower.imshow(values, cmap=colormap(), vmin=-scale, vmax=scale, **options)
    box = lower.get_position()
    bar = drawing.add_axes((box.x1 + 0.08 / width, box.y0, 0.1 / width, box.height))
    colour_bar(drawing, shown, bar, scale, abs(values).max() > scale)
