"""What a process runs on, and what it takes."""

from __future__ import annotations

import subprocess
import sys
import time

from fgzoo.training.environment import cpu_seconds


def test_cpu_seconds_count_ended_children_and_no_waiting() -> None:
    before = cpu_seconds()
    time.sleep(0.5)
    waited = cpu_seconds() - before
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert waited < 0.25
    assert cpu_seconds() - before - waited > 0.45
