"""A list of records as a torch data set."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from fgzoo.data.records import Record
from fgzoo.data.samplers import MASKED
from fgzoo.data.transforms import Transform
from fgzoo.errors import DataError

Sample = tuple[Tensor, int, int]

#: The class of a sample that no metric counts.
IGNORED = -1

#: Of how many loader workers it is known what they are reading.
MAX_WORKERS = 256

#: What to do about an image that cannot be read.
_WAYS_OUT = "Replace it, take it out of the data set, or leave such images out: --data.on_error skip"


class RecordDataset(Dataset[Sample | None]):
    """Reads a record's image, transforms it, and returns (uint8 image, class, index).

    Random choices of the transform are decided by (seed, epoch, index): whichever worker reads a sample, and whatever it read
    before, the result is the same. For the index [MASKED][] it returns the first image with the class [IGNORED][]; of N
    images, an index from N on in (epoch, index) means a repetition within the epoch, of the image at that index modulo N.

    Args:
        records: The images.
        read: Record -> upright uint8 (3, H, W).
        transform: uint8 (3, H, W) -> uint8 (3, size, size).
        seed: Seed of the random choices.
        on_error: What to do with an image that cannot be read: `raise`, or `skip` it with a counted warning.
        split: Name of the split, for messages.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read: Callable[[Record], Tensor],
        transform: Transform,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        split: str = "train",
    ) -> None:
        self.records = tuple(records)
        self.read = read
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.split = split
        #: Which images were skipped; shared with the loader's workers.
        self.skipped = torch.zeros(len(self.records), dtype=torch.bool).share_memory_()
        #: (process, index) of what each of the loader's workers is reading; shared with them, so that it outlives them.
        self.reading = torch.full((MAX_WORKERS, 2), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        masked = index == MASKED
        index = 0 if masked else index
        # A loop over the data set itself ends where an index is too large.
        place = index % len(self.records) if isinstance(key, tuple) else index
        record = self.records[place]
        self._note(place)
        try:
            image = self.read(record)
        except DataError as error:
            message = f"{error} ({self.split} image {place}, '{record.name}')"
            if self.on_error == "raise":
                raise DataError(f"{message}. {_WAYS_OUT}") from error
            if not self.skipped[place]:
                self.skipped[place] = True
                warnings.warn(f"skipped {int(self.skipped.sum())} so far: {message}", stacklevel=2)
            return None
        with torch.random.fork_rng(devices=[]):
            # Seeding the devices too, as torch.manual_seed does, takes longer than the crop.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            image = self.transform(image)
        self._note(-1)
        return image, IGNORED if masked else record.target, index

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < MAX_WORKERS:
            self.reading[worker.id] = torch.tensor([os.getpid(), index])


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """One 63-bit seed out of (seed, epoch, index), without the collisions that a sum would have."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def collate(samples: list[Sample | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack the samples of a batch, leaving out those that were skipped.

    Returns:
        Images (B, 3, size, size) uint8 in the memory format channels-last, classes (B,), indices (B,).

    Raises:
        DataError: Not one image of the batch could be read.
    """
    good = [sample for sample in samples if sample is not None]
    if not good:
        raise DataError(f"data: none of the {len(samples)} images of a batch could be read")
    # Pixel by pixel, as decoders give them and networks take them: turning them round and back is slow.
    images, targets, index = default_collate([(image.permute(1, 2, 0), *others) for image, *others in good])
    return images.permute(0, 3, 1, 2), targets, index
