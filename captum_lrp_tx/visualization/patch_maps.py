"""Relevance of patches and pixels as maps for ``captum.attr.visualization``.

``visualize_image_attr`` scales every picture by itself: relevance is divided by a threshold such
that what is larger makes up ``outlier_perc`` percent of the total.  Two pictures drawn so cannot be
compared.  :func:`heatmap_scale` computes that threshold over all pictures together and
:func:`heatmap_figure` draws them on it.

Example::

    >>> from captum.attr import visualization
    >>> from captum_lrp_tx.visualization.patch_maps import patch_heatmap
    >>> from captum_lrp_tx import AttentionRollout
    >>> from captum_lrp_tx.models import digit_samples, digits
    >>> pixels, labels = digit_samples()
    >>> heat = patch_heatmap(AttentionRollout(digits()).attribute(pixels), pixels)
    >>> drawing, axes = visualization.visualize_image_attr(
    ...     heat[4], sign="all", cmap="RdBu_r", use_pyplot=False)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.visualization.arrays import floats_of, pixels_of
from captum_lrp_tx.visualization.canvas import bare, colormap, new_figure, signed_ticks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

    Heatmaps = npt.NDArray[np.float64]

Size = Union[int, tuple[int, int]]
#: Over which pictures relevance is brought to one scale.
Common = Literal["all", "method", "image", "picture"]
_PREFIX = 17  # class and distillation token, and up to 15 registers


def token_grid(relevance: Tensor, image_size: Size, patch_size: Size | None = None) -> Tensor:
    """Relevance of patches in rows and columns, without class, distillation and register tokens.

    Args:
        relevance (Tensor): Shape ``(batch, tokens)``. Tokens before the patches are dropped.
        image_size (int or (int, int)): Height and width of the model's input.
        patch_size (int or (int, int), optional): Height and width of a patch; unless given, that of
            the most tokens which fill a grid with the sides of the image.

    Returns:
        Tensor: Shape ``(batch, rows, columns)``.

    Raises:
        InputError: The tokens fit no grid of patches on such an image.

    Example::

        >>> token_grid(torch.arange(50.0)[None], 28).shape
        torch.Size([1, 7, 7])
    """
    height, width = _pair(image_size)
    if relevance.dim() != 2 or min(height, width) < 1:
        raise InputError(
            f"relevance of shape (batch, tokens) is needed, not {tuple(relevance.shape)}, and a "
            f"positive image size, not {height} x {width}"
        )
    count = relevance.shape[1]
    rows, columns = _grid(count, height, width, patch_size)
    return relevance[:, count - rows * columns :].reshape(-1, rows, columns)


def pixels_of_patches(
    relevance: Tensor, image_size: tuple[int, int], patch_size: Size | None = None
) -> tuple[Tensor, int]:
    """The relevance of its patch at every pixel, 0 where no patch is, and how many a patch has.

    Args:
        relevance, image_size, patch_size: See :func:`token_grid`.

    Returns:
        2-element tuple of **relevance** (Tensor, ``(batch, height, width)``), **pixels** (int).

    Raises:
        InputError: The tokens fit no grid of patches on such an image.

    Example::

        >>> pixels_of_patches(torch.tensor([[5.0, 6.0]]), (3, 5), (2, 2))
        (tensor([[[5., 5., 6., 6., 0.],
                 [5., 5., 6., 6., 0.],
                 [0., 0., 0., 0., 0.]]]), 4)
    """
    height, width = image_size
    grid = token_grid(relevance, image_size, patch_size)
    down, across = _pair(patch_size or (height // grid.shape[-2], width // grid.shape[-1]))
    pixels = grid.repeat_interleave(down, -2).repeat_interleave(across, -1)
    padding = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
    return torch.nn.functional.pad(pixels, padding), down * across


def patch_heatmap(
    relevance: Tensor,
    images: Tensor | tuple[int, int],
    *,
    patch_size: Size | None = None,
) -> Heatmaps:
    """Maps that go straight to ``visualize_image_attr`` and ``visualize_image_attr_multiple``.

    Args:
        relevance (Tensor): Of patches, ``(batch, tokens)``: every pixel gets the relevance of its
            patch, and tokens before the patches are dropped. Or of pixels, ``(batch, channels,
            height, width)``: summed over the channels, and if ``patch_size`` is given over the
            pixels of each patch too, so that maps of both kinds can be compared.
        images (Tensor or (int, int)): Images ``(batch, channels, height, width)``, or height and
            width.
        patch_size (int or (int, int), optional): Height and width of a patch; see above and
            :func:`token_grid`.

    Returns:
        numpy.ndarray: float64, ``(batch, height, width, 1)``.

    Raises:
        InputError: Shapes that do not fit.

    Example::

        >>> heat = patch_heatmap(torch.arange(50.0)[None], (28, 28))
        >>> heat.shape, heat[0, 0, :5, 0].tolist()
        ((1, 28, 28, 1), [1.0, 1.0, 1.0, 1.0, 2.0])
    """
    if isinstance(images, Tensor) and images.dim() > 4:
        raise InputError(
            f"images of shape {tuple(images.shape)} are videos; give the tokens of one frame, and "
            "the height and width"
        )
    height, width = images[-2:] if isinstance(images, tuple) else images.shape[-2:]
    values = relevance.detach().cpu().double()
    if values.dim() == 4 and tuple(values.shape[-2:]) == (height, width):
        values = values.sum(1)
        if patch_size is not None:
            values = _pooled(values, _pair(patch_size))
    elif values.dim() == 2:
        values, _ = pixels_of_patches(values, (height, width), patch_size)
    else:
        raise InputError(
            f"relevance of shape {tuple(relevance.shape)} fits no images of {height} x {width}: "
            "give (batch, tokens) or (batch, channels, height, width)"
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError("the relevance has values that are not finite")
    heat: Heatmaps = values[..., None].numpy()
    return heat


def heatmap_scale(*maps: Any, outlier_perc: float = 2.0) -> float:
    """Relevance at which the colours of several maps saturate: Captum's threshold for all of them.

    Captum sorts the magnitudes of one map, and saturates the colours from the value on up to which
    ``100 - outlier_perc`` percent of their sum lie.  Here that is done over all maps together.

    Args:
        *maps (array or Tensor): Maps of any shape.
        outlier_perc (float): Between 0 and 100; 0 means the largest magnitude.

    Returns:
        float: Positive; 1 if all relevance is zero.

    Raises:
        InputError: No map, or a percentage out of range.

    Example::

        >>> heatmap_scale([[1.0, -2.0]], [[4.0, 0.0]], outlier_perc=0)
        4.0
    """
    import numpy as np

    if not maps or not 0 <= outlier_perc < 100:
        raise InputError(f"maps and 0 <= outlier_perc < 100 are needed, not {outlier_perc}")
    sizes = np.sort(np.concatenate([np.abs(floats_of(m)).ravel() for m in maps]))
    sums = np.cumsum(sizes)
    if not sizes.size or not sums[-1] > 0:
        return 1.0
    place = int(np.searchsorted(sums, sums[-1] * 0.01 * (100.0 - outlier_perc)))
    return float(sizes[min(place, sizes.size - 1)]) or float(sizes[-1])


def heatmap_figure(
    images: Tensor,
    relevances: Mapping[str, Tensor],
    *,
    patch_size: Size | None = None,
    common: Common = "image",
    outlier_perc: float = 2.0,
    titles: Sequence[str] = (),
    method: Literal["heat_map", "blended_heat_map"] = "heat_map",
    alpha_overlay: float = 0.6,
    outline: bool | None = None,
    width: float = 6.5,
) -> Figure:
    """Images and the maps of several methods, drawn by Captum on scales that can be compared.

    Every map is drawn by ``captum.attr.visualization.visualize_image_attr`` and then put on a
    scale that is common to several pictures, symmetric around zero: red speaks for the explained
    output, blue against it.

    Args:
        images (Tensor): Shape ``(batch, channels, height, width)``, any range of values.
        relevances (mapping): From the name of a method to its relevance, ``(batch, tokens)`` or
            ``(batch, channels, height, width)``.
        patch_size (int or (int, int), optional): Pool relevance of pixels per patch, so that all
            maps show the same units; see :func:`patch_heatmap`.
        common (str): Which pictures have one scale: those of one ``"image"`` (a row: methods in
            the same units compare), of one ``"method"`` (a column: images compare), ``"all"``, or
            each ``"picture"`` its own, as Captum does it (the only choice that makes sense for
            methods in different units, such as LRP beside rollout).
        outlier_perc (float): See :func:`heatmap_scale`.
        titles (sequence of str): One for each image, written on its left.
        method (str): ``"heat_map"``, or ``"blended_heat_map"`` over the image.
        alpha_overlay (float): Opacity of the map over the image.
        outline (bool, optional): Draw the outline of the object over the map; unless given, for
            heat maps of images of one channel.
        width (float): In inches.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: matplotlib is not installed.
        InputError: Nothing to draw, or shapes that do not fit.

    Example::

        >>> pixels, relevance = torch.rand(2, 1, 28, 28), torch.randn(2, 50)
        >>> drawing = heatmap_figure(pixels, {"rollout": relevance}, patch_size=4)
        >>> drawing.savefig("digits.pdf")  # doctest: +SKIP
    """
    if common not in ("all", "method", "image", "picture"):
        raise InputError(f"common must be 'all', 'method', 'image' or 'picture', not {common!r}")
    if not relevances or images.dim() != 4 or (titles and len(titles) != len(images)):
        raise InputError(
            "heatmap_figure needs images (batch, channels, height, width), at least one method, "
            "and as many titles as images or none"
        )
    maps = [patch_heatmap(r, images, patch_size=patch_size) for r in relevances.values()]
    if any(len(m) != len(images) for m in maps):
        raise InputError(f"there are {len(images)} images, but other numbers of maps")
    scales = _scales(maps, common, outlier_perc)
    count, columns = len(images), len(maps) + 1
    left, top, gap = (0.62 if titles else 0.06), 0.26, 0.05
    per_row = common in ("image", "all")
    right = 0.5 if per_row else 0.06
    bottom = 0.36 if common == "method" else 0.06
    cell = (width - left - right - gap * (columns - 1)) / columns
    down = cell * images.shape[-2] / images.shape[-1]
    height = top + bottom + count * down + (count - 1) * gap
    drawing = new_figure(width, height)

    def place(row: int, column: int) -> Any:
        x, y = left + column * (cell + gap), height - top - (row + 1) * down - row * gap
        axes = drawing.add_axes((x / width, y / height, cell / width, down / height))
        bare(axes, width=0.5)
        return axes

    for row in range(count):
        pixels = pixels_of(images[row])
        picture = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
        axes = place(row, 0)
        axes.imshow(picture, interpolation="nearest")
        if titles:
            axes.set_ylabel(
                titles[row], rotation=0, ha="right", va="center", fontsize=7.5, parse_math=False
            )
        if row == 0:
            axes.set_title("input", fontsize=8, pad=4)
        for column, (name, heat) in enumerate(zip(relevances, maps, strict=True)):
            axes = place(row, column + 1)
            shown = _drawn(
                drawing, axes, heat[row], picture, scales[row][column], method, alpha_overlay
            )
            if row == 0:
                axes.set_title(name, fontsize=8, pad=4, parse_math=False)
            if min(picture.shape[:2]) > 1 and (  # contours need two rows and columns
                pixels.ndim == 2 and method == "heat_map" if outline is None else outline
            ):
                axes.contour(
                    picture.mean(-1), levels=[0.5], colors="#3c3c3c", linewidths=0.5, alpha=0.5
                )
            if per_row and column == len(maps) - 1:
                _colour_bar(drawing, axes, shown, scales[row][column], "right", width, height)
            elif common == "method" and row == count - 1:
                _colour_bar(drawing, axes, shown, scales[row][column], "below", width, height)
    return drawing


def _drawn(
    drawing: Any, axes: Any, heat: Any, picture: Any, scale: float, method: str, alpha: float
) -> Any:
    """Captum's drawing of one map, with the values on the given scale instead of its own."""
    import numpy as np
    from captum.attr import visualization

    cmap = colormap()
    if bool(np.any(heat)):
        visualization.visualize_image_attr(
            heat, picture, method=method, sign="all", cmap=cmap, alpha_overlay=alpha,
            plt_fig_axis=(drawing, axes), use_pyplot=False,
        )  # fmt: skip
        shown = axes.images[-1]
        shown.set_data(heat[..., 0] / scale)
        shown.set_clim(-1, 1)
        if method == "blended_heat_map":  # black below the map would hide its colours
            low, high = axes.images[0].get_clim()
            axes.images[0].set_clim(low - 1.5 * (high - low), high)
    else:  # which Captum refuses
        shown = axes.imshow(heat[..., 0], cmap=cmap, vmin=-1, vmax=1)
    shown.set_interpolation("nearest")
    return shown


