"""What readers make of damaged files: seeded mutations of pictures, checkpoints, lists and configs.

    python benchmarks/fuzzing.py --count 10000 --write fuzzing              # results/fuzzing.csv and .md

A file is cut off, some of its bits are flipped, its beginning goes over into another one's end, bytes of its header are
overwritten, or a word is replaced. What reads it must answer, or raise one of fgzoo's errors that names the file, within
seconds and in little memory; it must write nothing, start no program and ask no other machine. Every kind of file is read in a
process of its own, whose end is a crash by the mutation at work. The tests try fewer of the same mutations.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import common
import lightning as L
import numpy as np
import scipy.io
import timm
import torch
from common import Row, markdown_table, read_csv, say, write_report
from PIL import Image
from safetensors.torch import save

from fgzoo import FineGrainedClassifier, create_model, errors, load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.aircraft import read_aircraft
from fgzoo.data.card import DataCard
from fgzoo.data.cars import read_cars
from fgzoo.data.cub import read_cub
from fgzoo.data.folder import read_folder
from fgzoo.data.images import decode
from fgzoo.data.records import Listing
from fgzoo.data.split_file import read_split, write_split
from fgzoo.errors import DataError
from fgzoo.nn.timm_networks import load_weights
from fgzoo.prediction.inference import read_views, views_transform
from fgzoo.prediction.rejection import Calibration
from fgzoo.recipes import recipe_files
from fgzoo.training.arguments import config_of, with_implied
from fgzoo.training.command import run as train

ABOUT = (__doc__ or "").split("\n\n")[2]
WAYS = ("truncate", "flip", "splice", "header", "word")
#: What words are replaced by, beside others of the same files.
WORDS = (b"0", b"-1", b"99999999999", b"1e999", b"nan", b"null", b"", b"..", b"x" * 300, b"[]", b"{}", b"2001-99-99")
#: Seconds of the processor's after which reading is called slow; and without a word from it, on a machine that others use, hung.
SLOW, PATIENCE = 5.0, 120.0
#: What nothing does that only reads, by the names of Python's audit events.
FORBIDDEN = ("os.", "shutil.", "subprocess.", "socket.connect", "socket.getaddrinfo")
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.chdir")

CARD = DataCard("folder", ["Cardinal", "Crow"], 32, 32, "squash", "bilinear", "pillow", "0" * 16)
#: What pictures are saved as: mode and options, by format.
PICTURES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [("RGB", {}), ("RGB", {"progressive": True, "turned": True}), ("L", {}), ("CMYK", {})],
    "PNG": [("RGB", {"turned": True}), ("P", {"transparency": 0}), ("LA", {}), ("I;16", {}), ("RGB", {"frames": 2})],
    "WebP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"frames": 2, "turned": True})],
    "GIF": [("P", {}), ("P", {"frames": 2, "transparency": 0}), ("L", {"interlace": 0})],
    "BMP": [("RGB", {}), ("P", {}), ("1", {})],
    "TIFF": [
        ("RGB", {}), ("RGB", {"compression": "tiff_lzw", "turned": True}), ("I;16", {}), ("F", {}), ("L", {"frames": 2}),
        ("RGB", {"compression": "jpeg"}), ("P", {"compression": "tiff_adobe_deflate"}), ("1", {"compression": "group4"}),
    ],
    "AVIF": [("RGB", {}), ("RGBA", {"turned": True}), ("RGB", {"frames": 2})],
}  # fmt: skip
CONFIGS = (
    "data: &all {name: folder, root: photos, image_size: 64}\nmodel: rra\ntrainer: {max_epochs: 2}\nseed_everything: 0x10\n",
    "model:\n  class_path: fgzoo.methods.IAGN\n  init_args:\n    lr: 1.0e-3\n    backbone: resnet18\ndata:\n  <<: {name: cub}\n"
    "trainer:\n  max_time: 00:01:00:00\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitor: val/top1}\n"
    "# from 2026-11-29 10:00:00\ntime: 12:30:45\n",
)


class Surface(NamedTuple):
    """Files of a kind, and what reads them.

    Attributes:
        files: What files are before they are damaged, by their path; the first of each stands there while another is damaged.
        read: Reads the file, among the others that it goes with, and checks what it answers.
        share: The part of the mutations that is tried, where reading takes long.
    """

    files: Mapping[Path, Sequence[bytes]]
    read: Callable[[Path], object]
    share: float = 1.0


class Outcome(NamedTuple):
    """What became of a mutation: `answer`, or the type of an error and what is wrong with it; and the processor's seconds."""

    number: int
    answer: str
    message: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether it is an answer or an error that was written for a person, in time."""
        return self.answer.isalpha()


# ---------------------------------------------------------------------- mutations

_WORD = re.compile(rb"[\w.+-]+")


def mutated(data: bytes, other: bytes, way: str, draw: Random) -> bytes:
    """A file damaged in one of the ways, mostly near its beginning or end, where formats keep their structure."""

    def place(size: int) -> int:
        near = min(int(size ** draw.random()), size) - 1
        return near if draw.random() < 0.7 else size - 1 - near

    if way == "truncate":
        return data[: place(len(data))]
    if way == "splice":
        return data[: place(len(data))] + other[place(len(other)) :]
    changed = bytearray(data)
    if way == "word":
        old, found = _WORD.search(data, place(len(data))), _WORD.search(other, place(len(other)))
        if old is not None:
            new = draw.choice(WORDS) if found is None or draw.random() < 0.5 else found[0]
            # In half of the files what counts bytes goes on fitting.
            changed[old.start() : old.end()] = draw.choice((new, new.ljust(len(old[0]))[: len(old[0])]))
    elif way == "flip":
        for _ in range(draw.choice((1, 1, 4, 16))):
            changed[place(len(data))] ^= 1 << draw.randrange(8)
    else:
        start, length = draw.randrange(64), draw.choice((1, 2, 4, 8))
        fill = (bytes(length), b"\xff" * length, b"\x7f" + bytes(length - 1), draw.randbytes(length))
        changed[start : start + length] = draw.choice(fill)
    return bytes(changed)


def attempt(name: str, surface: Surface, seed: int, number: int) -> Outcome:
    """Try a mutation; the file is whole again afterwards."""
    draw = Random(f"{name} {seed} {number}")
    path = draw.choice(list(surface.files))
    others = [data for contents in surface.files.values() for data in contents]
    path.write_bytes(mutated(draw.choice(surface.files[path]), draw.choice(others), WAYS[number % len(WAYS)], draw))
    answer, message, started = "answer", "", time.process_time()
    with watched() as seen:
        try:
            surface.read(path)
        except Exception as error:  # noqa: BLE001 - which is what this is about
            message = str(error)
            told = "" if path.name in message or str(path.parent) in message else ", of no file"
            answer = type(error).__name__ + (told if type(error).__module__ == errors.__name__ else ", untyped")
    seconds = time.process_time() - started
    path.write_bytes(surface.files[path][0])
    answer = f"{seen[0]}, forbidden" if seen else f"{answer}, slow" if seconds > SLOW else answer
    return Outcome(number, answer, message, seconds)


#: Those whose turn it is to be told.
_watchers: list[list[str]] = []


@functools.cache
def _watch() -> None:
    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if not _watchers:
            return
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
            _watchers[-1].append(f"{event} {arguments[0]}")

    sys.addaudithook(see)  # for as long as the process lives


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What is written, started or asked meanwhile."""
    _watch()
    _watchers.append([])
    try:
        yield _watchers[-1]
    finally:
        _watchers.pop()


