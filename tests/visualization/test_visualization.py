"""Heat maps: texts are put together right, colours are signed and symmetric, nothing escapes."""

from __future__ import annotations

import html as html_module
import io
import math
import re
import subprocess
import sys

import pytest
import torch

from captum_lrp_tx import visualization as viz
from captum_lrp_tx.metrics import Conservation, conservation_figure
from captum_lrp_tx.visualization import TokenHeatmap
from captum_lrp_tx.visualization.circuits import Drawn, circuit_figure
from captum_lrp_tx.visualization.comparison import Strip, TextComparison
from captum_lrp_tx.visualization.comparison_figure import comparison_figure, image_comparison_figure
from captum_lrp_tx.visualization.parts import cells_figure

pytestmark = pytest.mark.captum

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
CODE = re.compile(r"\x1b\[48;2;(\d+);(\d+);(\d+);38;2;(\d+);(\d+);(\d+)m([^\x1b]*)")


def review(**more):
    return TokenHeatmap(
        ["[CLS]", "a", "charm", "##ing", "film", ".", "[SEP]"],
        [0.5, 0.1, 1.0, 0.5, -0.75, -0.1, 2.0],
        **more,
    )


def texts(heatmap, merge=True):
    return [piece.text for piece in heatmap.pieces(merge)]


# Tokens


def test_lengths_and_finiteness_are_checked():
    with pytest.raises(ValueError, match="2 tokens, but 1"):
        TokenHeatmap(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="finite"):
        TokenHeatmap(["a"], [math.nan])
    with pytest.raises(ValueError, match="2 tokens, but 1 entries of special"):
        TokenHeatmap(["a", "b"], [1.0, 2.0], special=[True])
    with pytest.raises(ValueError, match="one number for each token"):
        TokenHeatmap(["a"], torch.ones(1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_relevance_may_be_a_tensor(dtype):
    heatmap = TokenHeatmap(["a", "b"], torch.tensor([1.0, -0.5], dtype=dtype))
    assert heatmap.relevance == (1.0, -0.5)
    assert heatmap.total == 0.5


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        review().title = "other"


def test_word_pieces_are_joined_and_their_relevance_summed():
    pieces = review().pieces()
    assert [p.text for p in pieces] == ["[CLS]", "a", "charming", "film", ".", "[SEP]"]
    assert pieces[2].relevance == 1.5
    assert pieces[2].tokens == (2, 3)
    assert [p.special for p in pieces] == [True, False, False, False, False, True]
    assert texts(review(), merge=False) == ["[CLS]", "a", "charm", "ing", "film", ".", "[SEP]"]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["▁a", "▁charm", "ing", "▁film", "."], ["a", "charming", "film", "."]),
        (["Ġa", "Ġcharm", "ing", "Ġfilm", "."], ["a", "charming", "film", "."]),
        (["don", "'t", "Ġgo"], ["don't", "go"]),
        (["Ġwell", "-", "made"], ["well", "-", "made"]),
        (["caf", "Ã", "©", "Ġnoir"], ["café", "noir"]),  # two bytes in two tokens
        (["▁", "<0xF0>", "<0x9F>", "<0x8E>", "<0xAC>", "▁", "▁a"], ["🎬", "␣", "a"]),
        (["▁映", "画"], ["映", "画"]),  # no spaces between words in this script
        (["<s>", "▁fun", "ny", "</s>"], ["<s>", "funny", "</s>"]),
        (["Ċ", "Ġa"], ["\\n", "a"]),
        (["##", "a"], ["##", "a"]),
        (["[CLS]", "##ing"], ["[CLS]", "ing"]),
        ([], []),
    ],
)
def test_words_of_each_tokenizer(tokens, words):
    heatmap = TokenHeatmap(tokens, [1.0] * len(tokens))
    assert texts(heatmap) == words
    covered = [index for piece in heatmap.pieces() for index in piece.tokens]
    assert covered == list(range(len(tokens)))
    assert math.fsum(p.relevance for p in heatmap.pieces()) == len(tokens)


def test_scheme_can_be_named():
    assert texts(TokenHeatmap(["Hel", "lo"], [1.0, 1.0], scheme="bytes")) == ["Hello"]
    assert texts(TokenHeatmap(["a", "##b"], [1.0, 1.0], scheme="words")) == ["a", "##b"]