def _colour_bar(
    drawing: Any, axes: Any, shown: Any, scale: float, side: str, width: float, height: float
) -> None:
    box = axes.get_position()
    if side == "right":
        where = (box.x1 + 0.05 / width, box.y0, 0.07 / width, box.height)
    else:
        where = (box.x0, box.y0 - 0.13 / height, box.width, 0.07 / height)
    orientation = "vertical" if side == "right" else "horizontal"
    bar = drawing.colorbar(
        shown, cax=drawing.add_axes(where), orientation=orientation, ticks=[-1, 0, 1]
    )
    bar.solids.set_alpha(1)
    labels = signed_ticks(scale)
    if side == "right":
        bar.ax.set_yticklabels(labels)
        for text, va in zip(bar.ax.get_yticklabels(), ("bottom", "center", "top"), strict=True):
            text.set_va(va)
    else:
        bar.ax.set_xticklabels(labels)
        for text, ha in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
            text.set_ha(ha)
    bar.ax.tick_params(labelsize=6, length=1.5, pad=1.5, colors="#4f4f4f")
    bar.outline.set_visible(False)


def _scales(maps: Sequence[Any], common: Common, outlier_perc: float) -> list[list[float]]:
    """The scale of each picture: rows are images, columns methods."""
    images = range(len(maps[0]))

    def of(*chosen: Any) -> float:
        return heatmap_scale(*chosen, outlier_perc=outlier_perc)

    if common == "all":
        return [[of(*maps)] * len(maps) for _ in images]
    if common == "method":
        own = [of(m) for m in maps]
        return [own for _ in images]
    if common == "image":
        return [[of(*(m[i] for m in maps))] * len(maps) for i in images]
    return [[of(m[i]) for m in maps] for i in images]


