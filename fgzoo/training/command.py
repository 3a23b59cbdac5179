"""`fgzoo fit | validate | test`: Lightning's own command line, with recipes by name and a folder for every run."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from filelock import BaseFileLock, FileLock, Timeout
from lightning.fabric.loggers.tensorboard import _TENSORBOARD_AVAILABLE, _TENSORBOARDX_AVAILABLE
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from fgzoo.checkpoints.loading import data_card, last_test, load, load_weights, read_checkpoint, remember_networks
from fgzoo.checkpoints.run_folder import (
    CONFIG,
    LAST,
    SPLIT,
    check_new,
    find_checkpoint,
    new_folder,
    newest_run,
    next_folder,
    run_of,
)
from fgzoo.data.card import DataCard
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.folder import absent_classes
from fgzoo.data.lists import copied_files
from fgzoo.data.split_file import read_parts
from fgzoo.data.tree import Split
from fgzoo.errors import UntrainedError, UsageError
from fgzoo.files import prepare_folder, user_path
from fgzoo.methods import available, import_path
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.evaluation import tail_classes
from fgzoo.methods.run_length import StopAfter, step_limit
from fgzoo.prediction.rejection import UNKNOWN
from fgzoo.training import resuming
from fgzoo.training.arguments import RUN_VARIABLE, RecipeFile, check_one_method, values_of, with_implied
from fgzoo.training.callbacks import EpochLines, ImageScores, ReproducibleSteps, RunRecord, checkpoints
from fgzoo.training.faults import EndOnSigterm, FiniteLoss, WholeCheckpoints, name_failure
from fgzoo.training.known_classes import learn_known_classes
from fgzoo.training.messages import MisconfiguredError, explain_parser_error, file_that_says, get_parameter_names
from fgzoo.training.report import write_calibration
from fgzoo.training.run_logger import RunLogger, run_loggers
from fgzoo.training.time_budget import duration, epochs_within
from fgzoo.wording import first_five, plural

#: Held by the process that writes into a run's folder; the system lets go of it however that ends.
LOCK = ".lock"
#: Tells the other processes of a run how many epochs fit into `--time`.
EPOCHS_VARIABLE = "FGZOO_RUN_EPOCHS"


class TrainingCLI(LightningCLI):
    """Lightning's command line over the data module and any method; `console` is where it says what was done."""

    def __init__(self, verb: str, arguments: list[str], console: Console) -> None:
        self.verb = verb
        self.typed = shlex.join(["fgzoo", verb, *arguments])
        self.console = console
        self.run_folder = Path()
        self.resuming = False
        #: What ended a run that is resumed in vain; empty while there is something left to do.
        self.done = ""
        #: What the checkpoint holds, until it has been made use of.
        self.restored: dict[str, Any] = {}
        #: What a resumed run is given other than its own settings.
        self.changed: resuming.Changes = {}
        #: What the model's arguments say of pretrained weights, where a checkpoint's replace them at once.
        self.weights: dict[str, Any] = {}
        #: What `--time` gives; `None` where epochs are counted.
        self.seconds: float | None = None
        self.started = time.perf_counter()
        #: Folders that this run made for itself, before it had anything to put there; the innermost first.
        self.claimed: list[Path] = []
        #: Keeps other trainings out of the run's folder, in its first process.
        self.lock: BaseFileLock | None = None
        arguments, self.checkpoint = with_implied(verb, arguments)
        try:
            super().__init__(
                model_class=FineGrainedClassifier,
                datamodule_class=FGVCDataModule,
                subclass_mode_model=True,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={
                    "precision": default_precision(),
                    "use_distributed_sampler": False,
                    "enable_model_summary": False,
                },
                parser_kwargs={"prog": "fgzoo", "exit_on_error": False},
                args=[verb, *arguments],
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
            self.learn_known_classes()
        finally:
            self._give_back()

    # ------------------------------------------------------------------ the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning calls it on the instance
        """The verb alone, since each takes a tenth of a second; and the arguments of the trainer's that ours replace."""
        loaders = {"train_dataloaders", "val_dataloaders"} if self.verb == "fit" else {"dataloaders"}
        return {self.verb: {"model", "datamodule", "ckpt_path", "weights_only", "verbose"} | loaders}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, with `--config` by name."""
        kwargs.setdefault("exit_on_error", False)
        # A shortened option would be guessed at.
        kwargs.setdefault("allow_abbrev", False)
        parser = LightningArgumentParser(**kwargs)
        help_text = "A YAML file, a run's folder, or a packaged recipe (see `fgzoo list recipes`); several merge, the last wins."
        parser.add_argument("-c", "--config", action=RecipeFile, help=help_text)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The arguments of a run, and the link from the data to the model."""
        parser.add_argument(
            "--output", type=str | None, default=None, help="The run's folder (default: runs/DATA-METHOD/NUMBER)."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A checkpoint file, a run's folder, `last` or `best`. fit: start from its weights; validate, test: score it "
            "(default: the last of the newest run of this data and method).",
        )
        parser.add_argument("--reset_head", type=bool, default=False, help="fit: leave out weights that depend on the classes.")
        parser.add_argument("--resume", type=str | None, default=None, help="fit: continue this run in its own folder.")
        time_help = (
            "fit: train as many epochs as fit into this time, e.g. 90s, 20m or 1.5h, by what the first steps take; the start, a "
            "test and a report come on top."
        )
        parser.add_argument("--time", type=str | None, default=None, help=time_help)
        report = "fit: when it is done, test once, where there are test images, and write the report, as fit PHOTOS does."
        parser.add_argument("--report", type=bool, default=False, help=report)
        trust = "A package whose classes a checkpoint may name; may be given several times."
        parser.add_argument("--trust", type=list[str], default=[], help=trust)
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say in one line what is wrong."""
        configs = values_of(args, "--config", "-c")
        try:
            # So it is added to the list, a config's too.
            self.config = parser.parse_args([re.sub(r"^--trust(?=$|=)", "--trust+", token) for token in args])
        except (ArgumentError, TypeError, MisconfiguredError) as error:
            actions = self._parser(self.verb)._actions
            options = [option.lstrip("-") for action in actions for option in action.option_strings]
            methods = [import_path(path) for path, _ in available().values()]
            names = {name for method in methods for name in get_parameter_names(method)}
            file: str | Path | None
            if isinstance(error, MisconfiguredError):
                file, line = error.path, explain_parser_error(error.message, options, names)
            else:
                line = explain_parser_error(str(error), options, names)
                file = file_that_says(line, configs)
            raise UsageError(line if file is None else f"{file}: {line}") from error
        check_one_method(self.config[self.verb], configs)
        if self.reports and (torch.distributed.is_torchelastic_launched() or int(os.environ.get("SLURM_NTASKS", "1")) > 1):
            raise UsageError(
                "fit PHOTOS and --report test in one process of their own; with torchrun or SLURM give --config folder, and "
                "--report false to a run that is resumed"
            )
        if self.verb == "fit" and (folder := user_path(self.config.fit.resume)) is not None:
            own = parser.parse_args([self.verb, "--config", str(folder / CONFIG)])
            self.changed = resuming.changes(*(vars(one[self.verb].as_flat()) for one in (own, self.config)))
            if self.config.fit.data.split_file == str(folder / SPLIT):  # what it drew itself
                self.changed.pop("data.split_file", None)
            resuming.check_changes(folder, self.changed)

    def _parse_ckpt_path(self) -> None:
        """Lightning would put a checkpoint's arguments over those that were given; here what is given holds."""

    # ------------------------------------------------------------------ the run

    @property
    def dry(self) -> bool:
        """Whether this is Lightning's `fast_dev_run`, of which nothing is kept."""
        return bool(self.config[self.verb].trainer.fast_dev_run)

    @property
    def reports_folder(self) -> Path:
        """Where what a split was given is written: of a run's other checkpoints, such as `best`, in folders of their own."""
        folder, checkpoint = self.run_folder, self.checkpoint
        if self.verb == "fit" or checkpoint is None or run_of(checkpoint) != folder or not (folder / LAST).is_file():
            return folder
        return folder if checkpoint.name == LAST.name else folder / checkpoint.stem

    @property
    def reports(self) -> bool:
        """Whether this is a training that is tested and reported when it is done."""
        return self.verb == "fit" and bool(self.config.fit.report)

    def interrupted(self) -> KeyboardInterrupt:
        """What to raise for Ctrl-C, which says how to go on."""
        kept = self.verb == "fit" and (self.run_folder / CONFIG).is_file()
        return KeyboardInterrupt(*[f"go on by fgzoo fit --resume {shlex.quote(str(self.run_folder))}"] * kept)

    def before_instantiate_classes(self) -> None:
        """Decide where the run's folder and its checkpoint are; look for no weights and networks that the checkpoint brings."""
        self._find_places()
        if self.checkpoint is not None:
            self.restored = read_checkpoint(self.checkpoint)
            remember_networks(self.restored)
            given = self.config[self.verb].model.init_args
            names = [name for name in vars(given) if name == "pretrained" or name.endswith("backbone_weights")]
            self.weights = {name: str(value) if isinstance(value := given[name], Path) else value for name in names}
            for name in names:
                given[name] = False if name == "pretrained" else None

    def _find_places(self) -> None:
        config = self.config[self.verb]
        method = str(config.model.class_path).rpartition(".")[2].lower()
        base = user_path(config.trainer.default_root_dir or "runs")
        runs = base / f"{config.data.name}-{method}"
        if self.verb == "fit" and config.time is not None:
            self.seconds = duration(config.time)  # refused before anything is built
        if self.verb == "fit" and config.resume:
            self._take(user_path(config.resume))
            # A run that was stopped in its first epoch begins again.
            self.resuming = (self.run_folder / LAST).is_file()
            if self.resuming:
                self.checkpoint = self.run_folder / LAST
                return
        if self.verb == "fit" and config.reset_head and not (config.ckpt_path or config.resume):
            raise UsageError("--reset_head: of which weights? Give --ckpt_path, or leave it away")
        if config.ckpt_path and self.checkpoint is None:
            self.checkpoint = find_checkpoint(config.ckpt_path, base)
        if self.verb == "fit" and not config.resume:
            told = os.environ.get(RUN_VARIABLE)
            given = config.output or told
            self._take(user_path(given) if given else self._claim(runs))
            if not told:
                check_new(self.run_folder)
        if self.verb == "fit":
            return
        if self.checkpoint is None:
            newest = newest_run(runs)
            if newest is None:
                raise UntrainedError(
                    f"{self.verb}: no trained {method} for '{config.data.name}' below {base}, and an untrained one would score "
                    "by chance; train it by `fgzoo fit`, or give --ckpt_path"
                )
            self.checkpoint = newest / LAST
        own = run_of(self.checkpoint)
        self._take(user_path(config.output) if config.output else own or self._claim(runs))

    def _take(self, folder: Path) -> None:
        """Make this the run's folder, which the first process does; as long as a training lasts it keeps others out of it."""
        self.run_folder = folder
        if self.verb == "fit":
            os.environ[RUN_VARIABLE] = str(folder)
        # Lightning's own environment knows a node's rank before it knows that of a process.
        if getattr(rank_zero_only, "rank", 0) or int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) or self.dry:
            return
        resumed = self.verb == "fit" and self.config.fit.resume
        if resumed and not os.access(folder, os.W_OK):
            raise UsageError(f"--resume: {folder} cannot be written to; begin a new run from its weights: --ckpt_path {folder}")
        self.claimed = self.claimed or _missing(folder)
        prepare_folder(folder, self.verb)
        if self.verb == "fit":
            lock = FileLock(folder / LOCK, fallback_to_soft=False)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                way = "" if resumed else ", or give another place by --output"
                raise UsageError(f"fit: another run is writing to {folder} (it holds {LOCK} there); let it end{way}") from error
            except (OSError, NotImplementedError):  # a file system that knows no locks
                return
            self.lock = lock

    def _claim(self, base: Path) -> Path:
        """A new run's folder below this one, which the first process makes."""
        if getattr(rank_zero_only, "rank", 0) or self.dry:
            return next_folder(base)
        missing = _missing(base)
        prepare_folder(base, self.verb)
        self.claimed = [new_folder(base), *missing]
        return self.claimed[0]

    def _give_back(self) -> None:
        """Let others into the run's folder; where nothing came of the run, remove what was claimed."""
        if self.lock is not None:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                Path(self.lock.lock_file).unlink()
            self.lock.release()
        with contextlib.suppress(OSError):  # not empty, so neither is what it lies in
            for path in self.claimed:
                path.rmdir()

    def instantiate_classes(self) -> None:
        """Make data, model and trainer, and load the weights that were asked for."""
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            # jsonargparse wraps what a class raised into a tree of alternatives.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UsageError | ModuleNotFoundError):
                cause = cause.__cause__ or cause.__context__
            if isinstance(cause, ModuleNotFoundError):
                # Loggers and callbacks of Lightning's whose package is not installed.
                raise UsageError(f"trainer: {str(cause).strip()}") from error
            raise cause or error from error
        config = self.config[self.verb]
        self.model.hparams.update(self.weights)
        if self.resuming:
            self._check_resumed()
        elif self.checkpoint is not None:
            reset = self.verb == "fit" and config.reset_head
            checkpoint, self.restored = self.restored, {}
            load_weights(self.model, checkpoint, self.checkpoint, reset_head=reset)
            known = data_card(checkpoint)
            if self.verb == "fit" and known is not None and not reset:
                known.check_classes(self.datamodule.card)
            if self.verb != "fit":
                self._check_part(known)
            if self.verb != "fit":
                self._say_what_is_scored(int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0)))

    def _say_what_is_scored(self, epoch: int, steps: int) -> None:
        """Let what is written of a checkpoint's answers say how long it had been trained."""
        for logger in run_loggers(self.trainer):
            logger.place = epoch, max(0, steps - 1)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined] # which Lightning sets
            if isinstance(callback, ImageScores):
                callback.steps = steps

    def _check_part(self, known: DataCard | None) -> None:
        """Say which of the images to be scored are gone or others, and refuse those of another part of the checkpoint's run."""
        assert self.checkpoint is not None
        part: Split = "test" if self.verb == "test" else "val"
        notes = []
        if gone := self.datamodule.gone(part):
            images = plural(len(gone), f"{part} image is", f"{part} images are")
            notes.append(f"{images} gone, and left out: {first_five(gone)}")
        if known is not None and not self.datamodule.matches(known):
            notes.append(
                f"the images are not those that {self.checkpoint} was trained and tested on (fingerprint of the lists "
                f"{known.fingerprint} there, {self.datamodule.listing.fingerprint()} here)"
            )
        for note in notes if self.trainer.is_global_zero else ():
            self.console.print(f"Note: {note}")
        run = run_of(self.checkpoint)
        # Who names another file says himself what part every image is in.
        if self.datamodule.split_file is not None or run is None or not (run / SPLIT).is_file():
            return
        parts = read_parts(run / SPLIT)
        if others := [name for name in self.datamodule.names(part) if name in parts and parts[name][-1] != part]:
            count = f"{len(others)} of {len(self.datamodule.splits[part])} images"
            raise UsageError(
                f"{self.verb}: {count} are of another part of {run}, which may have learnt from them: {first_five(others)}; keep "
                f"its parts by --data.split_file {run / SPLIT}"
            )

    def _check_resumed(self) -> None:
        """Refuse a network or data that are not the checkpoint's, and see whether there is anything left to do."""
        self.datamodule.check_whole()
        resuming.check_data(self.run_folder, data_card(self.restored), self.datamodule.card)
        resuming.check_model(self.run_folder, self.restored.get("hyper_parameters", {}), self.model.hparams)
        epochs = self.restored["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        limit = step_limit(self.trainer)
        if 0 <= (self.trainer.max_epochs or 0) <= epochs:
            done = plural(epochs, "epoch", "epochs")
            self.done = f"{done}, and --trainer.max_epochs {self.trainer.max_epochs} asks for no more"
        elif limit is not None and limit <= (steps := self.restored["global_step"]):
            self.done = f"{plural(steps, 'step', 'steps')}, and --trainer.max_steps {limit} asks for no more"
        elif resuming.stopped_early(self.trainer, self.restored, self.changed):
            more = "a larger patience of it, or --trainer.max_epochs or min_epochs, lets it go on"
            self.done = f"early stopping ended it after epoch {epochs} ({more})"
        self.restored = {}

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with this run's logger and callbacks."""
        config = self._get(self.config_init, "trainer")
        others = self._other_loggers(config.get("logger"))
        validates = bool(self.datamodule.splits["val"])
        fits, keeps = self.verb == "fit", not self.dry
        if fits and (said := self.model.arguments.teacher):
            trust = self.config.fit.trust
            self.model.teachers = [load(one, trust=trust) for one in ([said] if isinstance(said, str) else said)]
        if self.seconds is not None:
            kwargs["max_epochs"] = self._epochs_within(self.seconds)
            self._move_milestones(kwargs["max_epochs"])
        elif fits and not self.dry and config.max_epochs is config.max_time is None and config.max_steps == -1:
            raise UsageError("fit: how long? Give --trainer.max_epochs, or --time 20m")
        text = self._settings(kwargs) if fits else None
        callbacks: list[Callback] = [
            *([RunRecord(self.reports_folder, text)] if keeps else []),
            ReproducibleSteps(self.datamodule.seed),
            *([EpochLines(self.console)] if fits else [RichProgressBar()] if self.console.is_terminal else []),
            *([FiniteLoss(), EndOnSigterm(), resuming.GivenPatience()] if fits else []),
            *([ImageScores(self.reports_folder)] if keeps else []),
            *([StopAfter(config.max_steps)] if fits and keeps and config.max_steps >= 0 else []),
            *(checkpoints(self.run_folder, validates) if fits and keeps else []),
        ]
        if fits and keeps and config.max_steps >= 0:
            kwargs = {"max_epochs": -1 if config.max_epochs is None else config.max_epochs, **kwargs, "max_steps": -1}
        if fits and not validates:
            kwargs["limit_val_batches"] = 0
        own = [one for one in _several(config.get("callbacks")) if (fits and keeps) or not isinstance(one, Checkpoint)]
        if SLURMEnvironment.detect():
            # Its own requeueing saves in mid-epoch, from where a run cannot be continued to the bit.
            kwargs["plugins"] = [*_several(config.get("plugins")), SLURMEnvironment(auto_requeue=False)]
        try:
            trainer = super().instantiate_trainer(
                logger=[RunLogger(self.run_folder), *others] if keeps else False,
                callbacks=[*own, *callbacks],
                enable_progress_bar=self.console.is_terminal and not fits,
                enable_checkpointing=fits and keeps,
                **kwargs,
            )
            if isinstance(launcher := trainer.strategy.launcher, _MultiProcessingLauncher) and launcher._start_method == "spawn":
                raise UsageError(
                    f"trainer.strategy: {config.strategy} cannot hand a run to spawned processes; take ddp or ddp_fork"
                )
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeCheckpoints()
            return trainer
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(f"trainer: {error}") from error

    def _settings(self, replaced: dict[str, Any]) -> str | None:
        """The run's config.yaml; `None` where it stays as it is, because the run is resumed by its own settings."""
        resumed = self.config["fit"].resume is not None
        if resumed and not self.changed:
            return None
        # Where this run went is no setting of the next one, and how long it could last is in its epochs.
        settings = self.config["fit"].clone()
        settings.output = settings.resume = settings.time = settings.data.split_file = None
        settings.trainer.max_epochs = replaced.get("max_epochs", settings.trainer.max_epochs)
        for name, value in self.weights.items():
            settings.model.init_args[name] = value
        text = self._parser("fit").dump(settings, skip_unset=False, skip_link_targets=False)
        return resuming.add_note(text, self.typed, (self.run_folder / CONFIG).read_text(encoding="utf-8") if resumed else "")

    def _other_loggers(self, given: Any) -> list[Logger]:
        """What logs beside metrics.csv: what was asked for, or TensorBoard in training where it is installed."""
        if given not in (None, True, False):
            return _several(given)
        if given is False or self.verb != "fit" or self.dry or not (_TENSORBOARD_AVAILABLE or _TENSORBOARDX_AVAILABLE):
            return []
        # What a resumed run does again is taken back.
        again = {"purge_step": self.restored["global_step"]} if self.resuming else {}
        return [TensorBoardLogger(self.run_folder, name=None, version="tensorboard", default_hp_metric=False, **again)]

    def _epochs_within(self, seconds: float) -> int:
        """As many epochs as fit; the other processes of a run that this one starts are told."""
        if (told := os.environ.get(EPOCHS_VARIABLE)) is None:
            if "WORLD_SIZE" in os.environ or SLURMEnvironment.detect():
                raise UsageError("--time: processes that something else started cannot agree on it; give --trainer.max_epochs")
            make = partial(LightningCLI.instantiate_trainer, self)
            processes = make(callbacks=[], logger=False).world_size
            steps = ReproducibleSteps(self.datamodule.seed)
            epochs, epoch = epochs_within(seconds, self.model, self.datamodule, make, [steps], processes)
            late = ", and one takes longer" if epoch > seconds else ""
            self.console.print(f"{seconds:.0f} s: {plural(epochs, 'epoch', 'epochs')} of about {epoch:.1f} s{late}")
            told = os.environ[EPOCHS_VARIABLE] = str(epochs)
        return int(told)

    def _move_milestones(self, epochs: int) -> None:
        """Let the learning rate fall at the same shares of a training that lasts as long as there is time."""
        planned, milestones = self.config.fit.trainer.max_epochs, self.model.arguments.milestones
        if milestones and (planned or -1) > 0:
            moved = [max(1, round(epoch * epochs / planned)) for epoch in milestones]
            for arguments in (self.model.arguments, self.model.hparams, self.config.fit.model.init_args):
                arguments["milestones"] = moved
            said = f"The learning rate falls after epochs {moved} of {epochs}, not {list(milestones)} of {planned}."
            self.console.print(said)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Hand the checkpoint to the trainer only where the trainer's whole state is to be restored."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if self.resuming:
            kwargs["ckpt_path"] = str(self.checkpoint)
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb, unless it is to continue a run that has nothing left to do."""
        if self.done:
            self.console.print(f"{self.run_folder} is done already: {self.done}.")
            return
        try:
            super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit, RuntimeError) as end:
            # Lightning's interrupt handling ends in exit status 1, or in tidying up what it had not begun; ours in 130.
            if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
                raise self.interrupted() from end
            if isinstance(end, RuntimeError):
                raise name_failure(end, self.datamodule) or end from end
            raise

    def before_validate(self) -> None:
        """Refuse to validate on nothing."""
        if not self.datamodule.splits["val"]:
            raise UsageError(
                f"validate: nothing of '{self.datamodule.dataset_name}' is held out for validation; give --data.val_fraction or "
                "--data.folds"
            )

    def before_fit(self) -> None:
        """Say what is about to be trained, and what is left out."""
        if self.trainer.limit_train_batches == 0:
            raise UsageError("fit: --trainer.limit_train_batches 0 trains nothing; give 1 or more, or a share such as 0.1")
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        sizes = {split: len(records) for split, records in self.datamodule.splits.items() if records}
        shown = ", ".join(f"{number} {split}" for split, number in sizes.items())
        goes = "no folder: fast_dev_run" if self.dry else self.run_folder
        classes = plural(self.datamodule.num_classes, "class", "classes")
        self.console.print(
            f"{type(self.model).__name__} on {self.model.backbone}, {count:.1f} M parameters; {self.datamodule.dataset_name}: "
            f"{classes}, {shown} images; {self.trainer.precision}, {self._length()}{self._batch()} -> {goes}",
        )
        for note in self._notes() if self.datamodule.dataset_name == "folder" and self.trainer.is_global_zero else []:
            self.console.print(f"Note: {note}")

    def _notes(self) -> list[str]:
        """What of one's own images is left out, has no score, is in two splits, or rare."""
        data, given = self.datamodule, self.model.arguments
        listing, splits, counts = data.listing, data.splits, data.class_counts
        # Those of parts that were drawn; of others the listing has said it.
        notes = list(dict.fromkeys([*listing.notes, *absent_classes(listing, splits["val"], splits["test"])]))
        copied, contradicted = copied_files(splits)
        if copied:
            images = plural(len(copied), "validation or test image is a file", "validation or test images are files")
            notes.append(f"{images} of another split, too: {first_five(copied)}")
        if contradicted:
            images = plural(len(contradicted), "image is a file", "images are files")
            notes.append(f"{images} of another class, too: {first_five(contradicted)}")
        if UNKNOWN in data.class_names:
            notes.append(
                f"a class is called {UNKNOWN}, as predict calls what it does not know; its column accepted tells them apart"
            )
        evened = data.balance != "none" or given.class_weights != "none" or given.logit_adjustment
        if tail_classes(counts) and min(counts) and not evened:
            notes.append(
                f"classes have {min(counts)} to {max(counts)} training images; of what lets rare ones be found, "
                "--model.logit_adjustment 1 gave most where it was measured"
            )
        return notes

    def _length(self) -> str:
        """What ends the run: epochs, steps or time."""
        epochs, steps, limit = self.trainer.max_epochs, step_limit(self.trainer), self.config[self.verb].trainer.max_time
        said = [plural(epochs, "epoch", "epochs")] if epochs is not None and epochs >= 0 else []
        said += [] if steps is None else [plural(steps, "step", "steps")]
        said += [] if limit is None else [f"a time of {limit}"]
        return "at most " * (len(said) > 1) + " and ".join(said)

    def _batch(self) -> str:
        """What a batch is where several devices share it or the learning rate follows it; nothing otherwise."""
        given, factor, devices = self.model.arguments, self.model.lr_factor(), self.trainer.world_size
        size = f", batches of {devices} x {self.datamodule.batch_size}" if devices > 1 else ""
        return size if factor == 1 else f"{size}, lr {factor * given.lr:.3g} ({given.lr:g} at {given.lr_batch})"

    def learn_known_classes(self) -> None:
        """Let what was trained reject by features; the first process does it, when the others are done."""
        if self.verb != "fit" or self.dry or not self.trainer.is_global_zero or not self.datamodule.splits["val"]:
            return
        try:
            found = learn_known_classes(self.run_folder, self.datamodule, self.trainer.strategy.root_device)
        except KeyboardInterrupt as end:
            raise self.interrupted() from end
        except (UsageError, torch.OutOfMemoryError) as error:
            why = str(error).splitlines()[0]
            self.console.print(f"Note: {why}; probabilities decide what is unknown")
            return
        if found is not None:
            self.model.calibration = found
            write_calibration(self.run_folder, found)

    def close(self) -> None:
        """Say where everything is."""
        if not self.trainer.is_global_zero or self.dry or self.reports:
            return
        seconds = time.perf_counter() - self.started
        holds = sorted(path.relative_to(self.run_folder).as_posix() for path in self.run_folder.rglob("*") if path.is_file())
        took = f"{self.verb} took {seconds:.0f} s. {self.run_folder} holds {', '.join(holds)}"
        self.console.print(took)
        found = self.model.calibration if self.verb == "fit" else None
        if found is not None:
            told = f"temperature {found.temperature:.3g}, unknown below a {found.score} of {found.threshold():.4g}"
            self.console.print(f"By {found.images} held-out images: {told}.")
        if self.verb == "fit" and not (self.done and last_test(self.run_folder)):
            said = shlex.quote(str(self.run_folder))
            self.console.print(f"Next: fgzoo test --ckpt_path {said}")


def run(verb: str, arguments: list[str], *, closing: bool = True) -> TrainingCLI:
    """Run a training verb, `fit`, `validate` or `test`, with what followed it on the command line.

    Args:
        verb: The verb.
        arguments: What followed.
        closing: Say at the end where everything is, and what to type next.

    Returns:
        What was run; its `run_folder` holds what it wrote.

    Raises:
        UsageError: Something the user gave is wrong.
    """
    console = LogConsole(soft_wrap=True, highlight=False, markup=False)
    quieten()
    tell_numbers_from_shares()
    import_methods()
    try:
        cli = TrainingCLI(verb, arguments, console)
        if closing:
            cli.close()
        return cli
    finally:
        for name in (RUN_VARIABLE, EPOCHS_VARIABLE):
            os.environ.pop(name, None)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def score_alone(checkpoint: Path, trust: Sequence[str] = ()) -> None:
    """Score a checkpoint on the test split in this process alone, on however many devices it was trained.

    Args:
        checkpoint: A file, or a run's folder.
        trust: Packages whose classes it may name.
    """
    trusted = [word for package in trust for word in ("--trust", package)]
    alone = ["--trainer.devices", "1", "--trainer.num_nodes", "1"]
    run("test", ["--ckpt_path", str(checkpoint), *alone, *trusted], closing=False)


def _missing(folder: Path) -> list[Path]:
    """The folders that have to be made for one, itself first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _several(given: Any) -> list[Any]:
    """What a setting names, which may be one thing, several or none."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


# ---------------------------------------------------------------------- the process


class LogConsole(Console):
    """Standard output, whose reader (`| head`, a `tee` that is gone) may leave without ending a training."""

    def on_broken_pipe(self) -> None:
        """Go on without a log."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write("fgzoo: nobody reads standard output any more; going on without a log\n")


def import_methods() -> None:
    """Import every method, so that the parser knows its class by name."""
    for path, _ in available().values():
        import_path(path)


def tell_numbers_from_shares() -> None:
    """Let options of the trainer that take a number of batches, 1, or a share of them, 1.0, tell them apart.

    The parser takes the first type of an annotation that fits. Lightning's are unions of int and float, and of those typing keeps
    one for both orders: that which was made first in this process, by whichever library.
    """
    annotations = L.Trainer.__init__.__annotations__
    for name, kind in annotations.items():
        if {int, float} <= {*get_args(kind)}:
            annotations[name] = reduce(or_, sorted(get_args(kind), key=lambda one: one is not int))


def default_precision() -> str:
    """bf16 mixed precision where the hardware computes in it, else single precision."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    flags = Path("/proc/cpuinfo")
    native = flags.is_file() and re.search(r"\b(amx_bf16|avx512_bf16)\b", flags.read_text(encoding="utf-8"))
    return "bf16-mixed" if native else "32-true"


def quieten() -> None:
    """Keep Lightning's advice and repeated notices out of the log; warnings of substance stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # What a profiler reports, it says to its log.
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*LightningCLI's args parameter.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*you defined a .validation_step. but have no .val_dataloader.*",
        ".*Detected call of .lr_scheduler.step.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        # These are of all ranks when they are logged.
        r".*self.log\('(train|val|test)/(top1|top5|macro|nll|ece)\w*', ..., sync_dist=True\).*",
    ):
        warnings.filterwarnings("ignore", message=message)
