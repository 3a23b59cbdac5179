from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fgzoo import load
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.reporting.report import write_report
from tests.command import fgzoo, rows
from tests.reporting.conftest import NAMES, TEST, Reported


def without(reported: Reported, tmp_path: Path, *names: str) -> Path:
    """The run as if some of its files had never been."""
    run = tmp_path / "run"
    shutil.copytree(reported.run, run, ignore=lambda folder, found: [name for name in found if name in (*names, "report")])
    return run


def sections(page: Path) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page.read_text(encoding="utf-8"))


def test_most_planted_label_errors_are_among_the_first_suspects(reported: Reported) -> None:
    suspects = [Path(row["path"]) for row in rows(reported.run / "report" / "label_errors.csv")]
    found = reported.mislabelled & set(suspects[: 2 * len(reported.mislabelled)])
    assert len(found) >= 0.8 * len(reported.mislabelled)


def test_every_exact_copy_is_found_and_the_altered_one(reported: Reported) -> None:
    listed = rows(reported.run / "report" / "near_duplicates.csv")
    by_path = {Path(row["path"]): row for row in listed}
    for copy, source in reported.copies.items():
        first, second = by_path[copy], by_path[source]
        assert (first["group"], first["content"]) == (second["group"], second["content"])
        assert (first["part"], first["across parts"]) == ("test", "yes")
    original, smaller = (by_path[path] for path in reported.altered)
    assert original["group"] == smaller["group"]
    assert original["content"] != smaller["content"]
    one, other = (by_path[path] for path in reported.contradiction)
    assert one["group"] == other["group"]
    assert one["several classes"] == "yes"
    planted = {*reported.copies, *reported.copies.values(), *reported.altered, *reported.contradiction}
    assert by_path.keys() == planted


def test_lines_say_accuracy_and_what_there_is_to_do(reported: Reported) -> None:
    accuracy, _, *others = reported.report.lines
    right = float(rows(reported.run / "metrics.csv")[-1]["test/top1"])
    assert accuracy.startswith(f"{100 * right:.1f} % of {4 * TEST + 1} test images right (95 % interval ")
    assert any("labels in doubt" in line for line in others)
    assert any("4 groups of near-duplicates across" in line for line in others)
    assert any("1 group of near-duplicates that are of several classes" in line for line in others)


def test_the_page_needs_nothing_else_and_is_small(reported: Reported) -> None:
    text = reported.report.page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert len(text) < 60_000 * text.count('class="card mistake"') + 400_000


def test_the_page_does_not_say_where_things_lie_on_the_machine(reported: Reported) -> None:
    text = reported.report.page.read_text(encoding="utf-8")
    assert str(reported.run.parent) not in text
    assert f"test/{NAMES[3]}/" in text


def test_the_page_shows_calibration_before_and_after(reported: Reported) -> None:
    text = reported.report.page.read_text(encoding="utf-8")
    row = rows(reported.run / "metrics.csv")[-1]
    for name, said in (("ece_calibrated", "Calibration: "), ("ece", "Before calibration: ")):
        (shown,) = re.findall(rf"<h3>{said}expected error ([\d.]+)", text)
        assert float(shown) == pytest.approx(
            100 * float(row[f"test/{name}"]), abs=0.2
        )  # probabilities are kept in half precision


def test_the_page_says_what_decides_that_a_photo_is_unknown(reported: Reported) -> None:
    found = load(reported.run).calibration
    said = f"the cosine to the mean features of the nearest class, below {found.threshold():.4g}"
    assert said in reported.report.page.read_text(encoding="utf-8")


def test_a_run_that_was_not_tested_is_reported_by_its_validation_part(reported: Reported, tmp_path: Path) -> None:
    run = without(reported, tmp_path, "test_probabilities.npz")
    page = write_report(run, tmp_path / "out").page.read_text(encoding="utf-8")
    assert f"fgzoo test --ckpt_path {run.name}" in page
    assert "validation part are right" in page


def test_a_run_without_probabilities_has_its_curves_and_says_what_to_type(reported: Reported, tmp_path: Path) -> None:
    run = without(reported, tmp_path, "test_probabilities.npz", "val_probabilities.npz")
    report = write_report(run, tmp_path / "out", duplicates=False)
    assert sections(report.page) == ["training", "run"]
    assert f"fgzoo test --ckpt_path {run.name}" in report.page.read_text(encoding="utf-8")
    assert report.lines == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


def test_photos_that_have_gone_are_said_to_and_may_lie_elsewhere(reported: Reported, tmp_path: Path) -> None:
    run, moved = without(reported, tmp_path), tmp_path / "moved"
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(reported.root), str(tmp_path / "gone")), encoding="utf-8")
    report = write_report(run, tmp_path / "out")
    text = report.page.read_text(encoding="utf-8")
    assert "duplicates" not in sections(report.page)
    assert f"fgzoo report {run.name} --root PATH" in text
    assert "no folder gone" in text
    shutil.copytree(reported.root, moved)
    again = write_report(run, tmp_path / "out", root=moved)
    assert "duplicates" in sections(again.page)
    assert "--root PATH" not in again.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("lacks", "said", "shown"),
    [
        ("nothing", f"1 image is gone, and not shown: test/{NAMES[3]}/0.png.", True),
        ("split.csv", "not those that the weights were trained on. If they", False),
    ],
)
def test_other_photos_than_those_trained_on_are_not_shown_as_them(
    reported: Reported, tmp_path: Path, lacks: str, said: str, shown: bool
) -> None:
    run, changed = without(reported, tmp_path, lacks), tmp_path / "changed"
    shutil.copytree(reported.root, changed)
    (changed / "test" / NAMES[3] / "0.png").rename(changed / "test" / NAMES[3] / "other.png")
    report = write_report(run, tmp_path / "out", root=changed, mistakes=0)
    assert said in report.page.read_text(encoding="utf-8")
    assert ("duplicates" in sections(report.page)) == shown


def test_a_list_of_an_older_report_does_not_outlive_it(reported: Reported, tmp_path: Path) -> None:
    (tmp_path / "near_duplicates.csv").write_text("old")
    write_report(reported.run, tmp_path, duplicates=False, mistakes=0)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "label_errors.csv"}


def test_a_photo_that_cannot_be_read_leaves_the_others(reported: Reported, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(reported.root, root)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    report = write_report(reported.run, tmp_path / "out", root=root)
    text = report.page.read_text(encoding="utf-8")
    assert "This photo is not to be found, or cannot be read." in text
    assert "could not be compared" in text


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no finished run's folder"):
        write_report(tmp_path)


def test_a_broken_checkpoint_is_refused(reported: Reported, tmp_path: Path) -> None:
    run = without(reported, tmp_path)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        write_report(run)


def test_the_command_writes_it_and_prints_where(reported: Reported, tmp_path: Path) -> None:
    done = fgzoo("report", reported.run, "--output", tmp_path / "out", "--mistakes", 2, "--skip-duplicates", "--device", "cpu")
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert done.out.splitlines()[0] == reported.report.lines[0]
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8").count('class="card mistake"') == 2
