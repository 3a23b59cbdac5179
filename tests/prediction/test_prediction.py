from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import FiveCrop

from fgzoo import create_model, list_models, load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.card import DataCard
from fgzoo.data.images import MAX_PIXELS, decode, from_pillow
from fgzoo.errors import CheckpointError, DataError, TrainingError, UntrainedError, UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction import files as prediction_files
from fgzoo.prediction import inference as prediction
from tests import command
from tests.builders import encode, picture, save
from tests.command import fgzoo, predict, rows
from tests.small import CARD, NAMES, small


@pytest.fixture(scope="module")
def model() -> FineGrainedClassifier:
    return small()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven pictures of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for index in range(7):
        path = folder / f"photo {index}.png"
        path.write_bytes(encode(picture(index, width=50 + 9 * index, height=90 - 7 * index), "PNG"))
        found.append(path)
    return found


def paths(found: Sequence[dict[str, Any]]) -> list[str]:
    return [Path(row["path"]).as_posix() for row in found]


def all_probabilities(model: FineGrainedClassifier, images: Any, **how: Any) -> Tensor:
    """(N, K), by class."""
    return torch.cat([answers.values for answers in prediction.compute([model], images, prediction.probabilities, **how)])


def by_hand(model: FineGrainedClassifier, views: Sequence[Tensor]) -> Tensor:
    """The mean probabilities (K,) of uint8 views, one pass each."""
    with torch.no_grad():
        return torch.stack([model(model.normalize(view[None])).logits.softmax(1)[0] for view in views]).mean(dim=0)


# ---------------------------------------------------------------------- a row an image


def test_a_row_an_image_in_the_order_given(trained: SimpleNamespace, photos: list[Path]) -> None:
    order = [photos[index] for index in (3, 0, 6, 1)]
    assert [row["path"] for row in rows(predict(trained, *order))] == [str(path) for path in order]


def test_a_row_has_ranked_classes_and_probabilities(trained: SimpleNamespace, photos: list[Path]) -> None:
    row = rows(predict(trained, photos[0], "--top-k", 3))[0]
    shares = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
    assert {row[f"class_{rank}"] for rank in (1, 2, 3)} == set(load(trained.run).card.class_names)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert row["error"] == ""


def test_top_k_names_no_more_and_is_clipped_to_the_number_of_classes(trained: SimpleNamespace, photos: list[Path]) -> None:
    one, three, many = (list(rows(predict(trained, photos[0], "--top-k", count))[0]) for count in (1, 3, 50))
    assert one == ["path", "class", "accepted", "class_1", "probability_1", "error"]
    assert many == three


def test_of_equally_probable_classes_the_first_comes_first() -> None:
    shares = torch.tensor([0.0, 0.01, 0.02]).repeat(8, 40)
    ranked, classes = prediction.most_probable(shares, 50)
    assert torch.equal(ranked, shares.gather(1, classes))
    assert classes.tolist() == [[*range(2, 120, 3), *range(1, 31, 3)]] * 8
    assert torch.equal(classes[:, 0], shares.argmax(dim=1))