# ---------------------------------------------------------------------- what is read


def surfaces(folder: Path) -> dict[str, Surface]:
    """Kinds of files by name, each with all that it needs below a folder of its own; of pictures, those that Pillow can write."""
    Image.init()
    kinds = {
        **{name: functools.partial(pictures, name=name) for name in PICTURES if name.upper() in Image.SAVE},
        "safetensors": safetensors, "Lightning checkpoint": lightning_checkpoint, "backbone weights": backbone_weights,
        "table (CSV, TSV)": tables, "split.csv": split_file, "CUB lists": cub, "aircraft lists": aircraft, "cars lists": cars,
        "config": configs, "config on the command line": command_lines,
    }  # fmt: skip
    found = {}
    for number, (name, make) in enumerate(kinds.items()):
        (own := folder / f"{number:02d}").mkdir()
        found[name] = make(own)
        for path, contents in found[name].files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[0])
    return found


def picture(file_format: str, mode: str, frames: int = 1, turned: bool = False, **options: Any) -> bytes:
    """A picture of noise in a file, or several in one."""
    draw, out = np.random.default_rng(len(mode)), io.BytesIO()
    shades = draw.integers(0, 255, (frames, 20, 28, 3))
    made = [Image.fromarray(one.astype(np.uint8)) for one in shades]
    # Pillow turns no colours into the modes of few and of many bits a sample.
    made = [one.convert("L").convert(mode) if mode in ("I;16", "F") else one.convert(mode) for one in made]
    if turned:
        options["exif"] = Image.Exif()
        options["exif"][0x112] = 6  # orientation
    if frames > 1:
        options |= {"save_all": True, "append_images": made[1:]}
    made[0].save(out, file_format, **options)
    return out.getvalue()


