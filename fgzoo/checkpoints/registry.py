"""The checkpoints that can be downloaded, as zoo.yaml lists them. Importing this module imports no torch."""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from fgzoo.errors import CheckpointError
from fgzoo.files import atomic_write, parse_yaml, user_path
from fgzoo.methods import BUILT_IN
from fgzoo.recipes import recipe_files
from fgzoo.wording import did_you_mean

#: The list that is part of the package.
REGISTRY = Path(__file__).parent / "zoo.yaml"
#: What a source may begin with; one without a scheme is a path in the repository.
SCHEMES = ("https", "http", "hf", "file", "package")
SUFFIX = ".safetensors"
#: What a test measures.
METRIC_NAMES = ("top1", "top5", "macro", "nll", "ece", "nll_calibrated", "ece_calibrated")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class ZooEntry:
    """A checkpoint of the zoo.

    Attributes:
        name: What people type.
        method: Name of the method, or the path of a class of one's own.
        backbone: Name of a timm network.
        dataset: What it was trained on.
        classes: Number of classes.
        image_size: Side of the network's input in pixels.
        metrics: By name (`top1`, `nll` ...): this file's `value`, the number of `seeds`, and over several seeds `mean` and `std`.
        recipe: Names of the packaged recipes that trained it, and of files of one's own (`mine.yaml`); empty where none did.
        size: Length of the file in bytes.
        sha256: Its hash.
        sources: Where it lies, see zoo.yaml.
        licence: Under what terms it may be used.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    classes: int
    image_size: int
    metrics: dict[str, dict[str, float]]
    recipe: str
    size: int
    sha256: str
    sources: list[str]
    licence: str

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def list_checkpoints(glob: str = "*") -> list[str]:
    """Names of the checkpoints that [load][fgzoo.load] downloads.

    Args:
        glob: A shell pattern, e.g. `*_cub`.

    Returns:
        Sorted names.
    """
    return sorted(name for name in read_registry() if fnmatch(name, glob))


def find_entry(name: str) -> ZooEntry:
    """The checkpoint of the zoo that has a name.

    Raises:
        CheckpointError: There is none of this name.
    """
    entries = read_registry()
    if name in entries:
        return entries[name]
    hint = did_you_mean(name, entries) or "; `fgzoo list checkpoints` names those there are"
    raise CheckpointError(f"download: the zoo has no checkpoint '{name}'{hint}")


def read_registry(path: Path | None = None) -> dict[str, ZooEntry]:
    """Read and validate lists of checkpoints.

    Args:
        path: A YAML file; by default the packaged one, and those that `FGZOO_REGISTRY` names (separated as in `PATH`).

    Returns:
        Entries by name.

    Raises:
        CheckpointError: A file, or one of its entries, is not what it should be, or two share a name.
    """
    own = [user_path(name) for name in os.environ.get("FGZOO_REGISTRY", "").split(os.pathsep) if name]
    entries: dict[str, ZooEntry] = {}
    for file in [path] if path else [REGISTRY, *own]:
        for number, raw in enumerate(_read(file)["checkpoints"], start=1):
            entry = _read_entry(raw, f"zoo: {file}, entry {number}")
            if entry.name in entries:
                raise CheckpointError(f"zoo: {file}, entry {number}: a second checkpoint named '{entry.name}'")
            entries[entry.name] = entry
    return entries


def check_name(name: str) -> None:
    """Refuse a name that no checkpoint can have.

    Raises:
        CheckpointError: It is none.
    """
    if complaint := _complaint("name", name):
        raise CheckpointError(f"zoo: the name {name!r} {complaint}")


def check_entry(entry: ZooEntry) -> None:
    """Refuse an entry that the list could not be read with.

    Raises:
        CheckpointError: A field is not what it should be; names it.
    """
    _read_entry(entry.as_dict(), "zoo: the new entry")


def add_entry(path: Path, entry: ZooEntry) -> None:
    """Write an entry into a list of checkpoints, in the order of names; what stands above the list stays as it is.

    Args:
        path: A YAML file; made where there is none.
        entry: The entry; one of the same name is replaced.

    Raises:
        CheckpointError: The file is not what it should be, or cannot be written.
    """
    check_entry(entry)
    entries = {**read_registry(path), entry.name: entry} if path.exists() else {entry.name: entry}
    head = path.read_text(encoding="utf-8").partition("\ncheckpoints:")[0] if path.exists() else "base_url: null"
    listed = [entries[name].as_dict() for name in sorted(entries)]
    body = yaml.safe_dump({"checkpoints": listed}, sort_keys=False, allow_unicode=True, width=120)
    try:
        with atomic_write(path) as part:
            part.write_text(f"{head}\n{body}", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"zoo: {path} cannot be written ({error.strerror or error})") from error


def base_url() -> str | None:
    """The address at which released files lie: `FGZOO_ZOO_URL`, else what the packaged list says; `None` where there is none.

    Raises:
        CheckpointError: It is no address.
    """
    given = os.environ.get("FGZOO_ZOO_URL")
    where, url = ("FGZOO_ZOO_URL", given) if given else (f"zoo: {REGISTRY}: base_url", _read(REGISTRY)["base_url"])
    if url is None:
        return None
    if not isinstance(url, str) or not _is_address(url):
        raise CheckpointError(f"{where}: {url!r} is no address; it must begin with https://, http:// or file:///")
    return url.rstrip("/")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"zoo: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) != {"base_url", "checkpoints"}:
        raise CheckpointError(f"zoo: {path} must hold `base_url` and `checkpoints`, and nothing else")
    if not isinstance(content["checkpoints"], list):
        raise CheckpointError(f"zoo: {path}: `checkpoints` must be a list")
    return content


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        return False
    return parts.path.startswith("/") and not host if parts.scheme == "file" else parts.scheme in ("http", "https") and bool(host)


def _read_entry(raw: Any, where: str) -> ZooEntry:
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: must be a mapping of fields, is {raw!r}")
    if isinstance(raw.get("name"), str):
        where = f"{where} ({raw['name']})"
    known = [field.name for field in fields(ZooEntry)]
    for key in raw:
        if key not in known:
            raise CheckpointError(f"{where}: no field '{key}'{did_you_mean(str(key), known) or f'; {known}'}")
    for key in known:
        if key not in raw:
            raise CheckpointError(f"{where}: the field '{key}' is missing")
        if complaint := _complaint(key, raw[key]):
            raise CheckpointError(f"{where}: {key}: {raw[key]!r} {complaint}")
    return ZooEntry(**raw)


def _complaint(key: str, value: Any) -> str | None:
    """What is wrong with a field's value; `None` where nothing is."""
    if key in ("classes", "image_size", "size"):
        # `type`, because True is an int, too.
        return None if type(value) is int and value > 0 else "is no positive whole number"
    if key == "metrics":
        return _metrics_complaint(value)
    if key == "sources":
        if not isinstance(value, list) or not value:
            return "is no list of at least one source"
        return next((complaint for source in value if (complaint := _source_complaint(source))), None)
    if not isinstance(value, str) or not (value.strip() or key == "recipe"):
        return "is no text"
    if key == "name" and not _NAME.fullmatch(value):
        return "must consist of a-z, 0-9, '.', '_' and '-'"
    if key == "sha256" and not re.fullmatch(r"[0-9a-f]{64}", value):
        return "must be 64 digits 0-9, a-f"
    if key == "method" and value not in BUILT_IN and "." not in value:  # the path of a class of one's own has a dot
        return f"is no method; known: {', '.join(BUILT_IN)}"
    if key == "recipe":
        own = [name for name in value.split() if name.endswith(".yaml")]
        missing = [name for name in value.split() if name not in own and name not in recipe_files()]
        return f"names no packaged recipe '{missing[0]}'" if missing else None
    return None


