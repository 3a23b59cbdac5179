"""Which fonts are chosen for a text, of a machine that has no more than matplotlib's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import pytest
from matplotlib import font_manager

from fgzoo.interpret import fonts

#: What another of matplotlib's fonts than its first knows.
SCRIPT = "\N{MATHEMATICAL SCRIPT CAPITAL A}"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[font_manager.FontEntry]:
    """Matplotlib's own fonts, which are then all that there are."""
    found = [font_manager.ttfFontProperty(font_manager.get_font(file)) for file in Path(mpl.get_data_path()).rglob("*.ttf")]
    monkeypatch.setattr(font_manager, "fontManager", SimpleNamespace(ttflist=found))
    return found


@pytest.mark.usefixtures("own")
def test_boxes_for_every_character_are_no_font_that_knows_them() -> None:
    assert fonts.fonts_for("Möwe メ🐦") == ([fonts.OWN], {"メ", "🐦"})
    assert fonts.font_file("メジロ") == fonts.own_font()


def test_a_font_is_found_whatever_its_family_is_called(own: list[font_manager.FontEntry]) -> None:
    assert SCRIPT not in fonts._characters(fonts.own_font())
    (known,) = {entry.fname for entry in own if entry.name == "STIXGeneral" and entry.fname.endswith("STIXGeneral.ttf")}
    own[:] = [SimpleNamespace(name="Odd-Name: 12", style="normal", fname=known)]  # type: ignore[list-item]
    assert fonts.font_file(SCRIPT) == Path(known)
