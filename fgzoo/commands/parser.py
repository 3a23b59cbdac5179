"""The command line of a verb, made from the signature and the docstring of the function that does its work.

A parameter without a default is a positional argument, and one before `*` with a default is an optional positional; those after
`*` are options, `_` in their names typed as `-` (`class_` as `--class`). Types, choices and checks are those of the annotations:
`bool` is a switch, `list[T]` an option that may be given several times, `Sequence[T]` one that takes several values. Every
parameter's help is what `Args:` says of it; the docstring's first paragraph is the description, the others end the help.
"""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from fgzoo.errors import UsageError
from fgzoo.files import user_path
from fgzoo.wording import did_you_mean

Verb = Callable[..., int]

_empty_parser = partial(ArgumentParser, exit_on_error=False, allow_abbrev=False)


def run(function: Verb | Mapping[str, Verb], arguments: Sequence[str], program: str) -> int:
    """Call a function, or the one of several that the first word chooses, with what was typed after a program's name.

    Returns:
        The exit status that the function returned.

    Raises:
        UsageError: The arguments do not fit the function; says how.
    """
    if isinstance(function, Mapping):
        parser = _choice_parser(function, program)
        chosen = _parse(parser, arguments[:1]).action
        return run(function[chosen], arguments[1:], f"{program} {chosen}")
    parser = function_parser(function, program)
    given = _parse(parser, _positionals_first(parser, arguments))
    return function(**{name: _at_home(value) for name, value in given.as_dict().items()})


def _at_home(value: Any) -> Any:
    """A value with `~` in the paths that it is, or holds, as the person's home."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return user_path(value) if isinstance(value, Path) else value


def function_parser(function: Verb, program: str) -> ArgumentParser:
    """The parser of a function with annotated and documented parameters; `program` is what is typed before them."""
    text = parse_docstring(inspect.getdoc(function) or "")
    helps = {parameter.arg_name: parameter.description for parameter in text.params}
    parser = _empty_parser(prog=program, description=text.short_description, epilog=text.long_description)
    types = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        option, settings = _argument(parameter, types[name])
        parser.add_argument(*option, help=helps[name], **settings)
    return parser


def _choice_parser(functions: Mapping[str, Verb], program: str) -> ArgumentParser:
    shown = "; ".join(f"{name}: {parse_docstring(inspect.getdoc(f) or '').short_description}" for name, f in functions.items())
    parser = _empty_parser(prog=program)
    parser.add_argument("action", choices=list(functions), help=shown)
    return parser


def _argument(parameter: inspect.Parameter, kind: Any) -> tuple[list[str], dict[str, Any]]:
    """Names and settings of a parameter, for `add_argument`."""
    required = parameter.default is inspect.Parameter.empty
    many = get_origin(kind) in (list, Sequence)
    # An argument that may be absent is of its type where it is given.
    element = get_args(kind)[0] if many else kind
    if NoneType in get_args(element):
        element = Union[tuple(inner for inner in get_args(element) if inner is not NoneType)]  # noqa: UP007 - of as many as there are
    settings: dict[str, Any] = {"type": Path | None if element is Path else element}
    if get_origin(element) is Literal:
        settings = {"choices": get_args(element)}
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        if not required:
            settings |= {"default": parameter.default}
        return [parameter.name], settings | ({"nargs": "+"} if many else {} if required else {"nargs": "?"})
    if kind is bool:
        settings = {"action": "store_true"}
    elif many:
        settings |= {"default": list(parameter.default)} | ({"action": "append"} if get_origin(kind) is list else {"nargs": "+"})
    else:
        settings |= {"required": True} if required else {"default": parameter.default}
    return [f"--{parameter.name.rstrip('_').replace('_', '-')}"], settings | {"dest": parameter.name}


def _positionals_first(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Options may stand between positional arguments, which argparse reads in one piece only."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    positionals: list[str] = []
    others: list[str] = []
    tokens = list(arguments)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            return [*others, "--", *positionals, *tokens]
        if token == "-" or not token.startswith("-"):
            positionals.append(token)
            continue
        others.append(token)
        action = options.get(token)
        if action is not None and action.nargs != 0:
            several = action.nargs in ("+", "*")
            while tokens and (tokens[0] == "-" or not tokens[0].startswith("-") or tokens[0][1:2].isdigit()):
                others.append(tokens.pop(0))
                if not several:
                    break
    return [*others, "--", *positionals] if positionals else others


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        said = _complaint(str(error), [name for action in parser._actions for name in action.option_strings])
        raise UsageError(f"{parser.prog.removeprefix('fgzoo ')}: {said} (see `{parser.prog} --help`)") from error


def _complaint(message: str, options: Sequence[str]) -> str:
    """A parser's message in one line, with the nearest option where one was misspelt."""
    if found := re.search(r"unrecognized arguments: (--[^\s=]+)", message):
        return f"no option {found[1]}{did_you_mean(found[1], options)}"
    if found := re.search(r'Parser key "(\w+)":\s+Not of type \w+: (.+)', message):
        return f"--{found[1].replace('_', '-')}: {found[2]}"
    if found := re.search(r'Parser key "(\w+)":\s+Does not validate.*Given value: (.*)', message, flags=re.DOTALL):
        return f"--{found[1].replace('_', '-')}: '{found[2].strip()}' is nothing that it takes"
    if found := re.search(r"arguments are required: (.+)", message):
        dashed = {name.lstrip("-").replace("-", "_"): name for name in options}
        return f"the following arguments are required: {', '.join(dashed.get(name, name) for name in found[1].split(', '))}"
    return " ".join(message.split())
