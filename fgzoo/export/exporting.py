"""Trained networks as files that run without fgzoo: ONNX, and programs of torch.export.

The graph takes `images`, (B, 3, S, S) float32 RGB, normalised as in `forward`, with any B and one size S; how an image file
becomes that stands in the file beside the weights (see [description][]). It answers as the network does in evaluation mode,
second looks at crops included, with `logits` and, where the method has maps, `attention`.

A file is moved into place only when what lies on the disk answers as torch does, see [compare][].
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from fgzoo.checkpoints.run_folder import BEST, run_of
from fgzoo.commands.own_images import EXPORTED
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.errors import CheckpointError, DataError, ExportError, UsageError
from fgzoo.files import whole
from fgzoo.methods import method_name
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.prediction.predict import ImageLike, batches, card_of, listed, views_transform
from fgzoo.version import __version__

Format = Literal["onnx", "torch-export"]
#: The outputs by name, images first: (B, 3, S, S) -> {name: (B, ...)}.
Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

#: What ONNX files need; torch.export needs nothing more than torch.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Where a file keeps its description: a key of ONNX's metadata, a file inside a program of torch.export.
ONNX_KEY = "fgzoo"
PROGRAM_FILE = "fgzoo.json"
#: ONNX files are protocol buffers, which end at 2 GiB; the graph itself takes some of them.
LARGEST_ONNX = 2**31 - 2**24

#: How far a file's answers may be from torch's: logits relative to the largest one (at least 1), maps in their own range [0, 1].
TOLERANCES = {"logits": 1e-4, "attention": 1e-3}
#: The batches of random images that a file is compared on. The graph is traced with another size.
BATCHES = (1, 2, 5)
TRACED_BATCH = 3
#: How many glaring images and synthetic birds it is compared on besides, and how many images of one's own pass at once.
GLARING = 4
BIRDS = 4
OWN_BATCH = 8
#: Their contrast beside other random images': enough that ReLU6 clamps many channels, as it does in photographs.
GLARE = 3.0
#: A change of the input that means nothing, a few roundings of single precision, and how many are tried, in both directions.
NUDGE = 1e-6
NUDGES = 2
#: An answer that such a change moves beyond the tolerance is compared less strictly, by this factor of the movement.
LEEWAY = 10.0


class Parity(NamedTuple):
    """How one output of an exported file compares with torch's on images of one kind.

    Attributes:
        output: `logits` or `attention`.
        kind: What the images are: `random images`, `glaring images`, `synthetic birds`, `given images`.
        difference: The largest absolute difference on images where torch's own answer is steady.
        allowed: What was allowed there.
        images: How many images were compared.
        unsteady: How many of them torch itself answers otherwise when they change by roundings.
        unsteady_difference: The largest absolute difference on these.
    """

    output: str
    kind: str
    difference: float
    allowed: float
    images: int
    unsteady: int
    unsteady_difference: float

    def __str__(self) -> str:
        where = f"on {self.images} {self.kind}"
        said = f"{self.output} differ by at most {self.difference:.1e} (allowed {self.allowed:.1e}) {where}"
        if not self.unsteady:
            return said
        return f"{said}, and by {self.unsteady_difference:.1e} on {self.unsteady} of them where roundings move torch's own"


def export(
    model: FineGrainedClassifier,
    path: str | Path,
    form: Format = "onnx",
    name: str | None = None,
    images: ImageLike | Sequence[ImageLike] | None = None,
) -> tuple[dict[str, Any], list[Parity]]:
    """Write a trained model as a file that runs without fgzoo.

    It is compared with torch on random images, some of them glaring, on synthetic birds, and on images of one's own.

    Args:
        model: The model; it stays as it is, on its device.
        path: The file, `.onnx` or `.pt2`; one that is there is replaced when the new one is whole and answers as torch does.
        form: `onnx` or `torch-export`.
        name: What the file calls its weights; by default its own name.
        images: Images of one's own: paths, PIL images, uint8 tensors (3, H, W), or a list of them. Each passes the network six
            times; some dozens tell what there is to tell.

    Returns:
        What the file says of itself, and how each of its outputs compares with torch's on each kind of images.

    Raises:
        UntrainedError: The model has never been trained.
        CheckpointError: Weights are not finite, or do not know their classes.
        ExportError: The network cannot be traced, the file answers otherwise, or it cannot be written.
        UsageError: The file's name or a package that is missing.
        DataError: An image of one's own cannot be read.
    """
    path = Path(path).expanduser()
    check_request(path, form)
    size = card_of(model, "export").image_size
    _check_weights(model, form)
    shown = pictures(model, [] if images is None else listed(images))
    network = evaluation_network(model)
    about = description(model, name or path.stem)
    with _quietly():
        program = trace(network, size)
        # The logits always; where there are two outputs, the maps too.
        about["outputs"] = dict(list(MEANINGS.items())[: len(program.graph_signature.user_outputs)])
        content = _onnx_bytes(program, about) if form == "onnx" else _program_bytes(program, about)
        try:
            with whole(path) as part:
                part.write_bytes(content)
                run = read(part, form)
                parity = [output for kind, those in shown.items() for output in compare(network, run, those, kind)]
        except OSError as error:
            raise ExportError(
                f"export: {path} cannot be written ({error.strerror or error}); what was there before is as it was"
            ) from error
    return about, parity


def summary(outputs: Sequence[Parity]) -> str:
    """One line: what was compared on, each output where it comes nearest to its limit, and wherever images are unsteady."""
    worst = {output.output: output for output in sorted(outputs, key=lambda output: output.difference / output.allowed)}
    told = [str(output) for output in outputs if output.unsteady or output is worst[output.output]]
    shown = dict.fromkeys(f"{output.images} {output.kind}" for output in outputs)
    return f"against torch on {_listed(shown)}: {'; '.join(told)}"


def check_request(path: Path, form: Format) -> None:
    """Refuse a file that cannot be written or has another suffix, and a form whose packages are missing.

    Args:
        path: The file.
        form: `onnx` or `torch-export`.

    Raises:
        UsageError: Something of it does not fit.
        ExportError: The file's folder cannot be made or written to.
    """
    if form not in get_args(Format):
        raise UsageError(f"export: format '{form}' is none of {', '.join(get_args(Format))}")
    if path.suffix.lower() != EXPORTED[form]:
        raise UsageError(f"export: {path} must end with {EXPORTED[form]}, by which programs know a file of format {form}")
    if path.is_dir():
        raise UsageError(f"export: {path} is a folder; give a file in it")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if form == "onnx" and missing:
        raise UsageError(f"export: {_listed(missing)} not installed; pip install 'fgzoo[export]', or take --format torch-export")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"export: {path.parent} cannot be made ({error.strerror or error})") from error
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"export: {path.parent} cannot be written to; give another place by --output")


def _check_weights(model: FineGrainedClassifier, form: Format) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"export: {name} holds a value that is no finite number; these weights are broken")
    weights = sum(value.nbytes for value in model.network.state_dict().values())
    if form == "onnx" and weights > LARGEST_ONNX:
        raise ExportError(
            f"export: {weights / 2**30:.1f} GiB of weights, and an ONNX file holds less than 2; take --format torch-export"
        )


def checkpoint_name(said: str, checkpoint: Path) -> str:
    """What weights are called, and by default the file they are exported to.

    Args:
        said: What the command line named them by.
        checkpoint: The file that was meant.

    Returns:
        A run's data, method and number (`cub-rra-000`, the best checkpoint's with `-best`), a zoo name, or the file's own name.
    """
    run = run_of(checkpoint)
    if run is not None:
        parts = [run.parent.name, run.name] if run.name.isdigit() else [run.name]
        return "-".join([*parts, *(["best"] if checkpoint.name == BEST.name else [])])
    return checkpoint.stem if Path(said).expanduser().exists() else said


# ---------------------------------------------------------------------- what a file says of itself

MEANINGS = {
    "logits": "(batch, classes): their softmax over classes are the probabilities; classes as in class_names",
    "attention": "(batch, maps, height, width) in [0, 1]: the maps of the pass, from coarse to fine, each divided by its maximum",
}


def description(model: FineGrainedClassifier, name: str) -> dict[str, Any]:
    """What one must know to run the file: plain values, which it carries as JSON.

    Args:
        model: A trained model.
        name: What its weights are called.

    Returns:
        Values by key. An image file is prepared by turning it upright (EXIF), RGB, `resize` (`resize_mode` `squash`: to a square
        of that side; `shortest`: the shorter side, the other in proportion, rounded down), the central `crop`, division by 255,
        minus `mean`, divided by `std`, channels first.
    """
    card = card_of(model, "export")
    content: dict[str, Any] = {}
    model.on_save_checkpoint(content)
    written = content["fgzoo"]
    return {
        "checkpoint": name,
        "method": method_name(written["method"], dict(model.hparams)),
        "class": written["method"],
        "backbone": model.backbone,
        "dataset": card.dataset,
        "fingerprint": card.fingerprint,
        "class_names": list(card.class_names),
        "image_size": card.image_size,
        "resize": card.resize,
        "resize_mode": card.resize_mode,
        "interpolation": card.interpolation,
        "antialias": True,
        "crop": card.image_size,
        "mean": list(written["mean"]),
        "std": list(written["std"]),
        "input": "images, (batch, 3, image_size, image_size) float32, RGB: (pixel / 255 - mean) / std",
        "fgzoo": __version__,
        "torch": torch.__version__,
        "opset": None,
    }


# ---------------------------------------------------------------------- the graph


class Answers(nn.Module):
    """A network whose answer is a dictionary of tensors.

    Args:
        network: `forward(images)` -> [MethodOutput][fgzoo.nn.output.MethodOutput].

    Shape:
        - images: (B, 3, S, S)
        - returns: `logits` (B, K), and `attention` (B, M, h, w) where there are maps
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Classify."""
        output = self.network(images)
        answers = {"logits": output.logits.float()}
        if output.attention.shape[1] > 0:
            answers["attention"] = output.attention.float()
        return answers


def evaluation_network(model: FineGrainedClassifier) -> Answers:
    """A copy of the network as it evaluates: on the CPU, in single precision, not compiled, nothing computed twice.

    Args:
        model: The model, which stays as it is.

    Returns:
        The copy.
    """
    network = copy.deepcopy(model.network).cpu().float().eval()
    for module in network.modules():
        module._compiled_call_impl = None
        if isinstance(module, Backbone) and module.recomputes:
            module.recomputes = False
            if hasattr(module.model, "set_grad_checkpointing"):
                module.model.set_grad_checkpointing(False)
    return Answers(network.requires_grad_(False))


@torch.no_grad()
def trace(network: Answers, size: int) -> ExportedProgram:
    """The network as one graph, for any batch.

    Args:
        network: From [evaluation_network][].
        size: Side S of the images in pixels.

    Returns:
        The program, without the lines of code it came from.

    Raises:
        ExportError: A size or a decision in the network depends on the batch or on what an image shows.
    """
    images = probes(TRACED_BATCH, size, seed=0)
    method = type(network.network).__name__
    try:
        program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    except Exception as error:  # torch raises errors of a dozen families, which share no base
        fixed = "specialized it to be a constant" in str(error)
        said = "its forward fixes the batch (len(images) does, images.shape[0] does not)" if fixed else _first_line(error)
        raise ExportError(f"export: {method} cannot be traced for any batch: {said}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of the machine it was traced on
    return program


def _onnx_bytes(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    """The program as an ONNX file with its description, in which the opset is filled in.

    The exporter's own optimiser stays off: it drops additions below 1e-8, and with them the epsilon below a square root, so that
    a feature that is exactly zero becomes NaN. What is done here changes no number.
    """
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    method = about["method"]
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(about["outputs"]),
            dynamic_shapes={"images": {0: "batch"}},
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # as above, and those of onnxscript
        raise ExportError(
            f"export: {method} uses an operation that has no ONNX form: {_first_line(error)}; take --format torch-export"
        ) from error
    assert made is not None
    optimizer.inline(made.model)
    optimizer.fold_constants(made.model)
    optimizer.remove_unused_nodes(made.model)
    ClearMetadataAndDocStringPass()(made.model)
    proto = made.model_proto
    about["opset"] = next(opset.version for opset in proto.opset_import if opset.domain == "")
    onnx.helper.set_model_props(proto, {ONNX_KEY: json.dumps(about, ensure_ascii=False)})
    proto.producer_name, proto.producer_version = "fgzoo", __version__
    return proto.SerializeToString()


def _program_bytes(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={PROGRAM_FILE: json.dumps(about, ensure_ascii=False)})
    return stream.getvalue()


# ---------------------------------------------------------------------- the file against torch


def read(path: Path, form: Format) -> Run:
    """An exported file as a function, on the CPU.

    Args:
        path: The file, whatever its name.
        form: `onnx`, read by onnxruntime, or `torch-export`.

    Returns:
        (B, 3, S, S) -> outputs by name.

    Raises:
        ExportError: The file cannot be read.
    """
    try:
        return _onnx_run(path) if form == "onnx" else _program_run(path)
    except Exception as error:  # onnxruntime raises errors of its own families, which share no base
        raise ExportError(f"export: the file that was made cannot be read: {_first_line(error)}; nothing was written") from error


def _onnx_run(path: Path) -> Run:
    """The ONNX file, read by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run


