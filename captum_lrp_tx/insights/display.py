"""What a page of Captum Insights shows: features, and the visualizer that fetches them.

Imports Captum Insights, so it is imported when a page is made.
"""

from __future__ import annotations

import base64
import copy
import io
import logging
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.insights import AttributionVisualizer, Batch
from captum.insights.attr_vis.app import OutputScore, VisualizationOutput
from captum.insights.attr_vis.features import ImageFeature, TextFeature
from torch import Tensor, nn

from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.insights.methods import FORMS
from captum_lrp_tx.insights.registration import shown_name
from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.arrays import map_of, pixels_of, scale_of
from captum_lrp_tx.visualization.canvas import colormap, new_figure, signed_ticks
from captum_lrp_tx.visualization.page import embedded

_LOG = logging.getLogger(__name__)
#: Sums of this part of what was added up are rounding errors.
_ROUNDING = 1e-5
#: Height of an image on the page is 200 pixels; twice that for sharp screens.
_HEIGHT = 400

# Captum's, and the relevance itself, in units of the explained output
_FeatureOutput = namedtuple("_FeatureOutput", "name base modified type contribution relevance")


class TokenFeature(TextFeature):  # type: ignore[misc]
    """A text feature that colours no rounding errors.

    Captum's ``TextFeature`` stretches the relevance of the tokens to full colours, however small
    it is. Gradient x input is zero but for rounding on models with a norm behind the embeddings,
    and is shown as zero here. The answer of the server has the relevance itself beside the
    stretched one.
    """

    def visualize(self, attribution: Tensor, data: Tensor, contribution_frac: float) -> Any:
        """Tokens with their relevance in percent of the largest."""
        parts = attribution.detach()[0]
        values, sizes = (t.reshape(len(parts), -1).sum(1) for t in (parts, parts.abs()))
        name = self.name
        if float(values.abs().max()) <= _ROUNDING * float(sizes.max()):
            values, name = torch.zeros_like(values), f"{name}: zero but for rounding"
        shown = super().visualize(values[None], data, contribution_frac)._replace(name=name)
        return _FeatureOutput(**shown._asdict(), relevance=values.tolist())


class SignedImageFeature(ImageFeature):  # type: ignore[misc]
    """An image feature that shows the sign of the relevance, for any number of channels.

    Captum's ``ImageFeature`` draws magnitudes and needs three channels. Colours are those of all
    figures of this package: red is relevance for the class, blue against it; the bar gives their
    values. They saturate at the 99.5th percentile. Channels are summed.
    """

    def visualize(self, attribution: Tensor, data: Tensor, contribution_frac: float) -> Any:
        """The image, and its relevance, as pictures."""
        if self.visualization_transform:
            data = self.visualization_transform(data)
        values = map_of(attribution)
        return _FeatureOutput(
            self.name, _picture(data), _heat_map(values), "image", contribution_frac,
            values.tolist(),
        )  # fmt: skip


class _InTurn:
    """Batches one after the other, again and again, from a position that can be set."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = tuple(batches)
        self.position = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> _InTurn:
        return self

    def __next__(self) -> Batch:
        batch = self._batches[self.position % len(self)]
        self.position += 1
        return batch


class Page(AttributionVisualizer):  # type: ignore[misc]
    """Captum's ``AttributionVisualizer`` for comparing methods, with an end to every request.

    Captum's moves on to other examples with every request, shows but the last few once it has
    shown all, searches for ever if no example passes the filter, and leaves the page waiting if a
    method fails. This one explains the same examples again if the method or its arguments have
    changed, and moves on otherwise; all examples come in turn, each is looked at once for a
    request, and the page says what went wrong.

    Args:
        model (nn.Module): Takes one tensor for each feature.
        classes (sequence of str): Their names.
        features (sequence of BaseFeature): What it takes.
        batches (sequence of Batch): Labelled examples.
        score_func (callable, optional): From the model's output to the scores that are shown.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        features: Sequence[Any],
        batches: Sequence[Batch],
        score_func: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._batches = _InTurn(batches)
        super().__init__([model], list(classes), list(features), self._batches, score_func)
        self._begun = 0
        self._asked: dict[str, Any] | None = None

    def _update_config(self, settings: dict[str, Any]) -> None:
        asked, self._asked = self._asked, copy.deepcopy(settings)
        filters = ("prediction", "classes")
        if asked not in (None, settings) and all(asked[f] == settings[f] for f in filters):
            self._batches.position = self._begun
        super()._update_config(settings)

    def get_insights_config(self) -> dict[str, Any]:
        """What the page is built from; conservative LRP is chosen at first."""
        config: dict[str, Any] = super().get_insights_config()
        name = shown_name(FORMS[ConservativeLRP])
        if name is not None and self._asked is None:
            config["selected_method"] = name
        return config

    def visualize(self) -> list[Any]:
        """The next examples that pass the filter."""
        self._outputs = []
        self._begun = self._batches.position
        self.attribution_calculation.baseline_cache.clear()
        self.attribution_calculation.transformed_input_cache.clear()
        try:
            for _ in range(len(self._batches)):
                self._outputs.extend(self._get_outputs())
                if len(self._outputs) >= self._config.num_examples:
                    break
        except Exception as error:  # whatever a method of the user's choice may raise
            return [[_message(self._complaint(error))]]
        if not self._outputs:
            return [[_message("No example passes the filter.")]]
        return [outputs for outputs, _ in self._outputs]

    def _calculate_attribution_from_cache(
        self, input_index: int, model_index: int, target: Any
    ) -> Any:
        if input_index >= len(self._outputs):
            return _message("There is no example any more; press Fetch.")
        try:
            return super()._calculate_attribution_from_cache(input_index, model_index, target)
        except Exception as error:
            return _message(self._complaint(error))

    def _complaint(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        complaint = f"{self._config.attribution_method} failed: {reason}"
        _LOG.debug("%s", complaint, exc_info=error)
        return complaint


def _message(text: str) -> Any:
    """A text in the place of an example."""
    words = text.split()
    feature = _FeatureOutput("Message", words, [0.0] * len(words), "text", 0.0, [])
    nothing = OutputScore(score=0.0, index=-1, label="\u2013")
    return VisualizationOutput([feature], nothing, [], -2, 0)


def _picture(data: Tensor) -> str:
    pixels = pixels_of(data)
    factor = max(1, round(_HEIGHT / pixels.shape[0]))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    stream = io.BytesIO()
    matplotlib("image").imsave(stream, large, cmap="gray", vmin=0, vmax=1, format="png")
    return base64.b64encode(stream.getvalue()).decode()


def _heat_map(values: Any) -> str:
    """The relevance in whole pixels for each pixel of the image, and a colour bar beside it."""
    rows, columns = values.shape
    factor = max(1, round(_HEIGHT / rows))
    height, width, margin = rows * factor, columns * factor, 130
    scale, dpi = scale_of(values), 100
    figure = new_figure((width + margin) / dpi, height / dpi)
    axes = figure.add_axes((0, 0, width / (width + margin), 1))
    shown = axes.imshow(
        values, cmap=colormap(), vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto"
    )
    axes.set_axis_off()
    bar = figure.add_axes(((width + 12) / (width + margin), 0.04, 16 / (width + margin), 0.92))
    drawn = figure.colorbar(shown, cax=bar, ticks=[-scale, 0, scale])
    drawn.ax.set_yticklabels(signed_ticks(scale))
    drawn.ax.tick_params(labelsize=17, length=0, colors="#606770")
    drawn.outline.set_visible(False)
    return embedded(figure, dpi)
