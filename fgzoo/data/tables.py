"""Tables of photos in the forms that people's tools export: which image is of which class, and in which split."""

from __future__ import annotations

import csv as csv_format
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fgzoo.data.images import image_suffixes
from fgzoo.data.lists import Row, read_text
from fgzoo.data.tree import SPLIT_NAMES, Labelled, Split, find_pictures, natural_order, split_of
from fgzoo.errors import DataError
from fgzoo.files import is_file

#: Usual names of columns, without case, spaces and signs; the first that a table has is taken.
PATH_COLUMNS = (
    "path", "filepath", "filepaths", "imagepath", "imagefilepath", "imgpath", "filename", "filenames", "imagename", "imagefile",
    "file", "files", "image", "images", "img", "photo", "picture", "imageid", "id",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "classname", "classlabel", "species", "speciesname", "scientificname", "class", "classes", "category",
    "categoryname", "target", "breed", "variety", "taxon", "tag", "y", "classid", "labelid", "categoryid",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "part", "dataset", "datasplit")
#: Words for splits by which a column of yes and no may mean other things.
AMBIGUOUS = ("valid", "dev", "eval", "evaluation")
FOLD_COLUMNS = ("fold", "folds", "kfold", "cv", "cvfold")

_EXPECTED = "a header such as path,label,split (filename, image, file; class, species, category, target; set, subset)"
_WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")
_YES, _NO = ("true", "yes", "t", "y", "1", "1.0"), ("false", "no", "f", "n", "0", "0.0")
#: How many rows decide how paths are to be read.
_PROBED = 50


class Table(NamedTuple):
    """The images of a table.

    Attributes:
        root: The folder that holds them all.
        splits: Class name and path below `root` of every image, by split, in natural order of the paths.
        notes: What was understood that the table does not say by itself.
    """

    root: Path
    splits: dict[Split, Labelled]
    notes: tuple[str, ...]


class _Columns(NamedTuple):
    """Where a table's columns are; `flags` mark their split by true and `classes` their class by 1; `unread` look as if read."""

    path: int
    label: int | None
    split: int | None
    flags: tuple[tuple[int, Split], ...] = ()
    classes: tuple[tuple[int, str], ...] = ()
    unread: tuple[int, ...] = ()


class _Entry(NamedTuple):
    row: Row
    said: str
    label: str
    split: Split


def read_image_table(csv: Path, root: Path | None = None) -> Table:
    """Read a table of images and classes.

    Separated by commas, semicolons, tabs, bars or single spaces, with or without a header, in UTF-8 or UTF-16. Columns are
    known by their usual names, or without a header by what they hold. Instead of a column of classes there may be one column a
    class, with a single 1 in every row; instead of one of splits, columns such as `is_valid` or `test` that say true or false.
    A column whose every cell is a split is that of the splits, whatever it is called; without any, folders called as splits are,
    in which all images lie, say it. Paths may be Windows', absolute, mere file names, or without suffix; they lie below `root`,
    or else beside the table.

    Args:
        csv: The table.
        root: The folder of the images; `None`: the table's own, or the one that holds all of its images.

    Returns:
        The images.

    Raises:
        DataError: The table cannot be read; a row is wrong (its line is named), contradicts another, or leads out of `root`.
    """
    if csv.suffix.lower() in _WORKBOOKS:
        raise DataError(f"{csv} is a workbook; save its sheet as CSV (UTF-8) and give that.")
    rows, separator = _rows(csv)
    header = _is_header(rows[0])
    columns = _named_columns(rows) if header else _guessed_columns(rows)
    entries = list(_entries(rows[header:], columns, len(rows[0].fields)))
    if not entries:
        raise DataError(f"{csv} lists no image.")
    places = _Places(csv, root)
    paths = places.find([entry.said for entry in entries])
    base, found = places.below_root(entries, paths)
    labels = [entry.label for entry in entries]
    by_folder = None if columns.split is not None or columns.flags else _splits_by_folder(found, labels)
    if by_folder is not None:
        entries = [entry._replace(split=split) for entry, split in zip(entries, by_folder, strict=True)]

    splits: dict[Split, Labelled] = {"train": []}
    seen: dict[str, _Entry] = {}
    repeated = 0
    for entry, path in zip(entries, found, strict=True):
        first = seen.setdefault(unicodedata.normalize("NFC", path.as_posix()), entry)
        if first is entry:
            splits.setdefault(entry.split, []).append((entry.label, path))
            continue
        for what, mine, theirs in (("of class", entry.label, first.label), ("in", entry.split, first.split)):
            if mine != theirs:
                raise entry.row.error(
                    f"{entry.said!r} is {what} {mine!r} here and {what} {theirs!r} on line {first.row.line}; remove one."
                )
        repeated += 1
    ordered = {split: sorted(listed, key=lambda item: natural_order(item[1].as_posix())) for split, listed in splits.items()}
    notes = [*_understood(rows[0], columns, header, separator), *places.notes]
    if by_folder is not None:
        notes.append(f"No column says the splits; they are those of the folders: {', '.join(sorted(set(by_folder)))}.")
    if repeated:
        notes.append(f"Rows left out because they repeat another one: {repeated}.")
    return Table(base, ordered, tuple(notes))