def test_byte_alphabet_is_that_of_gpt2():
    from captum_lrp_tx.visualization.wording import _BYTES

    assert len(_BYTES) == 256 and sorted(_BYTES.values()) == list(range(256))
    assert (_BYTES["Ġ"], _BYTES["Ċ"], _BYTES["A"], _BYTES["Ã"]) == (0x20, 0x0A, 0x41, 0xC3)


def test_control_characters_cannot_reach_the_terminal():
    heatmap = TokenHeatmap(
        ["\x1b[31mred", "\u202eabc", "a\nb", "\ud800"],
        [1.0, 1.0, 1.0, 1.0],
        prediction="\x1b]0;x\x07",
        target="\x9b2J",
    )
    for shown in (
        viz.terminal(heatmap, 80, False),
        viz.table(heatmap),
        ESCAPES.sub("", viz.terminal(heatmap, 80, True)),
        str(heatmap.facts()),
    ):
        assert all(char.isprintable() for char in shown.replace("\n", ""))
        shown.encode("utf-8")


def test_special_tokens_are_guessed_by_name_only_if_not_given():
    guessed = TokenHeatmap(["<s>", "<script>", "[CLS]", "[UNK]", "<|endoftext|>"], [1.0] * 5)
    assert guessed.special == (True, False, True, False, True)
    assert TokenHeatmap(["<s>"], [1.0], special=[False]).special == (False,)


def test_scale_leaves_special_tokens_out():
    assert review().scale() == 1.5
    assert TokenHeatmap(["[CLS]"], [-2.0]).scale() == 2.0
    assert TokenHeatmap(["a"], [0.0]).scale() == 1.0
    assert TokenHeatmap([], []).scale() == 1.0


def test_summary_says_only_what_is_known():
    assert viz.summary(1.0) == [("sum", "relevance +1.0000")]
    facts = dict(
        viz.summary(3.0, prediction="a", probability=0.25, target="b", score=2.0, delta=-1.0)
    )
    assert facts == {
        "prediction": "a (probability 0.250)",
        "explained": "logit of b +2.0000",
        "sum": "relevance +3.0000, absorbed by biases -1.0000",
    }


# Colours


def test_colours_are_signed_and_symmetric():
    assert viz.colour_of(0.0, 1.0)[0] == (247, 247, 247)
    for part in (0.1, 0.5, 1.0):
        red, _, blue = viz.colour_of(part, 1.0)[0]
        assert red > blue
        red, _, blue = viz.colour_of(-part, 1.0)[0]
        assert red < blue
    assert viz.colour_of(3.0, 6.0) == viz.colour_of(0.5, 1.0)
    assert viz.colour_of(9.0, 1.0) == viz.colour_of(1.0, 1.0)


@pytest.mark.parametrize("step", range(-20, 21))
def test_text_is_readable_on_every_colour(step):
    def luminance(rgb):
        parts = [c / 255 for c in rgb]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    ground, ink = (luminance(rgb) for rgb in viz.colour_of(step / 20, 1.0))
    contrast = (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05)
    assert contrast >= 3.9


