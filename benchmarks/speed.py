"""Speed and memory, each beside something that is measured in the same minutes.

What is compared takes turns, a block of calls each, so that whatever else the machine does meets all alike; ratios are taken
within a turn. Weights are random and nothing is learnt, which matters to neither speed nor memory.

    python benchmarks/speed.py step --size 160 --write speed           # preset small, before and after freezing, and plain timm
    python benchmarks/speed.py step --recipe --methods rra --size 448  # papers' networks beside their backbones' bare passes
    python benchmarks/speed.py step --recipe --end-to-end              # also fed from JPEG files
    python benchmarks/speed.py step --recipe --ranks 1 2 4             # several processes, joined by DistributedDataParallel
    python benchmarks/speed.py predict                                 # and explain, beside reading and the bare forward pass
    python benchmarks/speed.py data --images PATH --size 448           # the image pipeline beside the usual Pillow recipe
    python benchmarks/speed.py startup --images PATH                   # whole commands, beside importing the libraries
    python benchmarks/speed.py scan --size 448 --batch 1               # SRBN beside its backbones, by the size of the grid
"""

from __future__ import annotations

import inspect
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import common
import lightning as L
import timm
import torch
import torch.nn.functional as F
from common import Row
from costs import forward_operations, training_operations
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from PIL import Image
from plan import default_of
from torch import Tensor
from torch.multiprocessing import start_processes
from torchvision.transforms import v2

from fgzoo import FGVCDataModule, FineGrainedClassifier, create_model, keep_freed_memory
from fgzoo.allocator import VARIABLE
from fgzoo.data.card import DataCard
from fgzoo.data.images import decode
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.errors import UsageError
from fgzoo.interpret import explanation
from fgzoo.interpret.page import write_page
from fgzoo.interpret.pictures import write_pictures
from fgzoo.methods import find_method
from fgzoo.nn import SpatialLSTM
from fgzoo.recipes import list_recipes, read_recipe
from fgzoo.training import callbacks, command, environment, faults

PLAIN, BARE, FILES, IMPORTS = "plain timm", "bare passes of its backbones", "from files", "importing the libraries"
#: What the contender "before" has of the preset `small` instead of what made its step fast.
BEFORE: dict[str, Any] = {"freeze": 0, "freeze_norm": "none"}
#: Batches that a process may be asked for, which its schedule needs to know.
BATCHES = 10**6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: What is compared, on the wall where the GPU computes.
CLOCK = "wall_ms" if DEVICE.type == "cuda" else "cpu_ms"


@dataclass(frozen=True)
class Arguments:
    """Speed and memory, each beside something that is measured in the same minutes.

    Args:
        what: What is measured.
        methods: Whose networks.
        backbone: A timm network for all (default: mobilenetv2_100; by recipe each method's own).
        recipe: Step: by each method's recipe for CUB, beside its backbones' bare passes; else by the preset small, before and
            after levels and statistics were frozen and memory was kept, beside a plain loop of torch and timm.
        end_to_end: Step: also fed by the data module from JPEG files.
        ranks: Step: on so many processes, each with the batch; what is compared is time on the wall.
        size: Side of the images in pixels.
        batch: Images, or maps, of a call.
        classes: K.
        precision: Of a trainer.
        threads: Threads of a process.
        steps: Calls a block, of steps.
        blocks: Of each that is compared.
        images: Predict, data and startup: a folder of JPEG files (default: synthetic birds of 500 x 375 pixels).
        write: Write results/NAME.md and .csv.
    """

    what: Literal["step", "predict", "data", "startup", "scan"]
    _: KW_ONLY
    methods: Sequence[str] = ("baseline", "rra", "coarse2fine", "iagn", "srbn")
    backbone: str | None = None
    recipe: bool = False
    end_to_end: bool = False
    ranks: Sequence[int] = ()
    size: int = 224
    batch: int = 32
    classes: int = 50
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = command.default_precision()
    threads: int = 1
    steps: int = 2
    blocks: int = 7
    images: Path | None = None
    write: str | None = None

    def backbone_of(self, method: str) -> str:
        """A method's backbone."""
        own = default_of(find_method(method)[0], "backbone") if self.recipe else "mobilenetv2_100"
        return self.backbone or own

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of passes outside of a trainer."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision, torch.float32)
        return torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32)


