"""Molecules with their atoms coloured by relevance, several methods side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from PIL import Image
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from torch import Tensor

from captum_lrp_tx.methods.line_styles import STYLES
from captum_lrp_tx.metrics.curves import Curve
from captum_lrp_tx.visualization.colours import BLUE, RED, colour_of
from experiments.ali2022.graphormer.evaluate import HOW, Result
from experiments.ali2022.graphormer.molecules import parse

_SIZE = (560, 400)  # pixels of one molecule
_PANEL = 1.9  # inches
_FULL = 0.8  # of the colour scale: black letters stay readable on the strongest colour


@dataclass(frozen=True)
class Drawn:
    """A molecule of the picture.

    Attributes:
        smiles (str): The molecule.
        title (str): Beside its row.
        relevances (mapping of str to Tensor): For each method, shape ``(1, T)`` with the virtual
            node first.
    """

    smiles: str
    title: str
    relevances: Mapping[str, Tensor]


def draw_molecule(molecule: Chem.Mol, relevance: Tensor, size: tuple[int, int] = _SIZE) -> Any:
    """One molecule with coloured atoms.

    Bonds take the mean of their two ends. Red speaks for the class, blue against; the strongest
    atom has the full colour.

    Args:
        molecule (Chem.Mol): With coordinates, or they are computed.
        relevance (Tensor): Of each atom, shape ``(N,)``.
        size (tuple of int): Width and height in pixels.

    Returns:
        array: shape ``(height, width, 3)``, uint8.
    """
    scale = float(relevance.abs().max()) or 1.0
    values = relevance.tolist()
    colours = {i: _shade(value, scale) for i, value in enumerate(values)}
    bonds = {
        bond.GetIdx(): _shade(
            (values[bond.GetBeginAtomIdx()] + values[bond.GetEndAtomIdx()]) / 2, scale
        )
        for bond in molecule.GetBonds()
    }
    drawer = rdMolDraw2D.MolDraw2DCairo(*size)
    options: Any = drawer.drawOptions()
    options.useBWAtomPalette()
    options.padding = 0.04
    options.bondLineWidth = 2
    options.scaleBondWidth = False
    options.highlightRadius = 0.42
    options.highlightBondWidthMultiplier = 14
    options.minFontSize = 15
    options.continuousHighlight = True
    options.fillHighlights = True
    prepared = rdMolDraw2D.PrepareMolForDrawing(molecule, addChiralHs=False)
    drawer.DrawMolecule(
        prepared,
        highlightAtoms=list(colours), highlightAtomColors=colours,
        highlightBonds=list(bonds), highlightBondColors=bonds,
    )  # fmt: skip
    drawer.FinishDrawing()
    with Image.open(io.BytesIO(drawer.GetDrawingText())) as image:
        return np.asarray(image.convert("RGB"))


def _shade(value: float, scale: float) -> tuple[float, float, float]:
    (red, green, blue), _ = colour_of(_FULL * value, scale)
    if abs(value) < 1e-9 * scale:
        return (1.0, 1.0, 1.0)
    return red / 255, green / 255, blue / 255


def draw_grid(rows: Sequence[Drawn], path: Path, dpi: int = 160) -> None:
    """A picture with a row for each molecule and a column for each method, as PNG.

    Args:
        rows (sequence of Drawn): With the same methods.
        path (Path): File to write.
        dpi (int): Pixels per inch.
    """
    names = list(rows[0].relevances)
    height = _PANEL * _SIZE[1] / _SIZE[0]
    figure, axes = plt.subplots(
        len(rows), len(names), squeeze=False,
        figsize=(_PANEL * len(names) + 0.5, height * len(rows) + 0.75),
    )  # fmt: skip
    for row, panels in zip(rows, axes, strict=True):
        molecule = parse(row.smiles)
        rdDepictor.SetPreferCoordGen(True)
        rdDepictor.Compute2DCoords(molecule)
        rdDepictor.StraightenDepiction(molecule)
        for name, panel in zip(names, panels, strict=True):
            panel.imshow(draw_molecule(molecule, row.relevances[name][0, 1:]))
            panel.set_axis_off()
        panels[0].text(
            -0.03, 0.5, row.title, transform=panels[0].transAxes, rotation=90, fontsize=8,
            ha="right", va="center", linespacing=1.3,
        )  # fmt: skip
    for name, panel in zip(names, axes[0], strict=True):
        panel.set_title(name, fontsize=10, pad=5)
    left, right = 0.45 / figure.get_figwidth(), 1 - 0.03 / figure.get_figwidth()
    bottom, top = 0.48 / figure.get_figheight(), 1 - 0.27 / figure.get_figheight()
    figure.subplots_adjust(left, bottom, right, top, wspace=0.02, hspace=0.02)
    _colour_bar(figure)
    _write(figure, path, dpi)


#: Methods of the curves, in the order of the legend.
_SHOWN = ("Random", "Rollout", "GAE", "GI", "LRP(AH+LN)", "LRP", "IG")


def draw_curves(results: Sequence[Result], path: Path, dpi: int = 160) -> None:
    """Mean activation and pruning curves, for both ways of hiding atoms, as PNG.

    Args:
        results (sequence of Result): Of :func:`~.evaluate.evaluate`.
        path (Path): File to write.
        dpi (int): Pixels per inch.
    """
    figure, axes = plt.subplots(
        len(HOW), 3, figsize=(10.2, 2.3 * len(HOW) + 0.4), sharex="col", layout="constrained"
    )
    kinds = ("activation", "pruning", "pruning_signed")
    for row, how in zip(axes, HOW, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            for name in _SHOWN:
                colour, dashes, width = STYLES[name]
                for result in results:
                    if (result.method, result.how) == (name, how):
                        curve: Curve = getattr(result, kind)
                        panel.plot(
                            curve.fractions, curve.values.mean(0), color=colour, label=name,
                            lw=width, ls=dashes,
                        )  # fmt: skip
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
        title = "attention frozen" if how == "frozen" else f"atoms {how}"
        row[0].set_ylabel(f"{title}\nprobability of the class", fontsize=9)
        row[1].set_ylabel("squared change of the logits", fontsize=9)
        row[2].sharey(row[1])
    axes[0, 0].set_title("activation: most relevant first", fontsize=10)
    axes[0, 1].set_title("pruning: smallest |relevance| first", fontsize=10)
    axes[0, 2].set_title("pruning: against the class first", fontsize=10)
    axes[-1, 0].set_xlabel("share of atoms that are there", fontsize=9)
    for panel in axes[-1, 1:]:
        panel.set_xlabel("share of atoms taken away", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False
    )
    _write(figure, path, dpi)


def _write(figure: Any, path: Path, dpi: int) -> None:
    """A PNG in full colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    plt.close(figure)


def _colour_bar(figure: Any) -> None:
    colours = [*reversed(BLUE), *RED[1:]]
    scale = LinearSegmentedColormap.from_list(
        "relevance", [tuple(part / 255 for part in colour) for colour in colours]
    )
    ends = (1 - _FULL) / 2, (1 + _FULL) / 2
    scale = LinearSegmentedColormap.from_list("shown", scale(np.linspace(*ends, 256)))
    width, height = figure.get_figwidth(), figure.get_figheight()
    axes = figure.add_axes((0.5 - 1.2 / width, 0.26 / height, 2.4 / width, 0.09 / height))
    bar = figure.colorbar(
        plt.cm.ScalarMappable(Normalize(-1, 1), scale), cax=axes, orientation="horizontal"
    )
    bar.outline.set_visible(False)
    bar.set_ticks([-1, 0, 1], labels=["against the class", "0", "for the class"])
    bar.ax.tick_params(labelsize=8, length=0, pad=2)
