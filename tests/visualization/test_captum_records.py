"""Records for visualize_text and maps for visualize_image_attr, and what Captum makes of them."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import visualization
from torch import Tensor

from captum_lrp_tx import ConservativeLRP, LayerConservativeLRP
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.visualization.captum_records import text_records, text_scale
from captum_lrp_tx.visualization.patch_maps import (
    heatmap_figure,
    heatmap_scale,
    patch_heatmap,
    token_grid,
)

pytestmark = pytest.mark.captum

TOKENS = ["[CLS]", "a", "charm", "##ing", "film", "<3", "[SEP]", "[PAD]"]
RELEVANCE = [9.0, -1.0, 3.0, 1.0, 0.5, -2.0, -7.0, 100.0]


class Tokenizer:
    """Names of eight token ids."""

    pad_token = "[PAD]"
    unk_token_id = None
    all_special_ids = (0, 6, 7)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [TOKENS[i] for i in ids]


def inputs(rows: int = 1) -> dict[str, Tensor]:
    ids = torch.arange(8).repeat(rows, 1)
    return {"input_ids": ids, "attention_mask": (ids != 7).long()}


def relevance(rows: int = 1) -> Tensor:
    return torch.tensor(RELEVANCE).repeat(rows, 1)


def words(record: Any) -> list[str]:
    return [html.unescape(re.sub("<.*?>", "", w)).strip() for w in record.raw_input_ids]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What visualize_text writes, without IPython."""

    def render(records: list[Any]) -> str:
        pages: list[str] = []
        where = visualization
        monkeypatch.setattr(where, "HAS_IPYTHON", True)
        monkeypatch.setattr(where, "HTML", pages.append, raising=False)
        monkeypatch.setattr(where, "display", lambda _: None, raising=False)
        visualization.visualize_text(records)
        return pages[0]

    return render


# ---- text ---------------------------------------------------------------------------------------
def test_words_are_merged_padding_is_dropped_and_specials_are_dimmed() -> None:
    (record,) = text_records(relevance(), inputs(), Tokenizer())
    assert words(record) == ["[CLS]", "a", "charming", "film", "<3", "[SEP]"]
    # the largest word is charming with 3 + 1
    expected = [0.0, -0.25, 1.0, 0.125, -0.5, 0.0]
    assert record.word_attributions.tolist() == expected
    assert record.attr_score == sum(RELEVANCE[:-1])
    assert "color:#9a9a9a" in record.raw_input_ids[0]
    assert "color" not in "".join(record.raw_input_ids[1:5])


@pytest.mark.parametrize(
    ("special", "shown", "colours"),
    [
        ("show", ["[CLS]", "a", "charming", "film", "<3", "[SEP]"],
         [1.0, -0.25, 1.0, 0.125, -0.5, -1.0]),
        ("drop", ["a", "charming", "film", "<3"], [-0.25, 1.0, 0.125, -0.5]),
    ],
)  # fmt: skip
def test_special_tokens(special: Any, shown: list[str], colours: list[float]) -> None:
    (record,) = text_records(relevance(), inputs(), Tokenizer(), special=special)
    assert words(record) == shown
    assert record.word_attributions.tolist() == colours
    assert record.attr_score == sum(RELEVANCE[:-1])  # of all tokens, shown or not


def test_tokens_without_merging_embeddings_and_lists_of_tokens() -> None:
    (alone,) = text_records(relevance(), inputs(), Tokenizer())
    (packed,) = text_records((relevance(),), inputs(), Tokenizer())  # as Captum returns tuples
    assert torch.equal(packed.word_attributions, alone.word_attributions)
    (record,) = text_records(relevance(), inputs(), Tokenizer(), merge=False)
    assert words(record) == ["[CLS]", "a", "charm", "ing", "film", "<3", "[SEP]"]
    wide = torch.stack([relevance() * 0.25, relevance() * 0.75], -1)
    (summed,) = text_records(wide, inputs()["input_ids"], Tokenizer())
    (plain,) = text_records(relevance(), inputs(), Tokenizer())
    torch.testing.assert_close(summed.word_attributions, plain.word_attributions)
    (named,) = text_records(relevance()[:, :7], [TOKENS[:7]])
    assert words(named) == words(plain)
    (bare,) = text_records(relevance()[0, :7], TOKENS[:7])
    assert torch.equal(bare.word_attributions, named.word_attributions)