def pictures(folder: Path, name: str) -> Surface:
    """As `fgzoo predict` reads them, and as a training does."""

    def read(path: Path) -> None:
        if name == "JPEG":  # which a training reads at a part of its size
            with contextlib.suppress(DataError):
                decode(path, "pillow", enough=4)
        views, [error] = read_views([views_transform(CARD)], [path])
        if error is not None:
            raise DataError(error)
        assert views[0].shape == (1, 1, 3, CARD.image_size, CARD.image_size), views[0].shape

    return Surface({folder / f"a.{name.lower()}": [picture(name, mode, **options) for mode, options in PICTURES[name]]}, read)


def model() -> FineGrainedClassifier:
    """One that counts as trained."""
    made = create_model("baseline", len(CARD.class_names), "test_efficientnet", pretrained=False)
    made.card, made.trained = CARD, True
    made.calibration = Calibration.fit(torch.randn(40, 2), torch.arange(40) % 2)
    return made


def read_model(path: Path) -> None:
    """As `fgzoo predict` and `fgzoo test` do."""
    config_of(path, [])
    found = load(path)
    if found.card is not None:  # weights that do not say what they were trained on are taken, and predict asks for it
        assert len(found.predict(torch.zeros(3, 40, 50, dtype=torch.uint8))) == 1


def safetensors(folder: Path) -> Surface:
    """Models in single and half precision."""
    for dtype in ("float32", "float16"):
        save_safetensors(model(), folder / f"{dtype}.safetensors", dtype)
    return Surface({folder / "float32.safetensors": [path.read_bytes() for path in sorted(folder.iterdir())]}, read_model)


def lightning_checkpoint(folder: Path) -> Surface:
    """Models as a training keeps them."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model())
    trainer.save_checkpoint(folder / "last.ckpt")
    return Surface({folder / "last.ckpt": [(folder / "last.ckpt").read_bytes()]}, read_model)


def backbone_weights(folder: Path) -> Surface:
    """Weights in timm's format, in the two kinds of files."""
    network = timm.create_model("test_efficientnet")
    state = network.state_dict()
    for old in (True, False):
        torch.save({"model": state}, folder / f"{old}", _use_new_zipfile_serialization=old)
    files = {
        folder / "a.safetensors": [save(state)],
        folder / "a.pth": [(folder / name).read_bytes() for name in ("True", "False")],
    }
    return Surface(files, lambda path: load_weights(network, path, "test_efficientnet", set()))


PHOTOS = [
    f"{part}/{label}/{label[0]} ö{number}.jpg" for part in ("train", "test") for label in ("Crow", "Gull") for number in (1, 2)
]