def _metrics_complaint(metrics: Any) -> str | None:
    if not isinstance(metrics, dict) or "top1" not in metrics:
        return "must hold at least top1"
    for name, numbers in metrics.items():
        if name not in METRIC_NAMES:
            return f"has no metric '{name}'; known: {', '.join(METRIC_NAMES)}"
        if not isinstance(numbers, dict) or type(numbers.get("seeds")) is not int or numbers["seeds"] < 1:
            return f"must give `seeds` for {name}, a positive whole number"
        wanted = {"value", "seeds"} if numbers["seeds"] == 1 else {"value", "seeds", "mean", "std"}
        if set(numbers) != wanted:
            return f"must give {', '.join(sorted(wanted))} for {name}, and nothing else, as it has {numbers['seeds']} seed(s)"
        for key in wanted - {"seeds"}:
            number = numbers[key]
            real = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            most, kind = (math.inf, "number") if name.startswith("nll") else (1, "fraction of one")
            if not real or not 0 <= number <= most:
                return f"has {number!r} as {key} of {name}, which must be a {kind}"
    return None


def _source_complaint(source: Any) -> str | None:
    if not isinstance(source, str) or not source:
        return f"holds {source!r}, which is no text"
    scheme, colon, rest = source.partition(":")
    if not colon:
        scheme, rest = "", source
    elif scheme not in SCHEMES:
        return f"holds '{source}': no source begins with '{scheme}:', only {', '.join(f'{known}:' for known in SCHEMES)}"
    if scheme in ("http", "https", "file"):
        if not _is_address(source):
            return f"holds '{source}', which is no whole address"
        rest = urlsplit(source).path
    if scheme == "hf":
        rest = rest.partition("@")[0]
        if not rest.startswith("//") or len(PurePosixPath(rest[2:]).parts) < 3:
            return f"holds '{source}'; expected hf://OWNER/REPOSITORY/FILE"
    if scheme in ("", "package") and (rest.startswith("/") or "\\" in rest or ".." in PurePosixPath(rest).parts):
        return f"holds '{source}', which leads out of the " + ("package" if scheme else "repository")
    if not rest.endswith(SUFFIX):
        return f"holds '{source}', which names no {SUFFIX} file"
    return None
