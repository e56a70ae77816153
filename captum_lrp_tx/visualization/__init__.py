"""Heat maps of relevance: tokens in a terminal, in HTML and as a figure; images beside their map.

Red is relevance for the explained output, blue is relevance against it, on a scale that is
symmetric around zero. This package knows tensors and strings, neither models nor rules.

Example::

    >>> from captum_lrp_tx.visualization import TokenHeatmap, terminal
    >>> heatmap = TokenHeatmap(["a", "charm", "##ing", "film"], [0.1, 1.2, 0.3, -0.2])
    >>> print(terminal(heatmap, colour=False))
        a  charming   film
    +0.10     +1.50  -0.20

Figures need matplotlib: ``pip install matplotlib pillow``.
"""

from __future__ import annotations

from captum_lrp_tx.visualization.audio import audio_figure
from captum_lrp_tx.visualization.captum_records import text_records, text_scale
from captum_lrp_tx.visualization.colours import colour_of, supports_colour
from captum_lrp_tx.visualization.figures import figure, image_figure, png
from captum_lrp_tx.visualization.page import html, image_html
from captum_lrp_tx.visualization.pairs import image_pairs_figure, pairs_figure
from captum_lrp_tx.visualization.parts import cells_figure
from captum_lrp_tx.visualization.patch_maps import (
    heatmap_figure,
    heatmap_scale,
    patch_heatmap,
    token_grid,
)
from captum_lrp_tx.visualization.text import image_terminal, table, terminal
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap, summary

__all__ = [
    "Piece",
    "TokenHeatmap",
    "audio_figure",
    "cells_figure",
    "colour_of",
    "figure",
    "heatmap_figure",
    "heatmap_scale",
    "html",
    "image_figure",
    "image_html",
    "image_pairs_figure",
    "image_terminal",
    "pairs_figure",
    "patch_heatmap",
    "png",
    "summary",
    "supports_colour",
    "table",
    "terminal",
    "text_records",
    "text_scale",
    "token_grid",
]
