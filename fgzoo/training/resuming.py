"""What a run that is resumed may be given beside its own settings: every argument is either taken or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from fgzoo.data.card import DataCard
from fgzoo.errors import UsageError

#: Arguments of every method that another value may be given: what trains the network, not what it is.
MODEL = {
    "lr", "backbone_lr_factor", "momentum", "weight_decay", "schedule", "warmup_epochs", "milestones", "gamma", "lr_batch",
    "label_smoothing", "class_weights", "logit_adjustment", "clip_norm", "compile", "recompute_backbone",
}  # fmt: skip
#: Those of the data: where it lies, how it is read and shown, not what it is, nor what is held out.
DATA = {
    "root", "csv", "batch_size", "eval_batch_size", "num_workers", "augmentation", "balance", "decoder", "on_error", "download",
    "cache", "cache_folder", "cache_limit_gb",
}  # fmt: skip
#: Of the trainer's, those that say when a run ends.
LENGTH = {"max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"}
#: What says nothing about the run itself.
ABOUT = {"config", "resume", "trust", "report"}
#: Of the trainer's, which are taken as they are given, those that mean nothing for a run that has a folder.
NO_TRAINER = {"fast_dev_run", "default_root_dir"}

Changes = dict[str, tuple[Any, Any]]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Settings that differ.

    Args:
        before: A run's own, by their full names.
        now: Those that it is to go on with.

    Returns:
        Before and now by the name that is typed, such as `model.lr`.
    """
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name) and name not in ABOUT]
    return {name.replace(".init_args.", ".", 1): (before.get(name), now.get(name)) for name in differing}


def check_changes(folder: Path, changed: Changes) -> None:
    """Refuse what a resumed run cannot take.

    Raises:
        UsageError: Names it, and what to do instead.
    """
    for name, (before, now) in changed.items():
        section, _, argument = name.partition(".")
        if section == "trainer" and argument.partition(".")[0] not in NO_TRAINER:
            continue
        if (section, argument.partition(".")[0]) in {*(("model", each) for each in MODEL), *(("data", each) for each in DATA)}:
            continue
        if name == "time":
            raise UsageError("--time: a resumed run keeps its epochs; leave it away")
        if name in ("output", "trainer.default_root_dir", "trainer.fast_dev_run"):
            raise UsageError(f"--resume: a run continues in its own folder, {folder}; leave --{name} away")
        raise UsageError(
            f"--resume: {name} is {before!r} in {folder}, and a resumed run cannot take another value ({now!r}); leave it away, "
            f"or begin a new run from these weights: --ckpt_path {folder}"
        )


def check_model(folder: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a network that is not the checkpoint's, whose arguments somebody has edited.

    Raises:
        UsageError: Names the first argument that differs.
    """
    weights = {name for name in kept if name == "pretrained" or name.endswith("backbone_weights")}
    names = kept.keys() & now.keys() - weights - MODEL
    check_changes(folder, {f"model.{name}": (kept[name], now[name]) for name in sorted(names) if _differ(kept[name], now[name])})


def check_data(folder: Path, kept: DataCard | None, now: DataCard) -> None:
    """Refuse data that is not what a run's checkpoint was trained on.

    Raises:
        UsageError: Classes, lists or the preparation of images differ; says which.
    """
    if kept is None:
        return
    out = f"bring the data back to what it was, or begin a new run from these weights: --ckpt_path {folder} --reset_head true"
    if kept.class_names != now.class_names:
        pairs = list(zip(kept.class_names, now.class_names, strict=False))
        place = next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))
        mine, theirs = ((*names, "none")[min(place, len(names))] for names in (kept.class_names, now.class_names))
        raise UsageError(
            f"--resume: the data's classes are not those that {folder} was trained on ({len(kept.class_names)} there, "
            f"{len(now.class_names)} here): class {place} is '{mine}' there and '{theirs}' here; {out}"
        )
    if kept.fingerprint != now.fingerprint:
        raise UsageError(
            f"--resume: the data's lists are not those that {folder} was trained on (fingerprint {kept.fingerprint} there, "
            f"{now.fingerprint} here): images were added, taken away, renamed or put into another split; {out}"
        )
    for name in ("image_size", "resize", "resize_mode"):
        mine, theirs = getattr(kept, name), getattr(now, name)
        if mine != theirs:
            raise UsageError(f"--resume: data.{name} is {mine!r} in {folder} and {theirs!r} here; {out}")


class GivenPatience(Callback):
    """The patience that early stopping was given at `--resume` holds; Lightning would take the checkpoint's."""

    def __init__(self) -> None:
        self.given: dict[EarlyStopping, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note it before the checkpoint is read."""
        self.given = {callback: callback.patience for callback in _early_stopping(trainer)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put it back."""
        for callback, patience in self.given.items():
            callback.patience = patience


def stopped_early(trainer: L.Trainer, checkpoint: Mapping[str, Any], changed: Changes) -> bool:
    """Whether early stopping has ended a run, and nothing that is given now lets it go on.

    Args:
        trainer: The trainer with what is given now.
        checkpoint: The run's last one.
        changed: Settings that differ from the run's own.
    """
    if any(name.partition(".")[2] in LENGTH for name in changed if name.startswith("trainer.")):
        return False
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    for callback in _early_stopping(trainer):
        state = checkpoint["callbacks"].get(callback.state_key)
        if state is None or state["stopped_epoch"] != progress["ready"] - 1:
            continue
        reason = EarlyStoppingReason(state["stopping_reason"])
        if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            again = state["wait_count"] >= callback.patience
        else:
            again = reason is not EarlyStoppingReason.NOT_STOPPED and "trainer.callbacks" not in changed
        if again and progress["ready"] >= (trainer.fit_loop.min_epochs or 0):
            return True
    return False


def _early_stopping(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


def _differ(one: Any, other: Any) -> bool:
    """Tuples come back as lists."""
    return (list(one) if isinstance(one, tuple) else one) != (list(other) if isinstance(other, tuple) else other)


def add_note(config: str, note: str, head: str) -> str:
    """A config with a run's earlier notes and a further one at its head.

    Args:
        config: The new settings, as YAML.
        note: What is noted.
        head: The text whose first comments are kept.
    """
    lines = head.splitlines()
    kept = lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return "\n".join([*kept, f"# {note}", config])
