"""What lies in the page's file; what a browser makes of it stands in test_page_browser.py."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgzoo.interpret import page
from fgzoo.interpret.explanation import Explanation
from tests.small import small

HOSTILE = '<img src=x onerror="window.hacked=1"></script></noscript><script>window.hacked=1</script>&amp;{{pictures}}{{script}}'


def explanation(
    classes: tuple[str, ...] = ("Gull", "Crow"), steps: int = 3, side: int = 64, cam: bool = True, shares: tuple[float, ...] = ()
) -> Explanation:
    """An explanation of a photo-like image; map s is one round row 12, column 12 + 16 s, and falls off from there."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    maps = [torch.exp(-((rows - 12) ** 2 + (columns - 12 - 16 * s) ** 2) / 60.0) for s in range(steps)]
    noise = np.random.default_rng(0).integers(60, 160, (side // 8, side // 8, 3)).astype(np.uint8)
    image = np.array(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    names = tuple(f"step {number} of {steps}" for number in range(1, steps + 1))
    return Explanation(
        classes,
        (0.75, 0.25),
        classes[0],
        0.75,
        torch.from_numpy(image).permute(2, 0, 1),
        torch.stack(maps) if maps else torch.empty(0, side, side),
        names,
        maps[0].flip(0).contiguous() if maps and cam else torch.zeros(side, side) if cam else None,
        shares,
    )


def write(folder: Path, entries: dict[str, Explanation], checkpoint: str = "runs/birds/000", method: str = "rra") -> Path:
    return page.write_page(folder / "index.html", small(method), list(entries), entries.values(), checkpoint)


def index(path: Path) -> dict[str, Any]:
    """The page's data."""
    (found,) = re.findall(r'<script type="application/json" id="index">(.*?)</script>', path.read_text(), flags=re.DOTALL)
    return dict(json.loads(found))


def articles(path: Path) -> dict[str, str]:
    """What the page shows of images without scripts, by name."""
    return dict(re.findall(r'<noscript id="([\w-]+)">(.*?)</noscript>', path.read_text(), flags=re.DOTALL))


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(";base64,")
    assert kind in ("data:image/webp", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_an_entry_an_image_in_their_order(tmp_path: Path) -> None:
    bad = Explanation(error="b.jpg is no image")
    path = write(tmp_path, {"a.jpg": explanation(shares=(0.75,)), "b.jpg": bad, "c.jpg": explanation()})
    assert list(articles(path)) == ["photo-0", "photo-1", "photo-2"]
    photos = index(path)["photos"]
    assert [entry["path"] for entry in photos] == ["a.jpg", "b.jpg", "c.jpg"]
    assert photos[1] == {"path": "b.jpg", "error": "b.jpg is no image"}
    first = photos[0]
    assert (first["classes"], first["shares"], first["explained"]) == (["Gull", "Crow"], [0.75, 0.25], "Gull")
    assert first["maps"] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert (first["map_shares"], photos[2]["map_shares"]) == ([0.75], [])


def test_an_image_and_its_maps_are_in_the_page_once_and_lie_where_they_were(tmp_path: Path) -> None:
    original = explanation(steps=4)
    path = write(tmp_path, {"a.jpg": original})
    image, maps = re.findall(r' src="([^"]*)"', articles(path)["photo-0"])
    assert path.read_text().count(";base64,") == 2
    assert np.abs(pixels(image) - original.image.permute(1, 2, 0).numpy()).mean() < 6
    sheet, side = pixels(maps)[..., 0], index(path)["side"]
    assert sheet.shape == (2 * side, 3 * side)
    for step, (row, column) in enumerate([(12, 12), (12, 28), (12, 44), (12, 60), (51, 12)]):  # the last is Grad-CAM
        top, left = side * (step // 3), side * (step % 3)
        brightest = np.unravel_index(sheet[top : top + side, left : left + side].argmax(), (side, side))
        assert np.abs(np.array(brightest) * 64 / side - (row, column)).max() <= 3


def test_a_large_image_is_embedded_as_large_as_it_is_shown(tmp_path: Path) -> None:
    image, _ = re.findall(r' src="([^"]*)"', articles(write(tmp_path, {"a.jpg": explanation(side=448)}))["photo-0"])
    assert pixels(image).shape == (page.IMAGE_SIDE, page.IMAGE_SIDE, 3)


def test_a_single_map_is_a_sheet_and_none_is_no_sheet() -> None:
    one, none = explanation(steps=1, cam=False), explanation(steps=0, cam=False)
    assert page.sheet(one).size == (page.MAP_SIDE, page.MAP_SIDE)  # type: ignore[union-attr]
    assert page.sheet(none) is None


def test_an_image_with_many_maps_takes_few_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.jpg": explanation(steps=33, side=224)})
    assert len(path.read_bytes()) - len(write(tmp_path, {}).read_bytes()) < 25_000


@pytest.mark.parametrize("entries", [{}, {"a.jpg": explanation()}, {HOSTILE: explanation((HOSTILE, "Crow"))}])
def test_the_page_refers_to_nothing_outside(tmp_path: Path, entries: dict[str, Explanation]) -> None:
    text = write(tmp_path, entries, HOSTILE).read_text()
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert not re.search(r"https?:|//", re.sub(r"data:[\w/;,+=]*", "", text.replace(page.packaged("page.js"), "")))
    assert all(value.startswith(("data:", "#")) for value in re.findall(r'(?:src|href)="([^"]*)"', markup))
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_allows_the_pages_own_script_and_style_alone(tmp_path: Path) -> None:
    text = write(tmp_path, {"a.jpg": explanation()}).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        known = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind} 'sha256-{known}';" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r"\s(?:on\w+|style)=", re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL))


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    path = write(tmp_path, {HOSTILE: explanation((HOSTILE, "Crow"))}, HOSTILE)
    text = path.read_text()
    assert "<img src=x" not in text
    assert len(re.findall(r"<script>", text)) == 1
    assert len(articles(path)) == 1
    entry = index(path)["photos"][0]
    assert (entry["path"], entry["classes"][0]) == (HOSTILE, HOSTILE)
    assert text.count("<h1>") == 1


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, {"caf\udce9.jpg": explanation()}, "caf\udce9")
    assert index(path)["photos"][0]["path"] == "caf?.jpg"


def test_methods_go_by_the_names_of_the_list(tmp_path: Path) -> None:
    for name in ("rra", "rra-parent", "wsdan"):
        assert f"<dd>{name}</dd>" in write(tmp_path, {}, method=name).read_text()


def test_filling_a_template_fills_nothing_twice() -> None:
    assert page.fill("{{a}} {{b}} {{c}}", {"a": "{{b}}", "b": "1"}) == "{{b}} 1 {{c}}"


def test_jpeg_stands_in_where_there_is_no_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.features, "check", lambda _: False)
    assert page.data_uri(Image.new("L", (8, 8), 200), 70).startswith("data:image/jpeg;base64,")


def test_a_number_that_no_page_can_read_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        page.json_data([float("nan")])


def test_as_many_names_as_explanations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        page.write_page(tmp_path / "index.html", small(), ["a.jpg"], [])
    assert list(tmp_path.iterdir()) == []