def test_lists_of_ids_are_what_tensors_of_them_are() -> None:
    """Of a tokenizer that returns lists the ids were the words, and padding was one, too."""
    given = inputs()
    lists = {key: value.tolist() for key, value in given.items()}
    arrays = {key: value.numpy() for key, value in given.items()}
    (expected,) = text_records(relevance(), given, Tokenizer())
    for same in (lists, arrays, lists["input_ids"]):
        (record,) = text_records(relevance(), same, Tokenizer())
        assert record.raw_input_ids == expected.raw_input_ids
        assert record.attr_score == expected.attr_score
    with pytest.raises(InputError, match="need a tokenizer"):
        text_records(relevance(), lists)
    with pytest.raises(InputError, match="several lengths"):
        text_records(relevance(2), {"input_ids": [[0, 1], [0]]}, Tokenizer())


def test_padding_is_a_run_at_the_ends_only() -> None:
    ids = torch.tensor([[7, 0, 1, 7, 4, 6, 7, 7]])
    (record,) = text_records(torch.ones(1, 8), ids, Tokenizer())
    assert words(record) == ["[CLS]", "a", "[PAD]", "film", "[SEP]"]
    (nothing,) = text_records(torch.ones(1, 2), ids[:, -2:], Tokenizer())
    assert words(nothing) == ["[PAD]", "[PAD]"]  # else the record would be empty


def test_predictions_targets_labels_and_deltas() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    records = text_records(
        relevance(2), inputs(2), Tokenizer(), logits, labels=torch.tensor([1, 1]),
        class_names={0: "bad", 1: "good & new"}, deltas=torch.tensor([0.5, -0.25]),
    )  # fmt: skip
    assert [r.pred_class for r in records] == ["good &amp; new", "bad"]
    assert [r.attr_class for r in records] == ["good &amp; new", "bad"]
    assert [r.true_class for r in records] == ["good &amp; new"] * 2
    probabilities = logits.softmax(1).max(1).values.tolist()
    assert all(
        math.isclose(r.pred_prob, p, rel_tol=1e-6)
        for r, p in zip(records, probabilities, strict=True)
    )
    assert [r.convergence_score for r in records] == [0.5, -0.25]
    for labels in ((0, 1), np.array([0, 1])):  # as lists: not a text for all
        again = text_records(
            relevance(2), inputs(2), Tokenizer(), logits, labels=labels, target=np.array([1, 0]),
            class_names=["bad", "good"], deltas=np.array([0.5, -0.25]),
        )  # fmt: skip
        assert [r.true_class for r in again] == ["bad", "good"]
        assert [r.attr_class for r in again] == ["good", "bad"]
        assert [r.convergence_score for r in again] == [0.5, -0.25]
    (single,) = text_records(relevance(), inputs(), Tokenizer(), torch.tensor([[-2.0]]), target=1)
    assert (single.pred_class, single.attr_class, single.true_class) == ("0", "1", "")
    assert math.isclose(single.pred_prob, 1 - 1 / (1 + math.exp(2)), rel_tol=1e-6)
    (unknown,) = text_records(relevance(), inputs(), Tokenizer())
    assert math.isnan(unknown.pred_prob) and math.isnan(unknown.convergence_score)


def test_scales_of_several_methods() -> None:
    first, second = relevance(2), relevance(2) * 4.0
    first = first * torch.tensor([[1.0], [2.0]])
    both = {"LRP": first, "IG": second}

    def largest(**options: Any) -> list[float]:
        records = text_records(both, inputs(2), Tokenizer(), **options)
        return [float(r.word_attributions.abs().max()) for r in records]

    # texts in order, methods one below the other
    labels = [r.attr_class for r in text_records(both, inputs(2), Tokenizer(), target=1)]
    assert labels == ["1 · LRP", "1 · IG"] * 2
    assert largest() == [1.0] * 4
    assert largest(scale="example") == [0.25, 1.0, 0.5, 1.0]
    assert largest(scale="all") == [0.25, 1.0, 0.5, 1.0]
    assert largest(scale=32.0) == [0.125, 0.5, 0.25, 0.5]
    assert largest(scale=2.0) == [1.0] * 4  # saturated, never beyond
    assert text_scale(first, inputs(2), Tokenizer()) == 8.0
    assert text_scale(first, inputs(2), Tokenizer(), merge=False) == 6.0


def test_rounding_errors_get_no_colour() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    (record,) = text_records(relevance() * 1e-8, inputs(), Tokenizer(), logits)
    assert record.word_attributions.tolist() == [0.0] * 6
    (record,) = text_records(relevance() * 1e-8, inputs(), Tokenizer(), logits * 1e-6)
    assert record.word_attributions.abs().max() == 1.0


