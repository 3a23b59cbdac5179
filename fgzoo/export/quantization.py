"""An ONNX file in eight bits, and what that costs in accuracy.

Weights, and what flows between layers, become whole numbers by scales that are fixed beforehand (static quantisation after
training, QDQ nodes, a scale for every channel of a weight): those of layers are measured on training images. Whether the file
is good enough is measured on others, whose classes are known or, where they are not, by how many of them are named otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload
from unicodedata import normalize

import torch
from torch import Tensor

from fgzoo.checkpoints.run_data import data_trained_on
from fgzoo.checkpoints.run_folder import run_of
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.records import Record
from fgzoo.errors import ExportError, UsageError
from fgzoo.export import Format
from fgzoo.export.parity import Run, answers_of, first_line
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import ImageLike, required_card

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")

#: At most so many images calibrate, and so many are measured on; more are thinned evenly.
CALIBRATION, MEASURED = 128, 2000
#: What is computed in eight bits: products with weights, and what lies between them.
WEIGHTED, BETWEEN = ("Conv", "Gemm", "MatMul"), ("Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool")
#: What a quantised file's description says besides. Where the batch is free, OpenVINO (2026.4, AVX-512) gets features wrong that
#: logits and a map are both computed from, in networks with anything in eight bits; onnxruntime reads the same file rightly.
INT8_LIMITS: dict[Format, dict[str, int]] = {"onnx": {}, "openvino": {"batch": 1}}
#: The loss of accuracy, as a share of the images, above which a file is refused.
LARGEST_LOSS = 0.01
#: The same of images that are called unknown beyond those of the float file, but for one image.
MOST_UNKNOWN = 0.05


class QuantizationImages(NamedTuple):
    """What a quantised file is made and judged by.

    Attributes:
        calibration: Images that say how large values become.
        measured: Other images.
        targets: Their classes; `None` where they are not known.
        kind: What they are, for people.
    """

    calibration: Sequence[ImageLike]
    measured: Sequence[ImageLike]
    targets: list[int] | None
    kind: str


class Loss(NamedTuple):
    """What eight bits cost.

    Attributes:
        before: Share of the measured images whose class the float file names; 1 where classes are not known.
        after: The same of the quantised file; where classes are not known, the share that it names as the float file does.
        changed: How many images it names otherwise.
        images: How many were measured.
        kind: What they are, for people.
        known: Whether their classes are known.
        unknown_before: Share of the measured images that the float file calls unknown; `None` where it calls nothing so.
        unknown_after: The same of the quantised file.
    """

    before: float
    after: float
    changed: int
    images: int
    kind: str
    known: bool
    unknown_before: float | None = None
    unknown_after: float | None = None

    def __str__(self) -> str:
        top1 = f"top-1 {100 * self.before:.2f} -> {100 * self.after:.2f} %, " if self.known else ""
        said = f"int8: {top1}{self.changed} of {self.images} {self.kind} named otherwise"
        if self.unknown_before is None or self.unknown_after is None:
            return said
        return f"{said}, {100 * self.unknown_before:.2f} -> {100 * self.unknown_after:.2f} % of them called unknown"


# ---------------------------------------------------------------------- images


class _Pictures(Sequence[ImageLike]):
    """The images of records, as they were trained on; what is no file is read when it is asked for."""

    def __init__(self, data: FGVCDataModule, records: Sequence[Record]) -> None:
        self.data = data
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> ImageLike: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageLike]: ...
    def __getitem__(self, index: int | slice) -> ImageLike | Sequence[ImageLike]:
        if isinstance(index, slice):
            return _Pictures(self.data, self.records[index])
        return self.data.source(self.records[index])


def quantization_images(model: FineGrainedClassifier, checkpoint: Path, given: Sequence[Path]) -> QuantizationImages:
    """Images to quantise a checkpoint by: those it was trained on calibrate, those held out from it, or given ones, judge.

    Args:
        model: The checkpoint's model.
        checkpoint: The file; the images are found as the config of its run says, and without a run as by the name of its data
            set below `FGZOO_DATA`.
        given: Images of one's own to measure on, of known classes where each lies in a folder of its class's name. Where the
            training images cannot be found, every second one of them calibrates instead.

    Raises:
        UsageError: There are no images.
    """
    card = required_card(model, "export")
    try:
        data = data_trained_on(card, run_of(checkpoint))
        train, held = data.splits["train"], data.splits["val"] or data.splits["test"]
    except UsageError as error:
        if not given:
            raise UsageError(
                f"export: --quantize int8 needs training images, and none are found ({error}); give photographs by --images, "
                f"best in folders of their classes' names"
            ) from error
        return QuantizationImages(thinned(given[::2], CALIBRATION), *_given(card.class_names, given[1::2]))
    pictures = _Pictures(data, thinned(train, CALIBRATION))
    if given:
        return QuantizationImages(pictures, *_given(card.class_names, given))
    measured = thinned(held, MEASURED)
    if not measured:
        raise UsageError(
            "export: --quantize int8: nothing was held out from training to measure on; give photographs by --images"
        )
    kind = "validation images" if data.splits["val"] else "test images"
    return QuantizationImages(pictures, _Pictures(data, measured), [record.target for record in measured], kind)


def _given(class_names: Sequence[str], paths: Sequence[Path]) -> tuple[Sequence[Path], list[int] | None, str]:
    """Given images, thinned, with the classes whose names their folders have, where all have one."""
    paths = thinned(paths, MEASURED)
    if not paths:
        raise UsageError("export: --quantize int8: two images at least, of which one calibrates and one is measured on")
    # Some file systems store accents as characters of their own.
    indices = {normalize("NFC", name): index for index, name in enumerate(class_names)}
    targets = [indices.get(normalize("NFC", path.absolute().parent.name)) for path in paths]
    known = [target for target in targets if target is not None]
    return paths, known if len(known) == len(paths) else None, "given images"


def thinned(things: Sequence[T], most: int) -> Sequence[T]:
    """At most so many, spread evenly over all; lists are in the order of classes."""
    return things[:: -(-len(things) // most) or 1]


# ---------------------------------------------------------------------- the file


def quantized(content: bytes, images: Iterable[Tensor]) -> bytes:
    """An ONNX file in eight bits.

    Weights have seven of their eight bits: the instructions of processors without VNNI add products of eight in sixteen bits,
    which overflow. Products with weights are quantised, and activations, sums and pooling of nothing but their results; roots,
    recurrent states and decisions about crops stay as they are.

    Args:
        content: The file.
        images: Normalised batches (B, 3, S, S) to calibrate by.

    Raises:
        ExportError: It cannot be quantised.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with TemporaryDirectory(prefix="fgzoo-export-") as folder:
        source, prepared, made = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "made"))
        source.write_bytes(content)
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            proto = onnx.load(prepared)
            chosen = _quantizable(proto.graph)
            quantize_static(
                proto, made, Reader(), quant_format=QuantFormat.QDQ, nodes_to_quantize=chosen,
                per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )  # fmt: skip
        except Exception as error:  # onnxruntime raises errors of its own families, which share no base
            raise ExportError(f"export: the file cannot be quantised: {first_line(error)}; nothing was written") from error
        return made.read_bytes()


