"""Which fonts of this machine can write a text: matplotlib's own knows no Chinese, Japanese, Korean, nor many other scripts."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

#: Matplotlib's own font, which comes first.
OWN = "DejaVu Sans"
#: Parts of the names of fonts that know many characters; asked before any other.
LIKELY = ("noto sans cjk", "source han", "wenquanyi", "droid sans fallback", "arial unicode", "noto sans", "unifont")
#: Part of the names of fonts that have the same box for every character.
BOXES = "last resort"


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Families that together know as many of a text's characters as this machine's fonts do, for matplotlib's `font.family`.

    Args:
        text: Whatever is to be written.

    Returns:
        Their names, matplotlib's own first; and the characters that no font knows.
    """
    fonts, missing = _chosen(text)
    return [name for name, _ in fonts], missing


def own_font() -> Path:
    """The file of matplotlib's own font."""
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def font_file(text: str) -> Path:
    """The font that knows most of a text's characters, where one has to do."""
    wanted = set(text)
    return max((path for _, path in _chosen(text)[0]), key=lambda path: len(wanted & _characters(path)))


def _chosen(text: str) -> tuple[list[tuple[str, Path]], set[str]]:
    """Families and their files, and what they lack, as [fonts_for][] says."""
    fonts, missing = [(OWN, own_font())], {character for character in text if character.isprintable()} - _characters(own_font())
    for name, path in _likely_first() if missing else ():
        found = missing & _characters(path)
        if found:
            fonts.append((name, path))
            missing -= found
        if not missing:
            break
    return fonts, missing


@functools.cache
def _characters(path: Path) -> set[str]:
    try:
        return {chr(code) for code in FT2Font(str(path)).get_charmap()}
    except RuntimeError:  # damaged, or of a kind that it does not read
        return set()


def _likely_first() -> list[tuple[str, Path]]:
    upright = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    fonts = {entry.name: Path(entry.fname) for entry in upright if BOXES not in entry.name.lower()}
    rank = {name: next((place for place, part in enumerate(LIKELY) if part in name.lower()), len(LIKELY)) for name in fonts}
    return sorted(fonts.items(), key=lambda font: (rank[font[0]], font[0]))
