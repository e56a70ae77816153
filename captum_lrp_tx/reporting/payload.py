"""A report as the data that its page draws from."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx._version import __version__
from captum_lrp_tx.methods.line_styles import styles
from captum_lrp_tx.methods.registry import Style
from captum_lrp_tx.methods.running import ROUNDING
from captum_lrp_tx.metrics.curves import Curve
from captum_lrp_tx.reporting.results import Example, Explanations, Report
from captum_lrp_tx.visualization.arrays import block_sums, pixels_of
from captum_lrp_tx.visualization.colours import BLUE, PURPLE, RED, RGB
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap
from captum_lrp_tx.visualization.wording import Scheme, printable

#: Maps are drawn with at most so many cells a side; larger ones are summed in blocks.
MAP_SIDE = 64
#: Images are shown with at most so many pixels a side.
IMAGE_SIDE = 448
#: Dashes of lines as SVG has them.
_DASHES = {"-": "none", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}
#: The signed and the unsigned scale on a dark page, from nothing to the largest.
_DARK: dict[str, tuple[RGB, ...]] = {
    "for": ((38, 41, 48), (84, 47, 46), (142, 58, 52), (199, 78, 66), (242, 116, 100)),
    "against": ((38, 41, 48), (37, 62, 88), (42, 93, 138), (60, 131, 190), (104, 178, 238)),
    "unsigned": ((38, 41, 48), (60, 54, 92), (90, 79, 142), (128, 113, 194), (176, 160, 244)),
}


def payload(report: Report) -> dict[str, Any]:
    """What the page reads, made of lists, numbers and texts.

    Relevance and curves are little-endian 32-bit floats in base64.

    Args:
        report (Report): The report.

    Returns:
        dict: ``values[example][method]`` holds ``r``, the relevance for each explained class after
        the other (once for methods that do not depend on the class), ``sum``, ``delta``, and
        ``absorbed`` of methods that book what constants take.
    """
    drawn = styles([method.name for method in report.methods])
    return {
        "version": __version__,
        "kind": report.kind,
        "title": printable(report.title),
        "facts": [[printable(name), printable(text)] for name, text in report.facts],
        "classes": [printable(name) for name in report.class_names],
        "baseline": printable(report.baseline),
        "masking": printable(report.masking),
        "rounding": ROUNDING,
        "palette": {
            "light": {"for": RED, "against": BLUE, "unsigned": PURPLE},
            "dark": _DARK,
        },
        "methods": [_method(method, drawn[method.name]) for method in report.methods],
        "examples": [_example(example, report.scheme) for example in report.examples],
        "values": [
            [_values(method, i, example) for method in report.methods]
            for i, example in enumerate(report.examples)
        ],
    }


def floats(values: Tensor) -> str:
    """Numbers as the page reads them."""
    return base64.b64encode(values.detach().cpu().float().numpy().astype("<f4").tobytes()).decode()


def shown_map(values: Tensor) -> Tensor:
    """A map with at most ``MAP_SIDE`` cells a side and the same sum."""
    factor = math.ceil(max(values.shape) / MAP_SIDE)
    return values if factor == 1 else torch.from_numpy(block_sums(values.double().numpy(), factor))


def _method(method: Explanations, style: Style) -> dict[str, Any]:
    colour, dashes, _ = style
    return {
        "name": printable(method.name),
        "colour": colour,
        "dashes": _DASHES[dashes],
        "about": method.about,
        "signed": method.signed,
        "usesTarget": method.uses_target,
        "conserves": bool(method.deltas),
        "error": printable(method.error),
        "unmeasured": printable(method.unmeasured),
        "activation": _curve(method.activation),
        "pruning": _curve(method.pruning),
    }


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    return {
        "fractions": curve.fractions.tolist(),
        "values": floats(curve.values),
        "area": floats(curve.area),
    }


def _example(example: Example, scheme: Scheme) -> dict[str, Any]:
    probabilities = example.probabilities
    found: dict[str, Any] = {
        "text": printable(example.text),
        "output": floats(example.output),
        "probabilities": None if probabilities is None else floats(probabilities),
        "prediction": example.prediction,
        "label": example.label,
        "classes": list(example.classes),
    }
    if example.image is not None:
        return {**found, "image": _picture(example.image)}
    nothing = [0.0] * len(example.tokens)
    heatmap = TokenHeatmap(example.tokens, nothing, special=example.special, scheme=scheme)
    return {
        **found,
        "tokens": [_piece(piece) for piece in heatmap.pieces(merge=False)],
        "words": [_piece(piece) for piece in heatmap.pieces(merge=True)],
    }


def _piece(piece: Piece) -> list[Any]:
    """Text, whether special (1) and after a space (2), and number of tokens."""
    return [piece.text, int(piece.special) + 2 * int(piece.space), len(piece.tokens)]


def _values(method: Explanations, index: int, example: Example) -> dict[str, Any]:
    classes = example.classes if method.uses_target else example.classes[:1]
    if index in method.errors:
        return {"error": printable(method.errors[index])}
    found = [method.relevance[index, explained] for explained in classes]
    sums = {"sum": [method.sums[index, explained] for explained in classes]}
    if example.image is not None:
        factor = math.ceil(max(found[0].shape) / MAP_SIDE)
        found = [shown_map(values) for values in found]
        sums["shape"] = [*found[0].shape, factor]
    numbers: dict[str, Any] = {"r": floats(torch.stack(found)), **sums}
    for name, found_of in (("delta", method.deltas), ("absorbed", method.absorbed)):
        if found_of:
            numbers[name] = [found_of[index, explained] for explained in classes]
    return numbers


def _picture(image: Tensor) -> dict[str, Any]:
    """An image as a PNG file in a data URI; large ones with fewer pixels."""
    height, width = image.shape[-2:]
    factor = math.ceil(max(height, width) / IMAGE_SIDE)
    if factor > 1:
        image = torch.nn.functional.avg_pool2d(image[None].float(), factor, ceil_mode=True)[0]
    pixels = torch.from_numpy(pixels_of(image)).mul(255).round().to(torch.uint8)
    return {"src": _png(pixels), "height": int(height), "width": int(width)}


def _png(pixels: Tensor) -> str:
    """Shape ``(height, width)`` or ``(height, width, 3)``; without Pillow, which is an extra."""
    height, width = pixels.shape[:2]
    kind = 0 if pixels.dim() == 2 else 2  # greyscale, or RGB
    # every row begins with the number of its filter: none
    rows = torch.nn.functional.pad(pixels.reshape(height, -1), (1, 0))
    header = struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in (
        (b"IHDR", header), (b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)), (b"IEND", b"")
    ):  # fmt: skip
        check = struct.pack(">I", zlib.crc32(name + body))
        parts.append(struct.pack(">I", len(body)) + name + body + check)
    return "data:image/png;base64," + base64.b64encode(b"".join(parts)).decode()
