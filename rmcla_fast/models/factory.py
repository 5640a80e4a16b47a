"""Networks of the user's own, by the name of the function or class that makes them: "package.module:factory"."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class NotFound(ValueError):
    """A factory whose module or function does not exist."""


def create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the module that a factory makes. It is called with those of the arguments that it has as parameters.

    A factory that ends in **kwargs, as the constructors of torchvision and timm do, also gets num_classes. One without
    a signature, such as a function written in C, gets num_classes alone.

    Raises:
        TypeError: the factory is no function or class, needs other arguments, or does not return a module.
        ValueError: there is none of this name, or it raises an error.
    """
    factory = _found(name)
    positional, named = _taken(name, factory, arguments)
    try:
        model = factory(*positional, **named)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        given = ", ".join([*map(str, positional), *(f"{field}={value}" for field, value in named.items())])
        raise ValueError(
            f"model {name!r} cannot be made: its factory, called with ({given}), {_raised(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} must return a torch.nn.Module; got {type(model).__name__}")
    return model


def _found(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not function_name:
        raise ValueError(f"model {name!r} must have the name of a function or class after the colon")
    try:
        module = importlib.import_module(module_name)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (ImportError, ValueError) as error:
        raise NotFound(f"model {name!r} cannot be found: {error}") from error
    except Exception as error:  # the module has a mistake, such as one of syntax
        raise ValueError(f"model {name!r} cannot be imported: {module_name} {_raised(error)}") from error
    try:
        factory = getattr(module, function_name)
    except AttributeError as error:
        raise ValueError(f"model {name!r} cannot be found: {error}") from error
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"model {name!r} must be a function or a class that makes a module; got a {type(factory).__name__}"
        )
    if not callable(factory):
        raise TypeError(f"model {name!r} must be a function or a class; got {type(factory).__name__}")
    return factory


def _taken(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments to call the factory with.

    Raises:
        TypeError: it needs an argument that is not among `arguments`.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return [], {"num_classes": arguments["num_classes"]}
    positional: list[Any] = []
    named: dict[str, Any] = {}
    unknown: list[str] = []
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            if "num_classes" not in parameters:
                named["num_classes"] = arguments["num_classes"]
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.name in arguments and parameter.kind is not parameter.POSITIONAL_ONLY:
            named[parameter.name] = arguments[parameter.name]
        elif parameter.name in arguments:
            positional.append(arguments[parameter.name])
        elif parameter.default is not parameter.empty:
            if parameter.kind is parameter.POSITIONAL_ONLY:  # so that one after it still gets its own argument
                positional.append(parameter.default)
        else:
            unknown.append(parameter.name)
    if unknown:
        raise TypeError(
            f"model {name!r} needs {', '.join(unknown)}, which a factory is not given; it may have the parameters "
            f"{', '.join(arguments)}, and others need a default"
        )
    return positional, named


def _raised(error: Exception) -> str:
    """Return which error was raised, and where, on one line."""
    what = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
        what = error.msg
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = last.filename, last.lineno
    where = f" ({Path(file).name}, line {line})" if file else ""
    return f"raised {type(error).__name__}{f': {what[:300]}' if what else ''}{where}"
