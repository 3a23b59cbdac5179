"""Folders of photos: what lies in them, and which of them are splits and which are classes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from fgzoo.data.images import image_suffixes, picture_suffixes, why_unread
from fgzoo.errors import DataError
from fgzoo.wording import first_five

Split = Literal["train", "val", "test"]

#: One split: class name and image path, in natural order.
Labelled = list[tuple[str, Path]]

#: What systems leave behind beside hidden files, in lower case.
LITTER = (
    "__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information",
    "lost+found",
)  # fmt: skip

_SPLIT_WORDS: dict[Split, str] = {
    "train": "train[ _-]?val|train|training|trn",
    "val": "val|valid|validate|validation|vld|dev",
    "test": "test|testing|tst|eval|evaluation|holdout",
}
_SPLIT = f"(?:{'|'.join(f'(?P<{split}>{words})' for split, words in _SPLIT_WORDS.items())})"
_SPLIT += r"(?:[ _-]?(?:set|split|part|data|images?|imgs?))?"

#: What `split_of` understands, for messages.
SPLIT_NAMES = "train, val or test (also training, valid, validation, dev, testing)"


def split_of(name: str) -> Split | None:
    """The split that a folder's name or a cell of a table means, in any case; `None` where it means none."""
    match = re.fullmatch(_SPLIT, name.strip(), re.IGNORECASE)
    return cast("Split", match.lastgroup) if match else None


def split_within(name: str) -> Split | None:
    """The one split that a word of a folder's name means, as in `seg_train` or `01_val2017`; `None` where there is none."""
    words = re.finditer(rf"(?<![^\W\d_]){_SPLIT}(?![^\W\d_])", name, re.IGNORECASE)
    said = {match.lastgroup for match in words}
    return cast("Split", said.pop()) if len(said) == 1 else None


def natural_order(text: str) -> tuple[list[str | tuple[int, str]], str, str]:
    """Sort key of paths under which `image2` comes before `image10`, independent of locale and file system."""
    composed = unicodedata.normalize("NFC", text)  # some file systems store accents as characters of their own
    pieces: list[str | tuple[int, str]] = []
    for index, piece in enumerate(re.split(r"([0-9]+)", composed)):
        digits = piece.lstrip("0")
        pieces.append((len(digits), digits) if index % 2 else piece.casefold())
    return pieces, composed, text