def clocks(before: Row | None = None, whose: int = resource.RUSAGE_SELF) -> Row:
    """Milliseconds, since others, on the wall, of this process, and of it in the kernel; when the GPU has done what it had to."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    used = resource.getrusage(whose)
    seconds = {"wall_ms": time.perf_counter(), "cpu_ms": used.ru_utime + used.ru_stime, "system_ms": used.ru_stime}
    return {name: 1e3 * value - (before or {}).get(name, 0) for name, value in seconds.items()}


def timed(function: Callable[[], Any], images: int, whose: int = resource.RUSAGE_SELF) -> Row:
    """What a call takes of a function that handles so many images, in this process or in those that it waits for."""
    before = clocks(whose=whose)
    function()
    return {name: value / images for name, value in clocks(before, whose).items()}


def take_turns(contenders: Mapping[str, Callable[[], Row]], blocks: int, base: Sequence[str], clock: str = CLOCK) -> list[Row]:
    """Rows of blocks of everybody in turn, after one that does not count, with the ratio of a clock to that of the base's sum."""
    rows = []
    for block in range(blocks + 1):
        turn = {name: measure_block() for name, measure_block in contenders.items()}
        whole = sum(turn[name][clock] for name in base)
        for name, took in turn.items() if block else ():
            rows.append({"what": name, "block": block, **took, f"to {' and '.join(base)}": took[clock] / whole})
    return rows


# ---------------------------------------------------------------------- training steps, each network in a process of its own


class StepsOnRequest(Callback):
    """Trains as many steps as the pipe asks for, and answers what they took."""

    def __init__(self, pipe: Connection, leads: bool) -> None:
        self.pipe = pipe
        self.before: Row | None = None
        # Other ranks follow the first one, which they meet at every step.
        self.left = 0 if leads else BATCHES

    def on_train_batch_start(self, *_: Any) -> None:
        """Between blocks, answer and wait."""
        if self.left == 0:
            self.left = self.next_block()
        self.left -= 1

    def next_block(self) -> int:
        """Answer what the last block took, then wait to hear how many steps the next one has."""
        if self.before is not None:
            self.pipe.send({**clocks(self.before), "peak_gib": environment.peak_memory(DEVICE) / 2**30})
        steps: int = self.pipe.recv()
        self.before = clocks()
        return steps


def train(rank: int, ranks: int, port: int, pipe: Connection, args: Arguments, method: str, contender: str, files: str) -> None:
    """Train as the pipe asks for, in a process of its own; a method in its last stage."""
    os.environ[VARIABLE] = str(int(contender not in ("before", PLAIN)))
    keep_freed_memory()
    command.quieten()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, args.size, args.size), generator=generator, dtype=torch.uint8).to(DEVICE)
    indices = torch.arange(args.batch, device=DEVICE)
    targets = indices % args.classes
    requests = StepsOnRequest(pipe, leads=rank == 0)
    if contender in (PLAIN, BARE):
        train_step = plain_step(args, method, images, targets) if contender == PLAIN else bare_step(args, method, images)
        while True:
            for _ in range(requests.next_block()):
                train_step()
    model = build(args, method, contender)
    # The last stage has all batches, but for one in each of the others.
    *earlier, last = model.stages()
    stages = (*(stage._replace(share=1e-9) for stage in earlier), last._replace(share=1 - 1e-9 * len(earlier)))
    model.stages = lambda: stages
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    trainer = L.Trainer(
        accelerator=DEVICE.type, devices=ranks, strategy="ddp" if ranks > 1 else "auto",
        precision=args.precision, max_steps=BATCHES, max_epochs=-1, limit_train_batches=BATCHES, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        logger=False, callbacks=[callbacks.ReproducibleSteps(0), faults.FiniteLoss(), requests],
        plugins=[LightningEnvironment()],  # not a cluster's, where the script runs inside of one of its jobs
    )  # fmt: skip
    if trainer.precision != args.precision:
        # Lightning takes another one instead, with a warning, where a device cannot do what was asked for.
        raise ValueError(f"precision {args.precision} is not to be had on {DEVICE}")
    if contender == FILES:
        csv = f"{files}/images.csv"
        trainer.fit(model, FGVCDataModule("folder", files, args.size, csv=csv, batch_size=args.batch, num_workers=args.threads))
    trainer.fit(model, itertools.repeat((images, targets, indices)))


def start(stack: ExitStack, args: Arguments, method: str, contender: str, files: str = "", ranks: int = 1) -> Callable[[], Row]:
    """A contender that trains in a process of its own, or in several; the stack ends them."""
    here, there = (stack.enter_context(end) for end in Pipe())
    arguments = (ranks, find_free_network_port(), there, args, method, contender, files)
    training = start_processes(train, arguments, nprocs=ranks, join=False, start_method="spawn")
    for process in training.processes:
        stack.callback(process.kill)

    def measure_block() -> Row:
        here.send(args.steps)
        while not here.poll(1):
            training.join(timeout=0)  # raises what ended a process
        return {name: value / (1 if name == "peak_gib" else args.steps * args.batch) for name, value in here.recv().items()}

    return measure_block