def test_captum_writes_the_words_and_their_colours(rendered: Any) -> None:
    ids = inputs()
    page = rendered(text_records(relevance(), ids, Tokenizer(), torch.tensor([[0.0, 1.0]])))
    marks = re.findall(r'background-color: (hsl[^;]*?); opacity.*?"black">(.*?)</font>', page, re.S)
    shown = [" ".join(html.unescape(re.sub("<.*?>", "", word)).split()) for _, word in marks]
    assert shown == ["[CLS]", "a", "charming", "film", "<3", "[SEP]"]
    # lightness falls with the relevance: green for, red against, white for special tokens
    expected = [
        "hsl(0, 75%, 100%)", "hsl(0, 75%, 90%)", "hsl(120, 75%, 50%)", "hsl(120, 75%, 94%)",
        "hsl(0, 75%, 80%)", "hsl(0, 75%, 100%)",
    ]  # fmt: skip
    assert [colour for colour, _ in marks] == expected
    assert "&lt;3" in page and '<span style="color:#9a9a9a">[CLS]</span>' in page
    assert "(0.73)" in page and f"{sum(RELEVANCE[:-1]):.2f}" in page


def test_markup_in_texts_stays_text(rendered: Any) -> None:
    evil = ["<script>alert(1)</script>", "<s>", "a&b"]
    page = rendered(text_records(torch.ones(1, 3), [evil], target="<i>x</i>"))
    assert "<script>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "a&amp;b" in page and "&lt;s&gt;" in page


def test_records_of_the_shipped_model() -> None:
    model, tokenizer = sentiment()
    texts = ["an unflinchingly bleak film", "charming"]
    given = tokenizer(texts, return_tensors="pt", padding=True)
    found, deltas = ConservativeLRP(model).attribute(given, target=1, return_convergence_delta=True)
    with torch.no_grad():
        outputs = model(**given)
    records = text_records(
        found, given, tokenizer, outputs, target=1, class_names=model.config.id2label,
        deltas=deltas,
    )  # fmt: skip
    for record, text, row, delta, logit in zip(
        records, texts, found, deltas, outputs.logits[:, 1], strict=True
    ):
        assert words(record)[1:-1] == text.split()
        assert math.isclose(record.attr_score, float(row.sum()), rel_tol=1e-5, abs_tol=1e-5)
        assert math.isclose(record.attr_score + record.convergence_score, float(logit),
                            rel_tol=1e-3, abs_tol=1e-4)  # fmt: skip
        assert record.convergence_score == float(delta)
        assert record.attr_class == "positive"


def test_mistakes_with_records_say_what_to_do() -> None:
    with pytest.raises(InputError, match="tokenizer"):
        text_records(relevance(), inputs())
    with pytest.raises(InputError, match="of LRP has the shape"):
        text_records({"LRP": relevance()[:, :3]}, inputs(), Tokenizer())
    with pytest.raises(InputError, match="relevance of LRP is no tensor but list"):
        text_records({"LRP": relevance().tolist()}, inputs(), Tokenizer())  # type: ignore[dict-item]
    with pytest.raises(InputError, match="not finite"):
        text_records(relevance() / 0, inputs(), Tokenizer())
    with pytest.raises(InputError, match="special"):
        text_records(relevance(), inputs(), Tokenizer(), special="hide")  # type: ignore[arg-type]
    for scale in (0.0, -1.0, math.inf, "max"):
        with pytest.raises(InputError, match="scale"):
            text_records(relevance(), inputs(), Tokenizer(), scale=scale)
    with pytest.raises(InputError, match="labels"):
        text_records(relevance(), inputs(), Tokenizer(), labels=[1, 0])
    with pytest.raises(InputError, match="outputs"):
        text_records(relevance(), inputs(), Tokenizer(), torch.ones(3, 2))
    with pytest.raises(InputError, match="no entry for class 1"):
        text_records(relevance(), inputs(), Tokenizer(), target=1, class_names=["bad"])
    with pytest.raises(InputError, match="token ids"):
        text_records(relevance(), relevance(), Tokenizer())
    with pytest.raises(InputError, match="lists of tokens"):
        text_records(relevance(), "a charming film", Tokenizer())


