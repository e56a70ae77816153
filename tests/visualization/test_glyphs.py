"""Pictures of texts: words in the order of their writing, and warnings of what fonts lack."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: viz)")

from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import MissingGlyphWarning
from captum_lrp_tx.visualization import TokenHeatmap, figure, glyphs, html, pairs_figure
from captum_lrp_tx.visualization.bidirectional import is_right_to_left, levels, visual_order
from captum_lrp_tx.visualization.comparison import Strip, TextComparison
from captum_lrp_tx.visualization.comparison_figure import comparison_figure

ARABIC = ["هذا", "الفيلم", "جميل"]
HEBREW = ["הסרט", "היה", "מצחיק"]


def shown(words: Sequence[str]) -> list[str]:
    return visual_order(words, levels(words, is_right_to_left(words)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "fine", "film"], ["a", "fine", "film"]),
        (ARABIC, ARABIC[::-1]),
        (["..."], ["..."]),
        # a foreign name, and a number, within a text from right to left
        ([*HEBREW, "Steven", "Spielberg", "3"], ["Steven", "Spielberg", "3", *HEBREW[::-1]]),
        ([HEBREW[0], "3", ",", "4", HEBREW[1]], [HEBREW[1], "4", ",", "3", HEBREW[0]]),
        # words from right to left within a text from left to right; the number belongs to them
        (["the", *ARABIC, "film"], ["the", *ARABIC[::-1], "film"]),
        (["the", ARABIC[0], "7", ARABIC[1], "film"], ["the", ARABIC[1], "7", ARABIC[0], "film"]),
        (["in", "1984", ",", ARABIC[0], "."], ["in", "1984", ",", ARABIC[0], "."]),
        # an empty word stands for a special token, which has no direction
        (["", *ARABIC, ""], ["", *ARABIC[::-1], ""]),
    ],
)
def test_words_stand_as_unicode_has_it(words: list[str], expected: list[str]) -> None:
    assert shown(words) == expected


def lefts(drawing: Any, words: Sequence[str]) -> list[float]:
    """Where the words begin, from the first axes of a figure."""
    found = {text.get_text(): text.get_position()[0] for text in drawing.axes[0].texts}
    return [found[word] for word in words]


def test_pictures_run_from_right_to_left() -> None:
    tokens = ["[CLS]", *ARABIC, "(", "7", ")", "[SEP]"]
    relevance = [0.1 * i for i in range(len(tokens))]
    heatmap = TokenHeatmap(tokens, relevance, scheme="words")
    mark = "\u200f"  # mirrors the brackets
    words = ["[CLS]", *ARABIC, f"{mark}(", "7", f"{mark})", "[SEP]"]
    places = lefts(figure(heatmap), words)
    assert places == sorted(places, reverse=True)
    compared = TextComparison(tokens, [Strip("LRP", relevance)], scheme="words")
    places = lefts(comparison_figure(compared), words)
    assert places == sorted(places, reverse=True)
    pairs = [[0.1] * 3 for _ in range(3)]
    drawing = pairs_figure(pairs, HEBREW, ["a", "fine", "film"])
    assert lefts(drawing, HEBREW) == sorted(lefts(drawing, HEBREW), reverse=True)
    assert lefts(drawing, ["a", "fine", "film"]) == sorted(lefts(drawing, ["a", "fine", "film"]))
    assert '<span class="t s" dir="ltr"' in html(heatmap)  # so that dir="auto" looks at the words


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the font that comes with matplotlib is there."""
    glyphs._families.cache_clear()
    monkeypatch.setattr(glyphs, "_installed", lambda: [])
    yield
    glyphs._families.cache_clear()


@pytest.mark.usefixtures("fonts")
def test_characters_that_no_font_has_are_named() -> None:
    with pytest.warns(MissingGlyphWarning, match=r"影 电 \(U\+5F71, U\+7535\).*Noto"):
        figure(TokenHeatmap(["电影", "film"], [1.0, -0.5]))
    with pytest.warns(MissingGlyphWarning, match="影"):
        comparison_figure(TextComparison(["电影"], [Strip("LRP", [1.0])]))
    with pytest.warns(MissingGlyphWarning, match="影"):
        pairs_figure([[1.0]], ["电影"], ["film"])


def test_the_first_fonts_that_have_the_rest_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = {"DejaVu Sans": "a", "One": "xa", "Two": "xy", "Three": "yz", "Four": "z"}
    monkeypatch.setattr(glyphs, "_covered", lambda name: frozenset(fonts[name]))
    monkeypatch.setattr(glyphs, "_installed", lambda: list(fonts)[1:])
    found = glyphs._families.__wrapped__
    assert found(frozenset("a \ufe0f")) == (("DejaVu Sans",), ())
    assert found(frozenset("ax")) == (("DejaVu Sans", "One"), ())
    assert found(frozenset("axyz?")) == (("DejaVu Sans", "One", "Two", "Three"), ("?",))


def test_fonts_that_came_after_the_list_of_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import font_manager

    manager, new = font_manager.fontManager, tmp_path / "new.ttf"
    mono = next(f.fname for f in manager.ttflist if f.name == "DejaVu Sans Mono")
    new.write_bytes(Path(mono).read_bytes())
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    monkeypatch.setattr(
        manager, "ttflist", [f for f in manager.ttflist if f.name != "DejaVu Sans Mono"]
    )
    monkeypatch.setattr(
        font_manager, "findSystemFonts", lambda: [str(new), str(tmp_path / "damaged.ttf")]
    )
    names = glyphs._installed.__wrapped__()
    assert "DejaVu Sans Mono" in names and "DejaVu Sans" in names
    assert not any(name.startswith("Last Resort") for name in names)


def test_a_font_that_is_gone_has_no_characters() -> None:
    assert glyphs._covered("No Font of This Name") == frozenset()
    assert frozenset("film") < glyphs._covered("DejaVu Sans")


@pytest.mark.usefixtures("fonts")
def test_texts_that_the_font_has_are_drawn_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokens in (["a", "naïve\u200dfilm", "☃\ufe0f"], ARABIC, HEBREW, ["кино", "ταινία"]):
            figure(TokenHeatmap(tokens, [1.0, *[0.1] * (len(tokens) - 1)])).savefig("/dev/null")


@pytest.mark.usefixtures("fonts")
def test_an_old_matplotlib_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "_joins_letters", lambda: False)
    with pytest.warns(MissingGlyphWarning, match=r"from left to right .* matplotlib 3\.11"):
        figure(TokenHeatmap(ARABIC, [1.0, 0.5, 0.1]))


@pytest.mark.usefixtures("fonts")
def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("transformers")
    assert main(["a film \u5f71", "--png", str(tmp_path / "x.png")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "U+5F71" in line]
    assert len(lines) == 1 and lines[0].startswith("captum_lrp_tx: warning: ")
