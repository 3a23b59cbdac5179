"""From images to class names, probabilities and features: plain torch, without a trainer.

Test-time augmentation averages probabilities (of [embed][], features) over views of an image:

* `none`: the evaluation transform that the weights were trained with, nothing else.
* `flip`: that view and its mirror image.
* `five-crop`: the four corners and the centre, at the weights' own input size. They are cut from the image resized as in training
  where that leaves a margin; where it leaves none (the augmentation `paper`), from one resized to input size / 0.875.
* `ten-crop`: those five and their mirror images.

Several models answer by the mean of their probabilities; each sees the image as its own card says, decoded once. A model that
knows its temperature divides its logits by it. Below its threshold an image is not accepted; that was found with single models
and single views, and holds for them alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fgzoo.data.card import DataCard
from fgzoo.data.images import decode, from_pillow
from fgzoo.data.loader import Loader
from fgzoo.data.shared_memory import no_room
from fgzoo.data.transforms import Transform, default_resize, resize_transform
from fgzoo.errors import CheckpointError, DataError, TrainingError, UntrainedError, UsageError
from fgzoo.nn.output import MethodOutput
from fgzoo.prediction import Precision, Reject, TestTime
from fgzoo.prediction.rejection import REJECTED, UNKNOWN, Calibration

#: A file's path, a picture in memory, or an upright RGB uint8 (3, H, W).
ImageLike: TypeAlias = str | Path | Image.Image | Tensor
#: Normalised (B, 3, H, W) -> (B, D), what is averaged over views and models.
Quantity: TypeAlias = "Callable[[Classifier, Tensor], Tensor]"


class Classifier(Protocol):
    """What can answer: any [FineGrainedClassifier][fgzoo.FineGrainedClassifier] does.

    Attributes:
        card: The classes it knows, and how its images are prepared; `None` before that is known.
        trained: Whether its weights have been trained.
        calibration: What held-out images taught about its answers; `None` where there were none.
    """

    card: DataCard | None
    trained: bool
    calibration: Calibration | None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def __call__(self, images: Tensor) -> MethodOutput:
        """Classify normalised images, (B, 3, H, W)."""

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images."""

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, D) of normalised images."""

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) as the network takes them."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode, for a while."""


class Prediction(NamedTuple):
    """What one image shows.

    Attributes:
        classes: Class names, the most probable first, of an image that is not accepted, too.
        probabilities: Their probabilities.
        error: Why there is no answer, in one line; the other two are empty then.
        accepted: Whether it looks like the images that the model knows; `None` where there is an error.
    """

    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    accepted: bool | None = None

    @property
    def label(self) -> str | None:
        """The answer: the most probable class, or `unknown` where it is not accepted; `None` where there is an error."""
        return None if self.error is not None else self.classes[0] if self.accepted else UNKNOWN


class BatchValues(NamedTuple):
    """What was computed for a batch.

    Attributes:
        values: (G, D), on the CPU, finite, of the images that have an answer, in their order.
        errors: For every image of the batch why it has none, `None` where it has one.
    """

    values: Tensor
    errors: list[str | None]


def classify(
    models: Sequence[Classifier],
    images: ImageLike | Sequence[ImageLike],
    top_k: int = 5,
    batch_size: int = 32,
    tta: TestTime = "none",
    num_workers: int = 0,
    precision: Precision = "32-true",
    reject: Reject | None = None,
) -> Iterator[Prediction]:
    """Classify images, one prediction each, in their order, while they are computed.

    Args:
        models: Trained models with the same class names, on one device; their probabilities are averaged.
        images: Paths, PIL images, uint8 tensors (3, H, W), or a list of them.
        top_k: How many classes to name, clipped to the number of classes; of equally probable ones the first comes first.
        batch_size: Images that pass the network at once; views of test-time augmentation pass one after the other.
        tta: `none`, `flip`, `five-crop` or `ten-crop`.
        num_workers: Loader processes; 0 reads in the process itself.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        reject: The share of images of the known classes that may be rejected so that unknown ones are, see [threshold_of][];
            `off` accepts everything.

    Yields:
        One prediction an image.

    Raises:
        UntrainedError: A model has not been trained.
        CheckpointError: The models' class names differ.
        UsageError: An argument is out of its range, or an image is of another type.
    """
    if top_k < 1:
        raise UsageError(f"predict: top_k is {top_k}; at least 1")
    names = class_names(models)
    threshold = threshold_of(models, tta, reject)
    quantity = probabilities if threshold is None else probabilities_and_score
    for values, errors in compute(models, images, quantity, batch_size, tta, num_workers, precision):
        ranked, classes = most_probable(values[:, : len(names)], top_k)
        accepted = [True] * len(values) if threshold is None else (values[:, -1] >= threshold).tolist()
        found = iter(zip(ranked.tolist(), classes.tolist(), accepted, strict=True))
        for error in errors:
            if error is not None:
                yield Prediction(error=error)
                continue
            shares, indices, known = next(found)
            yield Prediction(tuple(names[index] for index in indices), tuple(shares), accepted=known)


