from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgzoo import FGVCDataModule
from fgzoo.data import cache as image_cache
from fgzoo.data.images import decode
from fgzoo.data.synthetic import Birds
from fgzoo.data.transforms import resize_transform
from fgzoo.errors import DataError, UsageError
from tests.builders import encode, make_aircraft, make_folder, picture, save
from tests.data.test_datamodule import same, stream

BIRDS = Birds(classes=2, train_per_class=3, test_per_class=1, size=48)
IMAGES = 13
SIDE = 40


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of caches on disk."""
    monkeypatch.setenv("FGZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images lying down and one standing; padded, so that others of the same size can take their place."""
    folder = make_folder(tmp_path / "data", classes=2, per_class=3)
    save(folder / "train" / "class 0" / "tall.jpg", 0, 9, height=70)
    for path in folder.rglob("*.jpg"):
        replace(path, path.read_bytes())
    return folder


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content.ljust(4000, b"\0"))


def module(root: Path | None, **arguments: Any) -> FGVCDataModule:
    name = "birds" if root is None else "folder"
    settings = {"name": name, "image_size": 32, "resize": SIDE, "batch_size": 3, "num_workers": 0, "seed": 0, "birds": BIRDS}
    return FGVCDataModule(root=root, **{**settings, "cache": "disk", **arguments})


def files(folder: Path, suffix: str = ".pixels") -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == suffix)


def photo(data: FGVCDataModule, index: int = 0) -> Path:
    return data.splits["train"][index].path


