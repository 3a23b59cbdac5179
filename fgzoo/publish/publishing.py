"""From a run to a checkpoint that others load by name: the file, its registry entry and its model card."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import yaml

from fgzoo.checkpoints.download import CHECKOUT, PACKAGE
from fgzoo.checkpoints.hub import SCHEME
from fgzoo.checkpoints.loading import last_test, load
from fgzoo.checkpoints.registry import METRIC_NAMES, REGISTRY, SUFFIX, ZooEntry, add_entry, check_entry, check_name, read_registry
from fgzoo.checkpoints.run_folder import CONFIG, COST, LAST, METRICS, SPLIT
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import CheckpointError, UsageError
from fgzoo.files import file_hash, handed_on
from fgzoo.methods import method_name
from fgzoo.methods.arguments import without_files
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.publish.hub import check_push, push_files
from fgzoo.publish.model_card import Training, model_card
from fgzoo.recipes import read_config, recipe_files
from fgzoo.training.arguments import DEFAULT_RECIPE, values_of
from fgzoo.training.command import score_alone

#: Where a run keeps its data's counts and notes, and its versions and hardware.
DATA, ENVIRONMENT = "data.json", "environment.json"
#: Options that concern only the machine they were typed on.
MACHINE_OPTIONS = ("--output", "--data.num_workers", "--data.cache", "--data.cache_folder", "--trainer.default_root_dir")
#: Settings of the data that change where and how fast images are read, not what is learnt.
MACHINE_SETTINGS = ("root", "num_workers", "cache", "cache_folder", "cache_limit_gb")
#: A file whose accuracy differs more from its run's recorded one holds other weights, or was scored on other images.
TOLERANCE = 0.01


class Published(NamedTuple):
    """What [publish][] wrote; `page` is the address of what it pushed."""

    file: Path
    card: Path
    registry: Path
    entry: ZooEntry
    page: str | None = None


def publish(
    run: Path,
    name: str,
    output: Path = Path(),
    registry: Path | None = None,
    seeds: Sequence[Path] = (),
    dtype: Literal["float32", "float16"] = "float32",
    licence: str | None = None,
    sources: Sequence[str] = (),
    push: str | None = None,
    trust: Sequence[str] = (),
) -> Published:
    """Turn a tested run into `NAME.safetensors`, `NAME.md` and an entry of a registry; the file is scored before it is kept.

    Args:
        run: The run's folder, after `fgzoo fit` and `fgzoo test`.
        name: What people will type: a-z, 0-9, `.`, `_`, `-`.
        output: Folder of the file and its card.
        registry: The list that gets the entry; by default zoo.yaml in `output`. An entry of the same name is replaced.
        seeds: Further tested runs of the same settings and other seeds, for mean and spread.
        dtype: `float16` halves the file; the card says what it changed.
        licence: Of the weights. Only for the synthetic birds there is a default.
        sources: Where the file will be found, see zoo.yaml; by default on the hub if it is pushed, else where it lies now.
        push: A repository of the Hugging Face hub, OWNER/NAME, that gets file and card in one commit; made where there is none.
        trust: Packages whose classes the runs' checkpoints may name.

    Returns:
        Where everything is.

    Raises:
        UsageError: The run has not been tested, the seeds' settings differ, the licence is missing, the zoo has a checkpoint of
            the name, or nothing can be pushed as there is no token.
        CheckpointError: The registry is damaged, the file cannot be written, does not score as its run did, or the hub refuses
            it.
    """
    registry = registry or output / "zoo.yaml"
    _check_free(name, registry)
    hub = None if push is None else check_push(push)
    recorded = [_recorded(folder) for folder in (run, *seeds)]
    _check_alike(run, seeds)
    model = load(run / LAST, trust)
    _forget_places(model)
    assert model.card is not None
    if licence is None and model.card.dataset != "birds":
        raise UsageError("publish: --licence is missing: under what terms may these weights be used? (e.g. CC-BY-NC-4.0)")
    file, page = output / f"{name}{SUFFIX}", output / f"{name}.md"
    places = list(sources) or [_place_of(file) if hub is None else f"{SCHEME}{hub.repository}/{hub.file}"]
    entry = _entry(model, run, name, recorded, licence or "Apache-2.0", places)
    check_entry(entry)  # before minutes of scoring
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".publish-") as temporary:
        scored, confused, part = _store_and_score(model, run, name, Path(temporary), dtype, trust)
        change = scored["top1"] - recorded[0]["top1"]
        if abs(change) > TOLERANCE:
            raise CheckpointError(
                f"publish: {name}{SUFFIX} ({dtype}) has {100 * scored['top1']:.2f} % top-1 where {run} recorded "
                f"{100 * recorded[0]['top1']:.2f} %; the weights or the data have changed since, or {dtype} is too coarse"
            )
        metrics, size, digest = _metrics(scored, recorded), part.stat().st_size, file_hash(part, "sha256")
        entry = replace(entry, metrics=metrics, size=size, sha256=digest)
        check_entry(entry)
        before = recorded[0] if dtype == "float16" else None
        written = Path(temporary, page.name)
        training = _training(run, dtype, before, confused)
        text = model_card(entry, model.card, training, hub, model.calibration)
        written.write_text(text, encoding="utf-8")
        part.replace(file)
        written.replace(page)
    add_entry(registry, entry)
    return Published(file, page, registry, entry, None if hub is None else push_files(hub, file, page))


def _check_free(name: str, registry: Path) -> None:
    """Refuse a name that no checkpoint can have, or that the packaged list has; and a registry that no entry can be put into."""
    check_name(name)
    if registry.exists():
        read_registry(registry)
    if name in read_registry(REGISTRY) and registry.resolve() != REGISTRY.resolve():
        raise UsageError(f"publish: fgzoo comes with a checkpoint named '{name}'; give another --name")


# ---------------------------------------------------------------------- the runs


def _recorded(run: Path) -> dict[str, float]:
    """The test metrics of a run's last checkpoint."""
    if not (run / LAST).is_file() or not (run / CONFIG).is_file():
        raise UsageError(f"publish: {run} is no finished run's folder (it needs {LAST} and {CONFIG})")
    if not all((run / name).is_file() for name in (COST, DATA, ENVIRONMENT)):
        raise UsageError(
            f"publish: {run} has not been trained to its end; go on by `fgzoo fit --resume {run}`, then "
            f"`fgzoo test --ckpt_path {run}`"
        )
    row = last_test(run)
    if row is None:
        raise UsageError(f"publish: {run} has no test metrics of its last checkpoint; run `fgzoo test --ckpt_path {run}` first")
    return _test_metrics(row)


