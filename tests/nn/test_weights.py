from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from fgzoo.errors import CheckpointError
from fgzoo.nn.weights import read_plain


def test_a_file_that_torch_did_not_write_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_: pytest.fail("a folder is made"))
    (tmp_path / "a.pth").write_bytes(bytes(1024))  # an empty tar archive
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged or no file of tensors: it does not begin as what torch\.save"):
        read_plain(tmp_path / "a.pth", "weights")