# ---- images -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [(49, (28, 28), (7, 7)), (50, (28, 28), (7, 7)), (197, (224, 224), (14, 14)),
     (198, (224, 224), (14, 14)), (201, (224, 224), (14, 14)), (257, (224, 224), (16, 16)),
     (33, (64, 32), (8, 4)), (16, (16, 16), (4, 4))],
)  # fmt: skip
def test_token_grid(tokens: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    values = torch.randn(2, tokens)
    found = token_grid(values, size)
    assert tuple(found.shape) == (2, *grid)
    assert torch.equal(found.flatten(1), values[:, -grid[0] * grid[1] :])
    patch = (size[0] // grid[0], size[1] // grid[1])
    assert torch.equal(token_grid(values, size, patch), found)


def test_frames_of_a_video_are_no_picture() -> None:
    values = torch.randn(1, 1 + 4 * 16)  # a class token, and four frames of 4 x 4 patches
    with pytest.raises(InputError, match="several grids of 4 x 4 patches"):
        token_grid(values, 32, 8)
    with pytest.raises(InputError, match="are videos; give the tokens of one frame"):
        patch_heatmap(values, torch.zeros(1, 4, 3, 32, 32))
    assert token_grid(torch.randn(1, 17 + 4), 16, 8).shape == (1, 2, 2)  # with 16 registers


def test_patch_relevance_as_a_map() -> None:
    values = torch.randn(2, 1 + 6)
    heat = patch_heatmap(values, (13, 8), patch_size=(4, 4))  # 3 x 2 patches and a rest
    assert heat.shape == (2, 13, 8, 1) and heat.dtype == np.float64
    for i in range(2):
        for y in range(13):
            for x in range(8):
                expected = 0.0 if y >= 12 else float(values[i, 1 + 2 * (y // 4) + x // 4])
                assert heat[i, y, x, 0] == pytest.approx(expected)


def test_pixel_relevance_as_a_map() -> None:
    values = torch.randn(2, 3, 10, 7)
    heat = patch_heatmap(values, values)
    np.testing.assert_allclose(heat[..., 0], values.double().sum(1).numpy())
    pooled = patch_heatmap(values, (10, 7), patch_size=4)
    for i in range(2):
        for y in range(10):
            for x in range(7):
                top, left = y // 4 * 4, x // 4 * 4
                block = values[i, :, top : top + 4, left : left + 4].double().sum()
                assert pooled[i, y, x, 0] == pytest.approx(float(block))


def test_relevance_of_pixels_and_of_patches_have_the_same_units() -> None:
    images, labels = digit_samples()
    model = digits()
    pixels = ConservativeLRP(model).attribute(images[:2], target=labels[:2])
    layer = LayerConservativeLRP(model, model.vit.embeddings.patch_embeddings)
    patches = layer.attribute(images[:2], target=labels[:2]).sum(-1)
    of_pixels = patch_heatmap(pixels, images[:2], patch_size=4)
    of_patches = patch_heatmap(patches, images[:2])
    # the bias of the patch embedding keeps its share, so the two are close and not equal
    correlation = np.corrcoef(of_pixels.ravel(), of_patches.ravel())[0, 1]
    assert correlation > 0.9


def captums_threshold(values: Any, outlier_perc: float) -> float:
    """From what Captum draws: the largest value that is not saturated tells the divisor."""
    _, axes = visualization.visualize_image_attr(
        values, sign="all", outlier_perc=outlier_perc, use_pyplot=False
    )
    drawn = np.asarray(axes.images[-1].get_array(), dtype=np.float64)
    inner = (np.abs(drawn) < 1) & (np.abs(drawn) > 0)
    ratios = values[..., 0][inner] / drawn[inner]
    assert np.allclose(ratios, ratios[0])
    return float(ratios[0])


@pytest.mark.parametrize("outlier_perc", [2, 10, 50])
def test_scale_of_one_map_is_captums(outlier_perc: float) -> None:
    heat = patch_heatmap(torch.randn(1, 3, 9, 9), (9, 9))[0]
    assert heatmap_scale(heat, outlier_perc=outlier_perc) == pytest.approx(
        captums_threshold(heat, outlier_perc)
    )


def test_scale_of_several_maps() -> None:
    small, large = torch.randn(4, 4), 10 * torch.randn(4, 4)
    together = heatmap_scale(small, large)
    assert together == heatmap_scale(torch.cat([small, large]))
    assert heatmap_scale(small) < together
    assert heatmap_scale(small, large, outlier_perc=0) == pytest.approx(float(large.abs().max()))
    assert heatmap_scale(torch.zeros(3)) == 1.0
    assert heatmap_scale(torch.ones(3, requires_grad=True)) == 1.0
    assert heatmap_scale(torch.full((3,), 0.5).bfloat16()) == 0.5
    with pytest.raises(InputError, match="outlier_perc"):
        heatmap_scale(small, outlier_perc=100)
    with pytest.raises(InputError, match="maps"):
        heatmap_scale()


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map"])
def test_maps_go_straight_to_captum(method: str) -> None:
    images = (digit_samples()[0][:1] + 1) / 2
    picture = images[0].permute(1, 2, 0).numpy()
    for values in (torch.randn(1, 50), torch.randn(1, 1, 28, 28)):
        heat = patch_heatmap(values, images)
        _, axes = visualization.visualize_image_attr_multiple(
            heat[0], picture.repeat(3, -1), ["original_image", method], ["all", "all"],
            use_pyplot=False,
        )  # fmt: skip
        scale = heatmap_scale(heat[0])
        drawn = np.asarray(axes[1].images[-1].get_array(), dtype=np.float64)
        np.testing.assert_allclose(drawn, np.clip(heat[0, ..., 0] / scale, -1, 1), atol=1e-6)


@pytest.mark.parametrize("common", ["all", "method", "image", "picture"])
@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map"])
def test_colours_of_a_figure_stand_for_the_same_relevance(common: Any, method: Any) -> None:
    images = digit_samples()[0][:2]
    maps = {"A": torch.randn(2, 50), "B": 5 * torch.randn(2, 1, 28, 28)}
    maps["B"][1] *= 3
    figure = heatmap_figure(
        images, maps, common=common, method=method, titles=["one", "two"], outlier_perc=5
    )
    arrays = [patch_heatmap(values, images) for values in maps.values()]
    groups = {
        "all": lambda i, k: arrays,
        "method": lambda i, k: [arrays[k]],
        "image": lambda i, k: [a[i] for a in arrays],
        "picture": lambda i, k: [arrays[k][i]],
    }
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 2 * 3  # the bars hold no images
    for i in range(2):
        for k in range(2):
            picture = drawn[i * 3 + 1 + k].images[-1]
            scale = heatmap_scale(*groups[common](i, k), outlier_perc=5)
            assert tuple(picture.get_clim()) == (-1, 1)
            shown = np.asarray(picture.get_array(), dtype=np.float64) * scale
            np.testing.assert_allclose(shown, arrays[k][i, ..., 0], rtol=1e-6, atol=1e-9)
    titles = [axes.get_title() for axes in drawn[:3]]
    assert titles == ["input", "A", "B"]


def test_a_figure_of_zero_relevance_and_of_colour_images(tmp_path: Any) -> None:
    images = torch.rand(2, 3, 16, 16)
    figure = heatmap_figure(
        images, {"zero": torch.zeros(2, 17), "some": torch.randn(2, 3, 16, 16)}, patch_size=4
    )
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    zero = figure.axes[1].images[-1]
    assert not np.asarray(zero.get_array()).any()
    assert not figure.axes[1].collections  # no outline over colour images
    grey = heatmap_figure(images[:, :1], {"zero": torch.zeros(2, 17)})
    assert grey.axes[1].collections
    plain = heatmap_figure(images[:, :1], {"zero": torch.zeros(2, 17)}, outline=False)
    assert not plain.axes[1].collections


def test_mistakes_with_maps_say_what_to_do() -> None:
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match="fits no images"):
        patch_heatmap(torch.randn(2, 3, 8, 8), images)
    with pytest.raises(InputError, match="give patch_size"):
        token_grid(torch.randn(1, 60), (16, 17))
    with pytest.raises(InputError, match="there are 7 tokens"):
        token_grid(torch.randn(1, 7), 16, 4)
    with pytest.raises(InputError, match="positive"):
        patch_heatmap(torch.randn(2, 3, 16, 16), images, patch_size=0)
    with pytest.raises(InputError, match="shape"):
        token_grid(torch.randn(7), 16)
    with pytest.raises(InputError, match="finite"):
        patch_heatmap(torch.full((2, 17), math.nan), images)
    with pytest.raises(InputError, match="common"):
        heatmap_figure(images, {"A": torch.randn(2, 17)}, common="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one method"):
        heatmap_figure(images, {})
    with pytest.raises(InputError, match="other numbers"):
        heatmap_figure(images, {"A": torch.randn(1, 17)})