def _program_run(path: Path) -> Run:
    """The program, read back from the file."""
    with path.open("rb") as file:
        loaded: Run = torch.export.load(file).module()
    return loaded


@torch.no_grad()
def compare(network: Answers, run: Run, shown: Iterable[Tensor], kind: str) -> list[Parity]:
    """Compare a file's answers with torch's on images of one kind.

    Networks that threshold, to crop a box, may answer quite otherwise when a pixel of a map lies on its threshold: then a
    rounding decides, in torch itself, too. So every image is also shown to torch changed by roundings. Where that moves torch's
    own answer by more than the tolerance, the file may differ by ten times the movement; everywhere else it must keep the
    tolerance. Torch's logits must be steady on half of the images at least, or else there is nothing to compare with.

    A choice among equals is steady: channels that are clamped to one value stay equal when an image changes by roundings, and
    torch chooses among them as before. A file that chooses otherwise is refused, if only one of the images clamps channels.

    Args:
        network: The network in torch.
        run: The file.
        shown: Normalised images in batches, (B, 3, S, S).
        kind: What they are, for people.

    Returns:
        The outputs' differences.

    Raises:
        ExportError: An answer is not finite, has another shape, or differs by more than is allowed.
    """
    measured: dict[str, list[tuple[Tensor, ...]]] = {}
    for images in shown:
        expected, found = network(images), _answers(run, images)
        nudged = [
            network(images + nudge * torch.randn(images.shape, generator=_seeded(n)))
            for n in range(NUDGES)
            for nudge in (NUDGE, -NUDGE)  # whichever side of a threshold it lies on
        ]
        for name, wanted in expected.items():
            distances = _distances(name, kind, wanted, found[name], [answers[name] for answers in nudged])
            measured.setdefault(name, []).append(distances)
    return [_judge(name, kind, *map(torch.cat, zip(*rows, strict=True))) for name, rows in measured.items()]


