"""Files of MATLAB's (version 5), checked before scipy reads them: by what does not fit, its reader may end the process.

Source: MathWorks, MAT-File Format, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from fgzoo.errors import DataError

_HEADER, _ORDERS = 128, {b"IM": "<", b"MI": ">"}
#: Types of elements: those of numbers and text; a matrix, which consists of elements; one that is compressed.
_LEAVES, _MATRIX, _COMPRESSED = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}), 14, 15
#: Classes of matrices: of others, of named others, of numbers or text; and what is set where numbers are complex.
_CELLS, _STRUCTS, _ARRAYS, _COMPLEX = 1, 2, frozenset({4, *range(6, 16)}), 0x800
#: How many bytes something compressed may hold; the largest list of a known data set has a few millions.
_MOST = 1 << 28


def read_matlab(path: Path, variable: str) -> Any:
    """A variable of a file.

    Args:
        path: The file.
        variable: The variable's name.

    Returns:
        Its value as [scipy.io.loadmat][] gives it, squeezed, as an array of at least one dimension.

    Raises:
        DataError: The file is damaged, or holds no such variable.
    """
    try:
        data = path.read_bytes()
        if len(data) <= _HEADER or data[126:_HEADER] not in _ORDERS:
            raise ValueError("it has no header of version 5")
        _check(data[_HEADER:], _ORDERS[data[126:_HEADER]])
        content = scipy.io.loadmat(path, squeeze_me=True, variable_names=[variable])
    except Exception as error:  # scipy raises nearly any type on a damaged file
        raise DataError(f"{path} is no readable MATLAB file: {error}. Unpack it again.") from error
    if variable not in content:
        raise DataError(f"{path} holds no variable {variable!r}; this is not the official file.")
    return np.ravel(content[variable])


def _check(data: bytes, order: str) -> None:
    """An error where what follows one another is not matrices, compressed or not."""
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            _check(zlib.decompressobj().decompress(content, _MOST), order)
        elif kind == _MATRIX:
            _check_matrix(content, order)
        else:
            raise ValueError(f"an element of type {kind} is no matrix")


def _check_matrix(data: bytes, order: str) -> None:
    """An error where a matrix does not consist of what its class and its size ask for."""
    parts = list(_elements(data, order))
    if not parts:  # an empty one
        return
    (_, about), (_, sides) = parts[:2]
    [flags], cells = struct.unpack(f"{order}I4x", about), math.prod(struct.unpack(f"{order}{len(sides) // 4}i", sides))
    kind, leaves, matrices = flags & 0xFF, 4 + bool(flags & _COMPLEX), 0
    if kind == _CELLS:
        leaves, matrices = 3, cells
    elif kind == _STRUCTS:
        [width] = struct.unpack(f"{order}i", parts[3][1])
        leaves, matrices = 5, cells * (len(parts[4][1]) // width)
    elif kind not in _ARRAYS:
        raise ValueError(f"a matrix is of the unknown class {kind}")
    whole = len(parts) == leaves + matrices and cells <= len(data)
    if not whole or any((kind in _LEAVES) != (place < leaves) for place, (kind, _) in enumerate(parts)):
        raise ValueError("a matrix lacks some of its parts")
    for _, content in parts[leaves:]:
        _check_matrix(content, order)


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of elements that follow one another."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, step = place + 8, 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind >> 16:  # a small one: type and size share four bytes, the content has the other four
            kind, size, start, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        if start + size > min(len(data), place + step):
            raise ValueError("it breaks off within an element")
        yield kind, data[start : start + size]
        place += step
