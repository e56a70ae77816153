"""What figures are drawn on and with: matplotlib, but without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.colours import RGB, SIGNED
from captum_lrp_tx.visualization.glyphs import families, quiet_about_glyphs
from captum_lrp_tx.visualization.layout import broken
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: Of notes, legends and axes.
GREY = "#5f5f5f"
#: How much wider bold letters are than others, at most.
BOLD = 1.25


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window and to no global list of figures; sizes in inches."""
    made: Figure = matplotlib("figure").Figure(figsize=(width, height))
    matplotlib("backends.backend_agg").FigureCanvasAgg(made)
    return made


def sheet(drawing: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    """Axes without ticks over all of a figure, from one end to the other."""
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return axes


def headline(
    drawing: Figure, x: float, y: float, title: str, size: float = 11, **style: Any
) -> None:
    """A title in bold letters, at a share of the width and of the height.

    For what does not fit into a line the figure is made higher; call it when axes and other texts
    have their places.
    """
    family = families(title)
    ruler = Ruler(family, size)
    width, height = map(float, drawing.get_size_inches())
    room = (width - 0.2) * 72
    lines = broken(printable(title), lambda text: ruler(text) * BOLD, room)
    step = 1.4 * size / 72
    more = step * (len(lines) - 1)
    whole = height + more

    def moved(place: float) -> float:
        return (place * height + (more if place > y else 0.0)) / whole

    drawing.set_size_inches(width, whole)
    for axes in drawing.axes:
        box = axes.get_position()
        place = (box.x0, moved(box.y0), box.width, box.height * height / whole)
        axes.set_position(place)
    for text in drawing.texts:
        text.set_y(moved(text.get_position()[1]))
    for number, line in enumerate(lines):
        drawing.text(
            x, (y * height + more - number * step) / whole, line, fontsize=size, fontweight="bold",
            parse_math=False, fontfamily=family, **style,
        )  # fmt: skip


def frame(axes: Any, colour: str = "#c8c8c8", width: float = 0.6) -> None:
    """Thin lines around a panel."""
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(width)


def bare(axes: Any, width: float = 0.6) -> None:
    """A panel with a thin frame and without ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes, width=width)


def colormap(stops: Sequence[RGB] = SIGNED) -> Colormap:
    """Colours between some stops; from against to for unless others are given."""
    colours = [tuple(part / 255 for part in rgb) for rgb in stops]
    made: Colormap = matplotlib("colors").LinearSegmentedColormap.from_list("relevance", colours)
    return made


def signed_ticks(scale: float) -> list[str]:
    """What stands at the lower end, the middle and the upper end of a colour bar."""
    return [f"\u2212{scale:.2g}", "0", f"+{scale:.2g}"]


def colour_bar(drawing: Figure, shown: Any, bar: Axes, scale: float, is_clipped: bool) -> None:
    """A colour bar of signed relevance, with pointed ends if some values are beyond its scale."""
    made = drawing.colorbar(
        shown, cax=bar, ticks=[-scale, 0, scale], extendfrac=0.04,
        extend="both" if is_clipped else "neither",
    )  # fmt: skip
    made.ax.set_yticklabels(signed_ticks(scale))
    made.ax.tick_params(labelsize=7, length=2, colors=GREY)
    made.outline.set_visible(False)


class Ruler:
    """Width of texts in points.

    Args:
        family (list of str): Names of font families.
        size (float): Of the letters, in points.
    """

    def __init__(self, family: list[str], size: float) -> None:
        self._font = matplotlib("font_manager").FontProperties(family=family, size=size)
        # eight dots to a point: at one, every letter would be rounded to whole points
        self._renderer: Any = matplotlib("backends.backend_agg").RendererAgg(16, 16, 8 * 72)
        self._known: dict[str, float] = {}

    def __call__(self, text: str) -> float:
        """The width of a text."""
        if text not in self._known:
            with quiet_about_glyphs():
                sizes = self._renderer.get_text_width_height_descent(text, self._font, ismath=False)
            self._known[text] = float(sizes[0]) / 8
        return self._known[text]
