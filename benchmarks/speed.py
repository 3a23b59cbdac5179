"""CPU seconds a training image of the preset `small`, as ratios within one run.

Each network trains in a process of its own, one thread, on one batch of uint8 noise: the real step of a Lightning trainer (loss,
backward pass, optimiser, schedule, several steps a batch where a method takes them; of stages, the last). A method before, the
same after and a plain loop live at once and take turns, a block of steps each, so that whatever else the machine does meets them
alike. `before`: the preset as it was, whose backbones learn whole and by batch statistics, with the C library's own memory
settings; `after`: the preset with the lowest three levels and all batch statistics frozen, and memory kept. `plain timm` is a
bare loop of torch and timm.

    python benchmarks/speed.py step --write
    python benchmarks/speed.py step --backbone tf_efficientnet_lite0 --blocks 3
    python benchmarks/speed.py parts --write        # what each change gives the baseline, and what did not help
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from common import (
    AFTER,
    BEFORE,
    FROZEN,
    Repeated,
    deliver,
    heading,
    keep_to_stage,
    machine,
    make_trainer,
    process_environment,
    random_batch,
    spread,
    table,
)
from lightning.pytorch.callbacks import Callback

from fgzoo import create_model
from fgzoo.allocator import VARIABLE
from fgzoo.nn import backbone
from fgzoo.recipes import read_recipe

CLASSES = 50
#: Batches that a process may be asked for, which its schedule needs to know.
BATCHES = 10**6
METHODS = ("baseline", "rra", "coarse2fine", "iagn", "srbn")
PLAIN = "plain timm"


class Setting(NamedTuple):
    """What a process does: keep its memory, with which arguments, and whether batch-norms that stand still are folded."""

    kept: bool
    arguments: dict[str, Any]
    folded: bool = True


STILL = {"freeze_norm": "statistics"}
SETTINGS: dict[str, Setting] = {
    "before": Setting(False, {}),
    "memory kept": Setting(True, {}),
    "and statistics kept, not folded": Setting(True, STILL, folded=False),
    "and folded": Setting(True, STILL),
    "and one level frozen": Setting(True, {**STILL, "freeze": 1}),
    "after": Setting(True, FROZEN),
    "after, not folded": Setting(True, FROZEN, folded=False),
    "after, compiled by torch.compile": Setting(True, {**FROZEN, "compile": True}),
}


class Case(NamedTuple):
    """What one process trains."""

    what: str
    when: str
    backbone: str
    size: int
    batch: int
    seed: int


# ---------------------------------------------------------------------- a process that trains


class Turns(Callback):
    """Trains when it is told to: reads a number of steps from standard input, and writes what they took."""

    def __init__(self) -> None:
        self.left = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Between blocks, report and wait."""
        if self.left == 0:
            self.left = turn(self)
        self.left -= 1