@pytest.mark.parametrize(
    ("variables", "is_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_when_colours_are_used(monkeypatch, variables, is_terminal, expected):
    class Stream(io.StringIO):
        def isatty(self):
            return is_terminal

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert viz.supports_colour(Stream()) is expected


# Terminal


def test_terminal_without_colours_shows_words_and_numbers():
    shown = viz.terminal(review(), 80, False)
    words, numbers = shown.splitlines()
    assert words.split() == ["[CLS]", "a", "charming", "film", ".", "[SEP]"]
    assert numbers.split() == ["+0.50", "+0.10", "+1.50", "-0.75", "-0.10", "+2.00"]
    # each number ends below the end of its word
    assert [m.end() for m in re.finditer(r"\S+", words)] == [
        m.end() for m in re.finditer(r"\S+", numbers)
    ]


def test_small_relevance_has_its_digits_everywhere():
    small = TokenHeatmap(["good", "film"], [0.00123, -0.00004])
    assert viz.terminal(small, 80, False).split() == ["good", "film", "+0.0012", "-0.0000"]
    tiny = TokenHeatmap(["good", "film"], [1.2e-6, -3e-7])
    shown = viz.table(tiny).splitlines()
    assert [line.split()[1] for line in shown[1:]] == ["+0.0000012", "-0.0000003"]
    assert len({line.index("|") for line in shown[1:]}) == 1
    assert shown[0].index("relevance") + len("relevance") == shown[1].index("+0") + len(
        "+0.0000012"
    )
    assert 'data-r="+0.0000012"' in viz.html(tiny)


def test_terminal_with_colours_paints_the_sign():
    painted = {text: tuple(map(int, rgb[:3])) for *rgb, text in CODE.findall(
        viz.terminal(review(), 80, True))}  # fmt: skip
    assert painted["charming"] == viz.colour_of(1.0, 1.0)[0]
    assert painted["film"] == viz.colour_of(-0.5, 1.0)[0]
    assert painted["[SEP]"] != viz.colour_of(1.0, 1.0)[0]  # dimmed


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [12, 20, 33, 80])
def test_terminal_keeps_to_its_width(colour, width):
    tokens = ["a", "x" * 100, "映画" * 12, "film", ".", ".", "!"] * 3
    shown = viz.terminal(TokenHeatmap(tokens, [1.0] * len(tokens)), width, colour)
    lines = ESCAPES.sub("", shown).splitlines()
    if colour:
        lines = lines[:-2]  # the legend is as wide as it is
    from captum_lrp_tx.visualization.wording import cells

    assert max(map(cells, lines)) <= width


def test_terminal_breaks_a_very_long_word_quickly():
    shown = viz.terminal(TokenHeatmap(["x" * 20_000], [1.0]), 80, True)
    assert ESCAPES.sub("", shown).count("x") == 20_000


def test_terminal_asks_the_stream(capsys):
    assert "\x1b" not in viz.terminal(review())  # captured output is no terminal


def test_table_is_aligned_and_has_more_columns():
    shown = viz.table(review(), [("word", [0.0] * 7), ("position", [1.0] * 7)])
    lines = shown.splitlines()
    assert lines[0].split() == ["token", "relevance", "word", "position"]
    assert len(lines) == 8
    assert lines[5].split()[:4] == ["film", "-0.7500", "+0.0000", "+1.0000"]
    assert len({line.index("|") for line in lines[1:]}) == 1
    assert lines[5].split()[4] == "-" * 8 + "|"  # 20 characters are 2.0
    assert lines[7].endswith("|" + "+" * 20)


def test_table_of_nothing():
    assert viz.table(TokenHeatmap([], [])).split() == ["token", "relevance"]
    assert "|" in viz.table(TokenHeatmap(["a"], [0.0]))


# HTML


def test_html_is_escaped_and_self_contained():
    attack = "<script>alert(1)</script>"
    quotes = "\"' onmouseover='x"
    page = viz.html(
        TokenHeatmap(
            [attack, quotes, "&amp;"],
            [1.0, -1.0, 0.0],
            title=attack,
            prediction=attack,
            target=attack + quotes,
            score=1.0,
        )
    )
    assert "<script" not in page
    assert "' onmouseover" not in page.replace("&#x27; onmouseover", "")
    assert page.count(html_module.escape(attack)) == 6  # title twice, facts twice, token twice
    assert "&amp;amp;" in page
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_html_shows_numbers_on_hovering():
    page = viz.html(review(prediction="positive", probability=0.9, score=1.0))
    assert re.findall(r'data-r="([^"]*)"', page) == [
        "+0.5000", "+0.1000", "+1.5000", "-0.7500", "-0.1000", "+2.0000",
    ]  # fmt: skip
    assert "+1.5 for" in page and "against -1.5" in page
    assert "positive (probability 0.900)" in page


def test_html_does_not_separate_what_the_text_does_not_separate():
    page = viz.html(TokenHeatmap(["Ġfilm", "."], [1.0, 1.0]))
    assert re.search(r"film</span><span", page)


# Figures


def picture_of(content):
    image = pytest.importorskip("PIL.Image")
    picture = image.open(io.BytesIO(content))
    picture.load()
    return picture


def test_png_grows_with_the_text(tmp_path):
    pytest.importorskip("matplotlib")
    short, long = tmp_path / "short.png", io.BytesIO()
    viz.png(review(), short)
    viz.png(TokenHeatmap(["word"] * 200, [1.0] * 200, prediction="$x$ ^ _"), long)
    first, second = picture_of(short.read_bytes()), picture_of(long.getvalue())
    assert first.format == second.format == "PNG"
    assert first.size[0] == second.size[0] == 1300
    assert 150 < first.size[1] < 300 < second.size[1] < 3000


def test_long_facts_and_titles_go_on_in_the_next_line():
    """What was wider than the figure was cut off at its edge."""
    pytest.importorskip("matplotlib")
    told = [("prediction", "good"), ("warning", "many words " * 20 + "x" * 200)]
    drawn = viz.figure(
        TokenHeatmap(["good"], [1.0], title="Relevance for " + "it " * 60, told=told)
    )
    drawn.set_dpi(200)  # as files are written
    texts = drawn.axes[0].texts
    right = max(text.get_window_extent().x1 for text in texts)
    assert right <= drawn.bbox.width
    shown = " ".join(text.get_text() for text in texts)
    assert shown.count("many words") == 20 and shown.count("x") == 200 and shown.count("it ") == 60
    assert min(text.get_window_extent().y0 for text in texts) >= 0


@pytest.mark.parametrize(
    "kind", ["image", "audio", "pairs", "comparison", "texts", "text pairs", "cells", "circuit"]
)
def test_long_titles_of_pictures_go_on_in_the_next_line(kind):
    pytest.importorskip("matplotlib")

    def made(title):
        if kind == "image":
            return viz.image_figure(torch.rand(1, 8, 8), torch.randn(8, 8), title=title)
        if kind == "audio":
            return viz.audio_figure(torch.randn(40), torch.randn(40), title=title)
        if kind == "pairs":
            images = torch.rand(2, 1, 8, 8)
            return viz.image_pairs_figure(torch.randn(4, 4), *images, title=title)
        if kind == "texts":
            return comparison_figure(TextComparison(["a"], [Strip("LRP", [1.0])], title=title))
        if kind == "text pairs":
            return viz.pairs_figure(torch.randn(1, 1), ["a"], ["b"], title=title)
        if kind == "cells":
            return cells_figure([[1.0]], ["0"], ["0"], title=title)
        if kind == "circuit":
            nodes = [Drawn("in", "input", None, None), Drawn("out", "output", None, None)]
            return circuit_figure(nodes, [(0, 1, 1.0)], title=title)
        strips = [Strip("LRP", torch.randn(8, 8))]
        return image_comparison_figure(
            torch.rand(1, 8, 8), strips, title=title, facts=[("class", "4")]
        )

    short, long = made("4"), made("why it is a four " * 12)
    added = long.get_size_inches()[1] - short.get_size_inches()[1]
    assert added > 0.2
    shown = " ".join(text.get_text() for text in long.texts)
    assert shown.count("why it is") == 12
    for text in long.texts:
        box = text.get_window_extent()
        assert box.x1 <= long.bbox.width and box.y0 >= 0 and box.y1 <= long.bbox.height
    for before, after in zip(short.axes, long.axes, strict=True):
        old, new = before.get_position(True), after.get_position(True)
        if old.y0 < 0.5:
            high = short.get_size_inches()[1], long.get_size_inches()[1]
            assert new.y0 * high[1] == pytest.approx(old.y0 * high[0])
            assert new.height * high[1] == pytest.approx(old.height * high[0])


def test_png_shows_both_signs():
    pytest.importorskip("matplotlib")
    np = pytest.importorskip("numpy")
    drawn = io.BytesIO()
    viz.png(TokenHeatmap(["good", "bad"], [1.0, -1.0]), drawn)
    pixels = np.asarray(picture_of(drawn.getvalue()).convert("RGB")).reshape(-1, 3)
    for value in (1.0, -1.0):
        background, _ = viz.colour_of(value, 1.0)
        assert (np.abs(pixels.astype(int) - background).max(1) <= 2).sum() > 500


def test_figure_is_unknown_to_pyplot_and_quiet(recwarn):
    pytest.importorskip("matplotlib")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    viz.png(TokenHeatmap(["映画", "नमस्ते", "$\\frac$"], [1.0, 1.0, 1.0]), io.BytesIO())
    assert pyplot.get_fignums() == before
    assert not [w for w in recwarn if "lyph" in str(w.message)]


@pytest.mark.parametrize(
    "shape", [(28, 28), (1, 28, 28), (3, 20, 30), (20, 30, 3), (1, 1, 28, 28), (1, 3, 9, 9)]
)
def test_image_figure_takes_every_layout(shape):
    pytest.importorskip("matplotlib")
    image, relevance = torch.rand(shape), torch.randn(shape, dtype=torch.float64)
    drawn = io.BytesIO()
    viz.image_figure(image, relevance, title="4").savefig(drawn, format="png", dpi=100)
    width, height = picture_of(drawn.getvalue()).size
    assert width == 650 and 150 < height < 450


def test_image_figure_scale_is_symmetric():
    pytest.importorskip("matplotlib")
    drawing = viz.image_figure(torch.zeros(4, 4), -torch.ones(4, 4), percentile=100)
    shown = drawing.axes[1].images[0]
    assert shown.get_clim() == (-1.0, 1.0)
    constant = viz.image_figure(torch.zeros(4, 4), torch.zeros(4, 4))
    assert constant.axes[1].images[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 3, 4, 4), torch.zeros(0, 4)])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(ValueError, match="an image has shape"):
        viz.image_terminal(bad, 20, False)
    with pytest.raises(ValueError, match="finite"):
        viz.image_terminal(torch.full((4, 4), math.inf), 20, False)


