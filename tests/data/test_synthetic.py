import hashlib
import math
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fgzoo.data.bird_drawing import TRAITS
from fgzoo.data.cub import read_cub
from fgzoo.data.records import Record
from fgzoo.data.synthetic import MAX_CLASSES, Birds, SyntheticBirds, class_codes, class_name
from fgzoo.errors import UsageError

SMALL = Birds(train_per_class=4, test_per_class=2, size=64)


@pytest.fixture(scope="module")
def birds() -> SyntheticBirds:
    return SyntheticBirds(SMALL)


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_images_are_uint8_of_the_size_asked_for(birds: SyntheticBirds) -> None:
    image = birds.read(birds.listing().train[0])
    assert image.dtype == torch.uint8
    assert image.shape == (3, 64, 64)


def test_listing_is_balanced(birds: SyntheticBirds) -> None:
    listing = birds.listing()
    assert listing.dataset == "birds"
    assert np.bincount([r.target for r in listing.train]).tolist() == [4] * 12
    assert np.bincount([r.target for r in listing.test]).tolist() == [2] * 12


def test_pixels_do_not_depend_on_the_order_of_reading(birds: SyntheticBirds) -> None:
    records = birds.listing().train[:6]
    backwards = pickle.loads(pickle.dumps(SyntheticBirds(SMALL)))  # which leaves behind what this process has painted
    images = [backwards.read(record) for record in reversed(records)][::-1]
    assert all(torch.equal(birds.read(r), image) for r, image in zip(records, images, strict=True))


def test_another_process_paints_the_same_pixels() -> None:
    birds = SyntheticBirds(SMALL)
    record = birds.listing().test[3]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(birds.read, (record,)), birds.read(record))


def test_a_caller_may_change_the_image_in_place(birds: SyntheticBirds) -> None:
    record = birds.listing().train[1]
    before = birds.read(record)
    birds.read(record).zero_()
    assert torch.equal(birds.read(record), before)


def test_pickling_leaves_the_painted_images_behind(birds: SyntheticBirds) -> None:
    record = birds.listing().train[0]
    image = birds.read(record)
    copy = pickle.loads(pickle.dumps(birds))
    assert not copy._memory
    assert torch.equal(copy.read(record), image)


def test_a_process_paints_a_set_once(birds: SyntheticBirds, monkeypatch: pytest.MonkeyPatch) -> None:
    record = birds.listing().train[2]
    image = birds.read(record)

    def fail(*_: object) -> None:
        raise AssertionError("painted again")

    monkeypatch.setattr("fgzoo.data.synthetic.paint", fail)
    assert torch.equal(SyntheticBirds(replace(SMALL)).read(record), image)


def test_train_and_test_share_no_image(birds: SyntheticBirds) -> None:
    listing = birds.listing()
    images = [birds.read(r).numpy().tobytes() for r in listing.train + listing.test]
    assert len(set(images)) == len(images)


def test_the_test_images_do_not_depend_on_the_number_of_training_images(birds: SyntheticBirds) -> None:
    other = SyntheticBirds(replace(SMALL, train_per_class=7))
    assert other.listing().test == birds.listing().test
    assert torch.equal(other.read(other.listing().test[0]), birds.read(birds.listing().test[0]))


@pytest.mark.parametrize(
    ("birds", "fingerprint", "pixels"),
    [
        (Birds(), "e6a743e54d48cfc4", "319435a43b591a08"),
        (SMALL, "d37994df41162bae", "4e65bb06b39f4415"),
        (Birds(40, 2, 1, 96, "hard", 3), "f2b1403b68101a22", "0586e1b4875cc19d"),
        (Birds(6, 3, 1, 48, "easy", 1), "54eddaa52a8f36f3", "d0a25b84ea7be09b"),
    ],
)
def test_sets_of_earlier_versions_are_the_same_to_the_bit(birds: Birds, fingerprint: str, pixels: str) -> None:
    known = SyntheticBirds(birds)
    listing = known.listing()
    named = f"classes={birds.classes}, train_per_class={birds.train_per_class}, test_per_class={birds.test_per_class}"
    assert listing.identity == f"Birds({named}, size={birds.size}, difficulty='{birds.difficulty}', seed={birds.seed})"
    assert listing.fingerprint() == fingerprint
    digest = hashlib.sha256()
    for record in listing.train[:8] + listing.test[:4]:
        digest.update(known.read(record).numpy().tobytes())
        digest.update(repr(record).encode())
    assert digest.hexdigest()[:16] == pixels