def build(args: Arguments, method: str, contender: str = "") -> FineGrainedClassifier:
    """The model, by the preset `small` or by the method's own recipe for CUB, with random weights."""
    recipe = f"{'cub' if args.recipe else 'small'}/{method}"
    arguments = read_recipe(recipe if recipe in list_recipes() else "small")["model"]["init_args"]
    arguments |= BEFORE if contender == "before" else {}
    arguments |= {
        "backbone": args.backbone_of(method),
        "lr": 1e-6,
        "lr_batch": None,
        "pretrained": False,
        "backbone_weights": None,
    }
    torch.manual_seed(0)
    return create_model(method, args.classes, **arguments)


def plain_step(args: Arguments, method: str, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A step of the loop that one writes without any library but timm."""
    model = timm.create_model(args.backbone_of(method), num_classes=args.classes).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    config = timm.data.resolve_data_config({}, model=model)
    mean, std = (255 * torch.tensor(config[key], device=DEVICE).view(3, 1, 1) for key in ("mean", "std"))

    def train_step() -> None:
        pixels = images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        with args.autocast():
            loss = F.cross_entropy(model(pixels), targets, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train_step


def bare_step(args: Arguments, method: str, images: Tensor) -> Callable[[], None]:
    """The passes that a step of the method takes through its own backbones, as they are cut there, and nothing else.

    With a graph: forward, backward and a step of SGD; without one the forward pass. A fraction of a pass is one of fewer images.
    """
    model = build(args, method).to(DEVICE, memory_format=torch.channels_last)
    images = model.normalize(images).contiguous(memory_format=torch.channels_last)
    passes = []
    for name, spent in training_operations(model, len(model.stages()) - 1, images[:2])[1].items():
        backbone = model.network.get_submodule(name)
        alone = forward_operations(backbone, images[:2])
        optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-6, momentum=0.9)
        passes += [(backbone, optimizer, learns, count / alone) for learns, count in zip((True, False), spent, strict=True)]

    def train_step() -> None:
        for backbone, optimizer, learns, count in passes:
            backbone.frozen = not learns
            for left in range(round(count * len(images)), 0, -len(images)):
                with args.autocast(), torch.set_grad_enabled(learns):
                    loss = backbone(images[:left])[-1].float().mean()
                if learns:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    return train_step


def step(args: Arguments, method: str) -> list[Row]:
    """A real training step: loss, backward pass, optimiser, schedule, several steps a batch where a method takes them.

    Each network trains in a process of its own. Its peak of memory is what torch allocated on a GPU, else what was resident.
    """
    with ExitStack() as stack:
        begin = partial(start, stack, args, method)
        if args.ranks:
            contenders = {f"{ranks} rank(s)": begin("after", ranks=ranks) for ranks in args.ranks}
        else:
            contenders = {name: begin(name) for name in ((BARE, method) if args.recipe else (PLAIN, "before", "after"))}
        base = next(iter(contenders))
        if args.end_to_end:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            jpeg_files(folder, 4 * args.batch)
            contenders[FILES] = begin(FILES, folder)
        return take_turns(contenders, args.blocks, [base], "wall_ms" if args.ranks else CLOCK)


def jpeg_files(folder: str, count: int, photographs: Path | None = None) -> list[Path]:
    """Photographs, or synthetic birds as files of 500 x 375 pixels, quality 90, CUB's usual size; images.csv lists them."""
    if photographs is not None:
        paths = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if len(paths) < count:
            raise UsageError(f"--images: {len(paths)} JPEG files below {photographs}, and {count} are read; lower --batch")
    else:
        birds = SyntheticBirds(Birds(size=500))
        paths = [Path(folder) / f"{number}.jpg" for number in range(count)]
        for path, record in zip(paths, birds.listing().train, strict=False):
            picture = Image.fromarray(birds.read(record).permute(1, 2, 0).numpy())
            picture.crop((0, 62, 500, 437)).save(path, quality=90)
    rows = [{"path": path.resolve(), "label": f"class {number % 2}", "split": "train"} for number, path in enumerate(paths)]
    common.write_csv(Path(folder) / "images.csv", rows)
    return paths


# ---------------------------------------------------------------------- answering, reading, scanning


def predict(args: Arguments, method: str) -> list[Row]:
    """JPEG files of 500 x 375 pixels: reading them and the bare forward pass, beside `predict`, which does both, and `explain`.

    The networks are the preset small's. Also the bare backbone's forward pass, `explain` with PNG files, and its page's size.
    """
    model = build(args, method).to(DEVICE).eval()
    names, resize = [f"class {index}" for index in range(args.classes)], round(args.size * 256 / 224)
    model.card, model.trained = DataCard("folder", names, args.size, resize, "squash", "bilinear", "torchcodec", "none"), True
    backbone = model.make_backbone().to(DEVICE).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths, page = jpeg_files(folder, args.batch, args.images), Path(folder) / "page.html"
        batches = model.normalize(torch.stack([model.transform(decode(path)) for path in paths]).to(DEVICE)).split(32)
        inference = torch.inference_mode()

        def explain(png: bool) -> Path:
            found = explanation.explain(model, paths)
            return write_page(page, model, paths, write_pictures(page.parent, paths, found) if png else found)

        contenders = {
            "backbone": partial(timed, inference(lambda: [backbone(batch) for batch in batches]), args.batch),
            "forward": partial(timed, inference(lambda: [model(batch) for batch in batches]), args.batch),
            "reading": partial(timed, lambda: [model.transform(decode(path)) for path in paths], args.batch),
            "predict": partial(timed, lambda: model.predict(paths), args.batch),
            "explain": lambda: {
                **timed(partial(explain, False), args.batch),
                "KB an image": page.stat().st_size / 1e3 / args.batch,
            },
            "explain --png": partial(timed, partial(explain, True), args.batch),
        }
        rows = take_turns(contenders, args.blocks, ["forward", "reading"])
    predicting = {row["block"]: row[CLOCK] for row in rows if row["what"] == "predict"}
    return [{**row, "to predict": row[CLOCK] / predicting[row["block"]]} for row in rows]


def data(args: Arguments) -> list[Row]:
    """The image pipeline beside the usual Pillow recipe: JPEG files, resized to 600/448 of the size, to a random crop."""
    resize = round(args.size * 600 / 448)
    usual = v2.Compose([
        v2.Resize([resize, resize]), v2.RandomCrop(args.size), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = jpeg_files(folder, args.batch, args.images)
        ours = partial(FGVCDataModule, "folder", f"{folder}/images.csv", args.size, resize, num_workers=0)
        ways: dict[str, Callable[[], Any]] = {
            "Pillow recipe": lambda: [usual(Image.open(path).convert("RGB")) for path in paths],
            "ours": partial(list, ours().dataset("train")),
            "ours, from the cache": partial(list, ours(cache="disk", cache_folder=folder).dataset("train")),
            "ours, Pillow decoder": partial(list, ours(decoder="pillow").dataset("train")),
            "decode alone, torchcodec": lambda: [decode(path, "torchcodec") for path in paths],
            "decode alone, Pillow": lambda: [decode(path, "pillow") for path in paths],
        }
        rows = take_turns({name: partial(timed, way, len(paths)) for name, way in ways.items()}, args.blocks, ["Pillow recipe"])
    return [{**row, "images/s": 1e3 / row["cpu_ms"]} for row in rows]


def startup(args: Arguments) -> list[Row]:
    """Commands from start to end, each in a process of its own, beside one that imports the libraries and ends.

    `predict` answers for one photograph by a checkpoint of the package. `fit` takes the first step of `fgzoo fit` and, beyond it,
    keeps a checkpoint and says where. All find their bytecode, as they do from the second time on.
    """
    with tempfile.TemporaryDirectory() as folder:
        (photo,) = jpeg_files(folder, 1, args.images)
        commands = {
            IMPORTS: ("-c", "import torch, torchvision, timm, lightning"),
            "predict": ("-m", "fgzoo", "predict", "rra_birds", str(photo.resolve())),
            "fit": ("-m", "fgzoo", "fit", "--trainer.max_steps", "1"),
        }
        bytecode = {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
        settings = {**os.environ, **bytecode, "OMP_NUM_THREADS": str(args.threads)}
        run = partial(subprocess.run, cwd=folder, env=settings, check=True, capture_output=True)
        processes = {name: partial(run, [sys.executable, *typed]) for name, typed in commands.items()}
        contenders = {name: partial(timed, process, 1, resource.RUSAGE_CHILDREN) for name, process in processes.items()}
        return take_turns(contenders, args.blocks, [IMPORTS])


def scan(args: Arguments) -> list[Row]:
    """What SRBN adds to its backbones' passes, by the grid's size, forward and backward, by its recipe for CUB.

    A grid has a sixteenth of the image's side, from 7 x 7 cells to those of the image's size. On the largest one the spatial
    LSTM's scan, in one direction over 512 channels with states of 256, also stands beside the literal double loop over its cells.
    """
    rows = []
    largest = args.size // 16
    for grid in [side for side in (7, 14, 21, 28) if side < largest] + [largest]:
        sized = replace(args, recipe=True, size=16 * grid)
        images = torch.randint(0, 256, (args.batch, 3, sized.size, sized.size), dtype=torch.uint8, device=DEVICE)
        model = build(sized, "srbn").to(DEVICE)
        levels = (model.network.get_submodule(name).levels[-1] for name in ("backbone", "second_backbone"))
        maps = [torch.randn(args.batch, level.channels, grid, grid, device=DEVICE, requires_grad=True) for level in levels]
        model.network.streams = lambda _, maps=maps: maps
        contenders = {
            BARE: partial(timed, bare_step(sized, "srbn", images), args.batch),
            "what is added": partial(timed, partial(mechanism_step, model, model.normalize(images), sized), args.batch),
        }
        rows += [{"cells": f"{grid} x {grid}", **row} for row in take_turns(contenders, args.blocks, [BARE])]
    block = SpatialLSTM(512, 256).to(DEVICE)
    wide = torch.randn(args.batch, 512, largest, largest, device=DEVICE, requires_grad=True)
    contenders = {
        "double loop": partial(timed, lambda: double_loop(block, wide).sum().backward(), args.batch),
        "scan": partial(timed, lambda: block(wide).sum().backward(), args.batch),
    }
    return rows + [{"cells": f"{largest} x {largest}", **row} for row in take_turns(contenders, args.blocks, ["scan"])]


def mechanism_step(model: FineGrainedClassifier, images: Tensor, args: Arguments) -> None:
    """Forward and backward through all of a network but what makes its maps."""
    with args.autocast():
        targets = torch.arange(len(images), device=DEVICE) % args.classes
        torch.stack(list(model.loss(model(images), targets).values())).sum().backward()


def double_loop(block: SpatialLSTM, maps: Tensor) -> Tensor:
    """The equations, one cell at a time, for one direction."""
    weight = torch.cat([block.input_weight[0], block.hidden_weight[0]], dim=1)
    zero = maps.new_zeros(len(maps), block.hidden_size)
    h: dict[tuple[int, int], Tensor] = {}
    c: dict[tuple[int, int], Tensor] = {}
    for i, j in itertools.product(range(maps.shape[2]), range(maps.shape[3])):
        left, upper = (i, j - 1), (i - 1, j)
        y = torch.cat([maps[:, :, i, j], h.get(left, zero), h.get(upper, zero)], dim=1)
        g, i_gate, o, f_r, f_c = F.linear(y, weight, block.bias).chunk(5, dim=1)
        c[i, j] = g.tanh() * i_gate.sigmoid() + f_c.sigmoid() * c.get(left, zero) + f_r.sigmoid() * c.get(upper, zero)
        h[i, j] = (o.sigmoid() * c[i, j]).tanh()
    return torch.stack(list(h.values()), dim=-1).unflatten(-1, maps.shape[2:])


MEASUREMENTS = {"step": step, "predict": predict, "data": data, "startup": startup, "scan": scan}


def measure(args: Arguments) -> None:
    """Measure what is asked for; the page has a line for all rows that are alike but for the block."""
    torch.set_num_threads(args.threads)
    function = MEASUREMENTS[args.what]
    if args.what in ("data", "startup", "scan"):
        rows = function(args)
    else:
        by_method = {method: function(args, method) for method in args.methods}
        rows = [{"method": name, "backbone": args.backbone_of(name), **row} for name in by_method for row in by_method[name]]
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(value for value in row.values() if isinstance(value, str))].append(row)
    lines = []
    for blocks in groups.values():
        measured = [name for name, value in blocks[0].items() if isinstance(value, float)]
        lines.append(blocks[0] | {name: common.median_and_range([block[name] for block in blocks]) for name in measured})
        del lines[-1]["block"]
    of_images = ("size", "batch", "classes", "precision", "steps")
    settings = {name: getattr(args, name) for name in (("threads",) if args.what == "startup" else of_images)}
    about = ", ".join(f"{name} {value}" for name, value in settings.items())
    text = f"{inspect.getdoc(function)}\n\n{about}; medians, in brackets the smallest and largest block; ms an image or command."
    rows = [row | settings for row in rows]
    common.write_report(f"Speed of {args.what}", f"{text}\n\n{common.markdown_table(lines)}", rows, args.write)


if __name__ == "__main__":
    sys.exit(common.main(Arguments, then=measure))
