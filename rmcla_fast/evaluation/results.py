"""The results of the attacks on a run, stored in RUN/evaluation.json so that a stopped command can go on.

A stored result is reused only for the same weights, network, images, epsilon, seed and precision. The file holds the
latest evaluation, and under "others" the evaluations with other settings. So a quick evaluation of a few images does
not overwrite a long one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rmcla_fast.attacks.suite import (
    BATCH_SIZE,
    GRADIENT_ATTACKS,
    TITLES,
    AttackResult,
    Progress,
    attack_names,
    evaluate,
)
from rmcla_fast.evaluation.report import as_json, write_json
from rmcla_fast.evaluation.run import Run

RECORD = "evaluation.json"


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
    """
    names = attack_names(attacks)
    known = {} if fresh else known_results(run, epsilon, seed, precision)
    results = {}
    for name in names:
        key = _attack_key(name, restarts)
        if key in known:
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
        _store(run, epsilon, seed, precision, {key: results[name]})
    return results


def known_results(run: Run, epsilon: float, seed: int, precision: str = "fp32") -> dict[str, AttackResult]:
    """Return the results in RUN/evaluation.json for these settings, by attack; "ce20 x 9" is CE20 with 9 restarts."""
    for document in _read(run.folder / RECORD):
        if document["settings"] == _settings(run, epsilon, seed, precision):
            return _results(document)
    return {}


def _attack_key(name: str, restarts: int) -> str:
    many = restarts > 1 and name in GRADIENT_ATTACKS and GRADIENT_ATTACKS[name].random_start
    return f"{name} x {restarts}" if many else name


def _settings(run: Run, epsilon: float, seed: int, precision: str) -> dict[str, Any]:
    """Return everything that a result depends on, except the attack."""
    return {
        "which": run.which,
        **run.identity,
        "images": len(run.labels),
        "epsilon": epsilon,
        "seed": seed,
        "precision": precision,
    }


def _store(run: Run, epsilon: float, seed: int, precision: str, new: dict[str, AttackResult]) -> None:
    """Add results to the file. It is read again first, because another command may have written to it."""
    settings = _settings(run, epsilon, seed, precision)
    attacks, others = {}, []
    for document in _read(run.folder / RECORD):
        theirs = document["settings"]
        if theirs == settings:
            attacks = _results(document)
        elif theirs["which"] != run.which or theirs["checkpoint_sha256"] == settings["checkpoint_sha256"]:
            others.append(document)  # results of weights that have been replaced are dropped
    attacks |= new
    ordered = {key: attacks[key] for title in TITLES for key in sorted(attacks) if key.split(" ")[0] == title}
    document = as_json(ordered, epsilon=epsilon, model=run.config["model"], data=run.data)
    write_json(run.folder / RECORD, {**document, "recipe": run.recipe, "settings": settings, "others": others})


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the evaluations in the file, the latest first, or none if it is missing, damaged or something else."""
    if not path.is_file():  # to read a pipe would wait for a writer
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        others = document.pop("others")
        for one in (document, *others):
            if not {"which", "checkpoint_sha256"} <= set(one["settings"]):
                return []
            precision = one["settings"].setdefault("precision", "fp32")  # older files have none
            if any(result.precision != precision for result in _results(one).values()):
                return []
        return [document, *others]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _results(document: dict[str, Any]) -> dict[str, AttackResult]:
    names = {field.name for field in fields(AttackResult)}
    return {
        attack: AttackResult(**{key: value for key, value in entry.items() if key in names})
        for attack, entry in document["attacks"].items()
        if attack.split(" ")[0] in TITLES
    }
