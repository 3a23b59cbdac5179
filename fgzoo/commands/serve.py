"""`fgzoo serve`; torch is imported once the arguments are known."""

from __future__ import annotations

import contextlib
import sys

from jsonargparse.typing import NonNegativeInt

from fgzoo.commands.models import load_models


def serve(
    checkpoint: str,
    *,
    host: str = "127.0.0.1",
    port: NonNegativeInt = 8000,
    device: str = "auto",
    trust: list[str] = [],  # noqa: B006 - it is read only
) -> int:
    """A page to drop a photo on, or to take one by the camera: its class, or that it is unknown, and where the model looked.

    Photos are answered in memory and forgotten, and no other machine is asked. Ctrl-C ends it.

    Args:
        checkpoint: A checkpoint file, a run's folder, a name of `fgzoo list checkpoints`, hf://OWNER/NAME, or `last` or `best` of
            the newest run below runs/.
        host: The address to listen at; by default this machine alone is heard. At another one everybody who reaches it may ask.
        port: The port; 0 takes a free one.
        device: auto, cpu, cuda, cuda:0 or mps.
        trust: A package whose classes the checkpoint may name (repeatable).

    Returns:
        The exit status.
    """
    from fgzoo.prediction.files import find_device
    from fgzoo.serve.server import Server

    (model,) = load_models([checkpoint], trust, find_device(device, "serve"))
    with Server(model, checkpoint, host, port) as server, contextlib.suppress(KeyboardInterrupt):
        if not server.alone:
            sys.stderr.write(f"fgzoo: everybody who reaches {host} may send photos; there is no password\n")
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0
