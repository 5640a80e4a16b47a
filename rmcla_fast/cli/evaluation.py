"""`rmcla evaluate | gradients | compare | reproduce`: the evaluation from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from signal import SIGINT
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from rmcla_fast.attacks.gradient_norm import WHY_TWO_SCALES, gradient_norm
from rmcla_fast.attacks.suite import ATTACKS, BATCH_SIZE, attack_names
from rmcla_fast.epsilon import format_epsilon, parse_epsilon
from rmcla_fast.errors import Interrupted, UserError
from rmcla_fast.evaluation import compare as comparison
from rmcla_fast.evaluation import plots
from rmcla_fast.evaluation.gallery import draw as draw_gallery
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.report import (
    as_json,
    comparison_table,
    explanation,
    gradient_table,
    setting,
    show,
    table,
    write_json,
)
from rmcla_fast.evaluation.results import RECORD, evaluate_run
from rmcla_fast.evaluation.robustbench import entry
from rmcla_fast.evaluation.run import Run, open_run, read_config
from rmcla_fast.paper import published
from rmcla_fast.paper.plan import NAMES, Plan, default_data
from rmcla_fast.paper.reproduce import reproduce
from rmcla_fast.precision import check_precision

DEFAULT_ATTACKS = "clean,fgsm,ce20,cw100"

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="What rmcla train wrote.", show_default=False)]
Epsilon = Annotated[
    str | None,
    typer.Option(metavar="EPS", help="Bound on the perturbation, 8/255 or 0.031; the run's own if left out."),
]
DataDir = Annotated[str | None, typer.Option(help="Where the data set is; where the run found it, if left out.")]
Model = Annotated[str | None, typer.Option(help="pkg.mod:factory, where the run was trained with one.")]
Which = Annotated[str, typer.Option(help="Checkpoint: last or best.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU where there is one.")]
Images = Annotated[int | None, typer.Option(help="Only so many test images, evenly spaced.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images attacked together.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random start.")]
Precision = Annotated[str, typer.Option(help="The network computes in fp32 (publish this one), bf16 or fp16.")]
Chosen = TypeVar("Chosen")


def register(app: typer.Typer) -> None:
    """Adds the commands of this package to the `rmcla` application."""
    app.command("evaluate")(evaluate_command)
    app.command("compare")(compare_command)
    app.command("gradients")(gradients_command)
    app.command("reproduce")(reproduce_command)


def bound(text: str | None, run: Run) -> float:
    """--epsilon, or the run's own; UserError outside (0, 1]."""
    epsilon = run.epsilon if text is None else parse_epsilon(text)
    if not 0 < epsilon <= 1:
        raise UserError(f"--epsilon must lie in (0, 1]; got {format_epsilon(epsilon)}, for example give 8/255")
    return epsilon


def chosen(check: Callable[[str], Chosen], text: str) -> Chosen:
    """`check(text)`; its ValueError, which begins with the option's name, becomes a UserError with "--" before it."""
    try:
        return check(text)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def own_factory(run: Path, named: list[str]) -> str | None:
    """Of the factories that are named, the one for this run: its own, or the only one; None for a model by name."""
    recorded = str(read_config(run)["model"])
    if ":" not in recorded or not named:
        return None
    return recorded if recorded in named else named[0] if len(named) == 1 else None