def _test_metrics(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[f"test/{name}"]) for name in METRIC_NAMES if row.get(f"test/{name}")}


def _check_alike(run: Path, seeds: Sequence[Path]) -> None:
    """Runs that are averaged differ in their seed and nothing else that matters."""

    def settings(config: dict[str, Any]) -> tuple[Any, ...]:
        data = {key: value for key, value in config["data"].items() if key not in MACHINE_SETTINGS}
        given, length = config["model"]["init_args"], (config["trainer"][name] for name in ("max_epochs", "max_steps"))
        begun = [*map(handed_on, (config.get("ckpt_path"), given.get("teacher"))), config.get("reset_head")]
        return data, config["model"]["class_path"], without_files(given), *length, *begun

    first, *others = [read_config(folder / CONFIG) for folder in (run, *seeds)]
    used = [config["seed_everything"] for config in (first, *others)]
    if len(set(used)) < len(used):
        raise UsageError(f"publish: the runs' seeds are {', '.join(map(str, used))}; each must be another")
    for folder, config in zip(seeds, others, strict=True):
        if settings(config) != settings(first):
            raise UsageError(f"publish: {folder} is no further seed of {run}: its data, model, length or beginning differ")


def _forget_places(model: FineGrainedClassifier) -> None:
    """Take this machine's paths out of what a model knows of itself."""
    model.hparams.update(handed_on(without_files(model.hparams)))
    # A network of a folder goes by the folder's name; what it is stands in the file.
    for named, attribute in (
        (model, "backbone"),
        *((module, "name") for module in model.modules() if isinstance(module, Backbone)),
    ):
        setattr(named, attribute, handed_on(getattr(named, attribute)))