def _answers(run: Run, images: Tensor) -> dict[str, Tensor]:
    try:
        return run(images)
    except Exception as error:  # as in read()
        raise ExportError(
            f"export: the file that was made does not run on a batch of {len(images)}: {_first_line(error)}; nothing was written"
        ) from error


def _distances(name: str, kind: str, wanted: Tensor, found: Tensor, nudged: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every image of a batch: how far the file is from torch, how far a nudge moves torch, and torch's largest value."""
    if found.shape != wanted.shape:
        raise ExportError(
            f"export: the file's {name} have the shape {tuple(found.shape)}, torch's {tuple(wanted.shape)}; nothing was written"
        )
    if not torch.isfinite(wanted).all():
        raise ExportError(f"export: the network's own {name} are not finite on {kind}, so there is nothing to compare with")
    moved = torch.stack([_farthest(answers, wanted) for answers in nudged]).amax(dim=0)
    return _farthest(found, wanted), moved, wanted.abs().flatten(1).amax(dim=1)


def _judge(name: str, kind: str, distance: Tensor, moved: Tensor, largest: Tensor) -> Parity:
    """One output of all images of a kind, from their [_distances][]."""
    tolerance = TOLERANCES[name] * (max(1.0, float(largest.max())) if name == "logits" else 1.0)
    steady = moved <= tolerance
    # A distance that is no number is within no limit.
    wrong = ~(distance <= torch.where(steady, tolerance, LEEWAY * moved))
    if wrong.any():
        raise ExportError(
            f"export: the file's {name} differ from torch's on {int(wrong.sum())} of {len(wrong)} {kind}, by up to "
            f"{float(distance[wrong].max()):.2g}, where {tolerance:.2g} is allowed; nothing was written"
        )
    if name == "logits" and 2 * int(steady.sum()) < len(steady):
        raise ExportError(
            f"export: on {int((~steady).sum())} of {len(steady)} {kind} roundings decide the network's own logits, so "
            f"there is nothing to compare with; nothing was written"
        )
    farthest = [float(distance[which].max()) if which.any() else 0.0 for which in (steady, ~steady)]
    return Parity(name, kind, farthest[0], tolerance, len(steady), int((~steady).sum()), farthest[1])


def pictures(model: FineGrainedClassifier, images: Sequence[ImageLike]) -> dict[str, Iterable[Tensor]]:
    """What a file is compared on: random images, some of them glaring, synthetic birds, and images of one's own.

    Args:
        model: Says how images are prepared.
        images: Those of one's own, which are read here and now; there may be none.

    Returns:
        Normalised batches (B, 3, S, S) by what they are, for people.

    Raises:
        DataError: One of the images cannot be read.
    """
    size = card_of(model, "export").image_size
    # Birds are drawn at sides of 32 to 1024 pixels.
    birds = SyntheticBirds(Birds(classes=BIRDS, train_per_class=1, test_per_class=1, size=min(max(32, size), 1024)))
    shown: dict[str, Iterable[Tensor]] = {
        "random images": [probes(batch, size, seed=batch) for batch in BATCHES],
        "glaring images": [GLARE * probes(GLARING, size, seed=GLARING)],
        "synthetic birds": _prepared(model, [birds.read(record) for record in birds.listing().test]),
    }
    if images:
        shown["given images"] = _prepared(model, images)
    return shown


def _prepared(model: FineGrainedClassifier, images: Sequence[ImageLike]) -> Iterator[Tensor]:
    """Images as the weights want them, in batches; they are read at once and kept as bytes."""
    read = list(batches(images, [views_transform(card_of(model, "export"))], OWN_BATCH, 0, False, "export"))
    bad = [error for _, errors in read for error in errors if error is not None]
    if bad:
        raise DataError(f"export: {len(bad)} of {len(images)} images cannot be read, the first because {bad[0]}")
    return (model.normalize(views[0][:, 0].to(model.device)).cpu() for views, _ in read)


def probes(batch: int, size: int, seed: int) -> Tensor:
    """Random normalised images: soft patches of colour under a little noise, so that maps have peaks as in photographs.

    Args:
        batch: Number of images B.
        size: Side S in pixels.
        seed: Seed.

    Returns:
        (B, 3, S, S).
    """
    generator = _seeded(seed)
    patches = 2 * torch.randn(batch, 3, 6, 6, generator=generator)
    soft = F.interpolate(patches, size=(size, size), mode="bilinear", align_corners=False)
    return soft + 0.2 * torch.randn(batch, 3, size, size, generator=generator)


def _farthest(one: Tensor, other: Tensor) -> Tensor:
    """The largest absolute difference of every image, (B,)."""
    return (one - other).abs().flatten(1).amax(dim=1)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporters' notes to their own authors stay away."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    """What an exporter says first; --debug shows all of it."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _listed(things: Any) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = map(str, things)
    return f"{', '.join(most)} and {last}" if most else last
