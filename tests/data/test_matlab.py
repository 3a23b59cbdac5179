from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fgzoo.data.matlab import read_matlab
from fgzoo.errors import DataError
from tests.builders import cell, save_mat, struct


def test_structures_and_names_are_read(tmp_path: Path) -> None:
    rows = struct(("fname", "class", "share"), [("a.jpg", 1, 0.5), ("ö.jpg", 2, 1 + 2j)])
    save_mat(tmp_path / "list.mat", rows=rows, names=cell(["Kea", "Öl"]), one=np.array([3]))
    assert [(row["fname"], row["class"], row["share"]) for row in read_matlab(tmp_path / "list.mat", "rows")] == [
        ("a.jpg", 1, 0.5),
        ("ö.jpg", 2, 1 + 2j),
    ]
    assert [str(name) for name in read_matlab(tmp_path / "list.mat", "names")] == ["Kea", "Öl"]
    assert read_matlab(tmp_path / "list.mat", "one").tolist() == [3]


def compressed(data: bytes) -> bytes:
    """The same elements in one that is compressed."""
    packed = zlib.compress(data[128:])
    return data[:128] + b"\x0f\0\0\0" + len(packed).to_bytes(4, "little") + packed


KEA, SIDES, FLAGS = b"\x10\0\x03\0Kea", b"\x05\0\0\0\x08\0\0\0\x01\0\0\0", b"\x06\0\0\0\x08\0\0\0"
#: What ends the process, or takes gigabytes, where scipy reads it unseen; and what does not.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "unknown type": (lambda data: data.replace(KEA, b"\x0a" + KEA[1:]), "a matrix lacks some of its parts"),
    "the same, compressed": (lambda data: compressed(data.replace(KEA, b"\x0a" + KEA[1:])), "a matrix lacks some of its parts"),
    "a name in the content's place": (lambda data: data.replace(bytes(4) + KEA, b"\x08\0\0\0" + KEA), "lacks some of its parts"),
    "many cells": (lambda data: data.replace(SIDES + b"\x02\0\0\0", SIDES + b"\xff\xff\xff\x7f"), "lacks some of its parts"),
    "unknown class": (lambda data: data.replace(FLAGS + b"\x04", FLAGS + b"\x63"), "a matrix is of the unknown class 99"),
    "broken off": (lambda data: data[:-9], "it breaks off within an element"),
    "compressed and broken off": (lambda data: compressed(data)[:-9], "it breaks off within an element"),
    "another version": (lambda data: data[:126] + b"\0\0" + data[128:], "it has no header of version 5"),
    "nothing": (lambda data: b"", "it has no header of version 5"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    change, said = DAMAGE[damage]
    save_mat(tmp_path / "list.mat", names=cell(["Kea", "Kaka"]))
    data = (tmp_path / "list.mat").read_bytes()
    changed = change(data)
    assert changed != data
    (tmp_path / "list.mat").write_bytes(changed)
    with pytest.raises(DataError, match=rf"list\.mat is no readable MATLAB file: .*{said}"):
        read_matlab(tmp_path / "list.mat", "names")
