"""Every test runs without the network, on one thread, in a folder and a home of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Read when torch, timm and huggingface_hub are imported, so set before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = os.environ["TORCH_HOME"] = str(Path(__file__).parent / "no-such-cache")
os.environ["MPLBACKEND"] = "Agg"
# A worker runs hundreds of trainings, and would keep the memory of the largest.
os.environ["FGZOO_KEEP_MEMORY"] = "0"

import signal
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.browser import browser, reader  # noqa: F401 - fixtures of all tests
from tests.builders import make_cub
from tests.command import fit
from tests.hub import Hub, hub_serving
from tests.server import Server, serving

#: Where real data lies; taken before tests are kept from it.
REAL_DATA = Path(os.environ["FGZOO_DATA"]).resolve() if os.environ.get("FGZOO_DATA") else None
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", None)
#: The files that take longest are begun first, so that workers end together.
LONGEST = ("test_every_method", "test_export", "test_faults", "test_step", "test_two_ranks", "test_cli", "test_launchers")


class NetworkUsedError(RuntimeError):
    """A test reached for another machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; within a file nothing moves."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    """No connection to, and no look-up of, any other machine; one thread."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise NetworkUsedError(f"connection to {address}")
        connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if (host.decode() if isinstance(host, bytes) else host) not in (*LOOPBACK, socket.gethostname()):
            raise NetworkUsedError(f"look-up of {host}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        torch.set_num_threads(1)
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a home that no other test sees, and none of the person's own settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in (
        "FGZOO_CACHE",
        "FGZOO_DATA",
        "FGZOO_OFFLINE",
        "FGZOO_REGISTRY",
        "FGZOO_ZOO_URL",
        "FGZOO_RUN_FOLDER",
        "FGZOO_RUN_EPOCHS",
        "PL_GLOBAL_SEED",
    ):
        # Set first: what a test's code puts there is then taken away again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, which is asked directly and not waited for long."""
    monkeypatch.setattr("fgzoo.data.download.ATTEMPTS", 3)
    monkeypatch.setattr("fgzoo.data.download.TIMEOUT", 0.5)
    monkeypatch.setattr("fgzoo.data.download.PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in for the Hugging Face hub, which huggingface_hub asks, with a cache of the test's own and nobody logged in."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of an epoch on three classes, which no test changes, its last checkpoint, and the root of its images."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_cub(folder / "data")
    result = fit(root, "--output", folder / "run")
    assert result.status == 0, result.err
    return SimpleNamespace(root=root, run=folder / "run", file=folder / "run" / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that FGZOO_DATA names; the test is skipped without one."""
    if REAL_DATA is None:
        pytest.skip("FGZOO_DATA names no folder of real data")
    return REAL_DATA