# ---------------------------------------------------------------------- rows and columns


def _rows(csv: Path) -> tuple[list[Row], str]:
    """The rows that hold something, header included, and what separates their cells."""
    text = read_text(csv)
    if "\0" in text:
        raise DataError(f"{csv} is no text file; save the table as CSV (UTF-8).")
    said = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
    if said:
        text = "\n" + text[said.end() :]
    separator = said[1] if said else max(",;\t| ", key=lambda sign: _cells_of_first(text, sign))
    reader = csv_format.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    rows, last = [], 0
    try:
        for fields in reader:
            start, last = last + 1, reader.line_num
            if any(field.strip() for field in fields):
                rows.append(Row(csv, start, tuple(fields)))
    except csv_format.Error as error:
        raise Row(csv, last + 1, ()).error(f"not a CSV line ({error}).") from error
    if not rows:
        raise DataError(f"{csv} is empty.")
    if len(rows[0].fields) < 2:
        raise rows[0].error(f"one column only, {rows[0].fields[0]!r}; expected {_EXPECTED}.")
    return rows, separator


def _cells_of_first(text: str, separator: str) -> float:
    """How many cells the first row that holds something has; a space separates only where nothing else does."""
    reader = csv_format.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        count = next((len(fields) for fields in reader if any(field.strip() for field in fields)), 0)
    except csv_format.Error:
        return 0
    return min(count, 1.5) if separator == " " else count


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _is_header(first: Row) -> bool:
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS}
    return any(_plain(name) in known for name in first.fields) and not any(map(_names_image, first.fields))


def _names_image(cell: str) -> bool:
    return Path(cell.strip()).suffix.lower() in image_suffixes()


def _named_columns(rows: Sequence[Row]) -> _Columns:
    header = rows[0]
    names = [_plain(name) for name in header.fields]
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise header.error(f"two columns are called {repeated[0]!r}; rename one.")

    def known(usual: Sequence[str]) -> list[int]:
        return [names.index(name) for name in usual if name in names]

    def cells(column: int) -> list[str]:
        return [row.fields[column].strip() for row in rows[1:] if len(row.fields) > column]

    def one_to_one(column: int, other: int) -> bool:
        return len(set(cells(column))) == len(set(cells(other))) == len(set(zip(cells(column), cells(other), strict=False)))

    path = next(iter(known(PATH_COLUMNS)), None)
    labels, splits = known(LABEL_COLUMNS), known(SPLIT_COLUMNS)
    label = next(iter(labels), None)
    if label is not None and all(map(_is_number, cells(label))):  # names may stand beside it
        label = next((i for i in labels if not all(map(_is_number, cells(i))) and one_to_one(i, label)), label)
    split = next((i for i in splits if any(map(split_of, cells(i)))), None)
    if split is None and "split" in names:
        split = names.index("split")  # whose row is named that says something else
    whole = [i for i in range(len(names)) if i not in (path, label) and _all_splits(rows[1:], i)]
    # One of another name says splits where it tells training images from others.
    telling = [i for i in whole if {"train"} < {*map(split_of, cells(i))}]
    if split is None and telling:
        if len({tuple(map(split_of, cells(i))) for i in telling}) > 1:
            listed = " and ".join(repr(header.fields[i]) for i in telling)
            raise header.error(f"columns {listed} contradict each other; call the one that says the splits split.")
        split = telling[0]
    flags = [(i, said) for i, name in enumerate(names) if name[:2] == "is" and (said := split_of(name[2:]))]
    bare = [(i, said) for i, name in enumerate(names) if i not in (path, label, split) and (said := split_of(name))]
    plain = [flag for flag in bare if names[flag[0]] not in AMBIGUOUS]
    yes_or_no = [flag for flag in plain if all(cell.lower() in (*_YES, *_NO) for cell in cells(flag[0]))]
    no_classes = (path, split, *known(FOLD_COLUMNS), *(i for i, _ in flags))
    others = [i for i, name in enumerate(names) if name and i not in no_classes]

    def marks(columns: Sequence[int]) -> tuple[bool, bool]:
        """Whether columns say 0 or 1 alone; and whether in every row one of them says 1."""
        found = list(zip(*map(cells, columns), strict=False))
        marked = len(columns) > 1 and all(mark in ("0", "1", "0.0", "1.0") for row in found for mark in row)
        return marked, marked and all(sum(map(float, row)) == 1 for row in found)

    unflagged = [i for i in others if i not in dict(yes_or_no)]
    # A class may be called train: then the others alone leave rows without one.
    if label is not None or not unflagged or marks(unflagged)[1] or not marks(others)[1]:
        flags, others = sorted([*flags, *yes_or_no]), unflagged
    marked, one_each = marks(others)
    classes: tuple[tuple[int, str], ...] = ()
    if marked and (label is None or one_each):
        classes, label = tuple((i, header.fields[i]) for i in others), None
    if path is None or (label is None and not classes):
        missing = "images" if path is None else "classes"
        raise header.error(f"no column of {missing} among {', '.join(header.fields)}; expected {_EXPECTED}.")
    unread = [i for i in labels if label is not None and not one_to_one(i, label)]
    unread += [*splits, *known(FOLD_COLUMNS), *whole, *dict(bare), *dict(flags)]
    flags = flags if split is None else []
    read = (split, *dict(flags), *(others if classes else ()))
    return _Columns(path, label, split, tuple(flags), classes, tuple(i for i in dict.fromkeys(unread) if i not in read))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.0*)?", cell) is not None


