"""The results of the attacks on a run, stored in RUN/evaluation.json so that a stopped command can go on.

A stored result is reused only for the same weights, network, images, epsilon, seed and precision. The file holds the
latest evaluation, and under "others" the evaluations with other settings. So a quick evaluation of a few images does
not overwrite a long one. A damaged file is kept under another name, and the attacks run again.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rmcla_fast import sealed
from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.parts import GRADIENT_ATTACKS
from rmcla_fast.attacks.suite import (
    BATCH_SIZE,
    TITLES,
    Progress,
    attack_names,
    evaluate,
)
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.report import as_json, write_file
from rmcla_fast.evaluation.run import Run
from rmcla_fast.files import locked
from rmcla_fast.options import NOT_NEGATIVE, POSITIVE, fact
from rmcla_fast.schema import Mismatch, read_as

RECORD, LOCK = "evaluation.json", ".evaluation.lock"


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on, except the attack."""

    which: str
    checkpoint_sha256: str
    images_sha256: str
    network: str
    precision: str
    images: int = fact(POSITIVE)
    epsilon: float = fact(POSITIVE)
    seed: int = fact(NOT_NEGATIVE)


@dataclass(frozen=True)
class Evaluation:
    """The results with the same settings, by attack; "ce20 x 9" is CE20 with 9 restarts."""

    settings: Settings
    attacks: dict[str, AttackResult]
    model: str
    data: str
    recipe: str


@dataclass(frozen=True)
class Document(Evaluation):
    """The content of evaluation.json: the latest evaluation, and the others."""

    others: list[Evaluation] = field(default_factory=list)


def evaluate_run(
    run: Run,
    attacks: str | Iterable[str],
    *,
    epsilon: float,
    restarts: int = 1,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
    fresh: bool = False,
    precision: str = "fp32",
) -> dict[str, AttackResult]:
    """Evaluate a run, and write the result of each attack to RUN/evaluation.json as soon as it is known.

    The arguments are those of `attacks.evaluate`, except `fresh`, which attacks again even if a result is stored.

    Returns:
        The result of each attack in `attacks`, in the order of `ATTACKS`.

    Raises:
        UserError: attacks have to run, and the run folder cannot be written.
    """
    names = attack_names(attacks)
    known = known_results(run, epsilon, seed, precision)  # also with `fresh`, to warn if the file is damaged
    results = {}
    complete = not fresh and all(_attack_key(name, restarts) in known for name in names)
    if not complete and not os.access(run.folder, os.W_OK):
        raise UserError(f"{run.folder} cannot be written, and the results are stored there; evaluate a copy of it")
    for name in names:
        key = _attack_key(name, restarts)
        if key in known and not fresh:
            results[name] = known[key]
            continue
        results |= evaluate(
            run.model,
            run.images,
            run.labels,
            attacks=[name],
            epsilon=epsilon,
            restarts=restarts,
            batch_size=batch_size,
            seed=seed,
            num_classes=run.num_classes,
            progress=progress,
            precision=precision,
        )
        try:
            _store(run, epsilon, seed, precision, {key: results[name]})
        except UserError as error:  # a full disk must not cost the figure of an attack that took hours
            warnings.warn(f"{error}; {key}: {results[name].accuracy:.1f} % is only printed", stacklevel=2)
    return results


def known_results(run: Run, epsilon: float, seed: int, precision: str = "fp32") -> dict[str, AttackResult]:
    """Return the results in RUN/evaluation.json for these settings, by attack; "ce20 x 9" is CE20 with 9 restarts."""
    settings = _settings(run, epsilon, seed, precision)
    return next((one.attacks for one in _read(run.folder / RECORD) if one.settings == settings), {})


def _attack_key(name: str, restarts: int) -> str:
    many = restarts > 1 and name in GRADIENT_ATTACKS and GRADIENT_ATTACKS[name].random_start
    return f"{name} x {restarts}" if many else name


def _settings(run: Run, epsilon: float, seed: int, precision: str) -> Settings:
    return Settings(
        which=run.which,
        **run.identity,
        images=len(run.labels),
        epsilon=epsilon,
        seed=seed,
        precision=precision,
    )


def _store(run: Run, epsilon: float, seed: int, precision: str, new: dict[str, AttackResult]) -> None:
    """Add results to the file. It is read again first, because another command may have written to it."""
    settings, path = _settings(run, epsilon, seed, precision), run.folder / RECORD
    with locked(run.folder / LOCK, waiting=f"another process writes {path}; waiting for it"):
        attacks, others = {}, []
        for one in _read(path, set_aside=True):
            if one.settings == settings:
                attacks = one.attacks
            else:
                others.append(one)  # also those of other weights, which may be newer than the ones attacked here
        attacks = attacks | new
        ordered = {key: attacks[key] for title in TITLES for key in sorted(attacks) if key.split(" ")[0] == title}
        latest = Evaluation(settings, ordered, run.network, run.data, run.recipe)
        document = {**_as_json(latest), "others": [_as_json(one) for one in others]}
        write_file(path, sealed.dumps(document))


def _as_json(one: Evaluation) -> dict[str, object]:
    document = as_json(one.attacks, epsilon=one.settings.epsilon, model=one.model, data=one.data)
    return {**document, "recipe": one.recipe, "settings": asdict(one.settings)}


def _read(path: Path, *, set_aside: bool = False) -> Sequence[Evaluation]:
    """Return the evaluations in the file, the latest first; none if it is missing or cannot be believed.

    Args:
        set_aside: whether a file that cannot be believed is renamed, so that a new one can be written. If not, a
            warning says why it cannot be believed.
    """
    try:
        document = read_as(Document, sealed.load(path))
        evaluations = [document, *document.others]
        for one in evaluations:
            if any(result.precision != one.settings.precision for result in one.attacks.values()):
                raise Mismatch("a result has another precision than its evaluation")
        return [replace(one, attacks=_known(one.attacks)) for one in evaluations]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (sealed.Damaged, Mismatch) as error:
        if set_aside:
            with suppress(OSError):
                os.replace(path, _free_name(path))
        else:
            why = str(error) if isinstance(error, sealed.Damaged) else f"cannot be used ({error})"
            kept = _free_name(path).name
            warnings.warn(f"{path} {why}; the attacks run again, and it is kept as {kept}", stacklevel=2)
        return []


def _free_name(path: Path) -> Path:
    """Return the name under which a damaged file is kept; earlier ones keep theirs."""
    names = (path.with_suffix(f".damaged{'' if number == 1 else number}.json") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _known(attacks: dict[str, AttackResult]) -> dict[str, AttackResult]:
    return {name: result for name, result in attacks.items() if name.split(" ")[0] in TITLES}