def test_csv_and_jsonl_agree(trained: SimpleNamespace, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad, very.jpg"
    bad.write_text("no picture")
    assert predict(trained, *photos, bad, "--output", "out/p.csv").status == 0
    assert predict(trained, *photos, bad, "--output", "out/p.jsonl").status == 0
    table = rows(tmp_path / "out" / "p.csv")
    records = [json.loads(line) for line in (tmp_path / "out" / "p.jsonl").read_text().splitlines()]
    assert len(table) == len(records) == 8
    for row, record in zip(table, records, strict=True):
        assert (row["path"], row["error"]) == (record["path"], record["error"] or "")
        assert [row[f"class_{rank}"] for rank in (1, 2, 3) if row["class_1"]] == record["classes"]
        assert [float(row[f"probability_{rank}"]) for rank in (1, 2, 3) if row["class_1"]] == record["probabilities"]


def test_the_rate_is_said_at_the_end(trained: SimpleNamespace, photos: list[Path]) -> None:
    assert "7 images in" in predict(trained, *photos).err


def test_a_terminal_gets_a_table(trained: SimpleNamespace, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "io", SimpleNamespace(StringIO=command.Terminal))
    monkeypatch.setenv("COLUMNS", "200")
    result = predict(trained, photos[0], "nowhere.jpg")
    assert result.status == 0, result.err
    assert "probability" in result.out
    assert "path,class" not in result.out
    assert "nowhere.jpg cannot be read" in result.out


# ---------------------------------------------------------------------- which images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of pictures at two depths, with the litter that systems leave behind."""
    root = tmp_path / "tree"
    for name in ("b2.jpg", "b10.JPG", "a/z.png", "a/y 1/ü.jpeg", "c.d/x.jpg"):
        save(root / name)
    litter = (".hidden.jpg", "._b2.jpg", "Thumbs.db", "notes.txt", "__MACOSX/b2.jpg", ".git/x.jpg", "a/desktop.ini")
    for name in litter:
        save(root / name)
    return root


TREE = ["a/y 1/ü.jpeg", "a/z.png", "b2.jpg", "b10.JPG", "c.d/x.jpg"]


def test_a_folder_is_read_in_natural_order_without_litter(trained: SimpleNamespace, tree: Path) -> None:
    assert paths(rows(predict(trained, tree))) == [(tree / name).as_posix() for name in TREE]


@pytest.mark.parametrize("name", ["tree", "tree/*", "tree/**", "tree/**/*", "tree/**/*/**"])
def test_a_folder_that_links_to_those_above_is_read_once(tree: Path, name: str) -> None:
    for place in ("a/loop", "a/again", "a/y 1/loop"):
        (tree / place).symlink_to(tree)
    assert len(prediction_files.image_paths([name], io.StringIO())) == len(TREE)


@pytest.mark.parametrize("name", ["tree", "tree/**"])
def test_a_link_to_itself_does_not_hide_the_photos_beside_it(tree: Path, name: str) -> None:
    (tree / "round").symlink_to(tree / "round")
    assert len(prediction_files.image_paths([name], io.StringIO())) == len(TREE)


@pytest.mark.parametrize("name", ["../new*", "../newest/**/*.jpg"])
def test_a_link_beside_the_folder_one_is_in_is_no_link_back(tree: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "newest").symlink_to("c.d")
    monkeypatch.chdir(tree / "c.d")
    assert prediction_files.image_paths([name], io.StringIO()) == [Path("../newest/x.jpg")]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("tree/*.jpg", ["b2.jpg"]), ("tree/**/*.jp*", ["a/y 1/ü.jpeg", "b2.jpg", "c.d/x.jpg"]), ("tree/*", TREE), ("tree/**", TREE)],
)
def test_a_pattern(tree: Path, pattern: str, found: list[str]) -> None:
    names = [path.relative_to("tree").as_posix() for path in prediction_files.image_paths([pattern], io.StringIO())]
    assert names == found


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    save(tmp_path / "bird [1].jpg")
    assert prediction_files.image_paths(["bird [1].jpg"], io.StringIO()) == [Path("bird [1].jpg")]