def test_image_in_the_terminal():
    relevance = torch.zeros(1, 4, 4)
    relevance[0, 0, 0], relevance[0, 1, 1], relevance[0, 3, 3] = 1.0, -1.0, 0.5
    plain = viz.image_terminal(relevance, 40, False).splitlines()
    assert plain[:4] == ["##", "  ==", "", "      ++"]
    blocks = viz.image_terminal(relevance, 40, True).splitlines()
    assert ESCAPES.sub("", blocks[0]) == "▀▀▀▀" and len(blocks) == 2 + 2
    upper_left = CODE.match(blocks[0])
    assert tuple(map(int, upper_left.groups()[3:6])) == viz.colour_of(1.0, 1.0)[0]


def test_maps_of_patches_are_as_large_as_the_image():
    pytest.importorskip("matplotlib")
    image = torch.zeros(8, 12)
    image[2:5, 3:9] = 1
    drawn = viz.image_figure(image, torch.randn(2, 3)).axes[1]
    assert drawn.images[0].get_extent() == [-0.5, 11.5, 7.5, -0.5]
    assert drawn.get_xlim() == (-0.5, 11.5) and drawn.get_ylim() == (7.5, -0.5)


def test_outlines_need_two_rows():
    pytest.importorskip("matplotlib")
    drawn = [
        viz.image_figure(torch.eye(8)[:rows], torch.ones(rows, 8)).axes[1].collections
        for rows in (1, 2)
    ]
    assert [len(contours) for contours in drawn] == [0, 1]


