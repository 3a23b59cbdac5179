"""The report's page in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser import Reader
from tests.reporting.conftest import NAMES, Reported

#: What there is to see: each picture is decoded.
BROKEN = "[...document.images].filter((one) => !(one.loading === 'lazy' && !one.complete) && !one.naturalWidth).length"


def test_names_in_any_script_are_shown_as_they_are(reader: Reader, reported: Reported) -> None:
    page = reader.open(reported.report.page, drawn=False)
    assert sorted(page.locator("#class-table tbody th bdi").all_text_contents()) == sorted(NAMES)
    assert page.locator("main b:not(.contents b)").count() == 0


def test_classes_are_sorted_by_any_column_and_found_by_name(reader: Reader, reported: Reported) -> None:
    page = reader.open(reported.report.page, drawn=False)
    values = "[...document.querySelectorAll('#class-table tbody tr')].map((row) => Number(row.cells[1].dataset.value))"
    shown = page.evaluate(values)
    assert shown == sorted(shown)
    page.get_by_role("button", name="Right").click()
    assert page.evaluate(values) == sorted(shown, reverse=True)
    assert page.locator("#class-table th", has_text="Right").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Class").click()
    assert page.locator("#class-table tbody th bdi").all_text_contents()[0] == NAMES[0]
    page.get_by_label("Search").fill("海")
    assert page.locator("#class-table tbody tr:visible bdi").first.text_content() == "海鸥"
    assert page.locator("#class-table tbody tr:visible").count() == 1


def test_cells_of_the_confusion_matrix_are_named_by_pointer_and_keys(reader: Reader, reported: Reported) -> None:
    page = reader.open(reported.report.page, drawn=False)
    matrix, said = page.locator("#matrix"), page.locator("#readout")
    assert " taken for " in said.inner_text()  # the pair that is confused most
    matrix.scroll_into_view_if_needed()
    area = matrix.bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.4, area["y"] + area["height"] * 0.9)
    true, answer = sorted(NAMES)[3], sorted(NAMES)[1]
    assert said.inner_text().startswith(f"{true} taken for {answer}: ")
    matrix.press("ArrowUp")
    matrix.press("ArrowRight")
    assert said.inner_text().startswith(f"{sorted(NAMES)[2]} recognised: ")


def test_mistakes_are_photos_with_maps_beside_examples(reader: Reader, reported: Reported) -> None:
    page = reader.open(reported.report.page, drawn=False)
    first = page.locator(".mistake").first
    first.scroll_into_view_if_needed()
    reader.wait("[...document.querySelector('.mistake').querySelectorAll('.quad img')].every((one) => one.naturalWidth)")
    captions = first.locator(".quad figcaption").all_inner_texts()
    assert captions[0].startswith("labelled ")
    assert captions[1].startswith("where it looked: ")
    assert captions[2].startswith("taken for ")
    assert captions[3].startswith("is labelled ")
    assert not first.locator(".strip").is_visible()
    first.locator("summary").click()
    assert first.locator(".strip figcaption").all_inner_texts()[-1] == "Grad-CAM"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, reported: Reported, scheme: str) -> None:
    reader = Reader(browser, 390, 844, color_scheme=scheme, is_mobile=True, has_touch=True)
    page = reader.open(reported.report.page, drawn=False)
    assert not reader.is_wider_than(390)
    page.locator("#matrix").tap()
    assert page.locator("#readout").inner_text()
    page.get_by_role("button", name="Right").tap()
    touched = "a, button, input, summary"
    small = f"[...document.querySelectorAll('{touched}')].filter((one) => one.offsetHeight && one.offsetHeight < 40).length"
    assert page.evaluate(small) == 0
    assert page.evaluate(BROKEN) == 0
    reader.context.close()
    assert reader.trouble == []


def test_without_scripts_all_but_sorting_is_there(browser: Any, reported: Reported) -> None:
    reader = Reader(browser, 390, 844, java_script_enabled=False)
    page = reader.open(reported.report.page, drawn=False)
    assert page.locator("#class-table tbody tr").count() == len(NAMES)
    assert page.locator(".mistake .quad img").first.is_visible()
    assert page.locator("svg.chart").count() >= 4
    assert not page.locator("#class-find").is_visible()
    assert not reader.is_wider_than(390)
    reader.context.close()