# ---------------------------------------------------------------------- what lies there


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder without litter, in natural order.

    Attributes:
        path: Where it is.
        images: Files whose suffix is that of an image that can be read.
        others: Other files.
        folders: Its subfolders.
        hidden: Subfolders whose name begins with a dot, which are left out.
        count: Images at any depth.
    """

    path: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]
    folders: tuple[Folder, ...]
    hidden: tuple[Path, ...]
    count: int

    @property
    def nested(self) -> bool:
        """Whether a subfolder holds images, at any depth."""
        return any(folder.count for folder in self.folders)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def scan(path: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Folder:
    """What lies in a folder, at any depth.

    Args:
        path: The folder; symbolic links are followed.
        above: Device and number of the folders that this one lies in; a link back to one of them is not followed.

    Returns:
        The folder.

    Raises:
        DataError: A folder cannot be read.
    """
    try:
        found = _contents(path, above)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    files = [child for child, is_folder in found.children if not is_folder]
    folders = tuple(scan(child, found.within) for child, is_folder in found.children if is_folder)
    suffixes = image_suffixes()
    images = tuple(file for file in files if file.suffix.lower() in suffixes)
    others = tuple(file for file in files if file.suffix.lower() not in suffixes)
    count = len(images) + sum(folder.count for folder in folders)
    return Folder(path, images, others, folders, found.hidden, count)


def walk(
    path: Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[Path, Literal["file", "folder", "unread"]]]:
    """A folder and what lies below it at any depth, in natural order and without litter, while it is read.

    Args:
        path: The folder; symbolic links are followed.
        above: Device and number of the folders that this one lies in; a link back to one of them is not followed.

    Yields:
        Paths, each with what it is; a folder that cannot be read is `unread`.
    """
    try:
        if _leads_back(path, above):
            return
        found = _contents(path, above)
    except OSError:
        yield path, "unread"
        return
    yield path, "folder"
    for child, is_folder in found.children:
        if is_folder:
            yield from walk(child, found.within)
        else:
            yield child, "file"


def find_pictures(path: Path, above: frozenset[tuple[int, int]] = frozenset()) -> list[Path]:
    """The pictures that [walk][] finds, and the folders that cannot be read, perhaps this one itself.

    Pictures that need a package, and cameras' raw files, are among them, so that no photo is passed over in silence.
    """
    suffixes = picture_suffixes()
    found = walk(path, above)
    return [inner for inner, what in found if what == "unread" or (what == "file" and inner.suffix.lower() in suffixes)]


def folders_above(path: Path) -> frozenset[tuple[int, int]]:
    """Device and number of the folders that a path lies in, as [walk][] takes them."""
    return frozenset(map(_identity, Path(os.path.realpath(path.parent), "_").parents))


class _Contents(NamedTuple):
    """What lies in a folder itself, in natural order and without litter.

    Attributes:
        children: Files and folders, each with whether it is a folder.
        hidden: Folders whose name begins with a dot.
        within: Device and number of this folder and those above it.
    """

    children: list[tuple[Path, bool]]
    hidden: tuple[Path, ...]
    within: frozenset[tuple[int, int]]


def _contents(path: Path, above: frozenset[tuple[int, int]]) -> _Contents:
    within = above | {_identity(path)}
    with os.scandir(path) as entries:
        # What the folder itself says of its files costs no look at each of them.
        found = [(path / entry.name, _is_folder(entry)) for entry in entries if entry.name.lower() not in LITTER]
    hidden = tuple(sorted(child for child, is_folder in found if child.name[0] == "." and is_folder))
    seen = ((child, is_folder) for child, is_folder in found if child.name[0] != ".")
    kept = [(child, is_folder) for child, is_folder in seen if not (is_folder and _leads_back(child, within))]
    return _Contents(sorted(kept, key=lambda one: natural_order(one[0].name)), hidden, within)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(path: Path, above: frozenset[tuple[int, int]]) -> bool:
    """Whether a path is a symbolic link to one of the folders above it."""
    return path.is_symlink() and _identity(path) in above


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


# ---------------------------------------------------------------------- what it means


#: Innermost folders with images, and their names below a folder.
_Leaves = list[tuple[tuple[str, ...], Folder]]


class ClassFolders(NamedTuple):
    """Images by split and class.

    Attributes:
        splits: Class name and path below the root of every image, by split; class folders and images are in natural order.
        notes: Where they were found, and what was left out and why.
    """

    splits: dict[Split, Labelled]
    notes: tuple[str, ...]


def read_class_folders(root: Path) -> ClassFolders:
    """Find the splits and classes of a folder of photos.

    * Splits are folders called train, val and test, in any case, or as other tools call them ([split_of][]), or with a word
      of that ([split_within][]) where none is called so alone; without any, everything is training data. `CLASS/train/*`,
      splits inside of classes, are read, too. Folders that hold the same class names and are called otherwise are refused.
    * Classes are the innermost folders with images; a class is called by its folder's name, or by its path where a split
      has two folders of that name.
    * Where all classes lie in one inner folder, as after unpacking an archive, that folder is read.

    Args:
        root: The folder.

    Returns:
        Splits and notes.

    Raises:
        DataError: Images lie in no class folder, or beside class folders inside of one; a class folder is empty; two folders
            are the same split; there is no training part; it is not clear which folders are splits.
    """
    tree = scan(root)
    if not tree.count:
        raise DataError(_nothing_in(tree))
    top = tree
    while (found := _split_folders(top)) is None and (inner := _only_child(top)):
        top = inner
    notes = [] if top is tree else [f"Read from {_name(top.path, root)}, in which everything lies."]
    parts = {split: _innermost(folder) for split, folder in (found or {"train": top}).items()}
    leaves = {split: list(_class_folders(folder)) for split, folder in parts.items()}
    if found is None and (within := _splits_within_classes(top, leaves["train"])):
        leaves = within
    else:
        for folder in parts.values():
            _check_no_split_is_a_class(folder)
    if not leaves.get("train") or (len(leaves["train"]) == 1 and _tables(tree)):
        raise DataError(f"{tree.path} holds {tree.count} images and no class folders. {_ways_out(tree)}")
    names = _class_names(leaves)
    nested = [path for members in leaves.values() for path, _ in members if len(path) > 1]
    if found is not None or "test" not in leaves:
        notes += [f"Classes are the innermost folders: {'/'.join(nested[0])} is class {names[nested[0]]!r}."] if nested else []
    splits = {
        split: [(names[path], image.relative_to(root)) for path, folder in members for image in folder.images]
        for split, members in leaves.items()
    }
    used = {root / image for labelled in splits.values() for _, image in labelled}
    beside = [child for child in top.folders if found and child.nested and child not in found.values()]
    if beside:
        shown = ", ".join(f"{child.count} in {_name(child.path, root)}" for child in beside)
        notes.append(f"Images left out because their folder is not called as a split is, {SPLIT_NAMES}: {shown}.")
        used.update(image for child in beside for inner in child.walk() for image in inner.images)
    return ClassFolders(splits, (*notes, *_left_out(tree, used)))


def table_within(root: Path) -> Path | None:
    """The one table (.csv, .tsv) that lies in a folder whose images lie in no class folders; `None` where that is not so."""
    top = scan(root)
    tables = [file for file in top.others if file.suffix.lower() in TABLES[:2]]
    bearing = [child for child in top.folders if child.count]
    flat = not top.nested or all(not child.nested and (len(bearing) == 1 or split_of(child.path.name)) for child in bearing)
    return tables[0] if len(tables) == 1 and flat and top.count else None


def _only_child(folder: Folder) -> Folder | None:
    """The one subfolder with images, where it holds folders of images."""
    bearing = [child for child in folder.folders if child.count]
    return bearing[0] if len(bearing) == 1 and bearing[0].nested else None


def _innermost(folder: Folder) -> Folder:
    while inner := _only_child(folder):
        folder = inner
    return folder


def _split_folders(folder: Folder) -> dict[Split, Folder] | None:
    """The splits that lie in a folder; `None` where its folders are classes."""
    bearing = [child for child in folder.folders if child.count]
    clear = {split_of(child.path.name) for child in bearing}
    found: dict[Split, list[Folder]] = {}
    families = []
    for child in bearing:
        within = split_within(child.path.name)
        split = split_of(child.path.name) or (None if within in clear else within)
        if split is not None:
            found.setdefault(split, []).append(child)
        elif child.nested:
            families.append(child)
    # `train` may be a class, or hold some of the classes.
    if not any(child.nested for child in found.get("train", ())):
        if len(found) > 1 and len(bearing) == sum(map(len, found.values())):
            listed = ", ".join(child.path.name for child in bearing)
            if any(child.nested for child in bearing):
                raise DataError(f"{folder.path} holds {listed} and no training part; call the folder of training images train.")
            raise DataError(f"{folder.path}: the images in {listed} have no class. {_ways_out(folder)}")
        return None
    if len(found) == 1 and families:
        return None
    for split, children in found.items():
        if len(children) > 1:
            listed = " and ".join(child.path.name for child in children)
            raise DataError(f"{folder.path}: {listed} are both read as {split}; keep one, or rename the other.")
    return {split: child for split, [child] in found.items() if child.nested}


def _ways_out(folder: Folder) -> str:
    tables = _tables(folder)
    there = f", such as {first_five(tables)} there" if tables else ""
    table = f"a table of path,label,split (fgzoo fit FILE.csv){there}"
    return f"Put images into one folder per class (train/CLASS/*.jpg), or give {table}."


def _tables(folder: Folder) -> list[str]:
    files = [file for inner in folder.walk() for file in inner.others if file.suffix.lower() in TABLES[:2]]
    return [file.relative_to(folder.path).as_posix() for file in files]


def _class_folders(folder: Folder, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Folder]]:
    """The innermost folders with images, and their names from `folder` on."""
    for child in folder.folders:
        path = (*above, _class_part(child.path))
        if child.images and child.nested:
            inner = first_five([f"{other.path.name}/" for other in child.folders if other.count])
            raise DataError(
                f"{child.path} holds {len(child.images)} images beside folders of images ({inner}), so that it is not clear "
                "what the classes are; give each class one folder that holds all its images."
            )
        if child.nested:
            yield from _class_folders(child, path)
        elif child.images:
            yield path, child
        else:
            _check_no_class(child)


def _class_part(path: Path) -> str:
    name = unicodedata.normalize("NFC", path.name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: the folder's name is not valid UTF-8 and cannot name a class; rename it.") from None
    return name


def _check_no_class(folder: Folder) -> None:
    """Refuse a folder without images that may be a class; one of other files, such as annotations, is none."""
    others = [file for inner in folder.walk() for file in inner.others]
    unread = [file for file in others if file.suffix.lower() in picture_suffixes()]
    if unread:
        raise DataError(f"Class folder {folder.path} holds no image that can be read: {_kinds(unread)}.")
    if not others:
        raise DataError(f"Class folder {folder.path} holds no image; fill it or delete it.")


def _splits_within_classes(top: Folder, leaves: _Leaves) -> dict[Split, _Leaves] | None:
    """The splits that classes hold, where every innermost folder is called as a split is; `None` where none is."""
    found: dict[Split, _Leaves] = {}
    held: dict[tuple[str, ...], list[str]] = {}
    others = []
    for path, folder in leaves:
        if len(path) > 1 and (split := split_of(path[-1])) is not None:
            found.setdefault(split, []).append((path[:-1], folder))
            held.setdefault(path[:-1], []).append(path[-1])
        else:
            others.append("/".join(path))
    parted = next(("/".join(path) for path, names in held.items() if len(names) > 1), None)
    if others and parted and "train" in found:
        raise DataError(
            f"{top.path}: {parted}/ holds splits, and {first_five(others)} is none; give each class its train, or none any split."
        )
    return None if others else found


def _check_no_split_is_a_class(folder: Folder) -> None:
    """Refuse folders that hold the same class names: splits that are not called so, or anything else but classes."""
    nested = [child for child in folder.folders if child.nested]
    names = [{inner.path.name for inner in child.walk() if inner.images and inner is not child} for child in nested]

    def shared(mine: set[str]) -> set[str]:
        """At least two names that another folder has too, and that are most names of one of both."""
        both = (mine & other for other in names if other is not mine and 2 * len(mine & other) > min(len(mine), len(other)))
        return next((common for common in both if len(common) > 1), set())

    # Where one is called as a split is, each of the others may be one, too.
    some = any if any(split_within(child.path.name) for child in nested) else all
    if names and some(map(shared, names)):
        example = sorted(next(filter(None, map(shared, names))), key=natural_order)
        raise DataError(
            f"{folder.path}: {first_five([child.path.name for child in nested])} hold the same folders ({first_five(example)}), "
            f"so that it is not clear which are splits and which classes; call splits {SPLIT_NAMES}, give classes names of their "
            "own, or give a table of path,label,split instead."
        )


def _class_names(leaves: dict[Split, _Leaves]) -> dict[tuple[str, ...], str]:
    """Names of the classes by path: the last part, where no split has two classes of that name."""
    ambiguous: set[str] = set()
    for members in leaves.values():
        counts = Counter(path[-1] for path in {path for path, _ in members})
        ambiguous |= {name for name, count in counts.items() if count > 1}
    paths = {path for members in leaves.values() for path, _ in members}
    return {path: "/".join(path) if path[-1] in ambiguous else path[-1] for path in paths}


def _nothing_in(tree: Folder) -> str:
    others = [file for folder in tree.walk() for file in folder.others]
    unread = [file for file in others if file.suffix.lower() in picture_suffixes()]
    if unread:
        return f"{tree.path} holds no image that can be read: {_kinds(unread)}."
    archives = [file for file in others if file.suffix.lower() in ARCHIVES]
    if archives:
        return f"{tree.path} holds no image but {first_five([file.name for file in archives])}; unpack that first."
    return f"{tree.path} holds no image; images lie in one folder per class."


#: Suffixes of tables, in lower case.
TABLES = (".csv", ".tsv", ".txt")

#: Suffixes of archives, in lower case.
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def _left_out(tree: Folder, used: set[Path]) -> list[str]:
    notes = []
    unused = Counter(_name(folder.path, tree.path) for folder in tree.walk() for image in folder.images if image not in used)
    if unused:
        shown = ", ".join(f"{count} in {name}" for name, count in unused.items())
        notes.append(f"Images left out because they lie in no class folder: {shown}.")
    hidden = [_name(path, tree.path) for folder in tree.walk() for path in folder.hidden if _holds_images(path)]
    if hidden:
        notes.append(f"Folders of images left out because their name begins with a dot: {first_five(hidden)}.")
    others = [file for folder in tree.walk() for file in folder.others]
    if others:
        notes.append(f"Files left out because they are no images that can be read: {_kinds(others)}.")
    return notes


def _holds_images(path: Path) -> bool:
    suffixes = image_suffixes()
    try:
        return any(Path(name).suffix.lower() in suffixes for name in os.listdir(path))  # noqa: PTH208
    except OSError:
        return False


def _kinds(files: list[Path]) -> str:
    counts = Counter(file.suffix.lower() for file in files)
    return ", ".join(
        f"{count} {suffix or 'without suffix'}" + (f" ({reason})" if (reason := why_unread(suffix)) else "")
        for suffix, count in sorted(counts.items())
    )


def _name(path: Path, root: Path) -> str:
    return "the folder itself" if path == root else f"{path.relative_to(root).as_posix()}/"