def test_later_fields_are_named_where_they_are_set() -> None:
    listing = SyntheticBirds(replace(SMALL, body=(0.2, 0.3), clutter=0.5)).listing()
    assert listing.identity.endswith("seed=0, body=(0.2, 0.3), clutter=0.5)")
    assert "body (0.2, 0.3), clutter 0.5." in listing.notes[0]
    assert listing.fingerprint() != SyntheticBirds(SMALL).listing().fingerprint()
    assert Birds(body=[0.2, 0.3]) == Birds(body=(0.2, 0.3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "trait", "share"), [(0.12, 1, 0.0006), (0.24, 1, 0.0015), (0.48, 1, 0.0043), (0.95, 1, 0.0095), (0.8, 3, 0.026)]
)
def test_the_body_and_its_traits_move_the_deciding_share_and_its_part_stays_inside(
    body: float, trait: float, share: float
) -> None:
    birds = SyntheticBirds(Birds(train_per_class=5, test_per_class=0, body=(body, body), trait=trait))
    train = birds.listing().train
    assert np.mean([birds.deciding_share(record) for record in train]) == pytest.approx(share, rel=0.15)
    centres = np.array([birds.scene(record).part(part) for record in train for part in TRAITS])
    assert ((centres >= 0.06 * 128) & (centres <= 0.94 * 128)).all()


def test_the_deciding_share_counts_what_differs_from_the_twin(birds: SyntheticBirds) -> None:
    record = birds.listing().train[5]
    scene = birds.scene(record)
    changed = (birds.render(scene, 5) != birds.render(scene, 4)).any(axis=2)
    assert birds.deciding_share(record) == changed.sum() / 64**2


def test_clutter_scales_what_is_before_and_behind_the_bird() -> None:
    def detail(clutter: float) -> tuple[float, float]:
        birds = SyntheticBirds(replace(SMALL, clutter=clutter))
        train = birds.listing().train
        edges = [np.abs(np.diff(birds.read(record).numpy().astype(float), axis=2)).mean() for record in train]
        return float(np.mean([len(birds.scene(record).leaves) for record in train])), float(np.mean(edges))

    (none, plain), (some, usual), (many, dense) = map(detail, (0.0, 1.0, 3.0))
    assert none == 0 < some < many
    assert plain < usual < dense


def test_other_species_are_none_of_the_first() -> None:
    first, others = SyntheticBirds(SMALL), SyntheticBirds(replace(SMALL, classes=MAX_CLASSES - 12, first_class=12))
    assert not set(first.codes) & set(others.codes)
    assert first.codes + others.codes == class_codes()
    record = others.listing().train[7]
    assert others.class_names[7] == class_name(class_codes()[19])
    assert others.deciding_part(record) is not None
    assert torch.equal(others.read(record), torch.from_numpy(others.render(others.scene(record), 7)).permute(2, 0, 1))


def test_another_seed_gives_other_images_of_the_same_classes(birds: SyntheticBirds) -> None:
    other = SyntheticBirds(replace(SMALL, seed=1))
    record = birds.listing().train[0]
    assert other.class_names == birds.class_names
    assert not torch.equal(other.read(record), birds.read(record))
    assert other.listing().train[0].box != record.box