def trains_as_without_a_cache(root: Path | None, **settings: Any) -> bool:
    return same(stream(module(root, **settings)), stream(module(root, **{**settings, "cache": "none", "num_workers": 0})))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded in this process."""
    names: list[str] = []

    def counting(path: Path, decoder: Any, **more: Any) -> Tensor:
        names.append(path.name)
        return decode(path, decoder, **more)

    monkeypatch.setattr("fgzoo.data.datamodule.decode", counting)
    return names


# ---------------------------------------------------------------------- the same pixels


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize(("augmentation", "workers"), [("paper", 0), ("standard", 0), ("strong", 0), ("strong", 2)])
@pytest.mark.parametrize("generated", [False, True])
def test_training_sees_the_same_pixels(root: Path, generated: bool, augmentation: str, mode: str, workers: int) -> None:
    settings = {"augmentation": augmentation, "resize_mode": mode, "num_workers": workers}
    assert trains_as_without_a_cache(None if generated else root, **settings)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("generated", [False, True])
def test_testing_sees_the_same_pixels(root: Path, generated: bool, mode: str) -> None:
    settings = {"root": None if generated else root, "resize_mode": mode}
    cached, plain = (list(module(**settings, cache=cache).test_dataloader()) for cache in ("disk", "none"))
    assert same([tuple(batch) for batch in cached], [tuple(batch) for batch in plain])


@pytest.mark.parametrize("generated", [False, True])
def test_an_image_lies_in_memory_as_without_a_cache(root: Path, generated: bool) -> None:
    data = module(None if generated else root)
    dataset = data.dataset("test")
    plain = resize_transform(SIDE, "squash")(data._read(dataset.records[0]))
    assert dataset.read(dataset.records[0]).stride() == plain.stride()


def test_the_caller_may_change_an_image_in_place(root: Path) -> None:
    dataset = module(root).dataset("test")
    before = dataset.read(dataset.records[0]).clone()
    dataset.read(dataset.records[0]).zero_()
    assert torch.equal(dataset.read(dataset.records[0]), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_filling_leaves_the_generator_as_it_was(root: Path, workers: int) -> None:
    state = torch.get_rng_state()
    module(root, num_workers=workers).prepare_data()
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- filled once


def test_a_second_run_decodes_nothing(root: Path, decoded: list[str]) -> None:
    first = stream(module(root))
    assert len(decoded) == IMAGES
    assert same(stream(module(root)), first)
    assert len(decoded) == IMAGES


def test_filling_says_so_in_a_line_where_there_is_no_terminal(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module(root).prepare_data()
    assert capfd.readouterr().err.count("\n") == 1
    module(root).prepare_data()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "settings",
    [{"folds": 2, "fold": 1}, {"val_fraction": 0.4}, {"seed": 3}, {"augmentation": "strong"}, {"image_size": 36}],
)
def test_what_does_not_change_an_image_shares_the_file(
    root: Path, caches: Path, decoded: list[str], settings: dict[str, Any]
) -> None:
    module(root).prepare_data()
    stream(module(root, **settings))
    assert (len(files(caches)), len(decoded)) == (1, IMAGES)


@pytest.mark.parametrize("settings", [{"resize": 44}, {"resize_mode": "shortest"}, {"root": None}])
def test_what_changes_an_image_has_another_file(root: Path, caches: Path, settings: dict[str, Any]) -> None:
    module(root).prepare_data()
    module(**{"root": root, **settings}).prepare_data()
    assert len(files(caches)) == 2


def test_the_banner_of_aircraft_has_another_file(tmp_path: Path, caches: Path) -> None:
    root = make_aircraft(tmp_path / "aircraft")
    for settings in ({"banner": True}, {"banner": False}, {"level": "family"}):
        module(root, name="aircraft", **settings).prepare_data()
    assert len(files(caches)) == 2


def test_birds_of_another_seed_have_another_file(caches: Path) -> None:
    module(None).prepare_data()
    module(None, birds=Birds(classes=2, train_per_class=3, test_per_class=1, size=48, seed=1)).prepare_data()
    assert len(files(caches)) == 2


def test_another_version_of_a_library_has_another_file(root: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(root).prepare_data()
    monkeypatch.setattr("PIL.__version__", "0")
    module(root).prepare_data()
    assert len(files(caches)) == 2


# ---------------------------------------------------------------------- files that change


def test_a_replaced_image_of_the_same_size_and_time_gives_its_new_pixels(root: Path) -> None:
    path = photo(module(root))
    module(root).prepare_data()
    before = path.stat()
    replace(path, encode(picture(5)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert trains_as_without_a_cache(root)


def test_a_new_time_alone_is_hashed_once_and_changes_nothing(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module(root).prepare_data()
    os.utime(photo(module(root)), ns=(1, 1))
    decoded.clear()
    hashed: list[Any] = []
    digest = image_cache._digest
    monkeypatch.setattr(image_cache, "_digest", lambda record: hashed.append(record) or digest(record))  # type: ignore[func-returns-value]
    module(root).prepare_data()
    assert len(hashed) == 1
    module(root).prepare_data()
    assert (len(hashed), decoded) == (1, [])


def test_an_added_image_is_cached(root: Path, decoded: list[str]) -> None:
    module(root).prepare_data()
    save(root / "train" / "class 1" / "new.jpg", 1, 20)
    assert trains_as_without_a_cache(root)
    decoded.clear()
    module(root).prepare_data()
    assert decoded == []


def test_a_removed_image_leaves_the_others_cached(root: Path, decoded: list[str]) -> None:
    module(root).prepare_data()
    photo(module(root)).unlink()
    decoded.clear()
    cached = stream(module(root))
    assert decoded == []
    assert same(cached, stream(module(root, cache="none")))


def test_one_data_module_notices_a_change_between_two_runs(root: Path) -> None:
    data = module(root)
    stream(data)
    replace(photo(data), encode(picture(5)))
    data.prepare_data()
    assert same(stream(data), stream(module(root, cache="none")))


# ---------------------------------------------------------------------- images that cannot be read


@pytest.fixture
def damaged(root: Path) -> Path:
    path = photo(module(root), 1)
    path.write_bytes(path.read_bytes()[:100])
    return root


def test_an_unreadable_image_raises_as_without_a_cache(damaged: Path) -> None:
    messages = []
    for cache in ("disk", "none"):
        with pytest.raises(DataError) as caught:
            stream(module(damaged, cache=cache))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "(train image 1, " in messages[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_skipped_as_without_a_cache(damaged: Path, workers: int) -> None:
    data = module(damaged, on_error="skip", num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(stream(data), stream(module(damaged, on_error="skip", cache="none")))
    assert data.skipped() == data.names("train")[1:2]


def test_an_unreadable_image_that_is_mended_is_read(damaged: Path) -> None:
    module(damaged).prepare_data()
    photo(module(damaged), 1).write_bytes(encode(picture(1)))
    assert trains_as_without_a_cache(damaged)


# ---------------------------------------------------------------------- processes


def test_of_two_processes_one_fills_and_the_other_says_that_it_waits(
    root: Path, caches: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = root.parent / "log"

    def slowly(path: Path, decoder: Any, **more: Any) -> Tensor:
        time.sleep(0.02)
        with log.open("a") as file:
            file.write(f"{path}\n")
        return decode(path, decoder, **more)

    monkeypatch.setattr("fgzoo.data.datamodule.decode", slowly)
    monkeypatch.setattr("fgzoo.data.download.PATIENCE", 0.05)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)

    def fill() -> None:
        start.wait()
        module(root).prepare_data()

    both = [context.Process(target=fill, daemon=True) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().splitlines()) == IMAGES
    assert (len(files(caches)), files(caches, ".part")) == (1, [])
    assert "Waiting for another process that fills" in capfd.readouterr().err
    assert trains_as_without_a_cache(root)


def test_a_run_after_one_that_was_killed_while_filling(root: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill() -> None:
        seen: list[Path] = []

        def stuck(path: Path, decoder: Any, **more: Any) -> Tensor:
            seen.append(path)
            if len(seen) > 5:
                time.sleep(600)
            return decode(path, decoder, **more)

        monkeypatch.setattr("fgzoo.data.datamodule.decode", stuck)
        module(root, resize=128).prepare_data()

    process = multiprocessing.get_context("fork").Process(target=fill, daemon=True)
    process.start()
    until(lambda: caches.is_dir() and any(path.stat().st_size for path in caches.glob("*.part")))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (files(caches), len(files(caches, ".part"))) == ([], 1)
    assert trains_as_without_a_cache(root, resize=128)
    assert (len(files(caches)), files(caches, ".part")) == (1, [])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited for 20 seconds")


def test_what_a_killed_run_with_other_settings_left_is_removed(root: Path, caches: Path) -> None:
    caches.mkdir(parents=True)
    (caches / "folder-squash512-0123456789abcdef.pixels.part").write_bytes(bytes(100))
    module(root).prepare_data()
    assert files(caches, ".part") == []


@pytest.fixture
def spawning() -> Iterator[None]:
    """Processes are started as on Windows and macOS."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.usefixtures("spawning")
