"""A checkpoint and its card as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from fgzoo.checkpoints.hub import LOGIN, WEIGHTS, HubFile, hub_api, hub_complaint, is_repository
from fgzoo.errors import CheckpointError, UsageError


def check_push(repository: str) -> HubFile:
    """Where weights go in a repository; refuses what cannot be pushed before anything is computed.

    Raises:
        UsageError: It is no OWNER/NAME, huggingface_hub is not installed, or there is no token.
    """
    if not is_repository(repository):
        raise UsageError(f"publish: --push {repository}: a repository of the hub is OWNER/NAME")
    hub_api()
    from huggingface_hub import get_token

    if get_token() is None:
        raise UsageError(f"publish: --push {repository}: the hub does not know who you are; {LOGIN} that may write")
    return HubFile(repository, WEIGHTS, None)


def push_files(place: HubFile, file: Path, card: Path) -> str:
    """Put a checkpoint and its card into a repository in one commit; the repository is made where there is none.

    Args:
        place: Where the weights go.
        file: The weights.
        card: The page, which becomes the repository's README.md.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: The hub refuses; the files stay where they are.
    """
    from huggingface_hub import CommitOperationAdd

    hub = hub_api()
    additions = [CommitOperationAdd("README.md", card), CommitOperationAdd(place.file, file)]
    try:
        page = str(hub.create_repo(place.repository, exist_ok=True))
        hub.create_commit(place.repository, additions, commit_message=f"Publish {file.stem}")
    except Exception as error:  # it raises types of its own, of the transport and of the system
        raise CheckpointError(
            f"publish: {file} and {card} are written, but not pushed: {hub_complaint(error, place.repository)}"
        ) from error
    return page
