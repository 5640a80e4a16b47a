"""RUN/evaluation.json: what is known about a run, attack by attack, so that a stopped command goes on where it was.

An entry counts only for the same checkpoint, images, epsilon and seed; anything else is attacked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rmcla_fast.evaluation.protocol import BATCH_SIZE, TITLES, AttackResult, Progress, attack_names, evaluate
from rmcla_fast.evaluation.report import as_json, write_json
from rmcla_fast.evaluation.runs import Run

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
) -> dict[str, AttackResult]:
    """`evaluate` on a run, remembering each attack as soon as it is done; known results are reused unless `fresh`.

    Returns the wanted attacks, in the order of ATTACKS.
    """
    names = attack_names(attacks)
    settings = settings_of(run, epsilon, seed)
    known = {} if fresh else read(run.folder / RECORD, settings)
    results = dict(known)
    for name in names:
        if name in known and known[name].restarts in (None, restarts):
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
        )
        ordered = {title: results[title] for title in TITLES if title in results}
        document = as_json(ordered, epsilon=epsilon, model=run.config["model"], data=run.data)
        write_json(run.folder / RECORD, {**document, "recipe": run.recipe, "settings": settings})
    return {name: results[name] for name in names}


def settings_of(run: Run, epsilon: float, seed: int) -> dict[str, Any]:
    """What a result depends on: another checkpoint, number of images, epsilon or seed is another evaluation."""
    return {
        "checkpoint_sha256": checksum(run.checkpoint),
        "images": len(run.labels),
        "epsilon": epsilon,
        "seed": seed,
    }


def known_results(run: Run, epsilon: float, seed: int) -> dict[str, AttackResult]:
    """What RUN/evaluation.json already knows for these settings."""
    return read(run.folder / RECORD, settings_of(run, epsilon, seed))


def read(path: Path, settings: dict[str, Any]) -> dict[str, AttackResult]:
    """The results in `path` that were made with these settings; none where it is missing, damaged or of others."""
    try:
        document = json.loads(path.read_text())
        if document["settings"] != settings:
            return {}
        names = {field.name for field in fields(AttackResult)}
        return {
            attack: AttackResult(**{key: value for key, value in entry.items() if key in names})
            for attack, entry in document["attacks"].items()
            if attack in TITLES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
