"""What weights must remember of the data they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from fgzoo.errors import CheckpointError


@dataclass(frozen=True)
class DataCard:
    """The part of a data module that travels inside a checkpoint.

    Attributes:
        dataset: `cub`, `cars`, `aircraft`, `folder` or `birds`.
        class_names: Names by class index.
        image_size: Side of the network's input in pixels.
        resize: Side in pixels to which images are resized before the crop.
        resize_mode: `squash` (to a square) or `shortest` (the shorter side; the aspect stays).
        interpolation: Always `bilinear`, antialiased.
        decoder: `torchcodec`, `pillow` or `generated`.
        fingerprint: Hash of the lists, see [Listing.fingerprint][fgzoo.data.records.Listing.fingerprint].
        class_counts: Training images by class index; `None` where that is not known, as in checkpoints of before it was kept.
    """

    dataset: str
    class_names: list[str]
    image_size: int
    resize: int
    resize_mode: str
    interpolation: str
    decoder: str
    fingerprint: str
    class_counts: list[int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, so that a checkpoint loads with weights alone."""
        return asdict(self)

    def transform(self) -> Callable[[Tensor], Tensor]:
        """The evaluation transform: upright uint8 (3, H, W) -> uint8 (3, image_size, image_size)."""
        from fgzoo.data.transforms import evaluation_transform

        return evaluation_transform(self.image_size, self.resize, self.resize_mode)

    def at_size(self, image_size: int) -> DataCard:
        """The card of the same weights for images of another size: the network's input and what it is cropped from in proportion.

        Args:
            image_size: Side of the network's input in pixels.
        """
        return replace(self, image_size=image_size, resize=round(self.resize * image_size / self.image_size))

    def check_classes(self, other: DataCard) -> None:
        """Refuse to score weights on classes that they do not know.

        Args:
            other: The card of the data at hand.

        Raises:
            CheckpointError: The class names differ.
        """
        pairs = zip_longest(self.class_names, other.class_names, fillvalue="nothing")
        for index, (mine, theirs) in enumerate(pairs):
            if mine != theirs:
                raise CheckpointError(
                    f"checkpoint: its classes are those of '{self.dataset}' ({len(self.class_names)}), the data's those of "
                    f"'{other.dataset}' ({len(other.class_names)}); class {index} is '{mine}' there and '{theirs}' here; "
                    f"fine-tune with --reset_head, or choose the checkpoint's own data"
                )
