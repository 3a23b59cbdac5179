"""The scripts of benchmarks as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@contextmanager
def scripts(*names: str) -> Iterator[Any]:
    """Import scripts anew, which import each other by name, as attributes; afterwards others have these names again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        before = {name: sys.modules.pop(name, None) for name in names}
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
