"""Freed memory that stays with the process."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from fgzoo.allocator import VARIABLE, keep_freed_memory, keep_in_worker

GLIBC = platform.libc_ver()[0] == "glibc"
on_glibc = pytest.mark.skipif(not GLIBC, reason="this C library is not glibc")

#: Prints the page faults of blocks that were used and freed before, and a number computed in them. Until every block has found
#: its place, the heap grows for some rounds.
FAULTS = """
import resource
{first}
import torch
torch.set_num_threads(1)
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    before = used()
    total = torch.linspace(0, 1, 2**24).sin().sum()
print(used() - before, total.item().hex())
"""


def faults(first: str, **environment: str) -> tuple[int, str]:
    clean = {key: value for key, value in os.environ.items() if key != VARIABLE}
    code = FAULTS.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**clean, **environment})
    count, total = done.stdout.split()
    return int(count), total


@pytest.fixture(scope="module")
def kept() -> tuple[int, str]:
    return faults("import fgzoo; assert fgzoo.keep_freed_memory()")


@pytest.fixture(scope="module")
def imported() -> tuple[int, str]:
    return faults("import fgzoo")


@on_glibc
def test_freed_memory_is_not_faulted_in_again(kept: tuple[int, str]) -> None:
    assert kept[0] < 100


@on_glibc
def test_importing_changes_nothing(imported: tuple[int, str]) -> None:
    # Two blocks of 64 MiB, in pages of 4 KiB or of 2 MiB.
    assert imported[0] >= 60


@on_glibc
def test_bits_do_not_change(kept: tuple[int, str], imported: tuple[int, str]) -> None:
    assert kept[1] == imported[1]


@on_glibc
def test_the_variable_turns_it_off() -> None:
    assert faults("import fgzoo; assert not fgzoo.keep_freed_memory()", **{VARIABLE: "0"})[0] >= 60


@on_glibc
def test_a_verb_does_it() -> None:
    clean = {key: value for key, value in os.environ.items() if key != VARIABLE}
    code = f"from fgzoo.cli import main; main(['list', 'data']); import os; print(os.environ['{VARIABLE}'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.splitlines()[-1] == "1"


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """A C library without what asks glibc for its version, as musl and macOS have."""

        def __getattr__(self, name: str) -> object:
            if name == "gnu_get_libc_version":
                raise AttributeError(name)
            return lambda *_: pytest.fail("an option of another library was set")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Other())
    assert not keep_freed_memory()


def test_windows_has_no_such_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: None) -> None:
        raise TypeError("bad argument type for built-in operation")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not keep_freed_memory()


@pytest.mark.parametrize(("value", "called"), [("1", True), ("0", False), (None, False)])
def test_a_loader_worker_does_as_its_parent(value: str | None, called: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("fgzoo.allocator.keep_freed_memory", lambda: calls.append(True))
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    keep_in_worker(0)
    assert bool(calls) is called