def _grid(count: int, height: int, width: int, patch_size: Size | None) -> tuple[int, int]:
    if patch_size is not None:
        down, across = _pair(patch_size)
        rows, columns = height // max(down, 1), width // max(across, 1)
        if down > 0 and across > 0 and 0 < rows * columns <= count:
            if count - rows * columns > max(_PREFIX, rows * columns - 1):
                raise InputError(
                    f"{count} tokens are those of several grids of {rows} x {columns} patches (the "
                    "frames of a video); give the tokens of one of them"
                )
            return rows, columns
        raise InputError(
            f"an image of {height} x {width} pixels has {rows} x {columns} patches of {down} x "
            f"{across}, but there are {count} tokens; give the sizes that the model works with"
        )
    for prefix in range(min(count, _PREFIX)):
        patches = count - prefix
        near = math.isqrt(max(patches * height // width, 1))
        for rows in (near, near + 1):
            if rows and patches % rows == 0:
                columns = patches // rows
                if rows * width == columns * height and height % rows == 0:
                    return rows, columns
    raise InputError(
        f"{count} tokens fit no grid of patches on an image of {height} x {width}; give patch_size"
    )


def _pooled(values: Tensor, patch: tuple[int, int]) -> Tensor:
    """Sums over patches, at every pixel of the patch; patches at the border may be smaller."""
    down, across = patch
    if down < 1 or across < 1:
        raise InputError(f"patch_size must be positive, not {patch}")
    height, width = values.shape[-2:]
    padding = (0, -width % across, 0, -height % down)
    padded = torch.nn.functional.pad(values, padding)
    rows, columns = padded.shape[-2] // down, padded.shape[-1] // across
    sums = padded.reshape(-1, rows, down, columns, across).sum((2, 4))
    spread = sums.repeat_interleave(down, -2).repeat_interleave(across, -1)
    return spread[..., :height, :width]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
