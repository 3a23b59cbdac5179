"""Seconds of the spatial LSTM's diagonal scan, beside the literal double loop over its cells.

Forward and backward of one map in training, medians over repeats; both give the same numbers, which is checked first.

    python benchmarks/spatial_lstm.py                       # 28 x 28, hidden 256, on the CPU
    python benchmarks/spatial_lstm.py --device cuda --write
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.nn.spatial_lstm import SpatialLSTM
from fgzoo.training.environment import environment

RESULTS = Path(__file__).parent / "results"


def double_loop(block: SpatialLSTM, maps: Tensor) -> Tensor:
    """The equations, one cell at a time, for one direction."""
    weight = torch.cat([block.input_weight[0], block.hidden_weight[0]], dim=1)
    zero = maps.new_zeros(len(maps), block.hidden_size)
    h: dict[tuple[int, int], Tensor] = {}
    c: dict[tuple[int, int], Tensor] = {}
    for i in range(maps.shape[2]):
        for j in range(maps.shape[3]):
            left, upper = (i, j - 1), (i - 1, j)
            y = torch.cat([maps[:, :, i, j], h.get(left, zero), h.get(upper, zero)], dim=1)
            g, i_gate, o, f_r, f_c = F.linear(y, weight, block.bias).chunk(5, dim=1)
            c[i, j] = g.tanh() * i_gate.sigmoid() + f_c.sigmoid() * c.get(left, zero) + f_r.sigmoid() * c.get(upper, zero)
            h[i, j] = (o.sigmoid() * c[i, j]).tanh()
    rows = [torch.stack([h[i, j] for j in range(maps.shape[3])], dim=-1) for i in range(maps.shape[2])]
    return torch.stack(rows, dim=-2)


def seconds(function: Callable[[Tensor], Tensor], maps: Tensor, repeats: int) -> list[float]:
    """Wall seconds of each forward and backward pass, after one to warm up."""
    found = []
    for repeat in range(repeats + 1):
        _wait(maps)
        started = time.perf_counter()
        function(maps).sum().backward()
        _wait(maps)
        if repeat:
            found.append(time.perf_counter() - started)
    return found


def _wait(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print, and with --write leave results/spatial_lstm.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=28, help="side of the map")
    parser.add_argument("--input", type=int, default=512, help="channels of the map")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the results beside this script")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    block = SpatialLSTM(options.input, options.hidden).to(options.device)
    lines = [
        "| batch | double loop, s | spread | scan, s | spread | speed-up |",
        "|---|---|---|---|---|---|",
    ]
    measured = {}
    for batch in options.batches:
        maps = torch.randn(batch, options.input, options.size, options.size, device=options.device, requires_grad=True)
        with torch.no_grad():
            torch.testing.assert_close(block(maps), double_loop(block, maps), rtol=1e-3, atol=1e-4)
        loop = seconds(lambda x: double_loop(block, x), maps, options.repeats)
        scan = seconds(block, maps, options.repeats)
        factor = statistics.median(loop) / statistics.median(scan)
        measured[batch] = {"loop_s": loop, "scan_s": scan, "speed_up": factor}
        cells = [f"{statistics.median(x):.3f} | {min(x):.3f}-{max(x):.3f}" for x in (loop, scan)]
        lines.append(f"| {batch} | {cells[0]} | {cells[1]} | {factor:.1f}x |")
    machine = {key: value for key, value in environment().items() if key != "command"}  # it may name folders of this machine
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{options.threads} threads"
    text = "\n".join(
        [
            f"# Spatial LSTM on a map of {options.size} x {options.size}",
            "",
            f"{options.input} channels in, hidden {options.hidden}, one direction, float32; forward and backward, medians of "
            f"{options.repeats} repeats; seed {options.seed}; {where}.",
            "",
            f"{machine['processor']}, {machine['cores']} cores; Python {platform.python_version()}, torch {version('torch')}; "
            f"fgzoo {machine['git']}.",
            "",
            *lines,
            "",
        ]
    )
    sys.stdout.write(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "spatial_lstm.md").write_text(text)
        settings = {key: value for key, value in vars(options).items() if key != "write"}
        content = {"settings": settings, "measured": measured, "machine": machine}
        (RESULTS / "spatial_lstm.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