@pytest.mark.parametrize("listed", ["tree/b2.jpg\r\n\r\ntree/a\n", "tree/b2.jpg\0tree/a\0"], ids=["lines", "print0"])
def test_a_list_on_standard_input(trained: SimpleNamespace, tree: Path, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
    found = paths(rows(predict(trained, "tree/c.d", "-")))
    assert found == ["tree/c.d/x.jpg", "tree/b2.jpg", "tree/a/y 1/ü.jpeg", "tree/a/z.png"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_may_be_windows_own(tree: Path, encoding: str) -> None:
    listed = io.TextIOWrapper(io.BytesIO("tree/b2.jpg\r\ntree/a/y 1/ü.jpeg\r\n".encode(encoding)), "utf-8")
    assert prediction_files.image_paths(["-"], listed) == [Path("tree/b2.jpg"), Path("tree/a/y 1/ü.jpeg")]


def test_a_line_of_a_list_is_no_pattern(tree: Path) -> None:
    assert prediction_files.image_paths(["-"], io.StringIO("tree/*.jpg\ntree/b2.jpg\n")) == [
        Path("tree/*.jpg"),
        Path("tree/b2.jpg"),
    ]


@pytest.mark.parametrize("arguments", [["empty"], ["*.jpg"], ["-"], ["empty", "-"]])
def test_no_images_at_all_is_refused(
    trained: SimpleNamespace, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    result = predict(trained, *arguments)
    assert result.status == 2
    assert f"no images in '{arguments[0]}'" in result.err


def test_options_may_stand_between_the_images(trained: SimpleNamespace, photos: list[Path]) -> None:
    assert len(rows(predict(trained, photos[0], "--top-k", 2, photos[1]))) == 2


# ---------------------------------------------------------------------- bad and odd files


def truncated(path: Path) -> None:
    data = encode(picture(0, width=200, height=200))
    path.write_bytes(data[: len(data) // 2])


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("GIF or not, this is text"),
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
}


def test_a_path_that_cannot_be_looked_at_is_a_row(trained: SimpleNamespace, photos: list[Path]) -> None:
    good, bad = rows(predict(trained, photos[0], "x" * 300 + ".jpg"))
    assert good["error"] == ""
    assert "File name too long" in bad["error"]


@pytest.mark.parametrize("name", ["tree", "tree/**/*", "tree/*"])
def test_a_folder_that_cannot_be_read_stands_among_the_others(tree: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = os.scandir  # whatever the permissions, the superuser may read a folder

    def scandir(folder: Any) -> Any:
        if os.path.basename(folder) == "a":  # noqa: PTH119
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return inside(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = [path.relative_to("tree").as_posix() for path in prediction_files.image_paths([name], io.StringIO())]
    assert found == ["a", *TREE[2:]]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_a_row_with_its_error(trained: SimpleNamespace, photos: list[Path], tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.jpg"
    BAD[kind](bad)
    result = predict(trained, photos[0], bad, photos[1])
    first, middle, last = rows(result)
    assert "bad.jpg" in middle["error"]
    assert middle["class"] == middle["accepted"] == middle["class_1"] == middle["probability_1"] == ""
    assert first["error"] == last["error"] == ""
    assert "1 without an answer" in result.err


@pytest.mark.parametrize("output", ["p.csv", "p.jsonl", None])
def test_nothing_but_bad_files_is_status_1(trained: SimpleNamespace, tmp_path: Path, output: str | None) -> None:
    (tmp_path / "text.jpg").write_text("text")
    result = predict(trained, "text.jpg", "nowhere.jpg", *(["--output", output] if output else []))
    assert result.status == 1
    assert "2 without an answer" in result.err
    written = (tmp_path / output).read_text() if output else result.out
    assert "text.jpg is not an image" in written
    assert "nowhere.jpg cannot be read" in written


def test_a_name_that_is_not_utf_8_leaves_the_file_one_of_utf_8(trained: SimpleNamespace, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    save(tmp_path / odd)
    assert predict(trained, odd, "--output", "p.csv").status == 0
    assert predict(trained, odd, "--output", "p.jsonl").status == 0
    assert rows(tmp_path / "p.csv")[0]["path"] == r"caf\udce9.jpg"
    assert json.loads((tmp_path / "p.jsonl").read_text())["path"] == odd


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_goes_to_a_pipe_is_utf_8_whatever_its_own_encoding(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    answer = prediction.Prediction(("a",), (1.0,), accepted=True)
    prediction_files.write_predictions(None, form, [Path("🐦.jpg")], [answer], 1)
    assert "🐦.jpg" in pipe.buffer.getvalue().decode()


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not take")
def test_a_line_end_in_a_name_ends_no_row(trained: SimpleNamespace, tmp_path: Path) -> None:
    names = ["a\rb.jpg", "a\nb.jpg"]
    for name in names:
        save(tmp_path / name)
    assert predict(trained, *names, "--output", "p.csv").status == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose network never answers with a number."""
    found = small()
    with torch.no_grad():
        next(found.network.parameters()).fill_(torch.nan)
    path = tmp_path_factory.mktemp("broken") / "model.safetensors"
    save_safetensors(found, path)
    return path


@pytest.mark.parametrize("how", [[], ["--embed"]])
def test_an_answer_that_is_no_number_is_an_error(broken: Path, photos: list[Path], how: list[str]) -> None:
    result = predict(broken, photos[0], *how)
    (row,) = rows(result, status=1)
    assert row["error"] == "the network's answer is not finite"
    assert "1 without an answer" in result.err


def test_a_picture_too_large_for_its_resize_is_a_row(model: FineGrainedClassifier, photos: list[Path]) -> None:
    def fails(image: Tensor) -> Tensor:
        raise RuntimeError("not enough memory")

    assert "cannot be resized: not enough memory" in str(prediction.read_views([fails], photos[:1])[1])


# ---------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "the following arguments are required"),
        ("RUN", "required: images"),
        ("RUN x.jpg --top-k 0", "--top-k: 0 does not conform"),
        ("RUN x.jpg --batch-size many", "--batch-size: invalid literal for int() with base 10: 'many'"),
        ("RUN x.jpg --num-workers -1", "--num-workers: -1 does not conform"),
        ("RUN x.jpg --tta tencrop", "--tta: invalid choice: 'tencrop'"),
        ("RUN x.jpg --output p.xlsx", "ends in none of .csv, .jsonl"),
        ("RUN x.jpg --output p.npy", "p.npy (features, by --embed)"),
        ("RUN x.jpg --output folder.csv", "folder.csv is a folder"),
        ("RUN x.jpg --device gpu", "--device 'gpu' is none of auto, cpu"),
        ("RUN x.jpg --device cuda:99", "--device cuda:99 is not on this machine"),
        ("RUN x.jpg --also RUN --embed", "--embed takes one checkpoint"),
        ("RUN x.jpg --topk 3", "no option --topk; did you mean '--top-k'?"),
        ("nowhere.ckpt x.jpg", "'nowhere.ckpt'"),
        ("last x.jpg", "no trained run below runs"),
    ],
)
def test_what_is_typed_wrongly_is_named(trained: SimpleNamespace, tmp_path: Path, arguments: str, said: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    result = fgzoo("predict", *(str(trained.run) if word == "RUN" else word for word in arguments.split()))
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert said in result.err


def test_help_needs_no_checkpoint() -> None:
    result = fgzoo("predict", "--help")
    assert result.status == 0
    assert "--also" in result.out


def test_features_are_not_poured_onto_a_terminal(
    trained: SimpleNamespace, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "io", SimpleNamespace(StringIO=command.Terminal))
    result = predict(trained, photos[0], "--embed")
    assert result.status == 2
    assert "--output FILE" in result.err


def test_untrained_weights_are_refused(photos: list[Path]) -> None:
    model = create_model("baseline", 4, "test_efficientnet", pretrained=False)
    for ask in (model.predict, model.embed):
        with pytest.raises(UntrainedError, match="never been trained"):
            ask(photos[0])


def test_weights_that_do_not_know_their_classes_are_refused(photos: list[Path]) -> None:
    model = small()
    model.card = None
    with pytest.raises(CheckpointError, match="do not say which classes"):
        model.predict(photos[0])


# ---------------------------------------------------------------------- writing


def test_an_existing_file_stays_when_prediction_fails(
    trained: SimpleNamespace, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text("yesterday's")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prediction_files, "_cells", full)
    result = predict(trained, photos[0], "--output", "p.csv")
    assert result.status == 1
    assert "No space left" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    assert (tmp_path / "p.csv").read_text() == "yesterday's"


def test_an_interruption_before_the_first_row_leaves_no_file(
    trained: SimpleNamespace, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(prediction_files, "_record", interrupt)
    result = predict(trained, photos[0], "--output", "p.jsonl")
    assert result.status == 130
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what is computed


def test_an_answer_is_that_of_the_network_on_the_transformed_image(model: FineGrainedClassifier, photos: list[Path]) -> None:
    found = all_probabilities(model, photos[:1])[0]
    assert torch.allclose(found, by_hand(model, [model.transform(decode(photos[0]))]), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_does_not_change_the_answers(model: FineGrainedClassifier, photos: list[Path], batch_size: int) -> None:
    reference = all_probabilities(model, photos, batch_size=32)
    assert torch.allclose(all_probabilities(model, photos, batch_size=batch_size), reference, atol=1e-5)


def test_loader_processes_do_not_change_the_answers(model: FineGrainedClassifier, photos: list[Path], tmp_path: Path) -> None:
    images = [photos[0], tmp_path / "nowhere.jpg", *photos[1:]]
    assert model.predict(images, batch_size=3, num_workers=2) == model.predict(images, batch_size=3)


def test_flip_is_the_mean_of_both(model: FineGrainedClassifier, photos: list[Path]) -> None:
    image = model.transform(decode(photos[1]))
    found = all_probabilities(model, photos[1:2], tta="flip")[0]
    assert torch.allclose(found, by_hand(model, [image, image.flip(-1)]), atol=1e-5)


def five_and_mirrored(image: Tensor) -> tuple[Tensor, ...]:
    """TenCrop's, where its centre is also that of the mirror image."""
    crops = FiveCrop(64)(image)
    return (*crops, *(crop.flip(-1) for crop in crops))


@pytest.mark.parametrize(("tta", "oracle"), [("five-crop", FiveCrop(64)), ("ten-crop", five_and_mirrored)])
@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("resize", [64, 80])
def test_crops_are_torchvisions(photos: list[Path], tta: Any, oracle: Callable[..., Any], mode: str, resize: int) -> None:
    card = replace(CARD, resize=resize, resize_mode=mode)
    model = small(card=card)
    # 64 leaves no margin, so that 64 / 0.875 is taken.
    wide = DataCard.transform(replace(card, resize=80 if resize == 80 else 73)).transforms[0]  # type: ignore[attr-defined]
    expected = by_hand(model, oracle(wide(decode(photos[2]))))
    assert torch.allclose(all_probabilities(model, photos[2:3], tta=tta)[0], expected, atol=1e-5)


def test_half_precision_is_close(model: FineGrainedClassifier, photos: list[Path]) -> None:
    reference = all_probabilities(model, photos)
    found = all_probabilities(model, photos, precision="bf16-mixed")
    assert found.dtype == torch.float32
    assert not torch.equal(found, reference)
    assert torch.allclose(found, reference, atol=0.05)


def test_every_module_keeps_its_mode(model: FineGrainedClassifier, photos: list[Path]) -> None:
    reference = all_probabilities(model, photos[:2])
    model.network.train()
    try:
        assert torch.equal(all_probabilities(model, photos[:2]), reference)
        assert all(module.training for module in model.network.modules())
    finally:
        model.network.eval()


def test_random_numbers_stay_as_they_are(model: FineGrainedClassifier, photos: list[Path]) -> None:
    state = torch.get_rng_state()
    model.predict(photos[0])
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- several checkpoints


def test_an_ensemble_is_the_mean_of_its_members(photos: list[Path]) -> None:
    # The second sees other pixels of the same files.
    members = [small(), small(card=replace(CARD, image_size=48, resize=56), seed=1)]
    found = torch.cat([a.values for a in prediction.compute(members, list(photos), prediction.probabilities)])
    assert torch.allclose(found, torch.stack([all_probabilities(m, photos) for m in members]).mean(dim=0), atol=1e-5)


def test_an_ensemble_on_the_command_line(trained: SimpleNamespace, photos: list[Path], tmp_path: Path) -> None:
    content = torch.load(trained.file, weights_only=True)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.mul_(0.9)
    torch.save(content, tmp_path / "other.ckpt")
    result = predict(trained, photos[0], "--also", tmp_path / "other.ckpt")
    members = [load(source) for source in (trained.run, tmp_path / "other.ckpt")]
    mean = torch.stack([all_probabilities(member, photos[:1])[0] for member in members]).mean(dim=0)
    row = rows(result)[0]
    found = {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in (1, 2, 3)}
    assert found == pytest.approx(dict(zip(members[0].card.class_names, mean.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize("names", [["Cardinal", "Rook", "Gull", "Ovenbird"], ["Cardinal", "Gull", "Crow", "Ovenbird"], NAMES[:3]])
def test_an_ensemble_needs_the_same_classes(photos: list[Path], names: list[str]) -> None:
    members = [small(), small(card=replace(CARD, class_names=names))]
    with pytest.raises(CheckpointError, match=r"need the same classes; class \d is '(Crow|Ovenbird)' in the first"):
        list(prediction.classify(members, list(photos)))


def test_a_method_of_ones_own_needs_trust(
    trained: SimpleNamespace, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from fgzoo.methods.baseline import Baseline\nclass Mine(Baseline):\n    '''Mine.'''\n"
    (tmp_path / "predicted_methods.py").write_text(code)
    content = torch.load(trained.file, weights_only=True)
    content["fgzoo"]["method"] = "predicted_methods.Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    monkeypatch.setattr(sys, "path", list(sys.path))
    refused = predict(tmp_path / "mine.ckpt", photos[0])
    assert (refused.status, "--trust predicted_methods" in refused.err) == (2, True)
    # The module lies in the working folder.
    done = predict(tmp_path / "mine.ckpt", photos[0], "--trust", "predicted_methods")
    assert rows(done) == rows(predict(trained, photos[0]))
    sys.modules.pop("predicted_methods")


# ---------------------------------------------------------------------- in Python


def test_each_kind_of_image_gets_the_commands_answer(trained: SimpleNamespace, photos: list[Path]) -> None:
    model = load(trained.run)
    expected = rows(predict(trained, photos[0]))[0]
    images = [str(photos[0]), photos[0], Image.open(photos[0]), decode(photos[0])]
    for found in [*model.predict(images), *(model.predict(image)[0] for image in images)]:
        assert list(found.classes) == [expected[f"class_{rank}"] for rank in (1, 2, 3)]
        assert list(found.probabilities) == pytest.approx(
            [float(expected[f"probability_{rank}"]) for rank in (1, 2, 3)], rel=1e-5
        )
        assert found.error is None


def test_a_tensor_of_several_images(model: FineGrainedClassifier) -> None:
    images = torch.randint(0, 256, (3, 3, 70, 60), dtype=torch.uint8)
    assert model.predict(images) == model.predict(list(images))


def test_no_images_no_predictions(model: FineGrainedClassifier) -> None:
    assert model.predict([]) == []
    assert len(model.embed([])) == 0


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 8, 8), r"number 1 is a torch.float32 tensor of shape \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), "number 1 is a ndarray"),
        (None, "number 1 is a NoneType"),
    ],
)
def test_another_kind_of_image_is_refused(model: FineGrainedClassifier, photos: list[Path], image: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.predict([photos[0], image])


@pytest.mark.parametrize("how", [{"top_k": 0}, {"batch_size": 0}, {"tta": "mirror"}, {"num_workers": -1}])
def test_an_argument_out_of_range_is_named(model: FineGrainedClassifier, photos: list[Path], how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(how))):
        model.predict(photos[0], **how)


def test_a_picture_in_memory_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    with Image.open(io.BytesIO(encode(picture(0), "PNG", exif=exif))) as image:
        assert from_pillow(image).shape == (3, 48, 40)


def test_a_picture_that_breaks_off_is_an_error(model: FineGrainedClassifier, tmp_path: Path) -> None:
    truncated(tmp_path / "half.jpg")
    assert "half.jpg" in str(model.predict(Image.open(tmp_path / "half.jpg"))[0].error)


def test_a_picture_too_large_is_refused() -> None:
    with pytest.raises(DataError, match="the picture is too large"):
        from_pillow(Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)))


# ---------------------------------------------------------------------- every method, and its features


@pytest.mark.parametrize("name", list_models())
def test_every_method_predicts_and_embeds(name: str, photos: list[Path]) -> None:
    model = small(name)
    found = model.predict(photos[:3], batch_size=2, tta="flip")
    assert all(len(p.classes) == 4 and sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in found)
    features = model.embed(photos[:3], batch_size=2)
    assert features.shape[0] == 3
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])


def test_features_are_what_the_baselines_classifier_reads(model: FineGrainedClassifier, photos: list[Path]) -> None:
    logits = model.network.classifier(model.embed(photos[:2]))  # type: ignore[operator]
    assert torch.allclose(logits.softmax(dim=1), all_probabilities(model, photos[:2]), atol=1e-5)


def test_features_of_two_backbones_stand_one_after_the_other(photos: list[Path]) -> None:
    model = small("bcnn")
    images = model.normalize(model.transform(decode(photos[0]))[None])
    with torch.no_grad():
        expected = [net(images)[-1].mean(dim=(2, 3)) for net in (model.network.backbone, model.network.second_backbone)]
    assert torch.allclose(model.embed(photos[0]), torch.cat(expected, dim=1), atol=1e-5)


def test_features_can_be_trained_on(model: FineGrainedClassifier, photos: list[Path]) -> None:
    features = model.embed(photos[:2])
    layer = torch.nn.Linear(features.shape[1], 2)
    layer(features).sum().backward()
    assert layer.weight.grad is not None


def test_features_are_averaged_over_views(model: FineGrainedClassifier, photos: list[Path]) -> None:
    image = decode(photos[0])
    both = model.embed([image, image.flip(-1)])
    assert torch.allclose(model.embed(image, tta="flip")[0], both.mean(dim=0), atol=1e-5)


def test_a_bad_image_has_no_features(model: FineGrainedClassifier, photos: list[Path]) -> None:
    with pytest.raises(DataError, match=r"embed: nowhere\.jpg cannot be read"):
        model.embed([photos[0], "nowhere.jpg"])


def test_a_method_without_a_backbone_says_what_to_define(photos: list[Path]) -> None:
    model = small()
    model.network = torch.nn.Flatten()
    with pytest.raises(UsageError, match=r"define features\(\)"):
        model.embed(photos[0])


def test_every_file_of_features_holds_the_same(trained: SimpleNamespace, photos: list[Path], tmp_path: Path) -> None:
    images = [photos[0], tmp_path / "nowhere.jpg", photos[1]]
    for name in ("f.npy", "f.npz", "f.csv", "f.jsonl"):
        assert predict(trained, *images, "--embed", "--output", name).status == 0
    expected = load(trained.run).embed([photos[0], photos[1]]).numpy()
    array = np.load("f.npy")
    assert np.isnan(array[1]).all()
    np.testing.assert_allclose(array[[0, 2]], expected, atol=1e-6)
    with np.load("f.npz") as file:
        np.testing.assert_array_equal(file["features"], array)
        assert file["paths"].tolist() == [str(path) for path in images]
        assert ["nowhere.jpg" in error for error in file["errors"]] == [False, True, False]
    table = rows(tmp_path / "f.csv")
    records = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    for row, record, values in zip(table, records, array, strict=True):
        numbers = [float(row[f"f{index}"]) for index in range(array.shape[1]) if not row["error"]]
        np.testing.assert_allclose(numbers, values[np.isfinite(values)], rtol=1e-6)
        assert (row["path"], row["error"], numbers) == (record["path"], record["error"] or "", record["features"])


def test_features_into_a_pipe_are_csv(trained: SimpleNamespace, photos: list[Path]) -> None:
    row = rows(predict(trained, photos[0], "--embed"))[0]
    assert list(row)[:3] == ["path", "f0", "f1"]


def test_features_of_bad_files_alone_are_status_1(trained: SimpleNamespace, tmp_path: Path) -> None:
    assert predict(trained, "nowhere.jpg", "--embed", "--output", "f.npy").status == 1
    assert np.load("f.npy").shape == (1, 256)


def test_a_batch_of_bad_files_has_answers_as_wide_as_the_others(model: FineGrainedClassifier, photos: list[Path]) -> None:
    found = [answers.values for answers in prediction.embed([model], ["nowhere.jpg", photos[0]], batch_size=1)]
    assert torch.cat(found).shape == model.embed(photos[0]).shape


# ---------------------------------------------------------------------- loader processes


@pytest.mark.parametrize(("batch_size", "in_process"), [(7, True), (4, False)])
def test_a_single_batch_is_read_in_the_process_itself(
    batch_size: int, in_process: bool, trained: SimpleNamespace, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise DataError("in the process itself" if get_worker_info() is None else "in another process")

    monkeypatch.setattr(prediction, "decode", refused)
    found = rows(fgzoo("predict", trained.run, *photos, "--device", "cpu", "--batch-size", batch_size), status=1)
    assert {row["error"] for row in found} == {"in the process itself" if in_process else "in another process"}


def test_a_loader_process_that_is_killed_is_named(
    model: FineGrainedClassifier, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        """The kernel's way with a process that takes too much memory."""
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(prediction, "read_views", killed)
    with pytest.raises(TrainingError, match="loader process ended by itself"):
        model.predict(photos, batch_size=3, num_workers=1)
