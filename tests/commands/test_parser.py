"""A command line from a function's signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse.typing import PositiveInt

from fgzoo.commands.parser import run
from fgzoo.errors import UsageError

called: dict[str, Any] = {}


def verb(
    model: str,
    images: list[str],
    *,
    top_k: PositiveInt = 5,
    also: list[str] = [],  # noqa: B006
    seeds: Sequence[Path] = (),
    output: Path | None = None,
    class_: str = "any",
    how: Literal["one", "two"] = "one",
    embed: bool = False,
) -> int:
    """Do something.

    And say how it went.

    Args:
        model: A model.
        images: Some images.
        top_k: How many.
        also: Another model.
        seeds: Other runs.
        output: A file.
        class_: A class.
        how: The way.
        embed: Embed.

    Returns:
        3.
    """
    called.clear()
    called.update(locals())
    return 3


def typed(*arguments: str) -> dict[str, Any]:
    assert run(verb, arguments, "fgzoo verb") == 3
    return dict(called)


def test_what_is_not_typed_has_the_functions_defaults() -> None:
    assert typed("m", "a.jpg") == {
        "model": "m", "images": ["a.jpg"], "top_k": 5, "also": [], "seeds": [], "output": None, "class_": "any", "how": "one",
        "embed": False,
    }  # fmt: skip


def test_paths_may_start_at_the_persons_home() -> None:
    found = typed("m", "~/a.jpg", "--output=~/o.csv", "--seeds", "~/1", "2")
    assert (found["output"], found["seeds"]) == (Path.home() / "o.csv", [Path.home() / "1", Path("2")])
    assert found["images"] == ["~/a.jpg"]


def test_options_may_stand_anywhere() -> None:
    found = typed("--top-k", "2", "m", "a.jpg", "--embed", "b.jpg", "--output=o.csv", "-", "--class", "wren")
    assert (found["model"], found["images"]) == ("m", ["a.jpg", "b.jpg", "-"])
    assert (found["top_k"], found["embed"], found["output"], found["class_"]) == (2, True, Path("o.csv"), "wren")


def test_a_list_is_given_one_by_one_and_a_sequence_at_once() -> None:
    found = typed("m", "--also", "n", "--also", "o", "--seeds", "r1", "r2", "--how", "two", "a.jpg")
    assert (found["also"], found["seeds"], found["images"]) == (["n", "o"], [Path("r1"), Path("r2")], ["a.jpg"])


def test_what_follows_two_dashes_is_no_option() -> None:
    assert typed("m", "--top-k", "1", "--", "--odd.jpg")["images"] == ["--odd.jpg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("m", "required: images"),
        ("m a --topk 1", "no option --topk; did you mean '--top-k'?"),
        ("m a --top-k 0", "--top-k: 0 does not conform"),
        ("m a --top-k x", "--top-k: invalid literal"),
        ("m a --how three", "invalid choice: 'three'"),
        ("m a --output", "--output: expected one argument"),
        ("m a --to 3", "no option --to"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"verb: .*fgzoo verb --help") as caught:
        run(verb, arguments.split(), "fgzoo verb")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_chooses_among_functions() -> None:
    assert run({"do": verb}, ["do", "m", "a.jpg"], "fgzoo verb") == 3
    with pytest.raises(UsageError, match="invalid choice: 'undo'"):
        run({"do": verb}, ["undo"], "fgzoo verb")


def test_help_says_what_the_docstring_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(verb, ["--help"], "fgzoo verb")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("Do something.", "And say how it went.", "Some images.", "default: 5", "{one,two}"))
