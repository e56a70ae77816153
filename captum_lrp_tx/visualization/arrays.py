"""Images and their relevance as arrays, from tensors of any common layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]


def pixels_of(image: Any) -> FloatArray:
    """Values from 0 to 1, as matplotlib wants them: (H, W) or (H, W, 3)."""
    array = _array(image)
    low, high = float(array.min()), float(array.max())
    array = (array - low) / ((high - low) or 1.0)
    if array.ndim == 3:
        array = array.transpose(1, 2, 0) if array.shape[0] == 3 else array.mean(0)
    return array


def map_of(relevance: Any) -> FloatArray:
    """Relevance summed over channels: (H, W)."""
    array = _array(relevance)
    summed: FloatArray = array.sum(0) if array.ndim == 3 else array
    return summed


def scale_of(values: FloatArray, percentile: float = 99.5) -> float:
    """Relevance at which the colours of a map saturate; a positive number.

    Single pixels that stand out would leave the rest pale, hence no maximum.
    """
    import numpy as np

    sizes = np.abs(values)
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


def floats_of(values: Any) -> FloatArray:
    """A tensor or array in double precision."""
    import numpy as np

    if hasattr(values, "detach"):  # a tensor; bfloat16 has no counterpart in NumPy
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def block_sums(values: FloatArray, factor: int) -> FloatArray:
    """A coarser map with the same sum: blocks of ``factor`` by ``factor`` pixels added up."""
    import numpy as np

    if factor <= 1:
        return values
    padded = np.pad(values, [(0, -size % factor) for size in values.shape])
    rows, columns = padded.shape
    blocks = padded.reshape(rows // factor, factor, columns // factor, factor)
    summed: FloatArray = blocks.sum((1, 3))
    return summed


def _array(values: Any) -> FloatArray:
    import numpy as np

    array = floats_of(values)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an image has shape (H, W), (C, H, W) or (H, W, C), not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("an image or its relevance has values that are not finite")
    if array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
        array = array.transpose(2, 0, 1)
    return array