def evaluate_command(
    run: RunFolder,
    attacks: Annotated[
        str, typer.Option(metavar="NAMES", help=f"With commas between: {', '.join(ATTACKS)}.")
    ] = DEFAULT_ATTACKS,
    epsilon: Epsilon = None,
    json: Annotated[Path | None, typer.Option(metavar="F", help="Also write the results to this file.")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Of CE and CW, each on the survivors of those before.")] = 1,
    images: Images = None,
    batch_size: BatchSize = BATCH_SIZE,
    seed: Seed = 0,
    data_dir: DataDir = None,
    model: Model = None,
    which: Which = "last",
    device: Device = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Also draw RUN/gallery.png: images before and after CE20.")
    ] = False,
    robustbench: Annotated[
        Path | None, typer.Option(metavar="F", help="Also write RobustBench's model_info JSON (needs autoattack).")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Attack again what is known already.")] = False,
    precision: Precision = "fp32",
) -> None:
    """Attack a trained model; print the accuracies, the published ones beside, and save them with a plot.

    Writes RUN/evaluation.json after each attack, and RUN/evaluation.png; stopped with Ctrl-C, it goes on where it was.
    """
    names = chosen(attack_names, attacks)
    chosen(check_precision, precision)
    opened = open_run(run, data_dir=data_dir, model=model, which=which, device=device, images=images)
    radius = bound(epsilon, opened)
    picture = run / "evaluation.png"
    if robustbench is not None and not {"clean", "autoattack"} <= set(names):
        raise UserError("--robustbench needs clean and autoattack among --attacks")
    if robustbench is not None and precision != "fp32":
        raise UserError(f"--robustbench takes figures in fp32: leave out --precision {precision}")
    with Bars() as bars:
        bars.say(f"Attacking {opened.description}, {setting(radius, precision)}; writes {run / RECORD} and {picture}")
        try:
            results = evaluate_run(
                opened,
                names,
                epsilon=radius,
                restarts=restarts,
                batch_size=batch_size,
                seed=seed,
                progress=bars,
                fresh=fresh,
                precision=precision,
            )
        except ValueError as error:  # the model or the data are not what an attack needs
            raise UserError(f"{run}: {error}") from error
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished attacks are in {run / RECORD}, and the same command goes on from there", SIGINT
            ) from None
    figures, source = published.accuracies_of(opened.recipe, opened.data)
    title = f"{run.name}: {opened.description}, {setting(radius, precision)}"
    show(table(results, title=title, published=figures), explanation(results, source))
    if json is not None:
        write_json(json, as_json(results, epsilon=radius, model=opened.config["model"], data=opened.data))
    accuracies = {name: result.accuracy for name, result in results.items()}
    # The picture shows the published figures of the same data alone: bars of other data invite a comparison.
    same = f", {published.DATA_TITLES.get(opened.data, opened.data)}," in source.split(";")[0]
    plots.evaluation(picture, accuracies, figures if same else {}, title=title, source=source)
    if robustbench is not None:
        write_json(robustbench, entry(opened, results, radius))
    if gallery:
        draw_gallery(opened, radius, run / "gallery.png", seed=seed, precision=precision)


def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.", show_default=False)],
    attacks: Annotated[
        str, typer.Option(metavar="NAMES", help=f"With commas between: {', '.join(ATTACKS)}.")
    ] = DEFAULT_ATTACKS,
    epsilon: Epsilon = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures and comparison.json go.")] = Path(
        "comparison"
    ),
    images: Images = None,
    batch_size: BatchSize = BATCH_SIZE,
    seed: Seed = 0,
    data_dir: DataDir = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="pkg.mod:factory of the runs that were trained with one; once more for each other factory."),
    ] = None,
    which: Which = "last",
    device: Device = None,
    precision: Precision = "fp32",
) -> None:
    """Draw several runs beside each other, and say of each whether its robustness can be believed.

    Writes FOLDER/comparison.png (attacks, accuracy over epsilon), FOLDER/details.png (over iterations and training
    minutes, loss surfaces) and FOLDER/comparison.json. Attacks that RUN/evaluation.json knows are not run again.
    """
    wanted = chosen(attack_names, attacks)
    chosen(check_precision, precision)
    opened = [
        open_run(run, data_dir=data_dir, model=own_factory(run, model or []), which=which, device=device, images=images)
        for run in runs
    ]
    radius = comparison.common_epsilon(opened, None if epsilon is None else bound(epsilon, opened[0]))
    with Bars() as bars:
        names = ", ".join(f"{run.name}{run.early}" for run in opened)
        bars.say(
            f"Comparing {names}, {setting(radius, precision)}; writes {out}/comparison.png, details.png and "
            "comparison.json"
        )
        try:
            found = comparison.compare(
                opened,
                wanted,
                epsilon=radius,
                batch_size=batch_size,
                seed=seed,
                progress=bars,
                precision=precision,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped; finished attacks are kept, and the same command goes on from there", SIGINT
            ) from None
    comparison.draw(found, wanted, radius, out / "comparison.png")
    comparison.draw_details(found, radius, out / "details.png")
    write_json(out / "comparison.json", [one.as_json(radius) for one in found])
    show(
        comparison_table({one.name: one.results for one in found}, setting(radius, precision)),
        *(f"{one.name}: {one.verdict}." for one in found),
        f"Pictures: {out / 'comparison.png'}, {out / 'details.png'}",
    )


