"""A run's folder, and which file a checkpoint's name means. Importing this module imports no torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml

from fgzoo.checkpoints.download import fetch_checkpoint
from fgzoo.checkpoints.hub import SCHEME
from fgzoo.checkpoints.registry import list_checkpoints
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.files import parse_yaml, user_path
from fgzoo.wording import did_you_mean

CONFIG = "config.yaml"
METRICS = "metrics.csv"
#: What training cost, written when it has come to its end.
COST = "cost.json"
#: What part every image of a person's own data is in, where parts were drawn.
SPLIT = "split.csv"
#: Where a run keeps its checkpoints, relative to the run's folder.
LAST = Path("checkpoints") / "last.ckpt"
BEST = Path("checkpoints") / "best.ckpt"
#: Temperature and threshold, as the last checkpoint has them.
CALIBRATION = "calibration.json"
#: What every image of a split was given, by the split.
PROBABILITIES = {split: f"{split}_probabilities.npz" for split in ("val", "test")}


def next_folder(base: Path) -> Path:
    """The first free numbered folder, e.g. `runs/cub-rra/000`; another process may make it, see [new_folder][]."""
    taken = [int(path.name) for path in base.glob("[0-9]*") if path.name.isdigit()] if base.is_dir() else []
    return base / f"{max(taken, default=-1) + 1:03d}"


def new_folder(base: Path) -> Path:
    """Make the next numbered folder; runs that start at the same moment get folders of their own."""
    while True:
        folder = next_folder(base)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def newest_begun(base: Path) -> Path | None:
    """The folder of the run below another one that was written to last, whether it has a checkpoint yet or not."""
    found = [path.parent for path in base.glob(f"**/{CONFIG}") if _is_run_config(path)]
    times = {run: max(path.stat().st_mtime for path in (run / CONFIG, run / LAST) if path.is_file()) for run in found}
    return max(times, key=lambda run: times[run], default=None)


def newest_run(base: Path) -> Path | None:
    """The folder of the run below another one, e.g. `runs`, whose last checkpoint is the most recent; `None` without any."""
    found = list(base.glob(f"**/{LAST.as_posix()}")) if base.is_dir() else []
    # What lies within a run's folder is of somebody's own checkpoint callback.
    found = [path for path in found if not (path.parents[2] / CONFIG).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parents[1] if found else None


def check_new(folder: Path) -> None:
    """Refuse a folder for a new run that another one has filled.

    Raises:
        UsageError: It holds a run.
    """
    if (folder / CONFIG).exists():
        raise UsageError(f"--output: {folder} holds a run already; continue it by --resume {folder}, or name another folder")


def run_of(checkpoint: Path) -> Path | None:
    """The run's folder that a checkpoint lies in; `None` where it lies elsewhere."""
    folder = checkpoint.parent.resolve()
    folder = folder.parent if folder.name == LAST.parent.name else folder
    return folder if _is_run_config(folder / CONFIG) else None


def _is_run_config(path: Path) -> bool:
    """Whether a file is a run's config; another program's may have its name. Of one that is damaged, its reader says so."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return True
    except OSError:
        return False
    return isinstance(content, dict) and content.keys() >= {"seed_everything", "data", "model", "trainer"}


def resolve(source: str | Path) -> Path:
    """The file that is meant: a path itself, a run's last checkpoint, or one of the zoo or the hub, which is downloaded.

    Args:
        source: A checkpoint file, a run's folder, a name of [list_checkpoints][fgzoo.list_checkpoints], or `hf://OWNER/NAME`. A
            file or a run of that name comes first.

    Returns:
        The file.

    Raises:
        CheckpointError: There is none, or it cannot be downloaded.
    """
    path = user_path(source)
    if path.is_file():
        return path
    if (path / LAST).is_file():
        return path / LAST
    names = list_checkpoints()
    if str(source) in names or str(source).startswith(SCHEME):
        return fetch_checkpoint(str(source))
    if path.is_dir():
        raise CheckpointError(f"checkpoint: the folder {path} holds no {LAST}")
    hint = did_you_mean(str(source), names) or ", and none of this name in `fgzoo list checkpoints`"
    raise CheckpointError(f"checkpoint: no file or run folder '{source}'{hint}")


def find_run(said: str | Path, base: Path, begun: bool = False) -> Path:
    """The folder of the run that is meant: this one, or for `last` the newest below base that has a checkpoint.

    Args:
        said: What was typed.
        base: The folder of runs.
        begun: A run counts that has no checkpoint yet.

    Raises:
        CheckpointError: There is none below base.
    """
    return _newest("last", base, begun) if str(said) == "last" else user_path(said)


def _newest(said: str, base: Path, begun: bool = False) -> Path:
    run = newest_begun(base) if begun else newest_run(base)
    if run is None:
        raise CheckpointError(f"checkpoint '{said}': there is no {'' if begun else 'trained '}run below {base}")
    return run


def find_checkpoint(said: str, base: Path) -> Path:
    """The file that `--ckpt_path` means.

    Args:
        said: A file, a run's folder, `last` or `best` (of the newest run below base).
        base: Where runs are.

    Returns:
        The file.

    Raises:
        CheckpointError: There is none.
    """
    if said not in ("last", "best"):
        return resolve(said)
    run = _newest(said, base)
    path = run / (LAST if said == "last" else BEST)
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint 'best': {run} has no {BEST}, because nothing was held out for validation "
            f"(--data.val_fraction, --data.folds); take 'last'"
        )
    return path