def place_photos(folder: Path, names: Iterable[str] = PHOTOS) -> None:
    """Files that are there, which is all that lists want to know."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def check_listing(listing: Listing) -> None:
    """Whether all that is listed is there, and of a class that is."""
    assert all(record.path.is_file() and 0 <= record.target < len(listing.class_names) for record in listing.records)


def tables(folder: Path) -> Surface:
    """Tables as people's tools export them."""
    place_photos(folder)
    rows = [(name, name.split("/")[1], name.split("/")[0]) for name in PHOTOS]

    def text(separator: str, header: str, cells: Callable[[str, str, str], Sequence[str]] = lambda *cells: cells) -> str:
        out = io.StringIO(header)
        out.seek(0, io.SEEK_END)
        csv.writer(out, delimiter=separator).writerows(cells(*row) for row in rows)
        return out.getvalue()

    def marked(name: str, label: str, part: str) -> Sequence[str]:
        return (name.replace("/", "\\"), str(int(label == "Crow")), str(int(label == "Gull")), part)

    contents = [
        text(",", "path,label,split\n").encode(), text("\t", "").encode("utf-16"), text("|", "").encode(),
        ("\ufeff" + text(";", "sep=;\nDataset;filename;Crow;Gull;split\n", lambda *row: ("x", *marked(*row)))).encode(),
        text(",", '"image\npath","species"\n', lambda name, label, _: (f"C:/photos/{name}", label)).encode(),
    ]  # fmt: skip
    return Surface(
        {folder / "a.csv": contents, folder / "a.tsv": contents}, lambda path: check_listing(read_folder(folder, path))
    )


def split_file(folder: Path) -> Surface:
    """The table that a run keeps."""
    place_photos(folder / "photos")
    listing = read_folder(folder / "photos")
    write_split(folder / "split.csv", listing.class_names, {"train": listing.train, "test": listing.test})
    data = (folder / "split.csv").read_bytes()
    return Surface({folder / "split.csv": [data]}, lambda path: check_listing(read_split(path, listing)[1]))


def cub(folder: Path) -> Surface:
    """The lists of CUB-200-2011, whose format NABirds has."""
    names = [f"{number:03d}.{label}/{index}.jpg" for number, label in ((1, "Crow"), (2, "Gull")) for index in (1, 2, 3)]
    place_photos(folder / "images", names)
    lists = {
        "images.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "image_class_labels.txt": [f"{i} {int(name[:3])}" for i, name in enumerate(names, 1)],
        "train_test_split.txt": [f"{i} {int(name[-5] != '3')}" for i, name in enumerate(names, 1)],
        "classes.txt": ["1 001.Crow", "2 002.Gull"],
        "bounding_boxes.txt": [f"{i} 4.0 6.0 30.0 20.0" for i in range(1, 7)],
        "parts/parts.txt": ["1 left wing", "2 tail"],
        "parts/part_locs.txt": [f"{i} {part} 10.0 12.0 1" for i in range(1, 7) for part in (1, 2)],
    }
    return Surface(written_lists(folder, lists), lambda _: check_listing(read_cub(folder)))


def aircraft(folder: Path) -> Surface:
    """The lists of FGVC-Aircraft."""
    place_photos(folder / "images", [f"{i:07d}.jpg" for i in range(6)])
    lists = {
        "variants.txt": ["737-200", "A300B4"],
        "images_variant_trainval.txt": [f"{i:07d} {('737-200', 'A300B4')[i % 2]}" for i in range(4)],
        "images_variant_test.txt": [f"{i:07d} {('737-200', 'A300B4')[i % 2]}" for i in (4, 5)],
        "images_box.txt": [f"{i:07d} 3 5 40 36" for i in range(6)],
    }
    return Surface(written_lists(folder, lists), lambda _: check_listing(read_aircraft(folder)))


def written_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> dict[Path, Sequence[bytes]]:
    """Lists as the contents of files."""
    return {folder / name: ["".join(f"{line}\n" for line in lines).encode()] for name, lines in lists.items()}


def cars(folder: Path) -> Surface:
    """The list of Stanford Cars, in a file of MATLAB's."""
    place_photos(folder, [f"car_ims/{i:06d}.jpg" for i in range(6)])
    names = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    rows = np.empty((1, 6), dtype=[(name, object) for name in names])
    for i in range(6):
        rows[0, i] = (f"car_ims/{i:06d}.jpg", 3, 5, 40, 36, i % 2 + 1, int(i > 3))
    classes = np.empty((1, 2), dtype=object)
    classes[0] = "Acura RL Sedan 2012", "BMW M3 Coupe 2012"
    contents = []
    for compressed in (True, False):
        scipy.io.savemat(out := io.BytesIO(), {"annotations": rows, "class_names": classes}, do_compression=compressed)
        contents.append(out.getvalue())
    return Surface({folder / "cars_annos.mat": contents}, lambda _: check_listing(read_cars(folder)))


