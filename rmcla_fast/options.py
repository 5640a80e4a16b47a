"""Options as fields of a dataclass: type, default, help text and allowed values stand together.

The command line makes its parameters from these fields (`rmcla_fast.cli.options`), so each option is written once.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rmcla_fast.errors import UserError
from rmcla_fast.schema import shortened

QUOTES = "'\""
Value = TypeVar("Value")
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Rule:
    """A condition on a value, and the words for it in an error message."""

    holds: Callable[[Any], bool]
    words: str


THREADS = Rule(lambda value: 1 <= value <= 4096, "from 1 to 4096")
AT_LEAST_1 = Rule(lambda value: value >= 1, "at least 1")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "0 or more")
POSITIVE = Rule(lambda value: 0 < value <= 3e38, "positive, and finite as a float32")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "in [0, 1)")
BETWEEN_0_AND_1 = Rule(lambda value: 0 < value < 1, "more than 0 and less than 1")
FINITE = Rule(math.isfinite, "finite")
PERCENT = Rule(lambda value: 0 <= value <= 100, "in [0, 100]")
SEED = Rule(lambda value: 0 <= value < 2**32, "in [0, 2^32)")


def one_of(names: Iterable[str]) -> Rule:
    """Return the rule that a value is one of these names."""
    known = tuple(names)
    return Rule(lambda value: value in known, f"one of {', '.join(known)}")


def argument(help: str, metavar: str) -> Any:
    """Declare a dataclass field without a default as an argument of the command line."""
    return dataclasses.field(metadata=_facts(help, metavar=metavar))


def option(
    help: str,
    default: Value,
    rule: Rule | None = None,
    *,
    shown: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Value] | None = None,
    **facts: object,
) -> Value:
    """Declare a dataclass field as an option of the command line.

    Args:
        help: what the option does. The command's help and the dataclass's docstring show it.
        default: the field's value if none is given.
        rule: the condition that `check` holds the value to.
        shown: the default as the help shows it. If it is left out, `as_text` makes it from `default`.
        metavar: the word that stands for the value in the help.
        parse: makes the value from the command line's text, for types that have no simple text form.
        facts: further entries of the field's metadata.
    """
    shown = as_text(default) if shown is None else shown
    return dataclasses.field(
        default=default, metadata=_facts(help, rule=rule, shown=shown, metavar=metavar, parse=parse) | facts
    )


def fact(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field that is read from a file (`schema.read_as`) and held to a rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def _facts(help: str, **facts: object) -> dict[str, object]:
    return {"help": help, "rule": None, "shown": None, "metavar": None, "parse": None} | facts


def as_text(default: object) -> str:
    """Return a default as the help shows it. The text is empty for None and for a switch that is off."""
    if default is None or default is False:
        return ""
    return "on" if default is True else str(default)


def documented(cls: Class) -> Class:
    """Add the help text of each option to the docstring of its dataclass, for readers in Python."""
    lines = [f"        {field.name}: {help_text(field)}." for field in dataclasses.fields(cls)]
    cls.__doc__ = "\n".join([str(cls.__doc__).rstrip(), "", "    Args:", *lines])
    return cls


def help_text(field: dataclasses.Field[Any]) -> str:
    """Return what the option does, and its default."""
    shown = field.metadata["shown"]
    return field.metadata["help"] + (f" (default: {shown})" if shown else "")


def check(options: Any) -> None:
    """Check the type and the rule of each field of a dataclass instance.

    Raises:
        UserError: one sentence that names the option, the value and what was expected.
    """
    kinds = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, kind = getattr(options, field.name), kinds[field.name]
        if not _fits(value, kind):
            raise UserError(f"{flag(field.name)} must be {_words(kind)}; got {shortened(value)}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{flag(field.name)} must fit 64 bits; got {shortened(value)}")
        rule = field.metadata["rule"]
        if rule is not None and value is not None and not rule.holds(value):
            raise UserError(f"{flag(field.name)} must be {rule.words}; got {shortened(value).strip(QUOTES)}")


def plain(value: Any) -> Any:
    """Return a value of a subclass as one of bool, int, float or str itself: a NumPy float or a text enum, for example.

    A path becomes text. A checkpoint is read without running code, and so holds only these.
    """
    if isinstance(value, Path):
        return str(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    return value


def flag(name: str) -> str:
    """Return the command line's name of a field: "--batch-size" for "batch_size"."""
    return f"--{name.replace('_', '-')}"


def members(kind: Any) -> tuple[Any, ...]:
    """Return the types in a union except None; for a type that is not a union, only the type itself."""
    union = get_origin(kind) in (Union, types.UnionType)
    return tuple(one for one in (get_args(kind) if union else (kind,)) if one is not type(None))


def _fits(value: object, kind: Any) -> bool:
    if value is None:
        return type(None) in get_args(kind)
    return any(_is_a(value, member) for member in members(kind))


def _is_a(value: object, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(one, get_args(kind)[0]) for one in value)
    if isinstance(value, bool):  # Python counts a bool as an int
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "whole numbers"}
    return " or ".join(words.get(get_origin(member) or member, "a path") for member in members(kind))
