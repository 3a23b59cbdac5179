from __future__ import annotations

import re
from pathlib import Path

import pytest

from fgzoo.files import atomic_write, handed_on, names_handed_on, shown_folder, without_places


@pytest.mark.parametrize("place", ["missing/a.csv", "folder"])
def test_what_cannot_be_written_is_named_and_not_its_temporary_file(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=re.escape(f"): '{tmp_path / place}'")) as caught, atomic_write(tmp_path / place) as part:
        part.write_text("text")
    assert ".part" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("fgzoo fit --data.root /home/me/photos/ --config=/home/me/a.yaml", "fgzoo fit --data.root photos --config=a.yaml"),
        ("local-dir:/home/me/net", "local-dir:net"),
        ("Read from '/home/me/list.csv', ~/x/y and C:\\Users\\me\\z.csv.", "Read from 'list.csv', y and z.csv."),
        ("file:///home/me/run", "run"),
        ("/home/jane doe/data/birds", "birds"),
        ("C:\\Users\\Jane Doe\\birds\\", "birds"),
        ("fgzoo fit '/home/jane doe/birds' --output \"/home/o'brien/a\"", "fgzoo fit 'birds' --output \"a\""),
        ("it's in '/home/me/a b', isn't it", "it's in 'a b', isn't it"),
        ("https://host/a/b hf://OWNER/NAME photos/a.jpg and/or 1/2, 3 / 4", None),
    ],
)
def test_of_absolute_paths_the_last_names_are_left(text: str, left: str | None) -> None:
    assert without_places(text) == (text if left is None else left)


def test_a_home_with_a_space_in_its_name_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane doe"))
    assert without_places("The first: /home/jane doe/birds/a.jpg is empty, /home/jane doe2 not.") == (
        "The first: a.jpg is empty, jane doe2 not."
    )


def test_settings_are_handed_on_at_any_depth() -> None:
    assert handed_on({"a": ["/x/y", 1, None], "b": ("/z", True)}) == {"a": ["y", 1, None], "b": ("z", True)}


def test_images_are_named_from_the_folder_on_that_they_lie_in() -> None:
    assert names_handed_on(["/home/me/new/a.jpg", Path("/home/me/new/b/c.jpg"), "d/e.jpg"]) == [
        "new/a.jpg", "new/b/c.jpg", "d/e.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["/mnt/usb", str(Path.home() / "scans")])
def test_folders_far_apart_say_nothing_of_what_lies_between(folder: str) -> None:
    assert names_handed_on([Path.home() / "photos" / "1.jpg", f"{folder}/2.jpg"]) == [
        "photos/1.jpg",
        f"{Path(folder).name}/2.jpg",
    ]


def test_a_path_with_two_slashes_is_the_same_place() -> None:
    assert names_handed_on(["//home/a.jpg", "/home/b.jpg"]) == ["home/a.jpg", "home/b.jpg"]


def test_folders_are_named_from_where_one_is_or_by_their_names() -> None:
    found = [shown_folder(Path(path)) for path in ("runs/a/000", Path.cwd() / "runs" / "a", "/x/runs/a/000", "/x/mine")]
    assert [path.as_posix() for path in found] == ["runs/a/000", "runs/a", "runs/a/000", "mine"]