def configs(folder: Path) -> Surface:
    """Recipes, and files of one's own."""
    packaged = {path for files in recipe_files().values() for path in files}
    contents = [text.encode() for text in CONFIGS] + [path.read_bytes() for path in sorted(packaged)]
    return Surface({folder / "mine.yaml": contents}, lambda path: with_implied("fit", ["--config", str(path)]))


def command_lines(folder: Path) -> Surface:
    """The same by the whole parser, up to the run's own config."""

    def read(path: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            train("fit", ["--config", str(path), "--print_config"])

    return Surface(configs(folder).files, read, share=0.02)


# ---------------------------------------------------------------------- ten thousand times


def attempts(surface: tuple[str, Surface], seed: int, numbers: range, outcomes: Connection) -> None:
    """Try mutations one after the other, in a process of its own."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libjpeg and libtiff say what they repaired
    before = _peak()
    for number in numbers:
        outcomes.send((attempt(*surface, seed, number), _peak() - before))


def _peak() -> float:
    """The memory in MiB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tried(surface: tuple[str, Surface], seed: int, count: int) -> Iterator[tuple[Outcome, float]]:
    """Outcomes of mutations, and the memory in MiB that their process took at most; those that end it or say nothing, too."""
    context, number = multiprocessing.get_context("fork"), 0
    while number < count:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=attempts, args=(surface, seed, range(number, count), there), daemon=True)
        process.start()
        there.close()
        try:
            while number < count and here.poll(PATIENCE):
                yield here.recv()
                number += 1
            ended = f"hang, {PATIENCE:.0f} s"
        except EOFError:
            process.join()
            ended = f"crash, {process.exitcode}"
        process.kill()
        if number < count:
            yield Outcome(number, ended), 0.0
            number += 1


def run(*, count: int = 10_000, seed: int = 0, only: str = "*", write: str | None = None) -> None:
    """Damage files of every kind, and count what becomes of them.

    Args:
        count: Mutations of every kind.
        seed: Another seed, other mutations.
        only: Kinds to try, as a pattern (`*lists`).
        write: Name of the results; without one they are printed only. Kinds that stand there are skipped.
    """
    rows = [] if write is None else read_csv(common.RESULTS / f"{write}.csv")
    with tempfile.TemporaryDirectory() as folder:
        for name, surface in surfaces(Path(folder)).items():
            if not fnmatchcase(name, only) or any(row["what"] == name for row in rows):
                continue
            outcomes, memory = zip(*tried((name, surface), seed, max(1, round(count * surface.share))), strict=True)
            rows.append(counted(name, seed, outcomes) | {"memory_mib": round(max(memory))})
            shown = markdown_table([{column: row[column] for column in rows[-1]} for row in rows])
            write_report("Damaged files", f"{ABOUT}\n\n{shown}", rows, write)


def counted(name: str, seed: int, outcomes: Sequence[Outcome]) -> Row:
    """The row of a kind of files; what is wrong is printed, too."""
    for one in [one for one in outcomes if not one.fine][:20]:
        say(f"{name} {one.number}: {one.answer} after {one.seconds:.1f} s: {' '.join(one.message.split())[:300]}")

    def numbers(fine: bool) -> str:
        found = Counter(one.answer for one in outcomes if one.fine == fine and one.answer != "answer")
        return "; ".join(f"{answer} {number}" for answer, number in sorted(found.items()))

    row = {"what": name, "seed": seed, "mutations": len(outcomes), "answers": sum(one.answer == "answer" for one in outcomes)}
    slowest = max(one.seconds for one in outcomes)
    return row | {"named errors": numbers(True), "others": numbers(False) or "none", "slowest_s": f"{slowest:.2f}"}


if __name__ == "__main__":
    sys.exit(common.main(run))
