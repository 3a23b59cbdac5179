"""The verbs. Nothing heavy is imported before the verb is known, so that `fgzoo --help` answers at once."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgzoo.allocator import keep_freed_memory
from fgzoo.commands import COMMANDS
from fgzoo.errors import TrainingError, UsageError
from fgzoo.methods import import_path
from fgzoo.wording import did_you_mean

#: Verb -> what it does, as `fgzoo --help` shows it.
VERBS = {
    "fit": "PHOTOS: from a folder or CSV to a tested classifier and its report; or any method on any data set",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "class names and probabilities of your own images, from a checkpoint",
    "explain": "where a checkpoint looked in your own images: one page, or PNG files, too",
    "report": "a finished run on one page: accuracy, worst mistakes with maps, labels in doubt, near-duplicates",
    "serve": "a page on this machine to drop a photo on: class, or unknown, and where the model looked",
    "export": "a checkpoint as an ONNX, OpenVINO or torch.export file that runs without fgzoo, in eight bits, too",
    "list": "name methods, recipes, data sets and checkpoints",
    "download": "fetch checkpoints of the zoo, verified",
    "publish": "a tested run as a checkpoint that others load by name, with its model card",
    "data": "info | verify | prepare: what a data set needs, whether it is whole, and fetching it",
}

#: Lightning's own verbs.
TRAINING = ("fit", "validate", "test")

USAGE = 2
#: What ends a process that does not say otherwise: a time limit or a container that stops, a terminal that is closed.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndedError(KeyboardInterrupt):
    """A signal ended a verb, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: What followed `fgzoo`; by default the process's own.

    Returns:
        0 done, 1 failed, 2 wrong usage or input, 130 interrupted, 143 ended by SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    _write_any_text()
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _say(error, debug, USAGE)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, EndedError) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        sys.stderr.write(f"fgzoo: {how}{'; ' if str(error) else ''}{error}\n")
        return 128 + number
    except (TrainingError, OSError) as error:
        return 0 if _reader_has_left(error) else _say(error, debug, 1)
    except SystemExit as end:
        # So rich ends a listing that nobody reads any more; a training it must not end without a word.
        if isinstance(end.__context__, BrokenPipeError) and arguments[:1] not in [[verb] for verb in TRAINING]:
            return 0
        raise


def _write_any_text() -> None:
    """Write UTF-8 to files and pipes whatever the system's encoding; a terminal that lacks a letter shows another sign.

    A byte of a file's name that is no UTF-8 comes out as its number. A stream that is closed, or that a program without a console
    never had, takes everything and shows nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            encoding, errors = (None, "replace") if stream.isatty() else ("utf-8", "backslashreplace")
            stream.reconfigure(encoding=encoding, errors=errors)


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        _help()
        return 0
    if verb == "--version":
        from fgzoo.version import __version__

        sys.stdout.write(f"fgzoo {__version__}\n")
        return 0
    if verb not in VERBS:
        raise UsageError(f"no verb '{verb}'{did_you_mean(verb, VERBS) or '; `fgzoo --help` names the verbs'}")
    _prepare_process()
    if verb in TRAINING:
        return _train(verb, arguments[1:])
    from fgzoo.commands.parser import run

    with _ended_as_by_ctrl_c():
        return run(import_path(COMMANDS[verb]), arguments[1:], f"fgzoo {verb}")


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Signals that would end the process at once end a verb as Ctrl-C does: what is done is kept, and no temporary file stays."""
    process = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != process:  # a forked worker, which has nothing to tidy up
            os._exit(128 + number)
        raise EndedError(number)

    # What another program, or nohup, has chosen for a signal holds; and threads have none of their own.
    usual = threading.current_thread() is threading.main_thread()
    taken = [number for number in ENDING if usual and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def _prepare_process() -> None:
    """What the verbs need of the process, before torch is imported."""
    if os.environ.get("HOME") is None:
        # Caches of torch, timm and matplotlib fall back to the home folder, which there may be none of.
        os.environ["HOME"] = tempfile.gettempdir()
    # Where it cannot write its cache to the home folder it takes a temporary one, which is nothing to be told.
    logging.getLogger("matplotlib").addFilter(_is_error)
    keep_freed_memory()
    # Threads that spin while they wait make every other process on the cores, loader workers too, many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A method of one's own may lie in the folder one works in; appended, so that no file there hides an installed module.
    sys.path.append(str(Path.cwd()))


def _train(verb: str, arguments: list[str]) -> int:
    """Lightning's verbs."""
    if odd := [argument for argument in arguments if re.search("[\udc80-\udcff]", argument)]:  # bytes of a name that are no UTF-8
        raise UsageError(f"{verb}: {odd[0]!a} is not valid UTF-8, in which a run's settings are written; rename it")
    if verb == "fit":
        from fgzoo.commands.photos import fit

        fit(arguments)
    else:
        from fgzoo.training.command import run

        run(verb, arguments)
    return 0


def _reader_has_left(error: Exception) -> bool:
    """Whether whoever read standard output, `head` say, has read enough; what is left to write then goes nowhere."""
    if not isinstance(error, BrokenPipeError) or not hasattr(select, "poll"):
        return False
    out = select.poll()
    out.register(sys.stdout, 0)  # errors alone, of which a pipe that nobody reads is one
    left = bool(out.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _say(error: Exception, debug: bool, status: int) -> int:
    """One line on stderr; the traceback where it is asked for."""
    if debug:
        traceback.print_exception(error)
    # A loader's worker wraps what it raised into a traceback's text; the last line is what the person needs.
    text = str(error).strip()
    if isinstance(error, OSError) and error.filename is not None:
        why = "a file lies where a folder is needed" if error.errno in (errno.EEXIST, errno.ENOTDIR) else error.strerror
        hint = "; give a place that can be written by --output" if error.errno == errno.EROFS else ""
        text = f"{error.filename}: {why}{hint}"
    line = text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else " ".join(text.split())
    sys.stderr.write(f"fgzoo: {line}\n")
    return status


def _help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for verb, what in VERBS.items():
        table.add_row(f"[bold]{verb}[/bold]", what)
    console.print("[bold]fgzoo[/bold]: a model zoo for fine-grained visual classification\n\nusage: fgzoo VERB [ARGUMENTS]\n")
    console.print(table)
    console.print(
        "\nEvery verb has --help; --debug shows tracebacks.\n"
        "First steps: fgzoo fit PHOTOS   |   fgzoo fit   |   fgzoo fit --config cub/rra --data.root PATH   |   fgzoo list recipes"
    )


if __name__ == "__main__":
    raise SystemExit(main())