def _guessed_columns(rows: Sequence[Row]) -> _Columns:
    first = rows[0]
    cells = range(len(first.fields))
    path = next((i for i in cells if _names_image(first.fields[i])), None)
    if path is None:
        raise first.error(f"neither {_EXPECTED} nor an image's file name among {', '.join(map(repr, first.fields))}.")
    split = next((i for i in cells if i != path and len(cells) > 2 and _all_splits(rows, i)), None)
    others = [i for i in cells if i not in (path, split) and first.fields[i].strip()]
    if len(others) != 1:
        raise first.error(f"{len(others)} columns may be the class; give the table {_EXPECTED}.")
    return _Columns(path, others[0], split)


def _all_splits(rows: Sequence[Row], column: int) -> bool:
    return all(len(row.fields) > column and split_of(row.fields[column]) for row in rows)


def _entries(rows: Sequence[Row], columns: _Columns, width: int) -> Iterator[_Entry]:
    for row in rows:
        if len(row.fields) < width or any(cell.strip() for cell in row.fields[width:]):
            raise row.error(f"expected {width} columns, found {len(row.fields)}.")
        said = row.fields[columns.path].strip()
        if columns.label is not None:
            label = row.fields[columns.label].strip()
        else:
            marked = [name for i, name in columns.classes if float(row.fields[i]) == 1]
            if len(marked) != 1:
                raise row.error(f"{len(marked)} classes are marked; expected one, since an image is of one class here.")
            label = marked[0].strip()
        if not said or not label:
            raise row.error("path and label must not be empty.")
        if label in ("nan", "NaN"):
            raise row.error(f"the label is {label!r}, as tools write an empty cell; name the class, or remove the row.")
        yield _Entry(row, said, unicodedata.normalize("NFC", label), _split(row, columns))


def _split(row: Row, columns: _Columns) -> Split:
    """The split of a row: what its cell says, or the one that is marked; training where none is and that is not marked, too."""
    if columns.split is not None:
        if split := split_of(row.fields[columns.split]):
            return split
        raise row.error(f"unknown split {row.fields[columns.split]!r}; choose {SPLIT_NAMES}.")
    marked = []
    for i, split in columns.flags:
        said = row.fields[i].strip().lower()
        if said not in (*_YES, *_NO):
            raise row.error(f"{row.fields[i]!r} does not say whether the image is in {split}; write true or false.")
        marked += [split] if said in _YES else []
    if not marked and "train" not in dict(columns.flags).values():
        return "train"
    if len(set(marked)) != 1:
        raise row.error(f"the image is in {' and '.join(marked) or 'no split'}; give a column split that says {SPLIT_NAMES}.")
    return marked[0]


def _splits_by_folder(paths: Sequence[Path], labels: Sequence[str]) -> list[Split] | None:
    """The splits of the folders that images lie in, the outermost that means one and is no class.

    `None` where an image has none, or they do not tell training images from others.
    """
    depth = len(Path(os.path.commonpath([path.parent for path in paths])).parts)
    splits: list[Split] = []
    for path, label in zip(paths, labels, strict=True):
        said = [split for name in path.parent.parts[depth:] if name != label and (split := split_of(name))]
        splits += said[:1]
    return splits if len(splits) == len(paths) and {"train"} < set(splits) else None


