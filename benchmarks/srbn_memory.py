"""Peak memory of one training step of SRBN: VGG-16 and ResNet-34 at 448 pixels, batch 8. The limit is 6 GiB.

The step (forward, loss, backward, SGD with momentum; every parameter trained) runs in a process of its own: on the CPU what
counts is that process's largest resident size, interpreter and libraries included, on a GPU the allocator's peak. A step on one
small image comes first, so that the momentum is there. Weights are random, since memory does not depend on them.

    python benchmarks/srbn_memory.py
    python benchmarks/srbn_memory.py --device cuda --precision bf16 --batch 16
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from fgzoo.methods.srbn import SRBN
from fgzoo.training.environment import environment, peak_memory

RESULTS = Path(__file__).parent / "results"
LIMIT = 6.0
GIB = 2**30


def step(options: argparse.Namespace) -> float:
    """One training step in this process: its peak in GiB."""
    torch.manual_seed(options.seed)
    model = SRBN(200, pretrained=False, attention=options.attention).to(options.device).train()
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=1e-3, momentum=0.9)
    for batch, size in ((1, 64), (options.batch, options.image_size)):
        images = torch.randn(batch, 3, size, size, device=options.device).contiguous(memory_format=torch.channels_last)
        targets = torch.arange(batch, device=options.device) % 200
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = torch.stack(list(model.loss(model(images, targets), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return peak_memory(torch.device(options.device)) / GIB


def main() -> None:
    """Measure in a child process, print, and with --write leave results/srbn_memory.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--attention", choices=["none", "static", "recurrent"], default="static")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the results beside this script")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(f"{step(options)}\n")
        return
    printed = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], check=True, capture_output=True, text=True)
    peak = float(printed.stdout)
    machine = {key: value for key, value in environment().items() if key != "command"}  # it may name folders of this machine
    where = torch.cuda.get_device_name() if options.device == "cuda" else machine["processor"]
    text = "\n".join(
        [
            f"# Memory of a training step of SRBN, {options.image_size} pixels, batch {options.batch}",
            "",
            f"vgg16 and resnet34, attention {options.attention}, precision {options.precision}; {options.device}: {where}; seed "
            f"{options.seed}; Python {platform.python_version()}, torch {version('torch')}; fgzoo {machine['git']}.",
            "",
            f"Peak: {peak:.2f} GiB; limit {LIMIT:.0f} GiB: {'kept' if peak <= LIMIT else 'exceeded'}.",
            "",
        ]
    )
    sys.stdout.write(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "srbn_memory.md").write_text(text)
        settings = {key: value for key, value in vars(options).items() if key not in ("write", "child")}
        content = {"settings": settings, "peak_gib": peak, "limit_gib": LIMIT, "machine": machine}
        (RESULTS / "srbn_memory.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
