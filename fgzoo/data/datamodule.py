"""One data module for all data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fgzoo.data import aircraft, bird_drawing, cub, images, synthetic
from fgzoo.data.cache import CacheMode, ImageCache, disk_folder, pixel_versions
from fgzoo.data.card import DataCard
from fgzoo.data.dataset import RecordDataset, Sample, collate
from fgzoo.data.download import prepare
from fgzoo.data.folder import read_folder
from fgzoo.data.images import DecoderName, active_decoder, decode
from fgzoo.data.loader import Loader
from fgzoo.data.records import AircraftLevel, Listing, Record
from fgzoo.data.samplers import Balance, ClassDecks, EpochSampler
from fgzoo.data.split import Groups, k_folds, long_tail, stratified_holdout
from fgzoo.data.split_file import read_split, write_split
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.data.transforms import (
    Augmentation,
    ResizeMode,
    augmentation_transform,
    default_resize,
    flip_batch,
    mix_batch,
    resize_transform,
)
from fgzoo.data.tree import Split
from fgzoo.errors import DataError, UsageError
from fgzoo.files import user_path
from fgzoo.wording import first_five

DatasetName = Literal["birds", "cub", "cars", "aircraft", "folder"]

#: Height in pixels of the copyright strip that every FGVC-Aircraft image carries.
AIRCRAFT_BANNER = 20


class FGVCDataModule(L.LightningDataModule):
    """CUB-200-2011, Stanford Cars, FGVC-Aircraft, your own folders, or the built-in synthetic birds.

    Batches are (images, classes, indices): uint8 (B, 3, image_size, image_size), (B,), (B,). The model normalises them on the
    device, and in training hands them to [augment_batch][FGVCDataModule.augment_batch] there.

    Args:
        name: `cub`, `cars`, `aircraft`, `folder` or `birds`.
        root: Folder of the data (folder: or a table of images); by default the environment variable FGZOO_DATA, or its subfolder
            with the data set's name. `birds` needs none.
        image_size: Side of the network's input in pixels.
        resize: Side to which images are resized before the crop; by default image_size / 0.875 (256 for 224, 512 for 448), and
            image_size itself for the augmentation `paper`.
        resize_mode: `squash` (to a square, as the field's recipes do) or `shortest` (the shorter side; the aspect stays).
        augmentation: `paper` (resize only), `standard` (random crop and flip) or `strong` (the same, TrivialAugment, and mixup or
            cutmix of each batch).
        batch_size: Training images a step, per device.
        eval_batch_size: Images a step of validation and testing; by default twice batch_size.
        num_workers: Loader processes; by default none for `birds`, else one per usable core, at most eight.
        val_fraction: Share of the training split held out for validation, stratified; 0 trains on all of it.
        folds: Number of cross-validation folds of the training split; 0: none. Excludes val_fraction.
        fold: The fold that is validated on, from 0.
        tail: Thin the training images to a long tail: of the k-th class, k = 1, 2 ... in an order that the seed draws, at most
            n_max k^-tail stay, at least one, with n_max those of the largest class. 0 keeps all. Validation and test stay whole.
        balance: How often training shows a class: each image once an epoch (`none`), in proportion to the square root of the
            number of its images (`sqrt`), or every class equally often (`full`), see
            [ClassDecks][fgzoo.data.samplers.ClassDecks]. An epoch has as many images in any case. Excludes model.class_weights
            and model.logit_adjustment.
        seed: Seed of splits, orders and augmentation; by default the run's (`--seed_everything`).
        decoder: `auto` (torchcodec where it is installed), `torchcodec` or `pillow`.
        on_error: `raise` stops at an image that cannot be read; `skip` leaves it out of training with a counted warning, on one
            device only. Testing always raises.
        download: Fetch and unpack CUB or Aircraft into root if it is not there.
        level: (aircraft) `variant`, `family` or `manufacturer`.
        banner: (aircraft) Cut off the strip of 20 pixels with the copyright notice at the bottom of every image.
        csv: (folder) A table of path, label and, if you like, split, instead of class folders; paths lie below root.
        test_fraction: (folder) Share of the images held out for testing, stratified, where the data names no test split.
        group_duplicates: (folder) Keep images that are nearly the same, such as photos of one moment, in one part when parts are
            drawn. Reads every image once, and leaves out, with a note, those that cannot be read; what is found is kept in
            cache_folder, for other processes, runs and reports.
        split_file: (folder) A run's split.csv, which says what part every image is in, instead of drawing parts. `test`,
            `validate` and `--resume` take their run's own. To be trained on, all of its images must be there.
        birds: (birds) Size and difficulty of the synthetic set.
        cache: Keep all images decoded and resized, for all workers, ranks and runs with the same settings; training sees the same
            pixels as without. `disk`: in cache_folder, until you delete the file; `none`: decode every image every epoch. Filled
            before the first epoch; a file that has changed since is noticed when a run starts.
        cache_folder: Where caches lie, in the subfolders `images` (cache disk) and `duplicates`; by default the environment
            variable FGZOO_CACHE, else ~/.cache/fgzoo. On Linux a folder in /dev/shm is one in memory.
        cache_limit_gb: Largest size of one cache in GB (10^9 bytes): 3 x resize^2 bytes an image for resize_mode `squash`, about
            a third more for `shortest`; 9.3 GB for CUB at 512 pixels.

    Raises:
        UsageError: An argument is out of its range.
        DataError: The data is not there, or not what its lists say (when it is first asked about).
    """

    def __init__(
        self,
        name: DatasetName = "birds",
        root: str | Path | None = None,
        image_size: int = 448,
        resize: int | None = None,
        resize_mode: ResizeMode = "squash",
        augmentation: Augmentation = "standard",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        val_fraction: float = 0.0,
        folds: int = 0,
        fold: int = 0,
        tail: float = 0.0,
        balance: Balance = "none",
        seed: int | None = None,
        decoder: DecoderName = "auto",
        on_error: Literal["raise", "skip"] = "raise",
        download: bool = False,
        level: AircraftLevel = "variant",
        banner: bool = True,
        csv: str | Path | None = None,
        test_fraction: float = 0.0,
        group_duplicates: bool = False,
        split_file: str | Path | None = None,
        birds: Birds = Birds(),  # noqa: B008 - frozen
        cache: CacheMode = "none",
        cache_folder: str | Path | None = None,
        cache_limit_gb: float = 64.0,
    ) -> None:
        super().__init__()
        if name not in get_args(DatasetName):
            raise UsageError(f"data.name: '{name}' is none of {', '.join(get_args(DatasetName))}")
        if image_size < 32:
            raise UsageError(f"data.image_size: {image_size} pixels is less than 32, which no backbone can take")
        if batch_size < 1:
            raise UsageError(f"data.batch_size: {batch_size}; at least 1")
        if num_workers is not None and num_workers < 0:
            raise UsageError(f"data.num_workers: {num_workers}; at least 0, which reads in the process itself")
        if folds and val_fraction:
            raise UsageError("data.folds and data.val_fraction both hold images out; give one of them")
        if folds and (folds < 2 or not 0 <= fold < folds):
            raise UsageError(f"data.fold: {fold} of {folds} folds; folds start from 0, and there are at least 2")
        if not tail >= 0:
            raise UsageError(f"data.tail: {tail}; the exponent of a long tail is at least 0, which keeps all images")
        if balance not in get_args(Balance):
            raise UsageError(f"data.balance: '{balance}' is none of {', '.join(get_args(Balance))}")
        if cache not in get_args(CacheMode):
            raise UsageError(f"data.cache: '{cache}' is none of {', '.join(get_args(CacheMode))}")
        if not cache_limit_gb > 0:
            raise UsageError(f"data.cache_limit_gb: {cache_limit_gb}; more than 0, or use --data.cache none")
        self.dataset_name: DatasetName = name
        self.root = _find_root(name, root)
        self.image_size = image_size
        self.resize = resize or default_resize(image_size, augmentation)
        if self.resize < image_size:
            raise UsageError(
                f"data.resize: {self.resize} is smaller than data.image_size ({image_size}), which is cropped from it"
            )
        self.resize_mode: ResizeMode = resize_mode
        self.augmentation: Augmentation = augmentation
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.num_workers = default_workers(name) if num_workers is None else num_workers
        self.val_fraction = val_fraction
        self.folds = folds
        self.fold = fold
        self.tail = tail
        self.balance: Balance = balance
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.decoder: DecoderName = decoder
        self.on_error: Literal["raise", "skip"] = on_error
        self.download = download
        self.level: AircraftLevel = level
        self.banner = banner
        self.csv = user_path(csv)
        self.test_fraction = test_fraction
        self.group_duplicates = group_duplicates
        self.split_file = user_path(split_file)
        self.birds = birds
        self.cache: CacheMode = cache
        self.cache_folder = cache_folder
        self.cache_limit_gb = cache_limit_gb
        #: Names of images that must not be parted, once the lists are read.
        self._groups: Groups = ()
        #: What the split file says, by image; empty without one.
        self._parts: dict[str, Split] = {}
        self._datasets: dict[Split, RecordDataset] = {}
        self._resumed_epoch = self._resumed_batches = 0

    # ------------------------------------------------------------------ what is known without opening an image

    @cached_property
    def listing(self) -> Listing:
        """The data set as its lists describe it; read at the first question."""
        if self.dataset_name == "birds":
            return self._readable(SyntheticBirds(self.birds).listing())
        if self.root is None:
            raise DataError(
                f"data.root: where is '{self.dataset_name}'? Give --data.root PATH, or set FGZOO_DATA; "
                f"`fgzoo data info {self.dataset_name}` says what must lie there"
            )
        # The number of classes is asked for before Lightning's turn to prepare data comes; a lock lets one process fetch.
        self._fetch()
        if not (self.root.is_dir() or (self.dataset_name == "folder" and self.root.is_file())):
            raise DataError(f"data.root: no folder {self.root}")
        listing = self._read_lists(self.root)
        if self.dataset_name == "folder" and self.split_file is not None:
            self._parts, listing = read_split(self.split_file, listing)
            return listing
        return self._with_test_part(self._readable(listing))

    def _read_lists(self, root: Path) -> Listing:
        if self.dataset_name == "cars":
            from fgzoo.data.cars import read_cars  # imports scipy

            return read_cars(root)
        if self.dataset_name == "aircraft":
            return aircraft.read_aircraft(root, self.level)
        return cub.read_cub(root) if self.dataset_name == "cub" else read_folder(root, self.csv)

    def _readable(self, listing: Listing) -> Listing:
        """Where near-duplicates are looked for, and so every image is read: the data without what cannot be.

        Raises:
            DataError: What is not to be divided would become smaller, or nothing is left of a class.
        """
        if not (self.group_duplicates and (self.test_fraction or self.val_fraction or self.folds)):
            return listing
        self._groups, unreadable = _near_duplicates(listing, self.cache_folder)
        if not unreadable:
            return listing
        said = f"{len(unreadable)} of {len(listing.records)} images cannot be read"
        which = f"{first_five([*unreadable])}. The first: {next(iter(unreadable.values()))}"
        if self.dataset_name != "folder" or any(record.name in unreadable for record in (*listing.val, *listing.test)):
            raise DataError(f"{self.root}: {said}, and parts that the data itself names are not made smaller: {which}")
        train = tuple(record for record in listing.train if record.name not in unreadable)
        if gone := listing.lacking(train):
            raise DataError(f"{self.root}: {said}, which leaves nothing of {first_five(gone)}: {which}")
        return replace(listing, train=train, notes=(*listing.notes, f"{said} and are left out: {which}"))

    def _with_test_part(self, listing: Listing) -> Listing:
        """A person's own data with the test part that is to be drawn."""
        if self.dataset_name != "folder" or not self.test_fraction:
            return listing
        if listing.test:
            raise UsageError(f"{self.root} has a test split of its own; leave data.test_fraction at 0.")
        train, test = stratified_holdout(listing.train, self.test_fraction, self.seed, self._groups)
        if not test:
            raise DataError(
                f"data.test_fraction: nothing at {self.root} can be set apart for testing, since no class has a second image"
                f"{' that is no near-duplicate of the first' if self._groups else ''}; add some, or leave it at 0"
            )
        alike = f"; {sum(map(len, self._groups))} near-duplicates stay together" if self.group_duplicates else ""
        note = f"The test split is {self.test_fraction:g} of every class, drawn with seed {self.seed}{alike}."
        return replace(listing, train=train, test=test, notes=(*listing.notes, note))

    def __getstate__(self) -> dict[str, object]:
        # As of a model, a copy, and what another process is sent, has no trainer.
        return {**self.__dict__, "trainer": None}

    @property
    def class_names(self) -> list[str]:
        """Names by class index."""
        return list(self.listing.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.listing.class_names)

    @cached_property
    def splits(self) -> dict[Split, tuple[Record, ...]]:
        """Records by split: the official ones; where asked for, validation is held out of training, and the rest thinned."""
        train, val, test = self._whole_splits
        if self.tail:
            train = long_tail(train, self.tail, self.seed)
        return {"train": train, "val": val, "test": test}

    @cached_property
    def _whole_splits(self) -> tuple[tuple[Record, ...], ...]:
        """Training, with nothing thinned out, validation and test."""
        listing = self.listing
        train, val = listing.train, listing.val
        if self._parts:
            val = (*val, *(record for record in train if self._parts[record.name] == "val"))
            train = tuple(record for record in train if self._parts[record.name] == "train")
        elif self.folds:
            if val:
                raise UsageError("data.folds: this data has a validation split of its own; leave folds at 0")
            train, val = k_folds(train, self.folds, self.seed, self._groups)[self.fold]
        elif self.val_fraction:
            if val:
                raise UsageError("data.val_fraction: this data has a validation split of its own; leave val_fraction at 0")
            train, val = stratified_holdout(train, self.val_fraction, self.seed, self._groups)
        return train, val, listing.test

    def write_split(self, path: Path) -> None:
        """Write what part every image of a person's own data is in, where parts were drawn; see the argument split_file."""
        if self.dataset_name == "folder" and (self.split_file or self.test_fraction or self.val_fraction or self.folds):
            train, val, test = self._whole_splits
            write_split(path, self.class_names, {"train": train, "val": val, "test": test})

    def gone(self, *splits: Split) -> list[str]:
        """Names of images that the split file puts into these splits and that are not there any more."""
        there = {record.name for record in self.listing.records}
        return [name for name, split in self._parts.items() if split in splits and name not in there]

    def matches(self, card: DataCard) -> bool:
        """Whether these are the images that weights were trained with, or, where a split file names more of them, what is left.

        Args:
            card: What the weights remember of their data.
        """
        if self.gone(*get_args(Split)):
            return self.class_names == card.class_names
        return self.listing.fingerprint() == card.fingerprint

    def check_whole(self) -> None:
        """Refuse to train on less than the split file names.

        Raises:
            DataError: Some of its images are gone.
        """
        if gone := self.gone(*get_args(Split)):
            raise DataError(
                f"{self.split_file}: {len(gone)} of {len(self._parts)} images are gone: {first_five(gone)}. Restore them to "
                "train; `fgzoo test` and `fgzoo report` do without"
            )

    @property
    def class_counts(self) -> list[int]:
        """Training images by class index."""
        counts = Counter(record.target for record in self.splits["train"])
        return [counts[target] for target in range(self.num_classes)]

    def names(self, split: str) -> list[str]:
        """Names of a split's images, in the order of their index."""
        return [record.name for record in self.splits[split]]  # type: ignore[index]

    @property
    def card(self) -> DataCard:
        """What travels inside a checkpoint."""
        return DataCard(
            dataset=self.dataset_name,
            class_names=self.class_names,
            image_size=self.image_size,
            resize=self.resize,
            resize_mode=self.resize_mode,
            interpolation="bilinear",
            decoder="generated" if self.listing.read is not None else active_decoder(self.decoder),
            fingerprint=self.listing.fingerprint(),
            class_counts=self.class_counts,
        )

    # ------------------------------------------------------------------ Lightning's hooks

    def prepare_data(self) -> None:
        """Download, and fill the image cache, on one process of a machine, if that is asked for."""
        self._fetch()
        self._prepare_cache()

    def _fetch(self) -> None:
        if not self.download or self.dataset_name == "birds":
            return
        if self.root is None:
            raise DataError(f"data.root: give a folder to download '{self.dataset_name}' into")
        fetch_dataset(self.dataset_name, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the lists and check that every image they name is there; open the image cache."""
        splits = self.splits
        if stage in (None, "fit"):
            self.check_whole()
            if len(splits["train"]) < 2:
                raise DataError(f"data: {len(splits['train'])} training images; batch-norm needs at least 2")
        self._prepare_cache()

    def state_dict(self) -> dict[str, Any]:
        """What comes after a checkpoint: an epoch, and how many batches of it, of how many images, were done."""
        if self.trainer is None:
            return {"next_epoch": 0}
        done = self.trainer.fit_loop.batch_idx + 1
        over, epochs = done >= self.trainer.num_training_batches, self.trainer.fit_loop.epoch_progress.current
        images = self.batch_size * self.trainer.world_size
        # An epoch that is over is counted when all that follows it is done.
        uncounted = over and epochs.completed < epochs.ready
        return {"next_epoch": self.trainer.current_epoch + uncounted, "batches": 0 if over else done, "images": images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that epoch, and that batch.

        Raises:
            UsageError: The epoch was begun with batches of another size.
        """
        self._resumed_epoch, self._resumed_batches = int(state_dict["next_epoch"]), int(state_dict.get("batches", 0))
        images = self.batch_size * self._rank()[1]
        if self._resumed_batches and images != state_dict["images"]:
            raise UsageError(
                f"data.batch_size: the run stopped in the middle of epoch {self._resumed_epoch + 1}, with batches of "
                f"{state_dict['images']} images over all devices, and these are of {images}; finish that epoch first"
            )

    def train_dataloader(self) -> DataLoader[Sample | None]:
        """Shuffled; an incomplete last batch is dropped (the samples differ every epoch), unless it is the only one."""
        if self._rank()[1] > 1 and self.on_error == "skip":
            raise UsageError(
                "data.on_error: with several processes, skipped images would make their batches unequal; train one epoch on one "
                "device, take out what skipped.json names, and go on with data.on_error: raise"
            )
        epoch = 0
        if self.trainer is not None:
            # The loader of a resumed run is made, and its workers begin to read, before the trainer knows its epoch.
            epoch = max(self.trainer.current_epoch, self._resumed_epoch)
        done = self._resumed_batches * self.batch_size
        self._resumed_epoch = self._resumed_batches = 0
        return self._loader("train", self.batch_size, epoch, done)

    def val_dataloader(self) -> DataLoader[Sample | None] | list[DataLoader[Sample | None]]:
        """In order, every image once; no loader where nothing is held out."""
        return self._loader("val", self.eval_batch_size) if self.splits["val"] else []

    def test_dataloader(self) -> DataLoader[Sample | None]:
        """In order, every image once."""
        if not self.splits["test"]:
            raise DataError(
                f"data: '{self.dataset_name}' at {self.root} has no test images; add a test folder, or use --data.test_fraction"
            )
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Sample | None]:
        """The test split, see [test_dataloader][]."""
        return self.test_dataloader()

    def augment_batch(self, images: Tensor, targets: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the augmentation to the device: mirror half of a training batch, and mix it where it is `strong`.

        Args:
            images: (B, 3, H, W) floats, normalised.
            targets: (B,) classes.
            keys: (B, 3), the (seed, epoch, index) of the samples.

        Returns:
            The images; and their classes (B,), or their class probabilities (B, K) where they are mixed.
        """
        if self.augmentation != "paper":
            images = flip_batch(images, keys)
        return mix_batch(images, targets, self.num_classes) if self.augmentation == "strong" else (images, targets)

    # ------------------------------------------------------------------ loaders

    def as_tested(self, split: Split) -> DataLoader[Sample | None]:
        """A split in order, every image once and prepared as for testing, whatever the split, in this process alone."""
        return Loader(
            self.dataset(split, augmented=False), self.eval_batch_size, num_workers=self.num_workers, collate_fn=collate,
        )  # fmt: skip

    def dataset(self, split: Split, augmented: bool = True) -> RecordDataset:
        """A split as a torch data set of (uint8 image, class, index); training images may be augmented."""
        train = split == "train"
        crop = augmentation_transform(self.augmentation if train and augmented else "paper", self.image_size)
        if self._image_cache is None:
            read, transform = self._read, v2.Compose([resize_transform(self.resize, self.resize_mode), crop])
        else:
            if not self._image_cache.ready:
                self._prepare_cache()
            read, transform = self._image_cache.read, crop
        return RecordDataset(self.splits[split], read, transform, self.seed, self.on_error if train else "raise", split)

    def read(self, record: Record, enough: int | None = None) -> Tensor:
        """An image as it is before it is resized, upright uint8 (3, H, W).

        Args:
            record: The image.
            enough: A file may be read at a fraction of its size as long as its sides keep this many pixels.
        """
        if self.listing.read is not None:
            return self.listing.read(record)
        return _read_file(record, self.decoder, self._banner(), enough)

    def source(self, record: Record) -> Path | Tensor:
        """The file of an image, where all of it is shown; else its pixels, as [read][] gives them."""
        return self.read(record) if self.listing.read is not None or self._banner() else cast(Path, record.path)

    @property
    def _read(self) -> Callable[[Record], Tensor]:
        """Record -> upright uint8 image (3, H, W)."""
        return self.listing.read or partial(_read_file, decoder=self.decoder, banner=self._banner())

    @cached_property
    def _image_cache(self) -> ImageCache | None:
        """Where decoded and resized images are read from, if that is asked for."""
        if self.cache == "none":
            return None
        generated = self.listing.read is not None
        decoder = "generated" if generated else active_decoder(self.decoder)
        # What divides the images into splits, and names their classes, is left out: folds share one cache.
        settings = {
            "data": self.listing.fingerprint() if generated else str(self.root and self.root.resolve()),
            "csv": str(self.csv and self.csv.resolve()),
            "resize": [self.resize, self.resize_mode, "bilinear"],
            "banner": self._banner(),
            "decoder": decoder,
            "versions": pixel_versions(decoder, *((synthetic, bird_drawing) if generated else (images,))),
        }
        return ImageCache(
            disk_folder(self.cache_folder),
            f"{self.dataset_name}-{self.resize_mode}{self.resize}",
            settings,
            self._read,
            resize_transform(self.resize, self.resize_mode),
            self.resize,
            self.cache_limit_gb,
        )

    def _prepare_cache(self) -> None:
        """Fill the image cache, or see that it still holds what the files hold."""
        if self._image_cache is not None:
            self._image_cache.prepare(self.listing.records, self.num_workers)

    def skipped(self) -> list[str]:
        """Names of the training images that could not be read and were left out."""
        dataset = self._datasets.get("train")
        if dataset is None:
            return []
        return [dataset.records[i].name for i in dataset.skipped.nonzero().flatten().tolist()]

    def read_by(self, process: int) -> Path | str | None:
        """The image that a loader's worker, by its process number, is or was reading when it died; `None` where there is none."""
        for dataset in self._datasets.values():
            for worker, index in dataset.reading.tolist():
                if worker == process and index >= 0:
                    return dataset.records[index].path or dataset.records[index].name
        return None

    def _banner(self) -> int:
        """Height in pixels of the strip to cut off at the bottom of every image."""
        return AIRCRAFT_BANNER if self.dataset_name == "aircraft" and self.banner else 0

    def _loader(self, split: Split, batch_size: int, epoch: int = 0, done: int = 0) -> DataLoader[Sample | None]:
        if split not in self._datasets:  # made once: it remembers which images were skipped
            self._datasets[split] = self.dataset(split)
        dataset = self._datasets[split]
        decks = None
        if split == "train" and self.balance != "none":
            decks = ClassDecks([record.target for record in dataset.records], self.balance, self.seed)
        sampler = EpochSampler(len(dataset), split == "train", self.seed, *self._rank(), decks)
        sampler.set_epoch(epoch)
        sampler.done = done
        return Loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=split == "train" and len(sampler) >= batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _rank(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def fetch_dataset(name: DatasetName, root: Path) -> None:
    """Fetch and unpack a data set into a folder, unless it is there.

    Raises:
        UsageError: It cannot be fetched; the message says what to do by hand.
    """
    if name == "cub":
        prepare(root, cub.ARCHIVE, ("images.txt", "CUB_200_2011/images.txt"))
    elif name == "aircraft":
        prepare(root, aircraft.ARCHIVE, ("variants.txt", "data/variants.txt", "fgvc-aircraft-2013b/data/variants.txt"))
    elif name == "cars":
        from fgzoo.data.cars import prepare_cars

        prepare_cars(root)
    else:
        raise UsageError(f"data: '{name}' is not something to download")


def default_workers(name: str) -> int:
    """Loader processes when nothing is said: none for generated images, else one per usable core, at most eight."""
    return 0 if name == "birds" else min(8, usable_cores())


def usable_cores() -> int:
    """Cores that this process may run on: SLURM and `taskset`, say, may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_file(record: Record, decoder: DecoderName, banner: int, enough: int | None = None) -> Tensor:
    assert record.path is not None
    # How high a banner is, is known for whole pictures.
    image = decode(record.path, decoder, enough=None if banner else enough)
    return image[:, : image.shape[1] - banner] if 0 < banner < image.shape[1] else image


def _near_duplicates(listing: Listing, cache_folder: str | Path | None) -> tuple[Groups, dict[str, str]]:
    """Groups of names, and by name why an image cannot be read."""
    from fgzoo.data.duplicates import known_near_duplicates

    records = listing.records
    found = known_near_duplicates(records, listing.read, cache_folder, usable_cores())
    unreadable = {records[index].name: reason for index, reason in sorted(found.unreadable.items())}
    return [[records[index].name for index in group] for group in found.groups], unreadable


def _find_root(name: str, root: str | Path | None) -> Path | None:
    """The data's folder: as given, else FGZOO_DATA/NAME where that exists, else FGZOO_DATA."""
    if root is not None:
        return user_path(root)
    base = user_path(os.environ.get("FGZOO_DATA") or None)
    if base is None or name == "birds":
        return None
    inside = base / name
    return inside if inside.is_dir() else base