def _store_and_score(
    model: FineGrainedClassifier,
    run: Path,
    name: str,
    folder: Path,
    dtype: Literal["float32", "float16"],
    trust: Sequence[str],
) -> tuple[dict[str, float], list[tuple[str, str, int]], Path]:
    """Write the file into a folder that looks like its run's, and test it as a person would."""
    part = folder / LAST.parent / f"{name}{SUFFIX}"
    save_safetensors(model, part, dtype)
    config = read_config(run / CONFIG)
    config["model"]["init_args"] = handed_on(config["model"]["init_args"])
    (folder / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    if (run / SPLIT).is_file():
        shutil.copyfile(run / SPLIT, folder / SPLIT)
    score_alone(part, trust)
    with (folder / METRICS).open(encoding="utf-8", newline="") as file:
        metrics = _test_metrics(list(csv.DictReader(file))[-1])
    with (folder / "test_confused.csv").open(newline="", encoding="utf-8") as file:
        confused = [(row["true"], row["predicted"], int(row["images"])) for row in csv.DictReader(file)]
    return metrics, confused, part


# ---------------------------------------------------------------------- what is said of them


def _entry(
    model: FineGrainedClassifier,
    run: Path,
    name: str,
    recorded: Sequence[dict[str, float]],
    licence: str,
    sources: list[str],
) -> ZooEntry:
    """The entry of a file that is not written yet: it has its run's metrics, and neither its size nor its hash."""
    card = model.card
    assert card is not None
    cls = type(model)
    return ZooEntry(
        name=name,
        method=method_name(f"{cls.__module__}.{cls.__qualname__}", model.hparams),
        backbone=model.backbone,
        dataset=card.dataset,
        classes=model.num_classes,
        image_size=card.image_size,
        metrics=_metrics(recorded[0], recorded),
        recipe=" ".join(_configs(run)),
        size=1,
        sha256="0" * 64,
        sources=sources,
        licence=licence,
    )


def _metrics(scored: dict[str, float], recorded: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """What the file was scored with, and the runs' mean and spread, by metric."""
    known = {key: value for key, value in scored.items() if all(key in one for one in recorded)}
    return {key: _numbers(value, [one[key] for one in recorded]) for key, value in known.items()}


def _numbers(value: float, runs: Sequence[float]) -> dict[str, float]:
    numbers = {"value": round(value, 6), "seeds": len(runs)}
    if len(runs) > 1:
        numbers |= {"mean": round(statistics.mean(runs), 6), "std": round(statistics.stdev(runs), 6)}
    return numbers


def _typed(run: Path) -> list[str]:
    """What was typed, as the first line of the run's config says."""
    first = (run / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    return shlex.split(first.removeprefix("#"))


def _configs(run: Path) -> list[str]:
    """The recipes that were merged: names, `mine.yaml` of a file of one's own, `config.yaml` of a run."""
    typed = _typed(run)
    said = [name for name in values_of(typed, "--config", "-c") if not name.startswith("{")]
    if not said and not {token.partition("=")[0] for token in typed} & {"--config", "-c", "--model", "--ckpt_path"}:
        return [DEFAULT_RECIPE]
    # A run's folder has no suffix, and its config's name is always the same.
    return [
        name if name in recipe_files() else "_".join(f"{Path(name).stem if Path(name).suffix else 'config'}.yaml".split())
        for name in said
    ]


def _command(run: Path) -> str:
    """What was typed, without what concerns only the machine it was typed on."""
    kept: list[str] = []
    tokens = iter(_typed(run))
    for token in tokens:
        name, equals, _ = token.partition("=")
        if name in (*MACHINE_OPTIONS, "--data.root"):
            if not equals:
                next(tokens, None)
            kept += ["--data.root", "DATA"] if name == "--data.root" else []
        else:
            kept.append(handed_on(token))
    return shlex.join(kept)


def _training(run: Path, dtype: str, before: dict[str, float] | None, confused: Sequence[tuple[str, str, int]]) -> Training:
    data, cost, environment = (json.loads((run / name).read_text(encoding="utf-8")) for name in (DATA, COST, ENVIRONMENT))
    config = read_config(run / CONFIG)
    model = config["model"]["init_args"]
    settings = {
        "Seed": config["seed_everything"],
        "epochs": cost["epochs"],
        "batch": f"{config['data']['batch_size']} x {cost['processes']}",
        "optimizer": f"{model['optimizer']}, {model['schedule']}, learning rate {model['lr']:g}",
        "precision": config["trainer"]["precision"],
    }
    return Training(_command(run), data["images"], handed_on(data["notes"]), environment, cost, settings, dtype, before, confused)


def _place_of(file: Path) -> str:
    """Where a file lies, in the words of a registry."""
    path = file.resolve()
    if path.is_relative_to(PACKAGE):
        return f"package:{path.relative_to(PACKAGE).as_posix()}"
    if path.is_relative_to(CHECKOUT) and (CHECKOUT / "pyproject.toml").is_file():
        return path.relative_to(CHECKOUT).as_posix()
    return path.as_uri()
