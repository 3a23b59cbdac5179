"""What a trained model says of images, where it looked, and Grad-CAM of the same class beside it.

Everything lies in the frame that the network saw: the image after the weights' own evaluation transform, and maps of its size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.errors import UsageError
from fgzoo.interpret.metrics import grad_cam
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.passes import shared_passes
from fgzoo.prediction.inference import (
    ImageLike,
    batches,
    calibrated,
    check_reading,
    lacks_memory,
    listed,
    most_probable,
    naming_lack_of_memory,
    required_card,
    threshold_of,
    views_transform,
)
from fgzoo.prediction.rejection import UNKNOWN
from fgzoo.wording import did_you_mean

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier


class Explanation(NamedTuple):
    """What a model says of one image, and why it may.

    Attributes:
        classes: Class names, the most probable first.
        probabilities: Their probabilities.
        explained: The class that the maps explain.
        share: Its probability.
        image: (3, H, W) uint8, as the network saw it.
        maps: (S, H, W) in [0, 1], the method's own, from coarse to fine; S may be 0.
        names: Names of the maps.
        cam: (H, W) in [0, 1], Grad-CAM of the same class; `None` where the network offers nothing to differentiate.
        map_shares: How much of the explained class's evidence each of the first maps carries, in [0, 1]; empty where the method
            does not say.
        error: Why there is no answer, in one line; everything else is empty then.
        accepted: Whether it looks like the images that the model knows.
    """

    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    explained: str = ""
    share: float = 0.0
    image: Tensor = torch.empty(3, 0, 0, dtype=torch.uint8)
    maps: Tensor = torch.empty(0, 0, 0)
    names: tuple[str, ...] = ()
    cam: Tensor | None = None
    map_shares: tuple[float, ...] = ()
    error: str | None = None
    accepted: bool = True

    @property
    def answers(self) -> str:
        """The most probable classes in words, and whether the image is none of them."""
        ranked = ", ".join(f"{name} {share:.1%}" for name, share in zip(self.classes, self.probabilities, strict=True))
        return ranked if self.accepted else f"{UNKNOWN}; looks most like: {ranked}"


def explain(
    model: FineGrainedClassifier,
    images: ImageLike | Sequence[ImageLike],
    top_k: int = 5,
    explained: str | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> Iterator[Explanation]:
    """Classify images and say where the model looked, one explanation each, in their order, while they are computed.

    Args:
        model: A trained model.
        images: Paths, PIL images, uint8 tensors (3, H, W), or a list of them.
        top_k: How many classes to name, clipped to the number of classes.
        explained: The class to explain, by name; `None`: each image's most probable one. Methods whose maps do not depend on a
            class show the same maps for all.
        batch_size: Images that pass the network at once.
        num_workers: Loader processes; 0 reads in the process itself.

    Returns:
        One explanation an image. An image that cannot be read has its `error` filled.

    Raises:
        UntrainedError: The model has not been trained.
        UsageError: An argument is out of its range, or the model's maps, or their shares, are not what they should be.
    """
    if top_k < 1:
        raise UsageError(f"explain: top_k is {top_k}; at least 1")
    check_reading(batch_size, num_workers, "explain")
    card = required_card(model, "explain")
    target = None if explained is None else class_index(card.class_names, explained)
    read = batches(listed(images), [views_transform(card)], batch_size, num_workers, model.device.type == "cuda", "explain")
    return (one for views, errors in read for one in _explanations(model, views, errors, top_k, target))


def class_index(names: Sequence[str], name: str) -> int:
    """The index of a class among all names, however accents are composed.

    Raises:
        UsageError: There is no such class; names the nearest.
    """
    composed = [unicodedata.normalize("NFC", one) for one in names]
    if (wanted := unicodedata.normalize("NFC", name)) in composed:
        return composed.index(wanted)
    hint = did_you_mean(name, names, cutoff=0.4) or f"; there are {len(names)}, the first is '{names[0]}'"
    raise UsageError(f"explain: no class '{name}' in this checkpoint{hint}")


def _explanations(
    model: FineGrainedClassifier, views: list[Tensor], errors: list[str | None], top_k: int, target: int | None
) -> Iterator[Explanation]:
    """The explanations of one batch; views: none, or one tensor (G, 1, 3, H, W)."""
    with naming_lack_of_memory("explain", len(errors)):
        good = iter(_batch(model, views[0][:, 0], top_k, target) if views else [])
    for error in errors:
        yield next(good) if error is None else Explanation(error=error)


def _batch(model: FineGrainedClassifier, pixels: Tensor, top_k: int, target: int | None) -> list[Explanation]:
    """Images (B, 3, H, W) uint8 -> B explanations."""
    assert model.card is not None
    known = model.card.class_names
    inputs = model.normalize(pixels.to(model.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
    # A hook on a part of a compiled network would not be called.
    with model.evaluating(), torch.compiler.set_stance("force_eager"), shared_passes(model.network):
        asked = None if target is None else torch.full((len(inputs),), target, device=inputs.device)
        logits, cams = answers(model, inputs, asked)
        shares = calibrated(model, logits)
        classes = shares.argmax(dim=1) if asked is None else asked
        maps, names = own_maps(model, inputs, classes)
        carried = own_shares(model, inputs, classes, len(names))
        accepted = _accepted(model, inputs, logits)
    ranked, order = (found.tolist() for found in most_probable(shares, top_k))
    explanations = []
    for index, (pixel, place) in enumerate(zip(pixels, classes.tolist(), strict=True)):
        if not all(torch.isfinite(values[index]).all() for values in (shares, maps, carried)):
            explanations.append(Explanation(error="the network's answer is not finite; nothing can be drawn"))
            continue
        answer = tuple(known[rank] for rank in order[index]), tuple(ranked[index]), known[place], float(shares[index, place])
        cam = None if cams is None else cams[index]
        carries = tuple(carried[index].tolist())
        explanations.append(Explanation(*answer, pixel, maps[index], names, cam, carries, accepted=accepted[index]))
    return explanations


@torch.no_grad()
def _accepted(model: FineGrainedClassifier, inputs: Tensor, logits: Tensor) -> list[bool]:
    """Whether images are accepted as in a prediction; all are where nothing is rejected."""
    threshold = threshold_of([model])
    if threshold is None or model.calibration is None:
        return [True] * len(inputs)
    features = None if model.calibration.means is None else model.features(inputs)
    found: list[bool] = (model.calibration.scores(logits, features) >= threshold).tolist()
    return found


def own_maps(model: FineGrainedClassifier, images: Tensor, classes: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The method's maps in the images' resolution, and their names.

    Args:
        model: The model.
        images: (B, 3, H, W), normalised.
        classes: (B,), the classes to explain.

    Returns:
        (B, S, H, W) in [0, 1], on the CPU, and S names.

    Raises:
        UsageError: explain() or map_names() of a method of one's own gives something else.
    """
    maps = model.explain(images, classes).detach().float()
    name = type(model).__name__
    if maps.ndim != 4 or len(maps) != len(images):
        wanted = f"({len(images)}, S, {images.shape[2]}, {images.shape[3]})"
        raise UsageError(f"explain: {name}.explain() gives maps of shape {tuple(maps.shape)}, not {wanted}")
    count = maps.shape[1]
    names = tuple(model.map_names(count)) if count else ()
    if len(names) != count:
        raise UsageError(f"explain: {name}.map_names({count}) gives {len(names)} names")
    if count and maps.shape[2:] != images.shape[2:]:
        maps = F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)
    return maps.clamp(0, 1).cpu(), names


