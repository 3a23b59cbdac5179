"""`fgzoo publish`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from fgzoo.checkpoints.run_folder import find_run
from fgzoo.commands.models import RUNS


def publish_run(
    run: Path,
    *,
    name: str,
    output: Path = Path(),
    registry: Path | None = None,
    seeds: Sequence[Path] = (),
    dtype: Literal["float32", "float16"] = "float32",
    licence: str | None = None,
    source: Sequence[str] = (),
    push: str | None = None,
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """Turn a tested run into a checkpoint that others load by name.

    What is made is NAME.safetensors, which is scored before it is kept, its model card NAME.md, and its entry in a list of
    checkpoints.

    Args:
        run: The run's folder, or `last` for the newest below runs/, after `fgzoo fit` and `fgzoo test`.
        name: What people will type: a-z, 0-9, '.', '_', '-'.
        output: Folder of the file and its card.
        registry: The list of checkpoints that gets the entry; without it zoo.yaml in the output folder.
        seeds: Tested runs of other seeds, for mean and spread.
        dtype: float16 halves the file.
        licence: Of the weights, e.g. CC-BY-NC-4.0; without it Apache-2.0 for the synthetic birds, for others it must be given.
        source: Where the file will be found; without it on the hub if it is pushed, else where it is written.
        push: OWNER/NAME, a repository of the Hugging Face hub that gets file and card, for hf://OWNER/NAME; one that is there
            keeps its visibility.
        trust: A package whose classes the runs' checkpoints may name (repeatable).

    Returns:
        The exit status.
    """
    from fgzoo.publish.publishing import publish

    made = publish(find_run(run, RUNS), name, output, registry, seeds, dtype, licence, source, push, trust)
    top1 = made.entry.metrics["top1"]["value"]
    Console(soft_wrap=True).print(
        f"{made.file}: {made.entry.size / 1e6:.2f} MB, top-1 {100 * top1:.1f} %. Card: {made.card}. Entry in {made.registry}"
        + (f". Pushed: {made.page}; `fgzoo predict hf://{push} photos/`" if made.page else ""),
        highlight=False,
        markup=False,
    )
    return 0
