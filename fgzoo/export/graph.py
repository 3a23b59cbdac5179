"""A network as one graph for any batch, and the bytes of the files that hold it."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fgzoo.errors import ExportError
from fgzoo.export.parity import first_line, probes
from fgzoo.files import without_places
from fgzoo.methods import method_name
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.low_rank import merge_low_rank
from fgzoo.nn.passes import shared_passes
from fgzoo.prediction.inference import required_card
from fgzoo.version import __version__

#: Where a file keeps its description: a key of ONNX's metadata and of OpenVINO's runtime information, a file inside a program of
#: torch.export.
ONNX_KEY = "fgzoo"
PROGRAM_FILE = "fgzoo.json"
#: The graph is traced with a batch that no comparison has.
TRACED_BATCH = 3

MEANINGS = {
    "logits": "(batch, classes): the softmax of logits / temperature (1 where that is null) over classes are the probabilities; "
    "classes as in class_names",
    "attention": "(batch, maps, height, width) in [0, 1]: the maps of the pass, from coarse to fine, each divided by its maximum",
    "known": "(batch,): how well known an image looks; below the threshold it is unknown",
}


def description(model: FineGrainedClassifier, name: str) -> dict[str, Any]:
    """What one must know to run the file: plain values, which it carries as JSON.

    Args:
        model: A trained model.
        name: What its weights are called.

    Returns:
        Values by key. An image file is prepared by turning it upright (EXIF), RGB, `resize` (`resize_mode` `squash`: to a square
        of that side; `shortest`: the shorter side, the other in proportion, rounded down), the central `crop`, division by 255,
        minus `mean`, divided by `std`, channels first. An image whose output `known` is below the `threshold` is unknown: that is
        its `score`, see [fgzoo.prediction.rejection][]. Where nothing was held out there is no such output, and `temperature`,
        `score` and `threshold` are null. `batch`, where it is there, is the only size of a batch that the file takes.
    """
    card = required_card(model, "export")
    content: dict[str, Any] = {}
    model.on_save_checkpoint(content)
    written, calibration = content["fgzoo"], model.calibration
    return {
        "checkpoint": name,
        "method": method_name(written["method"], dict(model.hparams)),
        "class": written["method"],
        "backbone": without_places(model.backbone),
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
        "temperature": None if calibration is None else calibration.temperature,
        "score": None if calibration is None else calibration.score,
        "threshold": None if calibration is None else calibration.threshold(),
        "input": "images, (batch, 3, image_size, image_size) float32, RGB: (pixel / 255 - mean) / std",
        "fgzoo": __version__,
        "torch": torch.__version__,
        "opset": None,
    }


class NamedOutputs(nn.Module):
    """A network whose answer is a dictionary of tensors.

    Args:
        network: `forward(images)` -> [MethodOutput][fgzoo.nn.output.MethodOutput].
        known: How well known images look, (B,), by their logits (B, K) and the images, where that is known.

    Shape:
        - images: (B, 3, S, S)
        - returns: `logits` (B, K), `attention` (B, M, h, w) where there are maps, and `known` (B,) where there is that
    """

    def __init__(self, network: nn.Module, known: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.known = known

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Classify."""
        with shared_passes(self.network, traced=True):
            output = self.network(images)
            answers = {"logits": output.logits.float()}
            if output.attention.shape[1] > 0:
                answers["attention"] = output.attention.float()
            if self.known is not None:
                answers["known"] = self.known(answers["logits"], images)
        return answers


def evaluation_network(model: FineGrainedClassifier) -> NamedOutputs:
    """A copy of the network as it evaluates: on the CPU, in single precision, not compiled, merged, nothing computed twice."""
    network = copy.deepcopy(model.network).cpu().float().eval()
    merge_low_rank(network)
    for module in network.modules():
        module._compiled_call_impl = None
        if isinstance(module, Backbone) and module.recomputes:
            module.recomputes = False
            if hasattr(module.model, "set_grad_checkpointing"):
                module.model.set_grad_checkpointing(False)
    calibration, around = model.calibration, model.around(network.requires_grad_(False))

    def known(logits: Tensor, images: Tensor) -> Tensor:
        assert calibration is not None
        return calibration.scores(logits, None if calibration.means is None else around.features(images))

    return NamedOutputs(network, None if calibration is None else known)


@torch.no_grad()
def trace(network: NamedOutputs, size: int) -> ExportedProgram:
    """The network as one graph for any batch of images of `size` pixels' side, without the lines of code it came from.

    Raises:
        ExportError: A size or a decision in the network depends on the batch or on what an image shows.
    """
    images = probes(TRACED_BATCH, size, seed=0)
    method = type(network.network).__name__
    try:
        program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    except Exception as error:  # torch raises errors of a dozen families, which share no base
        fixed = "specialized it to be a constant" in str(error)
        said = "its forward fixes the batch (len(images) does, images.shape[0] does not)" if fixed else first_line(error)
        raise ExportError(f"export: {method} cannot be traced for any batch: {said}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of the machine it was traced on
    return program


def outputs_of(program: ExportedProgram) -> dict[str, str]:
    """What the outputs of a traced network mean, by name and in their order."""
    names = program.call_spec.out_spec.context
    return {name: MEANINGS[name] for name in names}


def onnx_bytes(program: ExportedProgram, about: dict[str, Any], opset: int | None = None) -> bytes:
    """The program as an ONNX file's content; the opset is filled in in its description.

    The exporter's own optimiser stays off: it drops additions below 1e-8, and with them the epsilon below a square root, so that
    a feature that is exactly zero becomes NaN. What is done here changes no number.
    """
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
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # as above, and those of onnxscript
        raise ExportError(
            f"export: {method} uses an operation that has no ONNX form: {first_line(error)}; take --format torch-export"
        ) from error
    assert made is not None
    optimizer.inline(made.model)
    optimizer.fold_constants(made.model)
    optimizer.remove_unused_nodes(made.model)
    ClearMetadataAndDocStringPass()(made.model)
    proto = made.model_proto
    about["opset"] = next(opset.version for opset in proto.opset_import if opset.domain == "")
    proto.producer_name, proto.producer_version = "fgzoo", __version__
    return proto.SerializeToString()


def onnx_file(content: bytes, about: dict[str, Any], path: Path) -> None:
    """An ONNX file with its description in its metadata."""
    import onnx

    proto = onnx.load_from_string(content)
    onnx.helper.set_model_props(proto, {ONNX_KEY: json.dumps(about, ensure_ascii=False)})
    path.write_bytes(proto.SerializeToString())


def program_bytes(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    """The program as a file of torch.export with its description."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={PROGRAM_FILE: json.dumps(about, ensure_ascii=False)})
    return stream.getvalue()


def openvino_files(content: bytes, about: dict[str, Any], path: Path) -> None:
    """An ONNX file's content as OpenVINO's pair of files, with its description.

    Args:
        content: The ONNX file.
        about: The description, which goes into the runtime information under the key of ONNX's metadata; its `batch`, if it has
            one, is fixed.
        path: The `.xml`; the weights' `.bin` comes beside it.
    """
    import openvino

    model = openvino.Core().read_model(content)
    if "batch" in about:
        model.reshape([about["batch"], *model.input().partial_shape[1:]])
    model.set_rt_info(json.dumps(about, ensure_ascii=False), ONNX_KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