def _understood(first: Row, columns: _Columns, header: bool, separator: str) -> list[str]:
    found = [("images", columns.path), ("classes", columns.label), ("splits", columns.split)]
    found += [("splits", i) for i, _ in columns.flags]
    usual = {"images": "path", "classes": "label", "splits": "split"}
    shown = [f"{what} from column {repr(first.fields[i]) if header else i + 1}" for what, i in found if i is not None]
    if columns.classes:
        shown.append(f"classes from {len(columns.classes)} columns that mark them by 1")
    elif header and separator == "," and all(i is None or first.fields[i] == usual[what] for what, i in found):
        shown = []
    notes = [f"{first.path.name}: {', '.join(shown)}."] if shown else []
    if columns.unread:
        unread = ", ".join(repr(first.fields[i]) for i in columns.unread)
        notes.append(f"{first.path.name}: not read: {unread}; one column says the classes, and one the splits: {SPLIT_NAMES}.")
    return notes


# ---------------------------------------------------------------------- paths


class _Places:
    """Where the images of a table are: one way of reading its paths, which some of its first rows decide.

    Attributes:
        notes: What was made of the paths, where it is not what they say.
    """

    def __init__(self, csv: Path, root: Path | None) -> None:
        self.given = root is not None
        self.root = csv.parent if root is None else root
        self.beside = csv.parent
        self.notes: list[str] = []

    def find(self, said: Sequence[str]) -> list[Path]:
        """A path for every one that is listed, whether a file is there or not."""
        said = [text.replace("\\", "/") for text in said]
        probed = said[:_PROBED]
        for base in dict.fromkeys((self.root, self.beside)):
            if any(is_file(base / text) for text in probed):
                return [self._as_stored(base / text) for text in said]
        deepest = max(len(Path(text).parts) for text in probed)
        for dropped in range(deepest):
            keys = [_key("/".join(Path(text).parts[dropped:])) for text in said]
            if any(key in self._by_key for key in keys[:_PROBED]):
                if dropped:
                    example = "/".join(Path(probed[0]).parts[:dropped])
                    self.notes.append(f"Paths are read below {self.root}, without what stands before ({example}).")
                return [self._by_key.get(key, self.root / text) for key, text in zip(keys, said, strict=True)]
        by_name: list[tuple[Callable[[Path], str], str]] = [
            (lambda path: path.name, "the names of their files"),
            (lambda path: path.stem, "the names of their files without suffix"),
        ]
        for name_of, what in by_name:
            index: dict[str, list[Path]] = {}
            for path in self._by_key.values():
                index.setdefault(_key(name_of(path)), []).append(path)
            keys = [_key(Path(text).name) for text in said]
            if any(key in index for key in keys[:_PROBED]):
                if twice := [key for key in dict.fromkeys(keys) if len(index.get(key, ())) > 1]:
                    listed = " and ".join(map(str, index[twice[0]][:2]))
                    raise DataError(f"{twice[0]!r} may be {listed}; list the images by their paths below {self.root}.")
                self.notes.append(f"Images are found by {what}.")
                return [index[key][0] if key in index else self.root / text for key, text in zip(keys, said, strict=True)]
        return [self.root / text for text in said]

    def below_root(self, entries: Sequence[_Entry], paths: Sequence[Path]) -> tuple[Path, list[Path]]:
        """The folder that holds all images, and their paths below it.

        Raises:
            DataError: One lies outside of the root that was given.
        """
        root, real = _absolute(self.root), self.root.resolve()
        whole = []
        outside: _Entry | None = None
        for entry, path in zip(entries, map(_absolute, paths), strict=True):
            if not path.is_relative_to(root) and path.is_relative_to(real):
                path = root / path.relative_to(real)
            if outside is None and not path.is_relative_to(root):
                outside = entry
            whole.append(path)
        if outside is not None:
            common = Path(os.path.commonpath([path.parent for path in whole]))
            if self.given:
                raise outside.row.error(
                    f"{outside.said!r} lies outside of {self.root}; give the folder that holds all images: --data.root {common}"
                )
            root = common
        return root, [path.relative_to(root) for path in whole]

    @cached_property
    def _by_key(self) -> dict[str, Path]:
        """The images below the root, by their path without case and with composed accents; empty where there is no folder."""
        found = find_pictures(self.root) if self.root.is_dir() else []
        return {_key(path.relative_to(self.root).as_posix()): path for path in found}

    def _as_stored(self, path: Path) -> Path:
        """A path as the file system spells it: it may tell case, or composed from decomposed accents."""
        if is_file(path) or not path.is_relative_to(self.root):
            return path
        return self._by_key.get(_key(path.relative_to(self.root).as_posix()), path)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links in it stay, `..` does not


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