def gradients_command(
    run: RunFolder,
    json: Annotated[Path | None, typer.Option(metavar="F", help="Also write the figures to this file.")] = None,
    images: Images = None,
    batch_size: BatchSize = BATCH_SIZE,
    data_dir: DataDir = None,
    model: Model = None,
    which: Which = "last",
    device: Device = None,
) -> None:
    """The squared l2 norm of the input gradient over the test set, as the paper's table 4 has it.

    Writes RUN/gradients.json and RUN/gradients.png, the histogram.
    """
    opened = open_run(run, data_dir=data_dir, model=model, which=which, device=device, images=images)
    picture, record = run / "gradients.png", run / "gradients.json"
    with Bars() as bars:
        bars.say(f"Input gradients of {opened.description}; writes {record} and {picture}")
        try:
            found = gradient_norm(
                opened.model,
                opened.images,
                opened.labels,
                batch_size=batch_size,
                progress=lambda fraction: bars("gradients", fraction),
            )
        except ValueError as error:
            raise UserError(f"{run}: {error}") from error
    document = {"model": opened.config["model"], "data": opened.data, "recipe": opened.recipe, **found.summary()}
    for path in (record, json):
        if path is not None:
            write_json(path, document)
    title = f"{run.name}: {opened.description}"
    figures, whose = published.gradients_of(opened.recipe, opened.data)
    lines = [WHY_TWO_SCALES]
    if document["nonfinite"]:
        lines.append(f"{document['nonfinite']} images, on which the model answers NaN or infinity, are left out.")
    show(gradient_table(found, title, figures, whose), *lines)
    same = opened.data in published.GRADIENTS
    plots.gradient_histogram(picture, found.paper[found.finite], figures if same else {}, title=title)


def reproduce_command(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="table1 ... table5, or recipes: all of them under every attack."),
    ],
    data: Annotated[str | None, typer.Option(help="Data set; the paper's if left out.")] = None,
    data_dir: DataDir = None,
    model: Annotated[str | None, typer.Option(help="Network; the right one for the data if left out.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs; the right number for the data if left out.")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="LIST", help="With commas between: 0,1,2.")] = "0",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs and tables go.")] = Path("reproduced"),
    autoattack: Annotated[bool, typer.Option(help="Run AutoAttack too, the slowest and the one to believe.")] = True,
    batch_size: BatchSize = BATCH_SIZE,
    device: Device = None,
) -> None:
    """Train and evaluate a table of the paper again: published figure, ours, difference, cost.

    Writes FOLDER/TABLE-DATA.md and .json after every model, and the runs below FOLDER/runs. Stopped with Ctrl-C, the
    same command goes on where it was.
    """
    try:
        numbers = tuple(int(part) for part in seeds.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--seeds must be whole numbers with commas between, such as 0,1,2; got {seeds!r}") from None
    if table not in NAMES:
        raise UserError(f"no table is called {table!r}; there are {', '.join(NAMES)}")
    plan = Plan(
        table,
        data or default_data(table),
        model,
        epochs,
        numbers,
        data_dir,
        out,
        autoattack,
        batch_size,
        device,
        precision,
    )
    typer.echo(
        f"{table} on {plan.data}; writes {out}/{table}-{plan.data}.md and .json, runs below {out}/runs", err=True
    )
    try:
        markdown, _ = reproduce(plan, quiet=False)
    except ValueError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise Interrupted("stopped; what is done is kept, and the same command goes on from there", SIGINT) from None
    Console(highlight=False).print(markdown.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
