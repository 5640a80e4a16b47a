"""The results of the attacks on a run, stored in RUN/evaluation.json; evaluation.npz keeps those of each image.

A stored result is reused only for the same weights, network, images, epsilon, seed and precision. The file holds the
latest evaluation, and under "others" the evaluations with other settings. So a quick evaluation of a few images does
not overwrite a long one. A damaged file is kept under another name, and the attacks run again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from rmcla_fast import sealed
from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.checked_model import untouched
from rmcla_fast.attacks.parts import GRADIENT_ATTACKS, parts_of
from rmcla_fast.attacks.suite import BATCH_SIZE, TITLES, ModelUnderAttack, Progress, attack_names
from rmcla_fast.attacks.third_party import require
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.per_image import Keeper
from rmcla_fast.evaluation.ranks import Ranks
from rmcla_fast.evaluation.report import as_json, write_file
from rmcla_fast.evaluation.run import Run
from rmcla_fast.evaluation.settings import Settings, alone_with, set_aside, settings_of
from rmcla_fast.schema import Mismatch, read_as

RECORD = "evaluation.json"


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
    ranks: Ranks | None = None,
) -> dict[str, AttackResult]:
    """Evaluate a run, and keep what is known in its folder, so that a stopped evaluation goes on from there.

    RUN/evaluation.npz keeps what each attack has found out about each image, and is written every second or so.
    RUN/evaluation.json keeps the result of each attack as soon as it is known.

    The arguments are those of `attacks.evaluate`, except two. `fresh` attacks again even if a result is stored. `ranks`
    are the processes that share the images, of which only rank 0 reads and writes the files.

    Returns:
        The result of each attack in `attacks`, in the order of `ATTACKS`.

    Raises:
        UserError: attacks have to run, and the run folder cannot be written.
    """
    names = attack_names(attacks)
    is_main = ranks is None or ranks.is_main
    keeper = None
    if is_main:
        stored = known_results(run, epsilon, seed, precision)
        keys = {name: _attack_key(name, restarts) for name in names}
        known = {} if fresh else {name: stored[key] for name, key in keys.items() if key in stored}
        if len(known) < len(names):
            if not os.access(run.folder, os.W_OK):
                raise UserError(
                    f"{run.folder} cannot be written, and the results are stored there; evaluate a copy of it"
                )
            keeper = Keeper(run.folder, settings_of(run, epsilon, seed, precision))
            if fresh:
                require(names)
                # The results are forgotten first, so that the same command without `fresh` goes on if it is stopped.
                if any(key in stored for key in keys.values()):
                    _store(run, epsilon, seed, precision, {}, without=keys.values())
                parts_again = [part for name in names for part in parts_of(name, precision, restarts, run.num_classes)]
                keeper.forget((part.key for part in parts_again), keys.values())
                keeper.write()
    parts = {} if keeper is None else keeper.found.parts
    if ranks is not None:
        known, parts = ranks.agree("known", (known if is_main else None, parts))
    if len(known) == len(names):
        return {name: known[name] for name in names}
    require(name for name in names if name not in known)
    report = progress or (lambda name, fraction: None)
    results = {}
    with untouched(run.model):
        attacked = ModelUnderAttack(
            run.model,
            run.images,
            run.labels,
            epsilon,
            batch_size=batch_size,
            seed=seed,
            num_classes=run.num_classes,
            precision=precision,
            parts=parts,
            kept=None if keeper is None else keeper.keep,
            team=ranks,
        )
        for name in names:
            if name in known:
                results[name] = known[name]
                continue
            key = _attack_key(name, restarts)
            try:
                results[name] = attacked.result(name, restarts, partial(report, name))
                right = results[name].right
                if keeper is not None and right is not None:
                    keeper.found.right[key] = right
            finally:
                if keeper is not None:
                    keeper.write()
            if is_main:
                try:
                    _store(run, epsilon, seed, precision, {key: results[name]})
                except UserError as error:  # a full disk must not cost the figure of an attack that took hours
                    warnings.warn(f"{error}; {key}: {results[name].accuracy:.1f} % is only printed", stacklevel=2)
    return results


def known_results(run: Run, epsilon: float, seed: int, precision: str = "fp32") -> dict[str, AttackResult]:
    """Return the results in RUN/evaluation.json for these settings, by attack; "ce20 x 9" is CE20 with 9 restarts."""
    settings = settings_of(run, epsilon, seed, precision)
    return next((one.attacks for one in _read(run.folder / RECORD) if one.settings == settings), {})


def _attack_key(name: str, restarts: int) -> str:
    many = restarts > 1 and name in GRADIENT_ATTACKS and GRADIENT_ATTACKS[name].random_start
    return f"{name} x {restarts}" if many else name


def _store(
    run: Run,
    epsilon: float,
    seed: int,
    precision: str,
    new: dict[str, AttackResult],
    without: Iterable[str] = (),
) -> None:
    """Add results to the file, and remove those `without`.

    The file is read again first, because another command may have written to it.
    """
    settings, path = settings_of(run, epsilon, seed, precision), run.folder / RECORD
    with alone_with(path):
        attacks, others = {}, []
        for one in _read(path, rename=True):
            if one.settings == settings:
                attacks = {name: result for name, result in one.attacks.items() if name not in without}
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


def _read(path: Path, *, rename: bool = False) -> Sequence[Evaluation]:
    """Return the evaluations in the file, the latest first; none if it is missing or cannot be believed.

    Args:
        rename: whether a file that cannot be believed is renamed, so that a new one can be written. If not, a
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
        why = str(error) if isinstance(error, sealed.Damaged) else f"cannot be used ({error})"
        set_aside(path, why, rename=rename)
        return []


def _known(attacks: dict[str, AttackResult]) -> dict[str, AttackResult]:
    return {name: result for name, result in attacks.items() if name.split(" ")[0] in TITLES}
