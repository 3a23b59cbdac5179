"""Speed and memory, each beside something that is measured in the same minutes.

What is compared takes turns, a block of calls each, so that whatever else the machine does meets all alike; ratios are taken
within a turn. Weights are random and nothing is learnt, which matters to neither speed nor memory.

    python benchmarks/speed.py step --write speed                     # preset small, before and after freezing, and plain timm
    python benchmarks/speed.py step --recipe --methods rra --size 448 # papers' networks beside their backbones' bare passes
    python benchmarks/speed.py step --recipe --end-to-end             # also fed from JPEG files
    python benchmarks/speed.py step --ranks 1 2 4 --recipe            # several processes, joined by DistributedDataParallel
    python benchmarks/speed.py memory --methods srbn --batch 8        # peak of a step
    python benchmarks/speed.py forward                                # every method beside its bare backbone
    python benchmarks/speed.py predict                                # beside reading the files and the bare forward pass
    python benchmarks/speed.py explain                                # beside predict; bytes of the page
    python benchmarks/speed.py data --images PATH                     # the image pipeline beside the usual Pillow recipe
    python benchmarks/speed.py scan                                   # the spatial LSTM beside the literal double loop
    python benchmarks/speed.py step --quick                           # does it work? so for all
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import common
import lightning as L
import timm
import torch
import torch.nn.functional as F
from costs import forward_operations, training_operations
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fgzoo import FGVCDataModule, FineGrainedClassifier, create_model
from fgzoo.allocator import VARIABLE
from fgzoo.data.cache import ImageCache
from fgzoo.data.images import decode
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.data.transforms import augmentation_transform, resize_transform
from fgzoo.interpret.explanation import explain as explained
from fgzoo.interpret.page import write_page
from fgzoo.nn.spatial_lstm import SpatialLSTM

PLAIN, BARE, FILES = "plain timm", "bare passes of its backbones", "from files"
#: The preset `small` without, and with, what made its step fast.
PRESETS: dict[str, Any] = {"before": {"freeze": 0, "freeze_norm": "none"}, "after": {"freeze": 3, "freeze_norm": "statistics"}}
#: Batches that a process may be asked for, which its schedule needs to know.
BATCHES = 10**6
CUDA = torch.cuda.is_available()
#: Pixels and images by what is measured.
DEFAULTS = {"step": (160, 32), "data": (448, 150), "memory": (448, 8), "scan": (28, 2), "forward": (224, 32)}
Row = dict[str, Any]
Contender = Callable[[], Row]


@dataclass(frozen=True)
class Options:
    """Speed and memory, each beside something that is measured in the same minutes.

    Args:
        what: What is measured.
        methods: Whose networks (default: the baseline and the four methods; of memory SRBN's).
        backbone: A timm network for all (default: mobilenetv2_100; by recipe, and of memory, each method's own).
        recipe: Step: by the method's recipe for CUB, beside its backbones' bare passes; by default by the preset small, before
            and after levels and statistics were frozen and memory was kept, beside a plain loop of torch and timm.
        end_to_end: Step: also fed by the data module from JPEG files.
        ranks: Step: on so many processes, each with the batch; what is compared is time on the wall.
        compiled: Step: compile the network.
        size: Side of the images in pixels, of scan's map in cells (default: step 160, memory and data 448, scan 28, else 224).
        batch: Images, or maps, of a call (default: step and forward 32, memory 8, scan 2, data 150, else 64).
        classes: K.
        precision: Of a trainer (default: what fgzoo takes on this machine).
        device: Where it runs.
        threads: Threads of a process.
        steps: Calls a block, of steps.
        blocks: Of each that is compared.
        seed: Of weights and images.
        images: Data: a folder of JPEG files (default: synthetic birds of 500 x 375 pixels).
        write: Write results/NAME.md and .csv.
        quick: A tiny configuration, to see that it works.
    """

    what: Literal["step", "forward", "data", "predict", "explain", "scan", "memory"]
    methods: list[str] | None = None
    backbone: str | None = None
    recipe: bool = False
    end_to_end: bool = False
    ranks: list[int] | None = None
    compiled: bool = False
    size: int | None = None
    batch: int | None = None
    classes: int = 50
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    device: Literal["cpu", "cuda"] = "cuda" if CUDA else "cpu"
    threads: int = 1
    steps: int = 2
    blocks: int = 7
    seed: int = 0
    images: Path | None = None
    write: str | None = None
    quick: bool = False


def resolved(o: Options) -> Options:
    """With the defaults that depend on what is measured."""
    size, batch = DEFAULTS.get(o.what, (224, 64))
    size, batch = (8 if o.what == "scan" else 64, 2) if o.quick else (size, batch)
    methods = o.methods or (["srbn"] if o.what == "memory" else ["baseline", "rra", "coarse2fine", "iagn", "srbn"])
    known = {"methods": methods[:1] if o.quick else methods, "size": o.size or size, "batch": o.batch or batch}
    known |= {"backbone": "test_resnet", "steps": 1, "blocks": 2} if o.quick else {}
    return replace(o, precision=o.precision or common.default_precision(), recipe=o.recipe or o.what == "memory", **known)


def network(o: Options, method: str) -> str:
    """A method's backbone."""
    own = inspect.signature(common.find_method(method)[0]).parameters["backbone"].default
    return o.backbone or (own if o.recipe else "mobilenetv2_100")


def rows_of(o: Options, method: str, found: Sequence[Row]) -> list[Row]:
    """What was measured of a method, with what it was measured on."""
    return [{"method": method, **row, "backbone": network(o, method), "size": o.size, "batch": o.batch} for row in found]


# ---------------------------------------------------------------------- taking turns


def take_turns(contenders: Mapping[str, Contender], blocks: int, base: str = "", clock: str = "cpu_ms") -> list[Row]:
    """Rows of blocks of everybody in turn, after one that does not count, with the ratio of a clock to that of `base`."""
    rows = []
    for block in range(blocks + 1):
        turn = {name: contend() for name, contend in contenders.items()}
        for name, took in turn.items() if block else ():
            ratio = {f"to {base}": took[clock] / turn[base][clock]} if base else {}
            rows.append({"what": name, "block": block, **took, **ratio})
    return rows


def in_process(function: Callable[[], Any], images: int, device: str = "cpu") -> Contender:
    """A contender that calls a function here, which handles so many images."""

    def contend() -> Row:
        wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        wait_for(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_ms": 1e3 * wall / images, "cpu_ms": 1e3 * cpu / images}

    return contend


def wait_for(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def report(title: str, text: str, rows: Sequence[Row], write: str | None) -> None:
    """A page: a line for all that are alike but for the block, with medians of what was measured, and what is the same in all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    measured = [name for name in names if any(isinstance(row.get(name), float) for row in rows)]
    settings = [name for name in names if name not in (*measured, "block")]
    shared = [name for name in settings if len({row.get(name) for row in rows}) == 1]
    settings = [name for name in settings if name not in shared]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name, "") for name in settings), []).append(row)
    lines = []
    for key, alike in groups.items():
        values = [[row[name] for row in alike if name in row] for name in measured]
        lines.append([*key, *(common.middle(found) if found else "" for found in values)])
    same = "".join(f"{name} {rows[0].get(name)}, " for name in shared)
    columns = [*settings, *(name.replace("_ms", ", ms an image") for name in measured)]
    said = f"{text}\n\n{same}medians, in brackets the smallest and the largest block."
    common.deliver(title, f"{said}\n\n{common.table(columns, lines)}", rows, write)


# ---------------------------------------------------------------------- training steps, each network in a process of its own


class Turns(Callback):
    """Trains when it is told to: reads a number of steps from standard input, and writes what they took."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.since = self.now()
        # Other ranks follow the first one, which they meet at every step.
        self.left = 0 if os.environ.get("LOCAL_RANK", "0") == "0" else BATCHES

    def on_train_batch_start(self, *_: Any) -> None:
        """Between blocks, report and wait."""
        if self.left == 0:
            self.left = self.turn()
        self.left -= 1

    def now(self) -> dict[str, float]:
        """Milliseconds by clock: on the wall, of the process, of it in the kernel."""
        wait_for(self.device)
        used = resource.getrusage(resource.RUSAGE_SELF)
        clocks = {"wall_ms": time.perf_counter(), "cpu_ms": used.ru_utime + used.ru_stime, "system_ms": used.ru_stime}
        return {name: 1e3 * seconds for name, seconds in clocks.items()}

    def turn(self) -> int:
        """Report what the last block took, then wait for the next."""
        took = {name: value - self.since[name] for name, value in self.now().items()}
        sys.stdout.write(json.dumps({**took, "peak_gib": common.peak_memory(torch.device(self.device)) / 2**30}) + "\n")
        sys.stdout.flush()
        asked = int(sys.stdin.readline() or 0)
        if not asked:
            os._exit(0)  # a trainer in the middle of an epoch has no other end
        self.since = self.now()
        return asked


def build(o: Options, method: str, contender: str = "") -> FineGrainedClassifier:
    """The model, by the preset `small` or by the method's own recipe for CUB, with random weights."""
    name = f"cub/{method}" if o.recipe else "small"
    known = common.read_recipe(name) if name in common.list_recipes() else {}
    arguments = {**known.get("model", {}).get("init_args", {}), **({} if o.recipe else PRESETS.get(contender, PRESETS["after"]))}
    own = {"backbone": network(o, method), "lr": 1e-6, "pretrained": False, "backbone_weights": None, "compile": o.compiled}
    torch.manual_seed(o.seed)
    return create_model(method, o.classes, **{**arguments, **own})


def train(o: Options, method: str, contender: str, files: str, ranks: int) -> None:
    """Train as told on standard input; a method in its last stage."""
    common.quieten()
    torch.set_num_threads(o.threads)
    generator = torch.Generator().manual_seed(o.seed)
    images = torch.randint(0, 256, (o.batch, 3, o.size, o.size), generator=generator, dtype=torch.uint8)
    batch = (images.to(o.device), torch.arange(o.batch, device=o.device) % o.classes, torch.arange(o.batch, device=o.device))
    turns = Turns(o.device)
    if contender in (PLAIN, BARE):
        step = plain_step(o, method, batch[0], batch[1]) if contender == PLAIN else bare_step(o, method, batch[0])
        while True:
            for _ in range(turns.turn()):
                step()
    model = build(o, method, contender)
    others = keep_to_stage(model, len(model.stages()) - 1)
    settings: dict[str, Any] = {
        "accelerator": "gpu" if o.device == "cuda" else "cpu", "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto",
        "precision": o.precision, "max_steps": BATCHES + others, "max_epochs": -1, "limit_val_batches": 0, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "use_distributed_sampler": False, "callbacks": [common.ReproducibleSteps(o.seed), common.FiniteLoss(), turns],
        "plugins": [LightningEnvironment()],  # not a cluster's, where the script runs inside of one of its jobs
    }  # fmt: skip
    trainer = L.Trainer(**settings)
    if trainer.precision != o.precision:
        # Lightning takes another one instead, with a warning, where a device cannot do what was asked for.
        raise ValueError(f"precision {o.precision} is not to be had on {o.device}")
    if contender != FILES:
        trainer.fit(model, Repeated(batch, BATCHES + others))
    data = {"image_size": o.size, "batch_size": o.batch, "csv": f"{files}/images.csv", "num_workers": o.threads}
    trainer.fit(model, FGVCDataModule("folder", files, **data))


class Repeated:
    """A loader that gives one batch again and again; a list would be taken for many loaders."""

    def __init__(self, batch: Any, length: int) -> None:
        self.batch, self.length = batch, length

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.batch, self.length)

    def __len__(self) -> int:
        return self.length


def keep_to_stage(model: FineGrainedClassifier, chosen: int) -> int:
    """Let a run spend all its batches in one stage, but for one in each of the others; returns how many others there are."""
    stages = model.stages()
    others, rest = len(stages) - 1, 1e-9
    shares = [1 - rest * others if index == chosen else rest for index in range(len(stages))]
    changed = tuple(stage._replace(share=share) for stage, share in zip(stages, shares, strict=True))
    model.stages = lambda: changed
    return others


def autocast(o: Options) -> Any:
    """The precision of passes outside of a trainer."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(o.precision, torch.float32)
    return torch.autocast(o.device, dtype, enabled=dtype != torch.float32)


def plain_step(o: Options, method: str, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A step of the loop that one writes without any library but timm."""
    model = timm.create_model(network(o, method), num_classes=o.classes).to(o.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    config = timm.data.resolve_data_config({}, model=model)
    mean, std = (255 * torch.tensor(config[key], device=o.device).view(3, 1, 1) for key in ("mean", "std"))

    def step() -> None:
        pixels = images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        with autocast(o):
            loss = F.cross_entropy(model(pixels), targets, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare_step(o: Options, method: str, images: Tensor) -> Callable[[], None]:
    """The passes that a step of the method takes through its own backbones, as they are cut there, and nothing else.

    With a graph: forward, backward and a step of SGD; without one the forward pass. A fraction of a pass is one of fewer images.
    """
    model = build(o, method).to(o.device, memory_format=torch.channels_last)
    images = model.normalize(images).contiguous(memory_format=torch.channels_last)
    passes = []
    for name, spent in training_operations(model, len(model.stages()) - 1, images[:2])[1].items():
        backbone = model.network.get_submodule(name)
        alone = forward_operations(backbone, images[:2])
        optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-6, momentum=0.9)
        passes += [(backbone, optimizer, learns, count / alone) for learns, count in zip((True, False), spent, strict=True)]

    def step() -> None:
        for backbone, optimizer, learns, count in passes:
            backbone.frozen = not learns
            for left in range(round(count * len(images)), 0, -len(images)):
                with autocast(o), torch.set_grad_enabled(learns):
                    loss = backbone(images[:left])[-1].float().mean()
                if learns:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    return step


def start(stack: ExitStack, o: Options, method: str, contender: str, files: str = "", ranks: int = 1) -> Contender:
    """A contender that trains in a process of its own, or in several; the stack ends them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    keeps = {VARIABLE: str(int(contender not in ("before", PLAIN)))}
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
    given = json.dumps([asdict(replace(o, images=None)), method, contender, files, ranks])
    log, processes = stack.enter_context(tempfile.TemporaryFile("w+")), []  # noqa: SIM115 - the stack closes it
    for rank in range(ranks):
        environment = {**common.process_environment(o.threads), **keeps, **joined}
        environment |= {"LOCAL_RANK": str(rank)} if ranks > 1 else {}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE if rank == 0 else log, "stderr": log}
        processes.append(subprocess.Popen([sys.executable, __file__, "train", given], text=True, env=environment, **pipes))
        stack.callback(processes[-1].kill)
    first = processes[0]

    def answer() -> Row:
        assert first.stdout is not None
        for line in first.stdout:  # lines that libraries print are passed over
            if line.startswith('{"wall_ms"'):
                return dict(json.loads(line))
        log.seek(0)
        raise common.UsageError(f"{method}, {contender}: {common.hidden((log.read().splitlines() or ['ended'])[-1])}")

    def contend() -> Row:
        assert first.stdin is not None
        first.stdin.write(f"{o.steps}\n")
        first.stdin.flush()
        return {name: value / (1 if name == "peak_gib" else o.steps * o.batch) for name, value in answer().items()}

    answer()
    return contend


def step(o: Options) -> None:
    """A real training step: loss, backward pass, optimiser, schedule, several steps a batch where a method takes them."""
    rows = []
    for method in o.methods:
        with ExitStack() as stack:
            begin = functools.partial(start, stack, o, method)
            if o.ranks:
                contenders = {f"{ranks} rank(s)": begin("after", "", ranks) for ranks in o.ranks}
            else:
                names = (method, BARE) if o.recipe else ("before", "after", PLAIN)
                contenders = {name: begin(name) for name in names}
            if o.end_to_end:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                draw_birds(Path(folder), 4 * o.batch)
                contenders[FILES] = begin(FILES, folder)
            base = next(iter(contenders)) if o.ranks else BARE if o.recipe else PLAIN
            rows += rows_of(o, method, take_turns(contenders, o.blocks, base, "wall_ms" if CUDA or o.ranks else "cpu_ms"))
    report("Speed of a training step", "A real step of a Lightning trainer, each network in a process of its own.", rows, o.write)


def memory(o: Options) -> None:
    """Peak memory of a training step."""
    rows = []
    for method in o.methods:
        with ExitStack() as stack:
            took = start(stack, replace(o, steps=2), method, method)()
        rows += rows_of(o, method, [{"what": method, "precision": o.precision, **took}])
    report("Memory of a training step", "By the method's recipe: allocated by torch on a GPU, else resident.", rows, o.write)


def draw_birds(folder: Path, count: int) -> list[Path]:
    """Synthetic birds as JPEG files of 500 x 375 pixels, quality 90, CUB's usual size, and the table that lists them."""
    birds = SyntheticBirds(Birds(size=500))
    paths = []
    for record in birds.listing().train[:count]:
        paths.append(folder / f"{record.name.replace('/', '_')}.jpg")
        picture = Image.fromarray(birds.read(record).permute(1, 2, 0).numpy())
        picture.crop((0, 62, 500, 437)).save(paths[-1], quality=90)
    lines = [f"{path.name},class {number % 2},train" for number, path in enumerate(paths)]
    (folder / "images.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    return paths


# ---------------------------------------------------------------------- an image through a network


def forward(o: Options) -> None:
    """A forward pass of every method beside its bare backbone's."""
    rows = []
    for method in o.methods:
        model = passing_for_trained(o, method).to(o.device)
        images, bare = torch.randn(o.batch, 3, o.size, o.size, device=o.device), model.make_backbone().to(o.device).eval()
        nets = {method: model, "bare": bare}
        contenders = {name: in_process(functools.partial(net, images), o.batch, o.device) for name, net in nets.items()}
        with torch.inference_mode():
            rows += rows_of(o, method, take_turns(contenders, o.blocks, "bare", "wall_ms" if CUDA else "cpu_ms"))
    report("Speed of a forward pass", "Normalised images on the device.", rows, o.write)


def of_files(o: Options) -> None:
    """What `predict` adds to reading images and to the bare forward pass, and `explain` to `predict`."""
    torch.set_num_threads(o.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths, page = draw_birds(Path(folder), o.batch), Path(folder) / "page.html"
        for method in o.methods:
            rows += rows_of(o, method, predict_and_explain(o, passing_for_trained(o, method), paths, page))
    title = "What predict adds" if o.what == "predict" else "Speed of explain"
    report(title, "Files of 500 x 375 pixels; parts: reading and the bare forward pass.", rows, o.write)


def predict_and_explain(o: Options, model: FineGrainedClassifier, paths: list[Path], page: Path) -> list[Row]:
    """Rows of one model."""
    predicted = in_process(lambda: list(common.classify([model], list(paths))), len(paths))
    if o.what == "explain":
        explaining = in_process(lambda: write_page(page, model, paths, explained(model, list(paths))), len(paths))
        found = take_turns({"explain": explaining, "predict": predicted}, o.blocks, "predict")
        return [
            row | ({"KB an image": page.stat().st_size / 1e3 / len(paths)} if row["what"] == "explain" else {}) for row in found
        ]
    batches = torch.stack([model.normalize(model.transform(decode(path))) for path in paths]).split(32)
    bare = in_process(torch.inference_mode()(lambda: [model(batch) for batch in batches]), len(paths))
    reading = in_process(lambda: [model.transform(decode(path)) for path in paths], len(paths))
    found = take_turns({"bare forward": bare, "reading": reading, "predict": predicted}, o.blocks)
    for one, two, whole in zip(*(found[place::3] for place in range(3)), strict=True):
        whole["to its parts"] = whole["cpu_ms"] / (one["cpu_ms"] + two["cpu_ms"])
    return found


def passing_for_trained(o: Options, method: str) -> FineGrainedClassifier:
    """A model with random weights, in evaluation."""
    torch.manual_seed(o.seed)
    model = create_model(method, o.classes, network(o, method), pretrained=False).eval()
    names, resize = [f"class {index}" for index in range(o.classes)], round(o.size * 256 / 224)
    model.card = common.DataCard("folder", names, o.size, resize, "squash", "bilinear", "torchcodec", "none")
    model.trained = True
    return model


# ---------------------------------------------------------------------- the image pipeline and the scan


def data(o: Options) -> None:
    """Images a second and core of the image pipeline, beside the usual Pillow recipe, from JPEG files to a random crop."""
    torch.set_num_threads(1)
    resize = round(o.size * 600 / 448)
    usual = v2.Compose([
        v2.Resize([resize, resize]), v2.RandomCrop(o.size), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    resized, crop = resize_transform(resize, "squash"), augmentation_transform("standard", o.size)
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(o.images.rglob("*.jpg"))[: o.batch] if o.images else draw_birds(Path(folder), o.batch)
        records = {path: Record(str(path), 0, path) for path in paths}
        cache = ImageCache(Path(folder), "benchmark", {}, lambda record: decode(record.path), resized, resize, limit_gb=64)
        cache.prepare(list(records.values()))
        ways: dict[str, Callable[[Path], Any]] = {
            "Pillow recipe": lambda path: usual(Image.open(path).convert("RGB")),
            "ours": lambda path: crop(resized(decode(path))),
            "ours, from the cache": lambda path: crop(cache.read(records[path])),
            "ours, Pillow decoder": lambda path: crop(resized(decode(path, "pillow"))),
            "decode alone, torchcodec": lambda path: decode(path, "torchcodec"),
            "decode alone, Pillow": lambda path: decode(path, "pillow"),
        }
        contenders = {name: in_process(lambda way=way: [way(path) for path in paths], len(paths)) for name, way in ways.items()}
        rows = [row | {"images/s": 1e3 / row["cpu_ms"]} for row in take_turns(contenders, o.blocks, "Pillow recipe")]
    text = (
        f"{len(paths)} {'photographs' if o.images else 'synthetic birds'}, {o.size} of {resize} pixels; CPU time on one thread."
    )
    report("Speed of the image pipeline", text, rows, o.write)


def scan(o: Options, channels: int = 512, hidden: int = 256) -> None:
    """The spatial LSTM's diagonal scan beside the literal double loop over its cells, forward and backward."""
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    block = SpatialLSTM(channels, hidden).to(o.device)
    maps = torch.randn(o.batch, channels, o.size, o.size, device=o.device, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(block(maps), double_loop(block, maps), rtol=1e-3, atol=1e-4)
    contenders = {
        "double loop": in_process(lambda: double_loop(block, maps).sum().backward(), o.batch, o.device),
        "scan": in_process(lambda: block(maps).sum().backward(), o.batch, o.device),
    }
    text = f"{o.size} x {o.size} cells, {channels} channels, hidden {hidden}, batches of {o.batch}, one direction."
    report("Speed of the spatial LSTM", text, take_turns(contenders, o.blocks, "scan", "wall_ms" if CUDA else "cpu_ms"), o.write)


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
    rows = [torch.stack([h[i, j] for j in range(maps.shape[3])], dim=-1) for i in range(maps.shape[2])]
    return torch.stack(rows, dim=-2)


VERBS = {"step": step, "forward": forward, "data": data, "predict": of_files, "explain": of_files, "scan": scan, "memory": memory}


def measure(options: Options) -> None:
    """Measure what is asked for."""
    VERBS[options.what](resolved(options))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        said, *rest = json.loads(sys.argv[2])
        train(Options(**said), *rest)
    sys.exit(common.command([Options], after=measure))
