"""A loader whose workers leave Ctrl-C to the process that started them."""

from __future__ import annotations

import signal
import threading
from typing import Any

from torch.utils.data import DataLoader

from fgzoo.allocator import keep_in_worker


def begin_worker(number: int) -> None:
    """What every worker begins with: it keeps freed memory as its process does, and Ctrl-C is no business of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_in_worker(number)


class Loader(DataLoader[Any]):
    """Torch's, whose workers start whole: an interruption waits until they are there.

    At a fork Python would lose it, and a worker that has just begun would die of it.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"worker_init_fn": begin_worker, **named})

    def _get_iterator(self) -> Any:
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
            return super()._get_iterator()
        came: list[int] = []
        # A forked worker has this handler, in which nothing happens, until it begins.
        before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
        try:
            return super()._get_iterator()
        finally:
            signal.signal(signal.SIGINT, before)
            for number in came[:1]:
                signal.raise_signal(number)
