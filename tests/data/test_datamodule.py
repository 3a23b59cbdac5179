from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgzoo import FGVCDataModule
from fgzoo.data.dataset import collate, sample_seed
from fgzoo.errors import CheckpointError, DataError, UsageError
from tests.builders import make_aircraft, make_cars, make_cub, make_folder, write_lines


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, each with five images of training and five of test."""
    return make_cub(tmp_path_factory.mktemp("cub"), per_class=10)


def module(root: Path | None, name: str = "cub", **arguments: Any) -> FGVCDataModule:
    settings = {"image_size": 32, "batch_size": 4, "num_workers": 0, "seed": 0, **arguments}
    return FGVCDataModule(name, root, **settings)  # type: ignore[arg-type]


def stream(data: FGVCDataModule, epochs: int = 2) -> list[tuple[Tensor, ...]]:
    """The training batches of some epochs, in order."""
    loader = data.train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [tuple(tensor.clone() for tensor in batch) for batch in loader]
    return found


def same(one: list[tuple[Tensor, ...]], other: list[tuple[Tensor, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


# ---------------------------------------------------------------------- one stream


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("augmentation", ["standard", "strong"])
def test_workers_do_not_change_the_stream(cub: Path, augmentation: str, workers: int) -> None:
    alone = stream(module(cub, augmentation=augmentation))
    assert same(stream(module(cub, augmentation=augmentation, num_workers=workers)), alone)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_loaders_have_a_process_for_each_core_that_is_granted(cub: Path) -> None:
    granted = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(granted)})
    try:
        assert module(cub, num_workers=None).num_workers == 1
    finally:
        os.sched_setaffinity(0, granted)


def test_the_seed_decides_the_stream(cub: Path) -> None:
    first = stream(module(cub))
    assert same(stream(module(cub)), first)
    assert not same(stream(module(cub, seed=1)), first)


def test_the_runs_seed_is_the_default(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert module(cub, seed=None).seed == 7


def test_an_epoch_augments_an_image_anew(cub: Path) -> None:
    dataset = module(cub, augmentation="strong", image_size=64).dataset("train")
    assert any(not torch.equal(dataset[0, i][0], dataset[1, i][0]) for i in range(len(dataset)))  # type: ignore[index]


def test_reading_leaves_the_generator_as_it_was(cub: Path) -> None:
    dataset = module(cub, augmentation="strong").dataset("train")
    state = torch.get_rng_state()
    dataset[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_seeds_do_not_collide() -> None:
    seeds = {sample_seed(seed, epoch, index) for seed in range(10) for epoch in range(10) for index in range(10)}
    assert len(seeds) == 1000


# ---------------------------------------------------------------------- batches


def test_a_batch_is_uint8_images_classes_and_indices(cub: Path) -> None:
    images, targets, index = next(iter(module(cub).train_dataloader()))
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 32, 32))
    assert [module(cub).splits["train"][i].target for i in index.tolist()] == targets.tolist()


def test_an_incomplete_last_batch_is_left_out_of_training(cub: Path) -> None:
    assert [len(batch[1]) for batch in stream(module(cub), 1)] == [4, 4, 4]


def test_an_only_batch_is_trained_on(cub: Path) -> None:
    assert [len(batch[1]) for batch in stream(module(cub, batch_size=64), 1)] == [15]


def test_evaluation_has_every_image_once_in_order(cub: Path) -> None:
    loader = module(cub, eval_batch_size=4).test_dataloader()
    batches = [index.tolist() for _, _, index in loader]
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    assert [index for batch in batches for index in batch] == list(range(15))


def test_evaluation_batches_are_twice_the_trainings(cub: Path) -> None:
    assert module(cub).eval_batch_size == 8


# ---------------------------------------------------------------------- splits


def names(data: FGVCDataModule, split: str) -> set[str]:
    return set(data.names(split))


def test_val_fraction_holds_out_of_every_class(cub: Path) -> None:
    data = module(cub, val_fraction=0.2)
    assert Counter(record.target for record in data.splits["val"]) == {0: 1, 1: 1, 2: 1}
    assert names(data, "train").isdisjoint(names(data, "val"))
    assert names(data, "train") | names(data, "val") == names(module(cub), "train")


def test_nothing_is_held_out_by_default(cub: Path) -> None:
    data = module(cub)
    assert (len(data.splits["train"]), len(data.splits["val"]), data.val_dataloader()) == (15, 0, [])


def test_the_test_split_is_never_touched(cub: Path) -> None:
    assert names(module(cub, folds=3), "test") == names(module(cub, val_fraction=0.4), "test") == names(module(cub), "test")


def test_folds_share_the_training_split(cub: Path) -> None:
    everything, parts = names(module(cub), "train"), [module(cub, folds=3, fold=fold) for fold in range(3)]
    assert set.union(*(names(data, "val") for data in parts)) == everything
    assert sum(len(names(data, "val")) for data in parts) == 15
    assert all(names(data, "train") == everything - names(data, "val") for data in parts)


def test_a_validation_split_of_the_datas_own_is_used_and_no_other(tmp_path: Path) -> None:
    root = make_folder(tmp_path, splits=("train", "val", "test"))
    assert len(module(root, "folder").splits["val"]) == 12
    with pytest.raises(UsageError, match="validation split of its own"):
        module(root, "folder", val_fraction=0.5).setup()


def test_no_test_images_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, splits=("train",))
    with pytest.raises(DataError, match=r"--data\.test_fraction"):
        module(root, "folder").test_dataloader()


# ---------------------------------------------------------------------- every data set


MAKERS = {"cub": make_cub, "cars": make_cars, "aircraft": make_aircraft, "folder": make_folder}


@pytest.mark.parametrize(("name", "make"), MAKERS.items())
def test_every_data_set_gives_batches(tmp_path: Path, name: str, make: Any) -> None:
    data = module(make(tmp_path), name)
    assert data.num_classes == len(data.class_names) == 3
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("name", ["cub", "cars", "aircraft", "folder"])
def test_every_data_set_misses_listed_images(tmp_path: Path, name: str) -> None:
    root, csv = MAKERS[name](tmp_path), None
    if name == "folder":  # class folders list nothing
        photos = [path.relative_to(root) for path in root.rglob("*.jpg")]
        csv = write_lines(root / "list.csv", ["path,label,split", *(f"{p},{p.parts[1]},{p.parts[0]}" for p in photos)])
    for path in sorted(root.rglob("*.jpg"))[:6]:
        path.unlink()
    with pytest.raises(DataError, match=r"6 of (12|24) listed images are missing: .*, \.\.\."):
        module(root, name, csv=csv).setup()


def test_the_level_of_aircraft_is_what_classes_are(tmp_path: Path) -> None:
    assert module(make_aircraft(tmp_path, classes=4), "aircraft", level="family").num_classes == 3


def test_the_banner_of_aircraft_is_cut_off(tmp_path: Path) -> None:
    root = make_aircraft(tmp_path)
    heights = {}
    for banner in (True, False):
        dataset = module(root, "aircraft", banner=banner).dataset("test")
        heights[banner] = dataset.read(dataset.records[0]).shape[1]
    assert heights == {True: 40, False: 60}


def test_the_data_folder_can_come_from_the_environment(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_DATA", str(cub))
    assert module(None).num_classes == 3


def test_a_subfolder_with_the_data_sets_name_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cub(tmp_path / "cub", classes=2)
    monkeypatch.setenv("FGZOO_DATA", str(tmp_path))
    assert module(None).root == tmp_path / "cub"


# ---------------------------------------------------------------------- images that cannot be read


@pytest.fixture
def damaged(cub: Path, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(cub, tmp_path / "damaged"))
    for index in (0, 1):
        path = module(root).splits["train"][index].path
        path.write_bytes(path.read_bytes()[:100])
    return root


def test_an_unreadable_image_is_named_with_split_and_index(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"Black_footed_Albatross_000\d_\d\.jpg.*\(train image [01], '001\.Black_footed"):
        stream(module(damaged), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_leaves_out_what_cannot_be_read(damaged: Path, workers: int) -> None:
    data = module(damaged, on_error="skip", num_workers=workers, batch_size=15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = stream(data, 2)
    assert [len(batch[1]) for batch in batches] == [13, 13]
    assert data.skipped() == data.names("train")[:2]


def test_skipping_warns_once_for_each_image_with_a_count(damaged: Path) -> None:
    with pytest.warns(UserWarning, match="skipped") as caught:
        stream(module(damaged, on_error="skip", batch_size=15), 2)
    said = sorted(str(warning.message).partition(":")[0] for warning in caught if "skipped" in str(warning.message))
    assert said == ["skipped 1 so far", "skipped 2 so far"]


def test_evaluation_never_skips(cub: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(cub, tmp_path / "data"))
    path = module(root).splits["test"][3].path
    path.write_text("no picture")
    with pytest.raises(DataError, match="test image 3"):
        list(module(root, on_error="skip").test_dataloader())


def test_a_batch_without_one_readable_image_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 2 images"):
        collate([None, None])


def test_a_batch_is_its_images_pixel_by_pixel() -> None:
    images = [torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8) for _ in range(3)]
    batch, targets, index = collate([(image, 2, place) for place, image in enumerate(images)])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch, torch.stack(images), rtol=0, atol=0)
    assert (targets.tolist(), index.tolist()) == ([2, 2, 2], [0, 1, 2])


# ---------------------------------------------------------------------- the card


def test_the_card_describes_the_data(cub: Path) -> None:
    card = module(cub, resize=40, resize_mode="shortest").card
    assert (card.dataset, card.image_size, card.resize, card.resize_mode) == ("cub", 32, 40, "shortest")
    assert card.class_names == module(cub).class_names


def test_the_cards_transform_is_the_evaluation(cub: Path) -> None:
    data = module(cub, resize=40)
    dataset = data.dataset("test")
    assert torch.equal(data.card.transform()(dataset.read(dataset.records[2])), dataset[2][0])  # type: ignore[index]


def test_cards_of_other_classes_do_not_match(cub: Path, tmp_path: Path) -> None:
    other = module(make_cub(tmp_path, classes=2)).card
    with pytest.raises(CheckpointError, match=r"class 2 is '003\.Rusty_Blackbird' there and 'nothing' here"):
        module(cub).card.check_classes(other)


def test_download_comes_before_the_classes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(name: str, root: Path) -> None:
        fetched.append(make_cub(root))

    monkeypatch.setattr("fgzoo.data.datamodule.fetch_dataset", fetch)
    data = module(tmp_path / "absent", download=True)
    assert data.num_classes == 3
    assert fetched


def test_skipping_is_refused_where_batches_must_be_equal(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(cub, on_error="skip")
    monkeypatch.setattr(data, "_rank", lambda: (0, 2))
    with pytest.raises(UsageError, match=r"^data\.on_error: with several processes"):
        data.train_dataloader()


# ---------------------------------------------------------------------- classes of unequal size


def test_a_long_tail_thins_training_alone(cub: Path) -> None:
    data, whole = module(cub, tail=1.0, val_fraction=0.2), module(cub, val_fraction=0.2)
    assert sorted(data.class_counts) == [1, 2, 4]
    assert (data.splits["val"], data.splits["test"]) == (whole.splits["val"], whole.splits["test"])
    assert set(data.splits["train"]) < set(whole.splits["train"])
    assert data.card.class_counts == [sum(r.target == target for r in data.splits["train"]) for target in range(3)]


def test_balance_shows_every_class_equally_often(cub: Path) -> None:
    data = module(cub, tail=1.0, balance="full", batch_size=1)
    shown = torch.cat([targets for _, targets, _ in stream(data, 12)]).bincount()
    assert sum(data.class_counts) == 5 + 2 + 2
    assert shown.tolist() == [36, 36, 36]


def test_a_repeated_image_is_augmented_anew(cub: Path) -> None:
    data = module(cub, tail=9.0, balance="full", batch_size=1, augmentation="standard")
    assert sorted(data.class_counts) == [1, 1, 5]
    rare = data.class_counts.index(1)
    shown = [images for images, targets, _ in stream(data, 1) if targets == rare]
    assert len(shown) >= 2
    assert not torch.equal(shown[0], shown[1])


def test_workers_do_not_change_what_balance_shows(cub: Path) -> None:
    arguments = {"tail": 1.0, "balance": "sqrt", "batch_size": 2}
    assert same(stream(module(cub, **arguments)), stream(module(cub, num_workers=2, **arguments)))


def test_a_loop_over_a_data_set_ends(cub: Path) -> None:
    data = module(cub)
    assert len(list(data.dataset("train"))) == len(data.splits["train"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("argument", "value", "message"), [("tail", -1.0, r"data\.tail: -1"), ("balance", "ful", r"data\.balance: 'ful' is none of")]
)
def test_what_unequal_classes_cannot_be_is_refused(argument: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        module(None, "birds", **{argument: value})