def embed(
    models: Sequence[Classifier],
    images: ImageLike | Sequence[ImageLike],
    batch_size: int = 32,
    tta: TestTime = "none",
    num_workers: int = 0,
    precision: Precision = "32-true",
) -> Iterator[BatchValues]:
    """The features of images, batch by batch, in their order; arguments as in [classify][].

    Exactly one model is given: features of several have no common meaning. They are averaged over the views.

    Yields:
        Features (G, D) as in [Classifier.features][].

    Raises:
        UsageError: There are several models; or as [classify][].
    """
    if len(models) != 1:
        raise UsageError(f"embed: features of {len(models)} models cannot be averaged; give one")
    yield from compute(models, images, features, batch_size, tta, num_workers, precision)


# ---------------------------------------------------------------------- what is computed


def calibrated(model: Classifier, logits: Tensor) -> Tensor:
    """A model's class probabilities (B, K) by its logits, in single precision whatever the network's."""
    return (logits.float() / (1.0 if model.calibration is None else model.calibration.temperature)).softmax(dim=1)


def probabilities(model: Classifier, images: Tensor) -> Tensor:
    """Class probabilities (B, K)."""
    return calibrated(model, model(images).logits)


def probabilities_and_score(model: Classifier, images: Tensor) -> Tensor:
    """Class probabilities, and behind them how well known the image looks: (B, K + 1), of a model that is calibrated."""
    known = model.calibration
    assert known is not None
    logits, features = (model(images).logits.float(), None) if known.means is None else model.logits_and_features(images)
    return torch.cat([calibrated(model, logits), known.scores(logits, features)[:, None]], dim=1)


def threshold_of(models: Sequence[Classifier], tta: TestTime = "none", reject: Reject | None = None) -> float | None:
    """The score below which images are rejected.

    Args:
        models: Models that answer together.
        tta: Test-time augmentation.
        reject: The share of images of the known classes that may be rejected; `off`: none is, nor any other. Without it a
            twentieth, where the models have a threshold.

    Returns:
        The score, or `None` where nothing is rejected.

    Raises:
        UsageError: A share was asked for, and there is no threshold, or none for this share.
    """
    missing = why_no_threshold(models, tta)
    if reject == "off" or (missing and reject is None):
        return None
    if missing:
        raise UsageError(f"predict: reject {reject}: {missing}")
    assert models[0].calibration is not None
    return models[0].calibration.threshold(REJECTED if reject is None else reject)


def why_no_threshold(models: Sequence[Classifier], tta: TestTime = "none") -> str | None:
    """Why no image can be called unknown, in a person's words; `None` where it can."""
    bare = [number for number, model in enumerate(models, start=1) if model.calibration is None]
    if bare:
        which = f" (checkpoint {', '.join(map(str, bare))} of {len(models)})" if len(models) > 1 else ""
        return (
            f"no image was held out in training{which} to calibrate probabilities and choose a threshold by (--data.val_fraction)"
        )
    if len(models) > 1:
        return "thresholds hold for single checkpoints, not for the mean of several"
    return None if tta == "none" else f"thresholds hold for single views, not for the mean of several (tta {tta})"