def test_large_images_are_summed_to_fit():
    shown = viz.image_terminal(torch.ones(3, 224, 224), 60, True)
    assert max(len(ESCAPES.sub("", line)) for line in shown.splitlines()) <= 60
    assert "+48 for" in shown  # blocks of 4 by 4 pixels with 3 channels


def test_image_page_holds_the_picture():
    pytest.importorskip("matplotlib")
    page = viz.image_html(torch.rand(8, 8), torch.randn(8, 8), title="<b>", facts=[("sum", "<i>")])
    assert "<b>" not in page and "<i>" not in page and "&lt;i&gt;" in page
    import base64

    data = re.search(r"data:image/png;base64,([^\"]+)", page).group(1)
    assert picture_of(base64.b64decode(data)).format == "PNG"


def test_a_sound_stands_above_its_relevance_in_steps_of_time():
    pytest.importorskip("matplotlib")
    relevance = torch.linspace(-1, 2, 12)
    drawing = viz.audio_figure(torch.ones(12), relevance.numpy(), seconds=6.0, steps=4, title="up")
    upper, lower = drawing.axes
    assert [bar.get_height() for bar in lower.patches] == pytest.approx(
        relevance.reshape(4, 3).sum(1).tolist()
    )
    assert [bar.get_x() for bar in lower.patches] == [0.0, 1.5, 3.0, 4.5]
    assert (lower.get_xlabel(), upper.get_xlim()) == ("seconds", (0.0, 6.0))
    assert [text.get_text() for text in drawing.texts] == ["up"]


