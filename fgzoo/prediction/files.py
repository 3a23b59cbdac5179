"""What `fgzoo predict` reads and writes: paths in, tables out, and how far it has come."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fgzoo.data.images import picture_suffixes
from fgzoo.data.tree import LITTER, find_pictures, folders_above, natural_order, walk
from fgzoo.errors import TrainingError, UsageError
from fgzoo.files import atomic_write, user_path
from fgzoo.prediction import Form
from fgzoo.prediction.inference import BatchValues, Prediction

# ---------------------------------------------------------------------- in

#: What a list may begin with, by which Windows marks its encoding.
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def image_paths(arguments: Sequence[str], stdin: TextIO, verb: str = "predict") -> list[Path]:
    """The image files that arguments mean, in the arguments' order.

    A file stands for itself, whatever its name; a folder for the images below it, in natural order and without litter; a pattern
    (`*`, `?`, `[...]`, `**` for folders at any depth) for the images and folders it matches; `-` for a list of files and folders
    on standard input. A path where nothing is or that cannot be looked at, a folder without images or that cannot be read, and a
    pattern without matches stand for themselves and end as rows with an error.

    Args:
        arguments: Paths, patterns, `-`.
        stdin: Where `-` reads one path a line.
        verb: Who complains.

    Returns:
        The paths, as given or as found.

    Raises:
        UsageError: Folders, patterns and lists hold not one image.
    """
    named = [(name, argument != "-") for argument in arguments for name in (_lines(stdin) if argument == "-" else [argument])]
    found: list[Path] = []
    empty = 0
    for name, typed in named:
        name = str(user_path(name)) if name.startswith("~") else name
        path = Path(name)
        # Brackets are common in names, so what exists is no pattern.
        pattern = typed and glob.has_magic(name) and not os.path.exists(path)  # noqa: PTH110 - Path.exists raises
        matches = _matches(name) if pattern else find_pictures(path) if os.path.isdir(path) else [path]  # noqa: PTH112
        empty += not matches
        found += matches or [path]
    if empty == len(named):  # true of an empty list, too
        listed = ", ".join(f"'{argument}'" for argument in arguments[:3]) + (" ..." if len(arguments) > 3 else "")
        raise UsageError(
            f"{verb}: no images in {listed}; files with the usual suffixes, such as .jpg, .png, .heic, are looked for"
        )
    return found


def _lines(stdin: TextIO) -> list[str]:
    """One path a line, or as `find -print0` separates them; in an encoding that a mark at the beginning says."""
    if isinstance(stdin, io.TextIOWrapper):
        content = stdin.buffer.read()
        marked = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), None)
        # File names need not be valid UTF-8.
        text = content.decode(marked or stdin.encoding, "replace" if marked == "utf-16" else "surrogateescape")
    else:
        text = stdin.read()
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line]


def _matches(pattern: str) -> list[Path]:
    # A slash at the end asks for folders alone.
    parts = [*Path(pattern).parts, *([""] if pattern.endswith(("/", os.sep)) and not pattern[:-1].endswith("**") else [])]
    found: list[Path] = []
    for match in sorted(_globbed(Path(), parts), key=lambda path: natural_order(path.as_posix())):
        if any(part.lower() in LITTER for part in match.parts):  # hidden files match no pattern by themselves
            continue
        if os.path.isdir(match):  # noqa: PTH112
            found += find_pictures(match, folders_above(match))
        elif match.suffix.lower() in picture_suffixes():
            found.append(match)
    # `**` matches folders as well as the images in them.
    return list(dict.fromkeys(found))


def _globbed(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """What a pattern, by its parts, matches in a folder, and what cannot be read where `**` looks."""
    plain = list(itertools.takewhile(lambda part: part != "**", pattern))
    rest = pattern[len(plain) + 1 :]
    # Path.glob refuses absolute patterns, and Python's own `**` follows links back.
    for match in glob.glob(os.path.join(*plain), root_dir=folder) if plain else [""]:  # noqa: PTH118, PTH207
        start = folder / match
        if not rest:
            yield start
        elif os.path.isdir(start):  # noqa: PTH112
            for path, what in walk(start, folders_above(start)):
                if what == "folder":
                    yield from _globbed(path, rest)
                elif what == "unread":
                    yield path


def find_device(name: str, verb: str = "predict") -> torch.device:
    """The device of a name; `auto` is the first of CUDA, MPS and the CPU that there is.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:0`, `mps`.
        verb: Who complains.

    Returns:
        The device.

    Raises:
        UsageError: There is no such device here.
    """
    available = [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)]
    here = [kind for kind, there in available if there]
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{verb}: --device '{name}' is none of auto, cpu, cuda, cuda:0, mps") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in here or (device.index or 0) >= count:
        raise UsageError(f"{verb}: --device {name} is not on this machine; it has {', '.join(here)}")
    return device


# ---------------------------------------------------------------------- out


class Features(NamedTuple):
    """The features of all images.

    Shape:
        - values: (N, D) float32; the rows of images without an answer are NaN
        - errors: why they have none, `None` for the others
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    errors: list[str | None]


def write_predictions(
    output: Path | None, form: Form | None, paths: Sequence[Path], predictions: Iterable[Prediction], columns: int
) -> None:
    """Write predictions while they come.

    Args:
        output: A file, which keeps the rows that are done when Ctrl-C ends it; `None`: standard output, each row as it comes.
        form: `csv` or `jsonl`; `None`: a table for a person.
        paths: The images.
        predictions: One an image.
        columns: Classes a row.
    """
    rows = zip(paths, predictions, strict=True)
    if form is None:
        _show(rows)
    elif form == "jsonl":
        _write_jsonl(output, (_record(path, prediction) for path, prediction in rows))
    else:
        ranked = (f"{what}_{rank}" for rank in range(1, columns + 1) for what in ("class", "probability"))
        header = ["path", "class", "accepted", *ranked, "error"]
        _write_csv(output, header, (_cells(path, prediction, columns) for path, prediction in rows))


def write_features(output: Path | None, form: Form, paths: Sequence[Path], found: Features) -> None:
    """Write features.

    Args:
        output: A file; `None`: standard output.
        form: `npy`: an array (N, D) alone; `npz`: `features`, `paths` and `errors`; `csv` with the columns path, f0, f1 ... and
            error; `jsonl` with the keys path, features and error.
        paths: The images.
        found: Their features.
    """
    names = [str(path) for path in paths]
    errors = [error or "" for error in found.errors]
    if output is not None and form in ("npy", "npz"):
        with atomic_write(output) as part, part.open("wb") as binary:
            if form == "npy":
                np.save(binary, found.values)
            else:
                np.savez(binary, features=found.values, paths=np.array(names), errors=np.array(errors))
        return
    rows = zip(names, ([f"{x:.7g}" for x in row] for row in found.values.tolist()), found.errors, strict=True)
    if form == "jsonl":
        numbers = ((name, [] if error else [float(x) for x in row], error) for name, row, error in rows)
        _write_jsonl(output, ({"path": name, "features": row, "error": error} for name, row, error in numbers))
    else:
        header = ["path", *(f"f{index}" for index in range(found.values.shape[1])), "error"]
        _write_csv(output, header, ([name, *([""] * len(row) if error else row), error or ""] for name, row, error in rows))


def _write_csv(output: Path | None, header: list[str], rows: Iterable[list[str]]) -> None:
    line = io.StringIO(newline="")
    writer = csv.writer(line)  # which quotes what its own line ends are made of

    def line_of(row: list[str]) -> str:
        line.seek(0)
        line.truncate()
        writer.writerow(row)
        return f"{line.getvalue().removesuffix(writer.dialect.lineterminator)}\n"

    _write_lines(output, line_of(header), map(line_of, rows))


def _write_jsonl(output: Path | None, rows: Iterable[dict[str, Any]]) -> None:
    _write_lines(output, "", (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_lines(output: Path | None, header: str, rows: Iterable[str]) -> None:
    r"""Write lines, each in one piece, in UTF-8; the rows that are written when Ctrl-C, a signal, or want of memory ends it stay.

    A byte of a file's name that is no UTF-8 comes out as \udcXX, JSON's own way of writing it.
    """
    errors = "backslashreplace"
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors=errors)
        for line in itertools.chain([header], rows):
            sys.stdout.write(line)
            sys.stdout.flush()
        return
    done = 0
    end: KeyboardInterrupt | TrainingError | None = None
    with atomic_write(output) as part, part.open("w", encoding="utf-8", errors=errors, newline="") as file:
        file.write(header)
        try:
            for row in rows:
                file.write(row)
                done += 1
        except (KeyboardInterrupt, TrainingError) as error:
            if not done:
                raise
            end = error
    if end is not None:
        end.args = ("; ".join([*map(str, end.args), f"{output} holds the {done} rows that were done"]),)
        raise end


def _record(path: Path, prediction: Prediction) -> dict[str, Any]:
    shares = [float(f"{share:.6g}") for share in prediction.probabilities]
    answer = {"path": str(path), "class": prediction.label, "accepted": prediction.accepted}
    return answer | {"classes": list(prediction.classes), "probabilities": shares, "error": prediction.error}


def _cells(path: Path, prediction: Prediction, columns: int) -> list[str]:
    if prediction.error is not None:
        return [str(path), *[""] * (2 + 2 * columns), prediction.error]
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked = [cell for name, share in pairs for cell in (name, f"{share:.6g}")]
    return [str(path), prediction.label or "", json.dumps(prediction.accepted), *ranked, ""]


def _show(rows: Iterable[tuple[Path, Prediction]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("image", "class", "probability", "then"):
        table.add_column(title, overflow="fold", justify="right" if title == "probability" else "left")
    try:
        _fill(table, rows)
    finally:  # what is done when Ctrl-C ends it
        if table.row_count:
            Console().print(table)


def _fill(table: Table, rows: Iterable[tuple[Path, Prediction]]) -> None:
    for path, found in rows:
        name = str(path).encode(errors="replace").decode()
        if found.error is not None:
            table.add_row(Text(name), Text(found.error, style="red"))
            continue
        ranked = [f"{other} {share:.1%}" for other, share in zip(found.classes, found.probabilities, strict=True)]
        style, share = ("bold", f"{found.probabilities[0]:.1%}") if found.accepted else ("yellow", "")
        then = Text(", ".join(ranked[1 if found.accepted else 0 :]), style="dim")
        table.add_row(Text(name), Text(found.label or "", style=style), share, then)


# ---------------------------------------------------------------------- how far


class _Answer(Protocol):
    @property
    def error(self) -> str | None:
        """Why there is none."""

    @property
    def accepted(self) -> bool | None:
        """Whether the image looks like those that the model knows."""


Outcome = TypeVar("Outcome", bound=_Answer)


class Watch(AbstractContextManager["Watch"]):
    """Counts answers and seconds; on a terminal, shows a bar.

    Args:
        total: Number of images.
        verb: What the bar is called.
        shown: Whether there may be a bar.

    Attributes:
        unknown: Images called so, and
        failed: images without an answer, so far.
    """

    def __init__(self, total: int, verb: str = "predict", shown: bool = True) -> None:
        self.total = total
        self.unknown = 0
        self.failed = 0
        self.seconds = 0.0
        self._console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not (shown and self._console.is_terminal))
        self._task = self._bar.add_task(verb, total=total)
        self._bar.start()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._bar.stop()

    def predictions(self, predictions: Iterable[Outcome]) -> Iterator[Outcome]:
        """Count predictions, or explanations, on their way."""
        for prediction in predictions:
            self.unknown += prediction.accepted is False
            self._count(prediction.error)
            yield prediction

    def features(self, batches: Iterable[BatchValues]) -> Features:
        """Collect the batches, NaN where there is no answer."""
        errors: list[str | None] = []
        values: list[torch.Tensor] = []
        for batch in batches:
            for error in batch.errors:
                self._count(error)
            errors += batch.errors
            values.append(batch.values)
        good = torch.cat(values).float().numpy()
        found = np.full((len(errors), good.shape[1]), np.nan, np.float32)
        found[[error is None for error in errors]] = good
        return Features(found, errors)

    def _count(self, error: str | None) -> None:
        self.failed += error is not None
        self._bar.advance(self._task)

    def report(self) -> None:
        """One line on stderr."""
        counts = {"unknown": self.unknown, "without an answer": self.failed}
        told = "".join(f"; {count} {what}" for what, count in counts.items() if count)
        rate = f"{self.total} images in {self.seconds:.1f} s ({self.total / max(self.seconds, 1e-9):.1f} images/s){told}"
        self._console.print(f"fgzoo: {rate}", highlight=False)