def test_listing_paints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("painted")

    monkeypatch.setattr("fgzoo.data.synthetic.paint", fail)
    assert all(record.box for record in SyntheticBirds(SMALL).listing().train)


def test_listing_lays_out_nothing_that_training_does_not_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("laid out")

    monkeypatch.setattr("fgzoo.data.synthetic.pose", fail)
    assert len({record.name for record in SyntheticBirds(SMALL).listing().records}) == 12 * (4 + 2)


def test_a_record_reaches_another_process_whole(birds: SyntheticBirds) -> None:
    record = birds.listing().test[3]
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.parts == birds.scene(record).visible_parts()


def test_boxes_lie_in_the_image(birds: SyntheticBirds) -> None:
    for record in birds.listing().train:
        x0, y0, x1, y1 = record.box
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_visible_parts_lie_in_the_box(difficulty: str) -> None:
    birds = SyntheticBirds(replace(SMALL, difficulty=difficulty))  # type: ignore[arg-type]
    for record in birds.listing().train:
        x0, y0, x1, y1 = record.box
        for part in record.parts:
            assert x0 - 1 <= part.x <= x1 + 1, part
            assert y0 - 1 <= part.y <= y1 + 1, part


def test_what_differs_between_twins_lies_around_the_deciding_part() -> None:
    birds = SyntheticBirds(Birds(train_per_class=5, test_per_class=0))
    seen = set()
    for record in birds.listing().train:
        part = birds.deciding_part(record)
        if part is None:
            continue
        scene = birds.scene(record)
        twin = record.target ^ 1
        changed = (birds.render(scene, record.target) != birds.render(scene, twin)).any(axis=2)
        rows, columns = np.nonzero(changed)
        unit = math.sqrt(abs(np.linalg.det(scene.frames["body"][:, :2])))
        # The widest traits, marks all over the breast or a long beak, reach a quarter of the body's length.
        assert np.hypot(rows + 0.5 - part.y, columns + 0.5 - part.x).max() < 0.32 * unit + 2, record
        assert changed.mean() < 0.03
        assert len(rows) > 5
        seen.add(part.name)
    assert seen == set(TRAITS)


def test_the_bird_is_painted_in_its_box(birds: SyntheticBirds) -> None:
    # All traits at once reach from beak to tail: what they change must be inside.
    first, last = (0, 0, 0, 0, 0, 0), (1, 1, 2, 3, 2, 1)
    for record in birds.listing().train[:20]:
        scene = birds.scene(record)
        birds_of_two = SyntheticBirds(SMALL)
        birds_of_two.codes = (first, last)
        rows, columns = np.nonzero((birds_of_two.render(scene, 0) != birds_of_two.render(scene, 1)).any(axis=2))
        x0, y0, x1, y1 = scene.box(dict(zip(TRAITS, last, strict=True)))
        assert x0 - 2 <= columns.min()
        assert columns.max() <= x1 + 1
        assert y0 - 2 <= rows.min()
        assert rows.max() <= y1 + 1


def test_twins_differ_in_one_trait_and_from_all_others_in_more() -> None:
    codes = class_codes()
    for i, code in enumerate(codes):
        for j, other in enumerate(codes[:i]):
            assert (distance(code, other) == 1) == (i ^ 1 == j)


def test_every_trait_decides_some_of_the_default_classes() -> None:
    codes = class_codes()[:12]
    traits = {k for i in range(0, 12, 2) for k in range(len(TRAITS)) if codes[i][k] != codes[i + 1][k]}
    assert traits == set(range(len(TRAITS)))


def test_class_names_are_unique_and_say_the_traits() -> None:
    names = [class_name(code) for code in class_codes()]
    assert len(set(names)) == MAX_CLASSES
    assert class_name((1, 0, 2, 0, 0, 0)) == "red-crowned, two wing bars"
    assert class_name((0,) * 6) == "plain"