def test_a_spectrogram_stands_above_its_relevance():
    pytest.importorskip("matplotlib")
    sound, relevance = torch.rand(4, 10), torch.zeros(4, 10)
    relevance[1, 2], relevance[3, 9] = -2.0, 1.0
    drawing = viz.audio_figure(sound, relevance, percentile=100)
    upper, lower, bar = drawing.axes
    assert upper.images[0].get_array().tolist() == sound.tolist()
    assert lower.images[0].get_array().tolist() == relevance.tolist()
    assert lower.images[0].get_clim() == (-2.0, 2.0) and lower.images[0].origin == "lower"
    assert [label.get_text() for label in bar.get_yticklabels()] == ["\u22122", "0", "+2"]
    assert lower.get_xlabel() == "frames" and lower.get_xlim() == (0.0, 10.0)


@pytest.mark.parametrize(
    ("sound", "relevance", "reason"),
    [
        (torch.ones(4), torch.ones(5), r"of the same shape are needed, not \(4,\) and \(5,\)"),
        (torch.ones(1, 2, 4), torch.ones(1, 2, 4), r"are needed, not \(1, 2, 4\)"),
        (torch.ones(0), torch.ones(0), r"are needed, not \(0,\)"),
        (torch.ones(4), torch.full((4,), math.inf), "the relevance has values that are not finite"),
    ],
)
def test_what_is_no_sound_is_refused(sound, relevance, reason):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=reason):
        viz.audio_figure(sound, relevance)


def test_cells_without_a_value_stay_empty():
    colors = pytest.importorskip("matplotlib.colors")
    drawing = cells_figure([[0.5, None, -1.0], [1.0]], ["0", "1"], ["0", "1", "MLP"])
    drawn = drawing.axes[0].patches
    expected = [viz.colour_of(value, 1.0)[0] for value in (0.5, -1.0, 1.0)]
    assert [
        tuple(round(255 * part) for part in colors.to_rgb(box.get_facecolor())) for box in drawn
    ] == expected
    places = [box.get_xy() for box in drawn]
    assert places[0][0] == places[2][0] < places[1][0]  # the first column, and the third
    assert places[0][1] == places[1][1] < places[2][1]  # the first row is below


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[1.0]], "a row of values for each name in rows, not longer than columns"),
        ([[1.0], [1.0, 2.0, 3.0]], "a row of values for each name in rows"),
        ([[1.0], [math.nan]], "values that are not finite"),
    ],
)
def test_cells_that_do_not_fit_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        cells_figure(values, ["0", "1"], ["0", "1"])


def test_a_circuit_of_infinite_relevance_is_refused():
    nodes = [Drawn("input", "input", None, None), Drawn("output", "output", None, None)]
    with pytest.raises(ValueError, match="values that are not finite"):
        circuit_figure(nodes, [(0, 1, math.inf)])


def test_dollars_in_names_are_no_formulas():
    text_class = pytest.importorskip("matplotlib.text").Text
    name = "$5 or $6"
    images, relevance = torch.rand(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    drawn = [
        viz.heatmap_figure(images, {name: relevance}, titles=[name]),
        viz.image_figure(images, relevance, label=name),
        conservation_figure(
            Conservation(torch.tensor([1.0, 2.0]), {name: {"input": torch.tensor([1.0, 2.0])}},
                         ("input",)), level="input",
        ),
    ]  # fmt: skip
    for one in drawn:
        said = [text for text in one.findobj(text_class) if text.get_text() == name]
        assert said and not any(text.get_parse_math() for text in said)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.font_manager", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib pillow"):
        viz.figure(review())
    with pytest.raises(ImportError, match="pip install matplotlib pillow"):
        viz.image_figure(torch.zeros(4, 4), torch.zeros(4, 4))


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, captum_lrp_tx; before = set(sys.modules)\n"
        "import captum_lrp_tx.visualization\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'captum', 'matplotlib', 'PIL', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
