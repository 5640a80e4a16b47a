"""The check of data that was read from a file: a dataclass declares what it must hold, field by field."""

from __future__ import annotations

import dataclasses
import math
import types
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

Declared = TypeVar("Declared")
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    Tensor: "a tensor",
}


class Mismatch(ValueError):
    """The data do not fit. The text says where, what was expected and what was found."""


def read_as(kind: type[Declared], data: Any, where: str = "") -> Declared:
    """Return data from JSON or a checkpoint as an instance of a dataclass.

    Each field is checked for its type and, if it was declared with `options.option` or has a `rule` in its metadata,
    for its rule. A field with a default may be missing. Entries that are no field are left out. A list becomes a
    tuple where the field has one.

    Args:
        kind: the dataclass. Its fields may be bool, int, float, str, Any, tensors, other dataclasses, and lists,
            tuples, dictionaries with text as keys, and unions of these.
        data: what was read.
        where: the place of the data in the file, for the message.

    Raises:
        Mismatch: a field is missing, or has another type or value than was declared.
    """
    if not isinstance(data, dict):
        raise Mismatch(f"{where or 'the content'} must be an object; got {shortened(data)}")
    kinds, values = _type_hints(kind), {}  # type: ignore[arg-type]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = f"{where}.{field.name}" if where else field.name
        if field.name in data:
            value = _value(kinds[field.name], data[field.name], place)
            rule = field.metadata.get("rule")
            if rule is not None and value is not None and not rule.holds(value):
                raise Mismatch(f"{place} must be {rule.words}; got {shortened(data[field.name])}")
            values[field.name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Mismatch(f"{place} is missing")
    return kind(**values)


def shortened(value: object) -> str:
    """Return a value as text of at most 60 characters, for a message."""
    if isinstance(value, (list, tuple, dict, Tensor)):
        return "a tensor" if isinstance(value, Tensor) else f"{_WORDS[type(value)]} of {len(value)}"
    known = isinstance(value, (str, float, bool, type(None))) or (isinstance(value, int) and abs(value) < 2**64)
    text = ascii(value) if known else "a number of many digits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


@lru_cache  # a metrics.jsonl can have a hundred thousand lines, and to look the types up takes longer than the checks
def _type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, value: Any, place: str) -> Any:
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        if option is Any or (value is None and option is type(None)):
            return value
    for option in options:
        if dataclasses.is_dataclass(option):
            return read_as(option, value, place)  # type: ignore[arg-type]
        plain = get_origin(option) or option
        if plain in (list, tuple) and isinstance(value, (list, tuple)):
            return _items(plain, get_args(option), value, place)
        if plain is dict and isinstance(value, dict):
            _, inside = get_args(option)
            if not all(isinstance(key, str) for key in value):
                raise Mismatch(f"{place} must have text as keys")
            return {key: _value(inside, entry, f"{place}[{shortened(key)}]") for key, entry in value.items()}
        if isinstance(value, bool) or plain is bool:  # Python counts a bool as an int
            if isinstance(value, bool) and plain is bool:
                return value
        elif plain is float and isinstance(value, (int, float)):
            return _as_float(value, place)
        elif plain is int and isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise Mismatch(f"{place} must fit 64 bits; got {shortened(value)}")
            return value
        elif plain not in (list, tuple, dict, type(None)) and isinstance(value, plain):
            return value
    words = " or ".join(_WORDS.get(get_origin(option) or option, "nothing") for option in options)
    raise Mismatch(f"{place} must be {words}; got {shortened(value)}")


def _items(plain: type, inside: tuple[Any, ...], value: Any, place: str) -> Any:
    if plain is tuple and Ellipsis not in inside and len(value) != len(inside):
        raise Mismatch(f"{place} must have {len(inside)} entries; got {len(value)}")
    kinds = inside if plain is tuple and Ellipsis not in inside else [inside[0]] * len(value)
    return plain(_value(kind, entry, f"{place}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True)))


def _as_float(value: float, place: str) -> float:
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if math.isnan(result):
        raise Mismatch(f"{place} must be a number; got NaN")
    return result