def most_probable(shares: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The largest of probabilities (B, K) and their classes; of equal ones the first comes first, as argmax has it."""
    ranked, classes = shares.sort(dim=1, descending=True, stable=True)  # topk promises no order
    return ranked[:, :top_k], classes[:, :top_k]


def features(model: Classifier, images: Tensor) -> Tensor:
    """Features (B, D)."""
    return model.features(images).float()


def compute(
    models: Sequence[Classifier],
    images: ImageLike | Sequence[ImageLike],
    quantity: Quantity,
    batch_size: int = 32,
    tta: TestTime = "none",
    num_workers: int = 0,
    precision: Precision = "32-true",
) -> Iterator[BatchValues]:
    """The mean of a quantity ([probabilities][], [features][] or one's own) over models and views, one batch after the other.

    Arguments are those of [classify][].
    """
    _check_arguments(batch_size, tta, num_workers, precision)
    cards = [required_card(model) for model in models]
    # Models whose images are prepared alike share them.
    preparations = [(card.image_size, card.resize, card.resize_mode) for card in cards]
    prepare = {preparation: views_transform(card, tta) for preparation, card in zip(preparations, cards, strict=True)}
    device = models[0].device
    for views, errors in batches(listed(images), list(prepare.values()), batch_size, num_workers, device.type == "cuda"):
        # Where none could be read, a black image tells how wide answers are.
        shown = views or [torch.zeros(1, 1, 3, size, size, dtype=torch.uint8) for size, *_ in prepare]
        by_preparation = dict(zip(prepare, shown, strict=True))
        seen = [by_preparation[preparation] for preparation in preparations]
        with naming_lack_of_memory("predict", len(seen[0])):
            values = _mean(models, seen, quantity, mirrored=tta in ("flip", "ten-crop"), precision=precision)
        yield _finite(values if views else values[:0], errors, precision)


def _finite(values: Tensor, errors: list[str | None], precision: Precision) -> BatchValues:
    """Answers that are no number are errors."""
    finite = values.isfinite().all(dim=1)
    why = "the network's answer is not finite" + ("" if precision == "32-true" else "; compute in precision 32-true")
    told = iter([None if good else why for good in finite.tolist()])
    return BatchValues(values[finite], [next(told) if error is None else error for error in errors])


def lacks_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that memory, of a device or of the machine, has run out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def naming_lack_of_memory(verb: str, images: int) -> Iterator[None]:
    """Say what helps where a batch of so many images does not fit into memory.

    Raises:
        TrainingError: It does not; in the verb's name.
    """
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        said = str(error).splitlines()[0]
        what = "an image; take another --device" if images == 1 else f"{images} images at a time; lower --batch-size"
        raise TrainingError(f"{verb}: no memory left for {what} ({said})") from error


@torch.inference_mode()
def _mean(
    models: Sequence[Classifier],
    views: Sequence[Tensor],
    quantity: Quantity,
    mirrored: bool,
    precision: Precision,
) -> Tensor:
    """Views (G, V, 3, S, S) uint8, one tensor a model -> (G, D)."""
    device = models[0].device
    half = torch.float16 if precision == "16-mixed" else torch.bfloat16
    answers = []
    for model, its_views in zip(models, views, strict=True):
        with model.evaluating(), torch.autocast(device.type, half, enabled=precision != "32-true"):
            for view in its_views.to(device, non_blocking=True).unbind(dim=1):
                images = model.normalize(view).contiguous(memory_format=torch.channels_last)
                answers.append(quantity(model, images))
                if mirrored:
                    answers.append(quantity(model, images.flip(-1)))
    return (answers[0] if len(answers) == 1 else torch.stack(answers).mean(dim=0)).cpu()


# ---------------------------------------------------------------------- what models must have in common


def required_card(model: Classifier, verb: str = "predict") -> DataCard:
    """The card of a trained model; an untrained one is refused, in the verb's name."""
    if not model.trained:
        raise UntrainedError(
            f"{verb}: this {type(model).__name__} has never been trained, and chance is no answer; train it, or fgzoo.load() a "
            f"checkpoint"
        )
    if model.card is None:
        raise CheckpointError(
            f"{verb}: these weights do not say which classes they know nor how images are prepared for them; set model.card"
        )
    return model.card


def class_names(models: Sequence[Classifier]) -> list[str]:
    """The class names, by class index, that all models share.

    Raises:
        CheckpointError: They differ; names the first pair.
    """
    cards = [required_card(model) for model in models]
    first = cards[0].class_names
    for number, card in enumerate(cards[1:], start=2):
        for index, (one, other) in enumerate(zip_longest(first, card.class_names, fillvalue="absent")):
            if one != other:
                raise CheckpointError(
                    f"predict: checkpoints that answer together need the same classes; class {index} is '{one}' in the first "
                    f"({len(first)} classes) and '{other}' in number {number} ({len(card.class_names)} classes)"
                )
    return first


# ---------------------------------------------------------------------- views of an image


def views_transform(card: DataCard, tta: TestTime = "none") -> Transform:
    """What makes the views of an image that are cut out; mirror images are made on the device.

    Args:
        card: How the weights' images were prepared.
        tta: Test-time augmentation.

    Returns:
        uint8 (3, H, W) -> uint8 (V, 3, image_size, image_size); V is 5 for crops, else 1.
    """
    if tta in ("none", "flip"):
        return v2.Compose([card.transform(), partial(torch.unsqueeze, dim=0)])
    side = card.resize if card.resize > card.image_size else default_resize(card.image_size, "standard")
    return v2.Compose([resize_transform(side, card.resize_mode), v2.FiveCrop(card.image_size), torch.stack])


# ---------------------------------------------------------------------- reading


def listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Images as a list, whatever form they were given in.

    Args:
        images: One image, or several in a sequence or in a tensor (N, 3, H, W).

    Returns:
        The images.

    Raises:
        UsageError: One of them is of another type or shape; says which.
    """
    alone = isinstance(images, str | Path | Image.Image) or (isinstance(images, Tensor) and images.ndim != 4)
    found: list[ImageLike] = [images] if alone else list(images)  # type: ignore[list-item, arg-type]
    for number, image in enumerate(found):
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
                raise UsageError(
                    f"images: number {number} is a {image.dtype} tensor of shape {tuple(image.shape)}; uint8 (3, H, W) is read"
                )
        elif not isinstance(image, str | Path | Image.Image):
            raise UsageError(
                f"images: number {number} is a {type(image).__name__}; paths, PIL images and uint8 tensors (3, H, W) are read"
            )
    return found


Views: TypeAlias = tuple[list[Tensor], list[str | None]]


def read_views(prepare: Sequence[Transform], images: Sequence[ImageLike]) -> Views:
    """Read a batch of images, and make their views.

    Args:
        prepare: Transforms, see [views_transform][].
        images: The images.

    Returns:
        The views (G, V, 3, S, S) of the images that could be read, one tensor a transform (none without any), and why the others
        could not, `None` for those that could.
    """
    good: list[list[Tensor]] = []
    errors: list[str | None] = []
    for image in images:
        try:
            pixels = _pixels(image)
            try:
                good.append([transform(pixels) for transform in prepare])
            except (MemoryError, RuntimeError) as error:  # sides so unequal that the resized image does not fit
                raise DataError(f"{tuple(pixels.shape)} pixels cannot be resized: {error}") from error
            errors.append(None)
        except DataError as error:
            errors.append(" ".join(str(error).split()))
    return [torch.stack(views) for views in zip(*good, strict=True)], errors


def _pixels(image: ImageLike) -> Tensor:
    if isinstance(image, Tensor):
        return image.cpu()
    return from_pillow(image) if isinstance(image, Image.Image) else decode(Path(image))


def batches(
    images: Sequence[ImageLike],
    prepare: Sequence[Transform],
    batch_size: int,
    num_workers: int,
    pinned: bool,
    verb: str = "predict",
) -> Iterator[Views]:
    """Read images in batches, in order; a loader process that dies is named as such.

    Args:
        images: The images.
        prepare: Transforms, see [views_transform][].
        batch_size: Images a batch.
        num_workers: Loader processes; 0 reads in the process itself.
        pinned: Whether batches lie in memory that a GPU reads directly.
        verb: Who complains.

    Yields:
        What [read_views][] returns.
    """
    loader = Loader(
        images,
        batch_size=batch_size,
        num_workers=min(num_workers, math.ceil(len(images) / batch_size)),
        collate_fn=partial(read_views, prepare),
        pin_memory=pinned,
        generator=torch.Generator(),  # its own, so that the caller's random numbers stay as they are
    )
    loaded = iter(loader)
    for done in range(len(loader)):
        try:
            batch = next(loaded)
        except RuntimeError as error:
            if line := no_room(error, "--num-workers"):
                raise TrainingError(f"{verb}: {line}") from error
            if not re.search(r"DataLoader worker \(pid", str(error)):
                raise
            raise TrainingError(
                f"{verb}: a loader process ended by itself, most likely for want of memory, at or after image "
                f"{done * batch_size + 1} of {len(images)}; lower --num-workers (0 reads in the process itself)"
            ) from error
        yield batch


def check_reading(batch_size: int, num_workers: int, verb: str = "predict") -> None:
    """Refuse sizes that nothing can be read with, in the verb's name."""
    if batch_size < 1:
        raise UsageError(f"{verb}: batch_size is {batch_size}; at least 1")
    if num_workers < 0:
        raise UsageError(f"{verb}: num_workers is {num_workers}; at least 0, which reads in the process itself")


def _check_arguments(batch_size: int, tta: str, num_workers: int, precision: str) -> None:
    check_reading(batch_size, num_workers)
    for name, value, known in (("tta", tta, get_args(TestTime)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise UsageError(f"predict: {name} '{value}' is none of {', '.join(known)}")