def test_the_deciding_part_is_seldom_hidden() -> None:
    birds = SyntheticBirds(Birds(train_per_class=50, test_per_class=0, size=64, difficulty="hard"))
    train = birds.listing().train
    assert sum(birds.deciding_part(record) is None for record in train) < 0.05 * len(train)


def test_a_hidden_deciding_part_is_none(birds: SyntheticBirds) -> None:
    record = birds.listing().train[0]
    part = birds.deciding_part(record)
    hidden = replace(record, parts=tuple(p for p in record.parts if p.name != part.name))
    assert birds.deciding_part(hidden) is None


def test_a_class_without_a_twin_still_has_a_deciding_part() -> None:
    birds = SyntheticBirds(replace(SMALL, classes=3))
    decided = [birds.deciding_part(record) for record in birds.listing().train if record.target == 2]
    assert any(decided)


def test_colour_histograms_do_not_tell_the_class() -> None:
    birds = SyntheticBirds(Birds(train_per_class=60, test_per_class=40, size=64))
    listing = birds.listing()

    def histograms(records: tuple[Record, ...]) -> Tensor:
        cells = torch.stack([birds.read(r) for r in records]).long().flatten(2) // 32
        cells = (cells[:, 0] * 8 + cells[:, 1]) * 8 + cells[:, 2]
        return torch.zeros(len(cells), 512).scatter_add_(1, cells, torch.ones(cells.shape)).div(64 * 64).sqrt()

    train, test = histograms(listing.train), histograms(listing.test)
    mean, std = train.mean(0), train.std(0) + 1e-3
    targets, truth = (torch.tensor([r.target for r in part]) for part in (listing.train, listing.test))
    weight = torch.zeros(512, 12, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy((train - mean) / std @ weight, targets) + 0.03 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    accuracy = (((test - mean) / std @ weight).argmax(1) == truth).float().mean()
    assert accuracy <= 2 / 12


@pytest.mark.parametrize(
    ("argument", "value", "legal"),
    [
        ("classes", 1, "2 to 200"),
        ("classes", 201, "2 to 200"),
        ("size", 31, "32 to 1024"),
        ("train_per_class", 0, "1 to"),
        ("test_per_class", -1, "0 to"),
        ("seed", -1, "0 to"),
        ("difficulty", "brutal", "easy, medium, hard"),
        ("body", (0.04, 0.5), "two numbers from 0.05 to 1"),
        ("body", (0.5, 0.4), "the smaller one first"),
        ("body", (0.5,), "two numbers"),
        ("trait", 0.0, "from 0.1 to 3"),
        ("clutter", -0.1, "from 0 to 10"),
        ("first_class", 190, "0 to 188"),
        ("first_class", 3, "even"),
    ],
)
def test_an_invalid_argument_is_named_with_its_range(argument: str, value: object, legal: str) -> None:
    with pytest.raises(UsageError, match=f"birds.{argument} must be .*{legal}"):
        Birds(**{argument: value})  # type: ignore[arg-type]


def test_export_is_a_cub_data_set(tmp_path) -> None:
    birds = SyntheticBirds(Birds(classes=3, train_per_class=2, test_per_class=1, size=48))
    birds.export(tmp_path)
    listing = read_cub(tmp_path)
    assert len(listing.train) == 6
    assert len(listing.test) == 3
    original = {r.name.replace("/", "_"): r for r in birds.listing().train + birds.listing().test}
    for record in listing.train + listing.test:
        source = original[record.path.stem]
        assert record.target == source.target
        assert record.box == pytest.approx(source.box, abs=0.011)
        assert [p.name for p in record.parts] == [p.name for p in source.parts]
        with Image.open(record.path) as image:
            assert np.array_equal(np.asarray(image), birds.read(source).permute(1, 2, 0).numpy())


def test_export_refuses_a_folder_in_use(tmp_path) -> None:
    (tmp_path / "images.txt").touch()
    with pytest.raises(UsageError, match="holds a data set already"):
        SyntheticBirds(SMALL).export(tmp_path)
