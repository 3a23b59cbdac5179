"""The folder of PNG files, where another run has written before."""

from __future__ import annotations

from pathlib import Path

from fgzoo.interpret.explanation import Explanation
from fgzoo.interpret.pictures import write_pictures
from tests.builders import encode, picture
from tests.interpret.test_page import explanation


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(folder: Path, *found: Explanation) -> list[str]:
    names = [Path(name) for name in ("a.jpg", "b.jpg", "c.jpg")[: len(found)]]
    assert list(write_pictures(folder, names, found)) == list(found)
    return files(folder)


def test_nothing_of_an_earlier_run_stays(tmp_path: Path) -> None:
    few = write(tmp_path / "new", explanation(steps=1, cam=False))
    write(tmp_path / "out", *[explanation(steps=3)] * 3)
    assert write(tmp_path / "out", explanation(steps=1, cam=False)) == few
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["001_a"]


def test_what_a_person_put_there_stays(tmp_path: Path) -> None:
    write(tmp_path, *[explanation()] * 2)
    mine = [tmp_path / "002_b" / name for name in ("notes.txt", "01_mine.png")]
    mine += [tmp_path / "003_holiday" / "01_beach.png", tmp_path / "sheet.png"]
    (tmp_path / "003_holiday").mkdir()
    (tmp_path / "004_empty").mkdir()
    for path in mine:
        path.write_bytes(encode(picture(0), "PNG"))
    found = write(tmp_path, explanation())
    stayed = sorted(path.relative_to(tmp_path).as_posix() for path in mine)
    assert [name for name in found if not name.startswith("001_a/")] == stayed
    assert (tmp_path / "004_empty").is_dir()
