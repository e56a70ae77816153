"""Fonts for figures: which installed ones have the characters of a text, and what they lack."""

from __future__ import annotations

import contextlib
import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterator

from captum_lrp_tx.errors import MissingGlyphWarning
from captum_lrp_tx.visualization.bidirectional import has_right_to_left

_FIRST = "DejaVu Sans"
#: Looked at before other fonts, which may be for display or have one weight only.
_PREFERRED = (
    "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans",
    "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Devanagari",
    "Noto Sans Thai", "Arial Unicode MS", "Noto Emoji",
)  # fmt: skip
#: Has a box for everything.
_BOXES = "Last Resort"


def families(text: str) -> list[str]:
    """DejaVu Sans and, for what it lacks, installed fonts; warns of what none has.

    Args:
        text (str): All that will be drawn.

    Returns:
        list of str: Names of font families, for ``fontfamily=``.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    found, missing = _families(frozenset(text))
    if missing:
        shown = " ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
        codes = ", ".join(f"U+{ord(char):04X}" for char in missing[:5])
        warnings.warn(
            f"no installed font has the {len(missing)} characters {shown} ({codes}"
            f"{', ...' if len(missing) > 5 else ''}); the picture shows boxes in their place. "
            "Install a font that has them, e.g. one of Noto (Debian: fonts-noto-cjk, "
            "fonts-noto-core), or save a page (.html), for which the browser finds fonts.",
            MissingGlyphWarning,
            stacklevel=4,
        )
    import matplotlib

    if has_right_to_left(text) and not _joins_letters():
        warnings.warn(
            f"matplotlib {matplotlib.__version__} draws the letters of a word from left to right "
            "and does not join them, which is wrong for right-to-left writing; install matplotlib "
            "3.11 or newer (Python 3.11 or newer), or save a page (.html).",
            MissingGlyphWarning,
            stacklevel=4,
        )
    return list(found)


@contextlib.contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Keeps matplotlib from saying again, glyph by glyph, what :func:`families` has said.

    Nor does it say that a font has no bold or no regular weight.
    """
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
            yield
    finally:
        log.setLevel(level)


@functools.lru_cache(maxsize=256)
def _families(chars: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of fonts, and what none of them has."""
    left = {char for char in chars if not _is_invisible(char)} - _covered(_FIRST)
    names = [_FIRST]
    if left:
        for name in _installed():
            more = left & _covered(name)
            if more:
                names.append(name)
                left -= more
            if not left:
                break
    return tuple(names), tuple(sorted(left))


@functools.cache
def _installed() -> list[str]:
    """Names of font families, also of those installed after matplotlib made its list."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    for file in {*font_manager.findSystemFonts()} - {font.fname for font in manager.ttflist}:
        with contextlib.suppress(Exception):  # a font that matplotlib cannot read
            manager.addfont(file)
    names = {font.name for font in manager.ttflist if not font.name.startswith(_BOXES)}
    return sorted(names, key=lambda name: (name not in _PREFERRED, name))


@functools.lru_cache(maxsize=1024)
def _covered(name: str) -> frozenset[str]:
    """The characters of a font family."""
    from matplotlib import font_manager

    try:
        wanted = font_manager.FontProperties(family=name)
        with quiet_about_glyphs():
            file = font_manager.findfont(wanted, fallback_to_default=False)
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # gone since matplotlib made its list, or damaged
        return frozenset()


def _is_invisible(char: str) -> bool:
    """Whether nothing is drawn: spaces, joiners, marks of direction, selectors of variants."""
    category = unicodedata.category(char)
    return category in ("Cc", "Cf", "Zs", "Zl", "Zp") or "\ufe00" <= char <= "\ufe0f"


def _joins_letters() -> bool:
    """Whether this matplotlib shapes text and orders it by direction (3.11 and newer)."""
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")