def own_shares(model: FineGrainedClassifier, images: Tensor, classes: Tensor, count: int) -> Tensor:
    """What the method says of how much its maps matter.

    Args:
        model: The model.
        images: (B, 3, H, W), normalised.
        classes: (B,), the classes to explain.
        count: S, how many maps there are.

    Returns:
        (B, N) in [0, 1], N at most S, on the CPU.

    Raises:
        UsageError: map_shares() of a method of one's own gives something else.
    """
    shares = model.map_shares(images, classes)
    if shares.ndim != 2 or len(shares) != len(images) or shares.shape[1] > count:
        given = f"{type(model).__name__}.map_shares() gives shares of shape {tuple(shares.shape)}"
        raise UsageError(f"explain: {given}, not ({len(images)}, N) with N at most {count}, the number of maps")
    return shares.detach().float().clamp(0, 1).cpu()


def answers(model: FineGrainedClassifier, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits, and Grad-CAM at the last level of the backbone that sees the whole image first, by one pass.

    Args:
        model: The model, in evaluation mode.
        images: (B, 3, H, W), normalised.
        classes: (B,), the classes to explain; by default each image's most probable one.

    Returns:
        Logits (B, K), and (B, H, W) in [0, 1], on the CPU; `None` where there is no backbone, or no gradient reaches it.
    """
    found: list[Tensor] = []

    def scores(images: Tensor) -> Tensor:
        found.append(model(images).logits.float())
        return found[0]

    cams = None
    layer = next((module for module in model.network.modules() if isinstance(module, Backbone)), None)
    if layer is not None:
        try:
            cams = torch.nan_to_num(grad_cam(scores, layer, images, classes)).clamp(0, 1).cpu()
        except RuntimeError as error:  # what autograd raises where the logits do not depend on the features
            if lacks_memory(error):
                raise
    with torch.no_grad():
        return (found[0] if found else scores(images)).detach(), cams