def turn(clock: Any) -> int:
    """Report what the last block took, then wait for the next."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    now = (used.ru_utime, used.ru_stime)
    user, system = (new - old for new, old in zip(now, getattr(clock, "since", now), strict=True))
    sys.stdout.write(json.dumps({"user": user, "system": system, "resident_mb": used.ru_maxrss / 1024}) + "\n")
    sys.stdout.flush()
    asked = int(sys.stdin.readline() or 0)
    if not asked:
        os._exit(0)  # a trainer in the middle of an epoch has no other end
    used = resource.getrusage(resource.RUSAGE_SELF)
    clock.since = (used.ru_utime, used.ru_stime)
    return asked


def train(case: Case) -> None:
    """Train as told on standard input."""
    torch.set_num_threads(1)
    torch.manual_seed(case.seed)
    setting = SETTINGS[case.when]
    if not setting.folded:
        backbone.fold_batch_norms = lambda *_: 0
    batch = random_batch(case.batch, case.size, CLASSES, torch.device("cpu"), case.seed)
    if case.what == PLAIN:
        plain(case, batch)
    settings = read_recipe("small")["model"]["init_args"]
    own = {**(BEFORE if case.when == "before" else AFTER).get(case.what, {}), **setting.arguments}
    model = create_model(case.what, CLASSES, pretrained=False, **{**settings, **own, "backbone": case.backbone, "lr": 1e-6})
    last = len(model.stages()) - 1
    others = keep_to_stage(model, last)
    trainer = make_trainer(torch.device("cpu"), "32-true", BATCHES, Turns(), case.seed)
    trainer.fit(model, Repeated(batch, BATCHES + others))


def plain(case: Case, batch: Any) -> None:
    """The loop that one writes without any library but timm."""
    model = timm.create_model(case.backbone, num_classes=CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    mean, std = (255 * torch.tensor(timm.data.resolve_data_config({}, model=model)[key]).view(3, 1, 1) for key in ("mean", "std"))
    images, targets, _ = batch

    def step() -> None:
        pixels = images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(pixels), targets, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    while True:
        for _ in range(turn(plain)):
            step()


# ---------------------------------------------------------------------- taking turns


def measure(cases: list[Case], steps: int, blocks: int, show: Callable[[str], None]) -> dict[Case, list[dict[str, float]]]:
    """Blocks of every case, taken in turn.

    Args:
        cases: What to train.
        steps: Steps a block.
        blocks: Blocks of each, after one that does not count.
        show: Says how far it is.

    Returns:
        Seconds a training image, `user` and `system`, and the most resident memory in MB, by block.
    """
    found: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    processes = {}
    for case in cases:
        environment = {**process_environment(1), VARIABLE: str(int(SETTINGS[case.when].kept))}
        command = [sys.executable, __file__, "train", json.dumps(case)]
        processes[case] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        answer(processes[case])
    for block in range(blocks + 1):
        for case, process in processes.items():
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            took = answer(process)
            if block:
                images = steps * case.batch
                found[case].append({**took, "user": took["user"] / images, "system": took["system"] / images})
        show(f"block {block} of {blocks}")
    for process in processes.values():
        process.communicate("0\n")
    return found


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process reports at the end of a block; lines that libraries print are passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"user"'):
            return dict(json.loads(line))
    raise SystemExit(f"a process ended by itself: {process.args}")


def report(found: dict[Case, list[dict[str, float]]]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Lines of the table for cases that took turns, and what was measured."""
    milliseconds = {case: [1e3 * (block["user"] + block["system"]) for block in blocks] for case, blocks in found.items()}
    base = {(case.what, case.when): values for case, values in milliseconds.items()}
    lines, rows = [], []
    for case, blocks in found.items():
        ratios = []
        for other in ((case.what, "before"), (PLAIN, "before")):
            if other == (case.what, case.when) or other not in base:
                ratios.append("")
                continue
            # Blocks of one turn are compared with one another.
            ratio = spread([own / their for own, their in zip(milliseconds[case], base[other], strict=True)])
            ratios.append(f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
        took, system = spread(milliseconds[case]), spread([1e3 * block["system"] for block in blocks])
        shown = f"{took.median:.1f} ({took.low:.1f}-{took.high:.1f})"
        when = "" if case.what == PLAIN else case.when
        lines.append([case.what, when, shown, f"{system.median:.1f}", *ratios, f"{blocks[-1]['resident_mb']:,.0f}"])
        rows.append({**case._asdict(), "blocks": blocks})
    return lines, rows


def main() -> None:
    """Measure, print, and with --write leave results/speed.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step", help="a training step of every method, before and after")
    step.add_argument("--methods", nargs="+", default=list(METHODS))
    parts = verbs.add_parser("parts", help="what each change gives the baseline")
    for verb in (step, parts):
        verb.add_argument("--backbone", default="mobilenetv2_100")
        verb.add_argument("--size", type=int, default=160, help="side of the images in pixels")
        verb.add_argument("--batch", type=int, default=32)
        verb.add_argument("--steps", type=int, default=2, help="steps a block")
        verb.add_argument("--blocks", type=int, default=7)
        verb.add_argument("--seed", type=int, default=0)
        verb.add_argument("--write", action="store_true")
    verbs.add_parser("train").add_argument("case")
    options = parser.parse_args()
    if options.verb == "train":
        train(Case(*json.loads(options.case)))
    shared = (options.backbone, options.size, options.batch, options.seed)
    about = machine()
    if options.verb == "step":
        groups = [((PLAIN, "before"), (method, "before"), (method, "after")) for method in options.methods]
    else:
        groups = [((PLAIN, "before"), *(("baseline", when) for when in SETTINGS))]
    lines, rows = [], []
    for group in groups:
        cases = [Case(what, when, *shared) for what, when in group]
        found = measure(
            cases, options.steps, options.blocks, lambda line, what=group[-1][0]: sys.stderr.write(f"{what}, {line}\n")
        )
        more_lines, more_rows = report(found)
        lines += more_lines
        rows += more_rows
    columns = ["what", "preset", "CPU ms an image", "of it system's", "to before", "to plain timm", "resident MB"]
    name = "speed" if options.verb == "step" else "speed_parts"
    text = [
        "# Speed" if options.verb == "step" else "# Speed, part by part",
        heading({**about, "threads": 1}, torch.device("cpu"), options.seed),
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        f"`{options.backbone}`, {options.size} pixels, batch {options.batch}; medians of {options.blocks} blocks of "
        f"{options.steps} steps, in brackets smallest and largest; ratios are taken within each turn.",
        table(columns, lines),
    ]
    deliver("\n\n".join(text) + "\n", {"machine": about, "rows": rows}, name if options.write else None)


if __name__ == "__main__":
    main()
