"""The options that several commands share, and the options that are made from the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from rmcla_fast.attacks.suite import ATTACKS
from rmcla_fast.epsilon import format_epsilon, parse_epsilon
from rmcla_fast.errors import OutOfMemory, UserError, short_of_memory
from rmcla_fast.evaluation.per_image import FILE
from rmcla_fast.evaluation.results import RECORD
from rmcla_fast.evaluation.run import Run
from rmcla_fast.options import flag, help_text, members
from rmcla_fast.training import checkpoint
from rmcla_fast.training.metrics import METRICS
from rmcla_fast.training.record import CONFIG

FINISHED_ATTACKS = ", which goes on from what the attacks have found out"
RUN_FILES = (checkpoint.LAST, checkpoint.BEST, CONFIG, METRICS, RECORD, FILE)
DEFAULT_ATTACKS = "clean,fgsm,ce20,cw100"

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that rmcla train wrote.", show_default=False)]
Attacks = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help=f"Separated by commas: {', '.join(ATTACKS)}. apgd is apgd-ce and apgd-t, with which autoattack begins.",
    ),
]
Epsilon = Annotated[
    str | None,
    typer.Option(metavar="EPS", help="Bound on the perturbation, such as 8/255 or 0.031.", show_default="the run's"),
]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the results to this file.")]
DataDir = Annotated[str | None, typer.Option(help="Folder of the data set.", show_default="where the run found it")]
Model = Annotated[
    str | None,
    typer.Option(help="pkg.mod:factory, if the run was trained with a factory, or hf:FOLDER, if its folder has moved."),
]
Which = Annotated[str, typer.Option(help="Checkpoint: last or best.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default="a GPU if there is one")]
Images = Annotated[
    int | None,
    typer.Option(help="Use only this many test images, evenly spaced, or all if there are fewer.", show_default="all"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one batch.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random start.")]
Precision = Annotated[str, typer.Option(help="The network computes in fp32 (publish this one), bf16 or fp16.")]

Checked = TypeVar("Checked")


def options_of(dataclass: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command whose first parameter is a dataclass take the fields of this dataclass as options.

    A field without a default becomes an argument. The command gets the dataclass made from what was given; a field that
    was not given keeps the dataclass's own default.
    """
    fields = dataclasses.fields(dataclass)
    kinds = get_type_hints(dataclass)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_options(**values: Any) -> None:
            given = {}
            for field in fields:
                value = values.pop(field.name)
                if value is not None:
                    given[field.name] = field.metadata["parse"](value) if field.metadata["parse"] else value
            command(dataclass(**given), **values)

        _, *rest = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [
            *(_parameter(field, kinds[field.name]) for field in fields),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in rest),
        ]
        with_options.__doc__ = command.__doc__
        with_options.__annotations__ = {}  # so that typer reads the types in the signature
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return with_options

    return decorate


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """Return the parameter that typer makes an option or an argument from.

    Its default is None, so that the command knows what was given. The help text names the default of the dataclass.
    """
    facts = field.metadata
    types = members(kind)
    # What may be text, or is parsed from text, is taken as text here; `check` and `resolve` explain what is wrong.
    value: Any = str if facts["parse"] or str in types else types[0]
    if field.default is dataclasses.MISSING:
        declared = typer.Argument(..., help=facts["help"], metavar=facts["metavar"], show_default=False)
    else:
        names = flag(field.name)
        if value is bool and facts["shown"]:  # a switch that can be on by default needs a name that turns it off
            names += f"/{flag(f'no_{field.name}')}"
        declared = typer.Option(None, names, help=help_text(field), metavar=facts["metavar"], show_default=False)
        value = value | None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=value)


def check_option(check: Callable[[str], Checked], text: str) -> Checked:
    """Return `check(text)`, and turn its ValueError, which begins with the option's name, into a UserError."""
    try:
        return check(text)
    except ValueError as error:
        raise UserError(f"--{error}") from error


@contextmanager
def enough_memory(batch_size: int, kept: str = "") -> Iterator[None]:
    """Raise OutOfMemory, with the batch size to try, if the memory is too small; `kept` says what is not lost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (memory := short_of_memory(error)):
            raise
        smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "another --device"
        raise OutOfMemory(f"{memory}; try the same command with {smaller}{kept}") from error


def check_output(path: Path | None, run: Path) -> None:
    """Refuse to write to `path` if it is no file, or a file of the run that cannot be made again from others.

    Raises:
        UserError: it says what is wrong with the path.
    """
    if path is None:
        return
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write")
    if path.resolve() in [(run / name).resolve() for name in RUN_FILES]:
        raise UserError(f"{path} belongs to the run; name another file to write")


def bound(text: str | None, run: Run) -> float:
    """Return the epsilon of the attacks: the value of --epsilon, or the run's own.

    Raises:
        UserError: it lies outside (0, 1].
    """
    epsilon = run.epsilon if text is None else parse_epsilon(text)
    if not 0 < epsilon <= 1:
        raise UserError(f"--epsilon must lie in (0, 1]; got {format_epsilon(epsilon)}, for example give 8/255")
    return epsilon
