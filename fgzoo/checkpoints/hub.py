"""Checkpoints on the Hugging Face hub, through its own library: its cache, its token, its resuming.

`hf://OWNER/NAME` is the file `model.safetensors` of a repository; `hf://OWNER/NAME/FILE.safetensors` another one, and
`@REVISION` at the end a branch, a tag or a commit. A file is read when its sha256 is what the hub says of it, by which the
library's cache also calls it. Importing this module imports no torch.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fgzoo.checkpoints.registry import SUFFIX
from fgzoo.data.download import TransferError, has_digest, offline
from fgzoo.errors import UsageError
from fgzoo.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

#: How an address on the hub begins.
SCHEME = "hf://"
#: The file of a repository's weights, by which the hub itself looks for them.
WEIGHTS = f"model{SUFFIX}"
#: What says who one is.
LOGIN = "log in by `hf auth login`, or set HF_TOKEN to a token of huggingface.co/settings/tokens"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class HubFile(NamedTuple):
    """A file on the hub.

    Attributes:
        repository: OWNER/NAME.
        file: Its path there.
        revision: A branch, a tag or a commit; `None`: the newest.
    """

    repository: str
    file: str
    revision: str | None


def hub_file(address: str) -> HubFile:
    """What an address means.

    Raises:
        TransferError: It is no address of a safetensors file.
    """
    path, _, revision = address.removeprefix(SCHEME).partition("@")
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if not is_repository(f"{owner}/{name}") or (file and not file.endswith(SUFFIX)):
        raise TransferError(f"{address} is no checkpoint's address: hf://OWNER/NAME, or hf://OWNER/NAME/FILE{SUFFIX}")
    return HubFile(f"{owner}/{name}", file or WEIGHTS, revision or None)


def is_repository(text: str) -> bool:
    """Whether it has the form OWNER/NAME."""
    return _REPOSITORY.fullmatch(text) is not None


def hub_api() -> HfApi:
    """The hub, as the person's settings say (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).

    Raises:
        UsageError: Its package is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UsageError("the Hugging Face hub needs the package huggingface_hub: pip install 'fgzoo[hub]'") from error
    return HfApi(library_name="fgzoo", library_version=__version__)


def fetch_from_hub(address: str) -> Path:
    """A file of the hub in its library's cache; one that is damaged there is fetched again.

    Args:
        address: As above.

    Returns:
        The file, whose sha256 is what the hub says of it.

    Raises:
        TransferError: There is no such file, it cannot be reached, or the hub delivers another one.
    """
    wanted, stay = hub_file(address), offline()
    try:
        hub = hub_api()
    except UsageError as error:
        raise TransferError(f"{address}: {error}") from error
    for again in (False, True):
        try:
            found = hub.hf_hub_download(*wanted[:2], revision=wanted.revision, local_files_only=stay, force_download=again)
            path = Path(found)
            digest = path.resolve().name
            if len(digest) < 40 and not stay:  # where the cache cannot hold links, files have their own names
                digest = hub.get_hf_file_metadata(url=_url(hub, wanted)).etag or ""
        except Exception as error:  # it raises types of its own, of the transport and of the system
            raise TransferError(f"{address} could not be downloaded: {hub_complaint(error, wanted.repository)}") from error
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            why = "FGZOO_OFFLINE forbids asking for its sha256" if stay else "the hub knows no sha256 of it, as of LFS files"
            raise TransferError(f"{address} cannot be verified: {why}")
        if has_digest(path, f"sha256:{digest}"):
            return path
        if stay:
            break
        log.warning("%s is damaged; it is fetched again.", path)
    raise TransferError(f"{address} is another file than its sha256 {digest} says; delete {path}")


def _url(hub: HfApi, wanted: HubFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(*wanted[:2], revision=wanted.revision, endpoint=hub.endpoint)


def hub_complaint(error: Exception, repository: str) -> str:
    """What the hub's library complains of, in one line, with what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is open to those alone whom its owner admits; ask on its page, then {LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository}, or it is private; check the name, or {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no such branch, tag or commit"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it is not on this machine, and " + ("FGZOO_OFFLINE forbids asking" if offline() else "the hub cannot be reached")
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository} holds no such file; `fgzoo publish --push` writes {WEIGHTS}"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the token may not do that in {repository}; {LOGIN} that may write"
    return str(error).strip().partition("\n")[0] or type(error).__name__
