"""The page in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgzoo.interpret.explanation import Explanation
from fgzoo.interpret.page import MAP_SIDE
from tests.browser import Reader
from tests.interpret.test_page import HOSTILE, explanation, write

LONG = "a_name_without_a_single_space_" * 8 + ".jpg"

#: Where the first card's map is drawn brightest, as (row, column), in the order of reading.
BRIGHTEST = """() => {
  const canvas = document.querySelector('.viewer canvas');
  const {data, width} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let best = 0, most = -1;
  for (let p = 0; p < data.length / 4; p++) {
    const sum = data[4 * p] + data[4 * p + 1] + data[4 * p + 2];
    if (sum > most) { most = sum; best = p; }
  }
  return [Math.floor(best / width), best % width];
}"""


def test_a_card_has_the_answers_and_the_last_map_where_it_lies(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"photos/a.jpg": explanation()}))
    assert page.title() == "Where rra looked"
    assert page.locator(".photo h2").all_inner_texts() == ["a.jpg"]
    assert page.locator(".answers li").all_inner_texts() == ["Gull\n75.0\u00a0%", "Crow\n25.0\u00a0%"]
    assert page.locator(".map-name").inner_text() == "step 3 of 3"
    row, column = page.evaluate(BRIGHTEST)
    assert abs(row - 12) <= 4
    assert abs(column - 44) <= 4
    assert page.locator(".references figcaption").all_inner_texts() == ["Image", "Grad-CAM, for comparison"]


def test_the_slider_walks_through_the_maps(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation()}))
    slider = page.get_by_role("slider", name="Map of a.jpg")
    for step in (1, 0):
        slider.press("ArrowLeft")
        reader.wait(f"document.querySelector('.viewer canvas').dataset.drawn === '{step}'")
        assert page.locator(".map-name").inner_text() == f"step {step + 1} of 3"
        assert slider.get_attribute("aria-valuetext") == f"step {step + 1} of 3"
        assert abs(page.evaluate(BRIGHTEST)[1] - 12 - 16 * step) <= 4
    assert page.get_by_role("img", name="step 1 of 3, over a.jpg").first.is_visible()


def test_the_maps_play(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation()}))
    button = page.get_by_role("button", name="Play the maps of a.jpg")
    button.click()
    reader.wait("document.querySelector('.map-name').textContent === 'step 2 of 3'")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def test_opacity(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation()}))
    slider = page.get_by_role("slider", name="Opacity of the maps")
    slider.press("Home")
    shown = "getComputedStyle(document.querySelector('.viewer canvas')).opacity"
    assert page.evaluate(shown) == "0"
    slider.press("End")
    assert page.evaluate(shown) == "1"


def test_side_by_side_shows_every_map(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation()}))
    assert not page.locator(".grid").is_visible()
    page.get_by_role("button", name="Side by side").click()
    reader.wait("[...document.querySelectorAll('.grid canvas')].every((one) => one.width === 64)")
    captions = ["Image", "Grad-CAM, for comparison", "step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert page.locator(".grid figcaption").all_inner_texts() == captions
    assert not page.locator(".viewer").is_visible()
    page.get_by_role("button", name="One by one").click()
    assert page.locator(".viewer").is_visible()
    assert not page.locator(".grid").is_visible()


def test_maps_that_carry_most_come_first_and_the_others_on_demand(reader: Reader, tmp_path: Path) -> None:
    shares = (0.05, 0.1, 0.4, 0.0, 0.2, 0.1, 0.1, 0.05)  # the ninth map has none
    page = reader.open(write(tmp_path, {"a.jpg": explanation(steps=9, shares=shares)}))
    assert page.locator(".viewer .caption").inner_text() == "step 9 of 9\n1 / 6 of 9"
    slider = page.get_by_role("slider", name="Map of a.jpg")
    slider.press("ArrowRight")
    assert page.locator(".viewer .caption").inner_text() == "step 3 of 9, 40.0\u00a0% of the evidence\n2 / 6 of 9"
    reader.wait("document.querySelector('.viewer canvas').dataset.drawn === '2'")
    page.get_by_role("button", name="Side by side").click()
    reader.wait("document.querySelectorAll('.grid figcaption').length === 8")
    captions = page.locator(".grid figcaption:visible")
    assert [said.partition(" of")[0] for said in captions.all_inner_texts()[2:]] == [f"step {n}" for n in (9, 3, 5, 2, 6, 7)]
    page.get_by_role("button", name="Show all 9 maps").click()
    reader.wait("[...document.querySelectorAll('.grid canvas')].filter((one) => one.dataset.drawn).length === 10")
    assert captions.all_inner_texts()[-1] == "step 4 of 9, 0.0\u00a0% of the evidence"
    page.get_by_role("button", name="Show the first 6 maps").click()
    assert captions.count() == 8
    page.get_by_role("button", name="One by one").click()
    assert slider.get_attribute("max") == "5"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, tmp_path: Path, scheme: str) -> None:
    reader = Reader(browser, 390, 844, color_scheme=scheme, is_mobile=True, has_touch=True)
    entries = {LONG: explanation(("N" * 90, "Crow")), f"deep/{LONG}": Explanation(error=f"{LONG} is no image")}
    page = reader.open(write(tmp_path, entries, "runs/" + "x" * 120))
    assert not reader.is_wider_than(390)
    page.get_by_role("button", name="Side by side").tap()
    assert not reader.is_wider_than(390)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) < 150) == (scheme == "dark")
    small = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter((e) => e.offsetHeight && e.offsetHeight < 40).length"
    )
    assert small == 0
    reader.context.close()
    assert reader.trouble == []


def test_hostile_names_are_shown_as_they_are(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {HOSTILE: explanation((HOSTILE, "Crow"))}, HOSTILE))
    assert page.evaluate("window.hacked") is None
    assert page.locator(".photo .path").inner_text() == HOSTILE
    assert page.locator(".answers .name").first.text_content() == HOSTILE
    assert page.locator("body img[src='x']").count() == 0


def test_files_that_could_not_be_read_are_cards_with_the_reason(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation(), "b.jpg": Explanation(error="b.jpg is <no> image")}))
    assert page.locator(".photo.bad .error").inner_text() == "b.jpg is <no> image"
    assert page.locator("#count").inner_text() == "2 images, 1 without an answer"


def test_what_is_unknown_says_so_and_can_be_found(reader: Reader, tmp_path: Path) -> None:
    odd = explanation()._replace(accepted=False)
    page = reader.open(write(tmp_path, {"a.jpg": explanation(), "odd.jpg": odd, "b.jpg": Explanation(error="no image")}))
    known, unknown = page.locator(".photo .badge").all()
    assert known.is_hidden()
    assert unknown.inner_text() == "unknown; looks most like: Gull"
    assert page.locator("#count").inner_text() == "3 images, 1 unknown, 1 without an answer"
    choices = page.locator("#filter option").all_inner_texts()
    assert choices == ["all", "Gull (1)", "unknown (1)", "without an answer (1)"]
    for choice, name in zip(choices[1:], ("a.jpg", "odd.jpg", "b.jpg"), strict=True):
        page.get_by_label("Answer").select_option(label=choice)
        assert page.locator(".photo h2").all_text_contents() == [name]


def test_a_method_without_maps_and_a_network_without_grad_cam(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation(steps=0), "b.jpg": explanation(cam=False)}), drawn=False)
    reader.wait("document.querySelectorAll('.viewer canvas').length === 1")
    first, second = page.locator(".photo").all()
    assert first.locator(".viewer .none").inner_text() == "This method draws no maps of its own."
    assert first.locator(".viewer img").get_attribute("alt") == "a.jpg as the network saw it"
    assert second.locator(".references figcaption").all_inner_texts() == ["Image"]


def test_many_images_come_as_one_scrolls_and_can_be_found(reader: Reader, tmp_path: Path) -> None:
    entries = {f"bird {number}.jpg": explanation(("Gull" if number % 2 else "Crow", "Wren"), steps=1) for number in range(60)}
    page = reader.open(write(tmp_path, entries))
    assert page.locator(".photo").count() < 30
    reader.wait("document.querySelectorAll('.photo').length === 60", "scrollTo(0, document.documentElement.scrollHeight)")
    reader.wait("[...document.querySelectorAll('.viewer canvas')].filter((one) => one.width).length < 12")
    page.get_by_label("Search").fill("gull 1")
    assert page.locator(".photo h2").all_inner_texts()[:3] == ["bird 1.jpg", "bird 11.jpg", "bird 13.jpg"]
    assert page.locator("#count").inner_text() == "10 of 60 images"
    page.get_by_label("Search").fill("")
    page.get_by_label("Answer").select_option(label="Crow (30)")
    assert page.locator("#count").inner_text() == "30 of 60 images"


def test_five_hundred_images_open_on_a_phone_with_those_in_sight_decoded(browser: Any, tmp_path: Path) -> None:
    reader = Reader(browser, 390, 844, is_mobile=True, has_touch=True)
    page = reader.open(write(tmp_path, dict.fromkeys((f"bird {number}.jpg" for number in range(500)), explanation())))
    drawn = "[...document.querySelectorAll('.viewer canvas')].filter((one) => one.width && one.dataset.drawn)"
    assert page.locator("#count").inner_text() == "500 images"
    assert page.locator(".photo").count() < 20
    assert page.evaluate(f"{drawn}.length") < 6
    assert page.evaluate("document.images.length") < 60
    page.locator(".photo").nth(7).scroll_into_view_if_needed()
    reader.wait(f"{drawn}.some((one) => one.getAttribute('aria-label').endsWith('bird 7.jpg'))")
    assert page.evaluate(f"{drawn}.length") < 6
    reader.context.close()
    assert reader.trouble == []


def test_the_first_images_are_shown_while_the_others_are_on_their_way(reader: Reader, tmp_path: Path) -> None:
    path = write(tmp_path, dict.fromkeys((f"bird {number}.jpg" for number in range(50)), explanation()))
    text = path.read_text()
    path.write_text(text[: text.index('<noscript id="photo-9"')])
    page = reader.open(path)
    assert page.locator("#count").inner_text() == "50 images"
    assert page.locator(".photo h2").first.inner_text() == "bird 0.jpg"


def test_short_cards_fill_the_window(reader: Reader, tmp_path: Path) -> None:
    reader.page.set_viewport_size({"width": 1200, "height": 4000})
    page = reader.open(write(tmp_path, {f"{n}.jpg": Explanation(error="no image") for n in range(20)}), drawn=False)
    reader.wait("document.querySelectorAll('.photo').length === 20")
    assert page.locator(".photo.bad").first.is_visible()


def test_the_least_certain_come_first_when_asked(reader: Reader, tmp_path: Path) -> None:
    sure, unsure = explanation(), explanation()._replace(probabilities=(0.4, 0.3))
    page = reader.open(write(tmp_path, {"sure.jpg": sure, "unsure.jpg": unsure}))
    page.get_by_label("Order").select_option("doubt")
    assert page.locator(".photo h2").all_inner_texts() == ["unsure.jpg", "sure.jpg"]


def test_maps_of_another_class_than_the_answer_are_called_so(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(write(tmp_path, {"a.jpg": explanation(), "b.jpg": explanation()._replace(explained="Crow", share=0.25)}))
    notes = page.locator(".explains")
    assert not notes.nth(0).is_visible()
    assert notes.nth(1).inner_text() == "Explained class: Crow (25.0\u00a0%), not the answer."


def test_the_policy_stops_requests(browser: Any, tmp_path: Path) -> None:
    reader = Reader(browser)
    page = reader.open(write(tmp_path, {"a.jpg": explanation()}))
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
    assert any("Content Security Policy" in said for said in reader.trouble)
    reader.context.close()


def test_without_scripts_images_answers_and_maps_are_shown(browser: Any, tmp_path: Path) -> None:
    reader = Reader(browser, 390, 844, java_script_enabled=False)
    page = reader.open(write(tmp_path, {"a.jpg": explanation(), "b.jpg": Explanation(error="no image")}), drawn=False)
    assert page.locator("noscript .notice").is_visible()
    assert not page.locator("#controls").is_visible()
    for name, side in (("a.jpg as the network saw it", 64), ("Maps of a.jpg", 2 * MAP_SIDE)):
        image = page.get_by_role("img", name=name)
        assert image.is_visible()
        assert image.evaluate("(one) => one.naturalWidth") == side
    assert page.locator(".plain li").all_inner_texts() == ["Gull 75.0%", "Crow 25.0%"]
    assert page.locator(".bad .error").inner_text() == "no image"
    assert not reader.is_wider_than(390)
    reader.context.close()