def test_spawned_workers_read_the_file(root: Path) -> None:
    module(root).prepare_data()
    assert trains_as_without_a_cache(root, augmentation="strong", num_workers=1)
    assert len(pickle.dumps(module(root).dataset("test"))) < 10_000


def test_a_file_that_is_replaced_in_use_never_gives_another_images_pixels(root: Path) -> None:
    worker = pickle.loads(pickle.dumps(module(root).dataset("test")))
    replace(photo(module(root)), encode(picture(5)))
    module(root).prepare_data()
    with pytest.raises(UsageError, match=r"was removed or replaced while this run used it; start the run again"):
        worker[0]


# ---------------------------------------------------------------------- room


def test_a_limit_that_is_too_low_is_named_before_anything_is_decoded(root: Path, decoded: list[str]) -> None:
    with pytest.raises(UsageError, match=r"data\.cache_limit_gb: 13 images take at least 6\.24e-05 GB, the limit is 1e-05 GB.*"):
        module(root, cache_limit_gb=1e-5).prepare_data()
    assert decoded == []


def test_a_limit_that_images_of_any_shape_exceed_is_named(root: Path, caches: Path) -> None:
    limit = IMAGES * 3 * SIDE**2 / 1e9
    with pytest.raises(UsageError, match=r"data\.cache_limit_gb: 13 images take about 7.*GB; raise it, choose a smaller"):
        module(root, resize_mode="shortest", cache_limit_gb=1.1 * limit).prepare_data()
    assert files(caches, ".part") == files(caches) == []


def test_too_little_free_space_is_named(root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(image_cache.shutil.disk_usage("/"))
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 60_000))
    with pytest.raises(
        UsageError, match=r"take at least 6\.24e-05 GB, and .*images has room for 5\.4e-05 GB; give another --data\.cache_"
    ):
        module(root).prepare_data()
    assert decoded == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_becomes_full_is_named(root: Path, caches: Path) -> None:
    module(root).prepare_data()
    (name,) = files(caches)
    (caches / name).unlink()
    (caches / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"\.pixels cannot be written \(no space is left\); give another --data\.cache_folder"):
        module(root).prepare_data()
    assert files(caches, ".part") == files(caches) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": "ram"}, r"data\.cache: 'ram' is none of none, disk"),
        ({"cache_limit_gb": 0}, r"data\.cache_limit_gb: 0; more than 0"),
    ],
)
def test_wrong_arguments_are_named(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        module(root, **arguments)


# ---------------------------------------------------------------------- damaged and missing files and folders


def test_a_file_that_breaks_off_is_filled_anew(root: Path, caches: Path, decoded: list[str]) -> None:
    before = stream(module(root))
    (name,) = files(caches)
    os.truncate(caches / name, 5000)
    decoded.clear()
    assert same(stream(module(root)), before)
    assert len(decoded) == IMAGES


@pytest.mark.parametrize("content", ["", "{", "[]", '{"entries": []}', '{"token": "00", "length": 3, "entries": {"a": 1}}'])
def test_a_damaged_manifest_is_made_anew(root: Path, caches: Path, content: str) -> None:
    before = stream(module(root))
    (name,) = files(caches, ".json")
    (caches / name).write_text(content)
    assert same(stream(module(root)), before)
    assert len(json.loads((caches / name).read_text())["entries"]) == IMAGES


def test_a_folder_can_be_given(root: Path, tmp_path: Path, caches: Path) -> None:
    module(root, cache_folder=tmp_path / "other").prepare_data()
    assert len(files(tmp_path / "other" / "images")) == 1
    assert not caches.exists()


def test_the_home_folder_is_the_default(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGZOO_CACHE")
    module(root).prepare_data()
    assert len(files(Path(os.environ["HOME"], ".cache", "fgzoo", "images"))) == 1


def test_no_home_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGZOO_CACHE")
    monkeypatch.delenv("HOME")
    with pytest.raises(UsageError, match=r"give --data\.cache_folder PATH"):
        module(root).prepare_data()


def test_a_folder_that_cannot_be_made_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written .*give another --data\.cache_folder"):
        module(root, cache_folder=tmp_path / "file").prepare_data()
