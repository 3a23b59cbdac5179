"""The page of `fgzoo serve` in a real browser: Chromium without a window, with a camera that shows a test picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgzoo.serve.server import Server
from tests.browser import browsing
from tests.builders import save
from tests.serve.test_server import doubting, serving
from tests.small import small

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
#: What a drop of a file on the page is to a script.
DROP = """([name, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(data)], name, {type: 'image/jpeg'}));
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    document.querySelector('#drop').dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: transfer}));
  }
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(small("rra")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(*CAMERA) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, in which nothing may go wrong, and which may ask nobody but the server."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, permissions=["camera"])
    trouble: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((server.url, "data:")) else trouble.append(request.url))
    page.goto(server.url)
    yield page
    context.close()
    assert trouble == []


def test_a_chosen_photo_gets_its_class_and_its_maps(page: Any, server: Server, tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.jpg", 1)
    page.set_input_files("#file", photo)
    page.wait_for_selector("#result", state="visible")
    (expected,) = server.model.predict(photo)
    assert page.locator("#verdict").inner_text() == expected.classes[0]
    assert page.locator("#sure").inner_text() == f"probability {100 * expected.probabilities[0]:.1f}\u00a0%"
    assert page.locator(".answers .name").all_inner_texts() == list(expected.classes)
    assert page.locator("#caption").inner_text() == "step 1 of 3"
    page.get_by_role("button", name="Grad-CAM").click()
    assert page.locator("#caption").inner_text() == "Grad-CAM"
    assert page.evaluate("document.querySelector('#big').naturalWidth") == 64
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_the_model_does_not_know_is_unknown(page: Any, tmp_path: Path) -> None:
    with serving(doubting()) as server:
        # Where the page was loaded from does not matter to its script.
        page.route("**/answer", lambda route: route.fulfill(json=server.answer(route.request.post_data_buffer)))
        page.set_input_files("#file", save(tmp_path / "photo.jpg"))
        page.wait_for_selector("#result", state="visible")
    assert page.locator("#verdict").inner_text() == "Unknown"
    assert page.locator("#sure").inner_text().startswith("It does not look like any class that this model knows. Nearest: ")


def test_a_photo_may_be_dropped_anywhere(page: Any, tmp_path: Path) -> None:
    page.evaluate(DROP, ["photo.jpg", list(save(tmp_path / "photo.jpg").read_bytes())])
    page.wait_for_selector("#result", state="visible")


def test_the_camera_takes_a_photo(page: Any) -> None:
    page.get_by_role("button", name="Use the camera").click()
    page.wait_for_selector("#take", state="visible")
    page.locator("#video").evaluate("video => video.readyState > 1 || new Promise((go) => (video.onloadeddata = () => go(true)))")
    page.get_by_role("button", name="Take the photo").click()
    page.wait_for_selector("#result", state="visible")
    assert page.evaluate("document.querySelector('#video').srcObject === null")


def test_a_file_that_is_no_picture_is_told(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector(".state.bad")
    assert page.locator("#state").inner_text().startswith("The picture is not an image that can be read")
    assert page.locator("#result").is_hidden()
