"""An exported file against torch, on images of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.errors import DataError, ExportError
from fgzoo.export import Format
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import ImageLike, Views, batches, required_card, views_transform

#: The outputs by name, images first: (B, 3, S, S) -> {name: (B, ...)}.
Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

#: How far a file's answers may be from torch's, relative to the largest one (at least 1, which is that of maps).
#: Kernels for other instructions round otherwise, and Coarse2Fine's moments enlarge that: 1.2e-4 was seen with AVX-512.
TOLERANCES = {"logits": 3e-4, "attention": 1e-3, "known": 1e-3}
#: The batches of random images that a file is compared on.
BATCHES = (1, 2, 5)
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
        output: `logits`, `attention` or `known`.
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


def read(path: Path, form: Format) -> Run:
    """An exported file as a function on the CPU: ONNX by onnxruntime, OpenVINO's by OpenVINO.

    Raises:
        ExportError: The file cannot be read.
    """
    try:
        if form == "onnx":
            return _onnx_run(path)
        if form == "openvino":
            return _openvino_run(path)
        with path.open("rb") as file:
            program: Run = torch.export.load(file).module()
        return program
    except Exception as error:  # onnxruntime raises errors of its own families, which share no base
        raise ExportError(f"export: the file that was made cannot be read: {first_line(error)}; nothing was written") from error


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run


def _openvino_run(path: Path) -> Run:
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file may be replaced while this runs
    # In single precision, whatever shorter one this processor has.
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(path, "CPU", how)
    names = [output.any_name for output in model.outputs]
    batch = model.input().partial_shape[0]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = [model(part.numpy()) for part in images.split(batch.get_length() if batch.is_static else len(images))]
        return {name: torch.cat([torch.from_numpy(answers[name]) for answers in found]) for name in names}

    return run


@torch.no_grad()
def compare(network: nn.Module, run: Run, shown: Iterable[Tensor], kind: str) -> list[Parity]:
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

    Raises:
        ExportError: An answer is not finite, has another shape, or differs by more than is allowed.
    """
    measured: dict[str, list[tuple[Tensor, ...]]] = {}
    for images in shown:
        expected, found = network(images), answers_of(run, images)
        nudged = [
            network(images + nudge * torch.randn(images.shape, generator=torch.Generator().manual_seed(n)))
            for n in range(NUDGES)
            for nudge in (NUDGE, -NUDGE)  # whichever side of a threshold it lies on
        ]
        for name, wanted in expected.items():
            distances = _distances(name, kind, wanted, found[name], [answers[name] for answers in nudged])
            measured.setdefault(name, []).append(distances)
    return [_judge(name, kind, *map(torch.cat, zip(*rows, strict=True))) for name, rows in measured.items()]


def answers_of(run: Run, images: Tensor) -> dict[str, Tensor]:
    """What a file answers.

    Raises:
        ExportError: It fails.
    """
    try:
        return run(images)
    except Exception as error:  # as in read()
        raise ExportError(
            f"export: the file that was made does not run on a batch of {len(images)}: {first_line(error)}; nothing was written"
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
    return _farthest(found, wanted), moved, wanted.abs().reshape(len(wanted), -1).amax(dim=1)


def _judge(name: str, kind: str, distance: Tensor, moved: Tensor, largest: Tensor) -> Parity:
    """One output of all images of a kind, from their [_distances][]."""
    tolerance = TOLERANCES[name] * max(1.0, float(largest.max()))
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


def comparison_images(model: FineGrainedClassifier, images: Sequence[ImageLike]) -> dict[str, Iterable[Tensor]]:
    """What a file is compared on: random images, some of them glaring, synthetic birds, and images of one's own.

    Args:
        model: Says how images are prepared.
        images: Those of one's own, which are read here and now; there may be none.

    Returns:
        Normalised batches (B, 3, S, S) by what they are, for people.

    Raises:
        DataError: One of the images cannot be read.
    """
    size = required_card(model, "export").image_size
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
    read = list(_read(model, images))
    bad = [error for _, errors in read for error in errors if error is not None]
    if bad:
        raise DataError(f"export: {len(bad)} of {len(images)} images cannot be read, the first because {bad[0]}")
    return (_normalized(model, views) for views, _ in read)


def prepared(model: FineGrainedClassifier, images: Sequence[ImageLike]) -> Iterator[Tensor]:
    """Images as the weights want them, in normalised batches (B, 3, S, S); they are read when they are asked for.

    Raises:
        DataError: One cannot be read.
    """
    for views, errors in _read(model, images):
        bad = [error for error in errors if error is not None]
        if bad:
            raise DataError(f"export: {bad[0]}")
        yield _normalized(model, views)


def _read(model: FineGrainedClassifier, images: Sequence[ImageLike]) -> Iterator[Views]:
    return batches(images, [views_transform(required_card(model, "export"))], OWN_BATCH, 0, False, "export")


def _normalized(model: FineGrainedClassifier, views: list[Tensor]) -> Tensor:
    # The file is that of the network in single precision, whatever the weights are kept in.
    return model.normalize(views[0][:, 0].to(model.device)).cpu().float()


def probes(batch: int, size: int, seed: int) -> Tensor:
    """Random normalised images (batch, 3, size, size): soft patches of colour under a little noise, so that maps have peaks."""
    generator = torch.Generator().manual_seed(seed)
    patches = 2 * torch.randn(batch, 3, 6, 6, generator=generator)
    soft = F.interpolate(patches, size=(size, size), mode="bilinear", align_corners=False)
    return soft + 0.2 * torch.randn(batch, 3, size, size, generator=generator)


def _farthest(one: Tensor, other: Tensor) -> Tensor:
    """The largest absolute difference of every image, (B,)."""
    return (one - other).abs().reshape(len(one), -1).amax(dim=1)


def first_line(error: Exception) -> str:
    """What an exporter says first; --debug shows all of it."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