def _quantizable(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that are computed in eight bits: see [quantized][]."""
    constant = {one.name for one in graph.initializer}
    eight: set[str] = set()
    names = []
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        flowing = [name for name in node.input if name and name not in constant]
        weighted = node.op_type in WEIGHTED and len(flowing) == 1
        if weighted or (node.op_type in BETWEEN and flowing and eight.issuperset(flowing)):
            names.append(node.name)
            eight.update(node.output)
    return names


# ---------------------------------------------------------------------- what it costs


@torch.no_grad()
def measure(
    before: Run,
    after: Run,
    batches: Iterable[Tensor],
    targets: Sequence[int] | None,
    kind: str,
    threshold: float | None = None,
) -> Loss:
    """Compare the classes that a quantised file names, and what it calls unknown, with those of the float one.

    Args:
        before: The float file.
        after: The quantised file.
        batches: Normalised images (B, 3, S, S).
        targets: Their classes; `None` where they are not known.
        kind: What they are, for people.
        threshold: The score `known` below which an image is unknown; `None` where none is.

    Raises:
        ExportError: An answer is not finite or has another shape.
    """
    named: tuple[list[Tensor], list[Tensor]] = [], []
    known: tuple[list[Tensor], list[Tensor]] = [], []
    for images in batches:
        pair = answers_of(before, images), answers_of(after, images)
        for name, values in pair[0].items():
            if pair[1][name].shape != values.shape or not torch.isfinite(pair[1][name]).all():
                raise ExportError(f"export: the quantised file's {name} are not finite or of another shape; nothing was written")
        for answers, classes, scores in zip(pair, named, known, strict=True):
            classes.append(answers["logits"].argmax(dim=1))
            scores += [] if threshold is None else [answers["known"]]
    first, second = map(torch.cat, named)
    truth = first if targets is None else torch.tensor(targets)
    right = [_share(classes == truth) for classes in (first, second)]
    unknown = [None if threshold is None else _share(torch.cat(scores) < threshold) for scores in known]
    return Loss(right[0], right[1], int((first != second).sum()), len(truth), kind, targets is not None, unknown[0], unknown[1])


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def check_loss(loss: Loss, force: bool) -> None:
    """Refuse a file that names too many images wrongly, or calls too many unknown.

    Raises:
        ExportError: It does, and is not forced.
    """
    if loss.unknown_before is not None and loss.unknown_after is not None and not force:
        more = loss.unknown_after - loss.unknown_before
        if more * loss.images > MOST_UNKNOWN * loss.images + 1 + 1e-9:  # of few images one proves nothing
            raise ExportError(
                f"export: {loss}: {100 * more:.1f} points more are unknown, and {100 * MOST_UNKNOWN:.0f} are allowed; nothing "
                "was written. --force writes it all the same"
            )
    lost = loss.before - loss.after
    if lost > LARGEST_LOSS + 1e-9 and not force:  # a point may be a little more, in roundings
        raise ExportError(
            f"export: {loss}: {100 * lost:.2f} points lost, and {100 * LARGEST_LOSS:.0f} is allowed; nothing was written. "
            f"--force writes it all the same"
        )
