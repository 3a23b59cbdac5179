"""Arguments that are said once: in a method's signature, from where its network takes them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import FrameType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import lightning as L
from lightning.pytorch.utilities.parsing import AttributeDict, collect_init_args

from fgzoo.errors import UsageError

Built = TypeVar("Built")


def check_choices(cls: type, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are none of the values of their `Literal` in the innermost constructor that declares them.

    Args:
        cls: The class; an annotation that its constructor's module cannot resolve while it runs chooses nothing.
        arguments: Of its constructors, by name.

    Raises:
        UsageError: Names the argument and its values.
    """
    declared: dict[str, Any] = {}
    for constructor in (vars(owner)["__init__"] for owner in cls.__mro__ if "__init__" in vars(owner)):
        for name, annotation in getattr(constructor, "__annotations__", {}).items():
            with suppress(NameError, AttributeError, SyntaxError, TypeError):
                alone = SimpleNamespace(__annotations__={name: annotation})
                declared |= get_type_hints(alone, getattr(constructor, "__globals__", {}))
    for name, hint in declared.items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        others = {kind for kind in kinds if get_origin(kind) is not Literal}
        if not choices or name not in arguments or not others <= {type(None)}:
            continue
        if arguments[name] not in choices and not (others and arguments[name] is None):
            raise UsageError(f"model.{name}: '{arguments[name]}' is none of {', '.join(map(str, choices))}")


def require_within(interval: str, **arguments: float | None) -> None:
    """Refuse arguments that lie outside of an interval; `None` lies in every one.

    Args:
        interval: Such as `[0, 1)`, with a bracket where the end belongs to it.
        **arguments: Values by name.

    Raises:
        UsageError: Names the argument and the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in arguments.items():
        if value is None:
            continue
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise UsageError(f"model.{name}: {value} is not in {interval}")


def without_files(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A method's arguments by name, without files of weights and teachers, which lie on one machine alone."""
    return {**arguments, **{name: None for name in arguments if name == "teacher" or name.endswith("backbone_weights")}}


class BuildsNetwork(type):
    """Calls `build_network` once the most derived `__init__` has run.

    So a subclass may set its attributes before or after `super().__init__(...)`, and the arguments that rebuild the object from
    a checkpoint are the ones it was called with, whatever its `__init__` makes of them.
    """

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature that help and parsers show: that of `__init__`, not of the metaclass."""
        of_init = inspect.signature(cls.__init__)  # type: ignore[misc]
        return of_init.replace(parameters=list(of_init.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the model, and finish it by the arguments of the call."""
        model = super().__call__(*args, **kwargs)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        parameters = inspect.signature(cls).parameters
        for name, parameter in parameters.items():
            value = bound.arguments[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                value = dict(zip(_names_behind(cls, parameters.keys()), value, strict=False))
            several = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            arguments.update(value if several else {name: value})
        model.finish(arguments)
        return model


def _names_behind(cls: type, own: Collection[str]) -> list[str]:
    """What the class above calls, in order, the arguments that a constructor hands on by `*args` after those of its own."""
    above = next(base for base in cls.__mro__[1:] if "__init__" in vars(base))
    parameters = inspect.signature(above).parameters
    names = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD and name not in own]
    more = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())
    return names + (_names_behind(above, [*own, *parameters]) if more else [])


class HasArguments(L.LightningModule, metaclass=BuildsNetwork):
    """A module that knows its arguments by name.

    Attributes:
        arguments: Every argument by name, defaults and those of subclasses too, as the constructor that declares it was given it.
            (`hparams` holds what the class was called with, which is what makes the model anew.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.arguments = AttributeDict()
        # From the outermost constructor to this one, so that a name that several take has the value that arrived furthest in.
        for level in reversed(collect_init_args(cast(FrameType, inspect.currentframe()), [], classes=(HasArguments,))):
            self.arguments.update(level)
        check_choices(type(self), self.arguments)

    def build(self, make: Callable[..., Built], **made: Any) -> Built:
        """Make a network, or a part of one, that takes arguments of this model under the same names.

        Args:
            make: Its class.
            **made: What is no argument of this model or differs from it: parts that are made already, derived values.

        Returns:
            The network.

        Raises:
            TypeError: It takes something that is neither; says its name.
        """
        same = {name: self.arguments[name] for name in inspect.signature(make).parameters if name in self.arguments}
        return make(**{**same, **made})
