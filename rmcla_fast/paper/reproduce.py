"""The reproduction of a table of the paper, or of the FastAT Benchmark: models are trained and attacked.

The data set may be another than that of the paper.

Finished runs and known results are reused, a stopped run is resumed, and the table is written again after every model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rmcla_fast.attacks.gradient_norm import gradient_norm
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import Interrupted, NotFinite, OutOfMemory, UserError
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.report import write_json, write_text
from rmcla_fast.evaluation.results import evaluate_run
from rmcla_fast.evaluation.run import Run, load_data, open_run
from rmcla_fast.files import Busy, locked
from rmcla_fast.models import is_factory
from rmcla_fast.paper import fastat, fastat_report, published
from rmcla_fast.paper.plan import FASTAT_TABLE, GRADIENT_TABLE, RECIPES_TABLE, Plan, ReproducedRow, attack_epsilon
from rmcla_fast.paper.published import PublishedRow
from rmcla_fast.paper.report import as_json, as_markdown
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.metrics import METRICS, read_metrics
from rmcla_fast.training.remarks import remarks
from rmcla_fast.training.resolve import resolve

CIFAR10_IMAGES_PER_CLASS = 5000
RECIPES = (
    "standard",
    "fgsm-rs",
    "n-fgsm",
    "madry-pgd7-2",
    "trades",
    "r-mc",
    "r-mc-la",
    "r-mc-la+",
    "r-mc-la9",
    "r-mc-la9+",
    "r-mc-la-sup",
    "r-mc-la-sup+",
    "n-mc-la",
    "n-fgsm-la",
)
"""The rows of the table of recipes."""


def reproduce(plan: Plan, *, quiet: bool = True) -> tuple[Path, Path]:
    """Train and evaluate the models of a table, and write OUT/TABLE-DATA.md and OUT/TABLE-DATA.json.

    The table of the FastAT Benchmark has a picture too, OUT/fastat-DATA.png. If it is stopped, the same call goes on
    from there.

    Returns:
        The paths of the two files.

    Raises:
        UserError: the data set or model does not exist, or another process makes the same table.
        NotFinite: the loss of a training was not finite. The table has all others, and says so.
        RunFailed: a training run failed in another way, such as a full disk.
    """
    markdown = plan.markdown
    try:
        with locked(markdown.with_name(f".{markdown.name}.lock")):
            return _reproduce(plan, markdown, quiet)
    except Busy as error:
        raise UserError(f"another process is making {markdown}; wait for it to end, or give another --out") from error


def _reproduce(plan: Plan, markdown: Path, quiet: bool) -> tuple[Path, Path]:
    rows = [_row(plan, source) for source in _sources(plan)]
    attacks = _attacks(plan)
    document = markdown.with_suffix(".json")

    def write() -> None:
        if plan.table == FASTAT_TABLE:
            fastat_report.write(plan, rows, markdown)
            return
        write_text(markdown, as_markdown(plan, rows, attacks))
        write_json(document, as_json(plan, rows))

    write()
    for row in rows:
        for seed in plan.seeds:
            try:
                folder = _train(plan, row, seed, quiet)
            except NotFinite as error:  # the other rows may still be trained
                row.failures[seed] = str(error).partition(";")[0]
                write()
                continue
            run = _open(plan, folder)
            with Bars(f"{folder.name}: ", quiet=quiet) as bars:
                _measure(plan, row, run, attacks, bars)
            _add_cost(plan, row, folder, run.record.facts.train_images)
            write()
    if failed := [why for row in rows for why in row.failed()]:
        raise NotFinite(f"{markdown} has no figures of the trainings that failed: {'; '.join(failed)}")
    return markdown, document


def _open(plan: Plan, folder: Path) -> Run:
    """Open the run: its last weights as in the paper, or its best ones as the benchmark takes them."""
    named = plan.model if plan.model is not None and is_factory(plan.model) else None
    which = "best" if plan.table == FASTAT_TABLE else "last"
    return open_run(folder, data_dir=plan.data_dir, model=named, which=which, device=plan.device)


def _measure(plan: Plan, row: ReproducedRow, run: Run, attacks: Sequence[str], bars: Bars) -> None:
    """Measure the figures of one seed and add them to the row."""
    if plan.table != GRADIENT_TABLE:
        epsilon = attack_epsilon(plan)
        results = evaluate_run(run, attacks, epsilon=epsilon, batch_size=plan.batch_size, progress=bars)
        for name, result in results.items():
            row.ours.setdefault(name, []).append(result.accuracy)
        return
    data = (run.model, run.images, run.labels)
    found = gradient_norm(*data, batch_size=plan.batch_size, progress=partial(bars, "gradients")).summary()
    for name in ("max", "mean"):
        row.ours.setdefault(name, []).append(found["paper_scale"][name])
        row.strict.setdefault(name, []).append(found["strict_scale"][name])


def _sources(plan: Plan) -> Sequence[PublishedRow]:
    if plan.table == RECIPES_TABLE:
        known = {name: published.accuracies_of(name, plan.data)[0] for name in RECIPES}
        return [PublishedRow(name, name, figures, data=plan.data) for name, figures in known.items()]
    if plan.table == GRADIENT_TABLE:
        gradients = published.GRADIENTS.get(plan.data, published.GRADIENTS["cifar10"])
        return [
            PublishedRow(name, recipe, {figure: gradients[figure][i] for figure in ("max", "mean")}, data=plan.data)
            for i, (name, recipe) in enumerate(
                zip(published.GRADIENT_MODELS, published.gradient_recipes(plan.data), strict=True)
            )
        ]
    if plan.table == FASTAT_TABLE:
        known_as = fastat_report.published_data(plan)
        return [fastat.source_of(recipe, known_as or plan.data) for recipe in fastat.RECIPES]
    return published.TABLES[plan.table].rows


def _attacks(plan: Plan) -> list[str]:
    if plan.table == GRADIENT_TABLE:
        return []
    table = published.TABLES.get(plan.table)
    names = list(TITLES) if table is None else [*table.attacks, "autoattack"]
    if plan.table == FASTAT_TABLE:
        names = list(fastat.ATTACKS)
    return [name for name in names if name != "autoattack" or plan.autoattack]


def _row(plan: Plan, source: PublishedRow) -> ReproducedRow:
    table = published.TABLES.get(plan.table)
    per_class = None
    if source.images_per_class is not None and source.images_per_class < CIFAR10_IMAGES_PER_CLASS:
        per_class = _images_per_class(plan, source.images_per_class / CIFAR10_IMAGES_PER_CLASS)
    config = TrainConfig(
        data=plan.data,
        data_dir=plan.data_dir,
        protocol=plan.protocol,
        recipe=source.recipe,
        epsilon=attack_epsilon(plan) * source.train_epsilon / 8,
        images_per_class=per_class,
        device=plan.device,
        model=plan.model,
        epochs=plan.epochs,
        precision=plan.precision,
        beta=None if table is None else table.beta,
    )
    return ReproducedRow(source, resolve(config))


def _images_per_class(plan: Plan, fraction: float) -> int:
    splits = load_data(plan.data, plan.data_dir)
    fewest = int(splits.train.labels.bincount(minlength=splits.num_classes).min())
    return max(1, round(fraction * fewest))


def _train(plan: Plan, row: ReproducedRow, seed: int, quiet: bool) -> Path:
    """Train the model of a row, or resume its run if it is not finished; return the run folder."""
    config = row.config
    epsilon = format_epsilon(config.epsilon).replace("/", "of")
    parts = [plan.protocol] if plan.protocol else []
    parts += [plan.data, re.sub("[:/]", ".", config.model), row.source.recipe, f"eps{epsilon}", f"beta{config.beta:g}"]
    parts += [f"{config.images_per_class}perclass"] if config.images_per_class else []
    parts += [config.precision] if config.precision != "fp32" else []
    parts += [f"{config.epochs}epochs", f"seed{seed}"]
    folder = plan.out / "runs" / "-".join(parts)
    try:
        return train(replace(config, seed=seed, out=str(folder), resume=True), quiet=quiet)
    except Interrupted as stop:  # the message advises a command that goes on with this run alone
        raise Interrupted(
            f"{str(stop).partition(';')[0]} of {folder}; the same command goes on from there", stop.signal
        ) from None
    except OutOfMemory as error:  # the batch size of the training is not among the options
        why = str(error).partition(";")[0]
        raise OutOfMemory(
            f"{why} to train {folder}; the same command goes on from its last checkpoint when more memory is free, or "
            "give --precision bf16 or a smaller --model"
        ) from error
    except UserError as error:  # the message advises the batch size of a training, which is not among the options
        if "--batch-size" not in str(error):
            raise
        raise UserError(f"{str(error).partition(';')[0]}; the data set is too small for this table") from error


def _add_cost(plan: Plan, row: ReproducedRow, folder: Path, train_images: int) -> None:
    """Add the minutes of a training to the row and, for the benchmark, the other costs that it publishes.

    Add what the training said at its start, too.
    """
    logged = read_metrics(folder / METRICS)
    row.remarks = remarks(row.config, logged[-1]["step"], train_images)
    seconds = [one["seconds"] for one in logged if "seconds" in one]
    row.minutes.append(seconds[-1] / 60 if seconds else 0.0)
    if plan.table == FASTAT_TABLE:
        row.ours.setdefault("seconds", []).append(60 * row.minutes[-1])
        if memory := [one["memory_gib"] for one in logged if "memory_gib" in one]:
            row.ours.setdefault("memory_gib", []).append(max(memory))
