"""`rmcla evaluate`: attacks on a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmcla_fast.attacks.suite import BATCH_SIZE, attack_names
from rmcla_fast.cli.options import (
    DEFAULT_ATTACKS,
    FINISHED_ATTACKS,
    Attacks,
    BatchSize,
    DataDir,
    Device,
    Epsilon,
    Images,
    Json,
    Model,
    Precision,
    RunFolder,
    Seed,
    Which,
    bound,
    check_option,
    check_output,
    enough_memory,
)
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import plots
from rmcla_fast.evaluation.gallery import draw as draw_gallery
from rmcla_fast.evaluation.per_image import FILE
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.ranks import ranks_of_torchrun
from rmcla_fast.evaluation.report import as_json, explanation, setting, show, table, write_json
from rmcla_fast.evaluation.results import RECORD, evaluate_run
from rmcla_fast.evaluation.robustbench import entry
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.paper import published
from rmcla_fast.precision import check_precision
from rmcla_fast.training.distributed import is_main_process, local_device
from rmcla_fast.training.interrupt import interrupted


def command(
    run: RunFolder,
    attacks: Attacks = DEFAULT_ATTACKS,
    epsilon: Epsilon = None,
    json: Json = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=1, help="Restarts of CE and CW alone; each attacks the images that withstood those before it."
        ),
    ] = 1,
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
        Path | None,
        typer.Option(metavar="FILE", help="Also write RobustBench's model_info JSON (needs clean and autoattack)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the known results of these attacks, and run them again.")
    ] = False,
    precision: Precision = "fp32",
) -> None:
    """Attack a trained model, print its accuracies, and save them with a plot.

    Published accuracies on the same data set are printed beside them.

    Writes RUN/evaluation.json after each attack, RUN/evaluation.npz (each image)
    all the time, and in the end RUN/evaluation.png.
    If it is stopped, by Ctrl-C for example, run the same command again to go on.
    """
    names = check_option(attack_names, attacks)
    check_option(check_precision, precision)
    opened = open_run(run, data_dir=data_dir, model=model, which=which, device=local_device(device), images=images)
    radius = bound(epsilon, opened)
    picture = run / "evaluation.png"
    if robustbench is not None and not {"clean", "autoattack"} <= set(names):
        raise UserError("--robustbench needs clean and autoattack among --attacks")
    if robustbench is not None and precision != "fp32":
        raise UserError(f"--robustbench takes figures in fp32: leave out --precision {precision}")
    for path in (json, robustbench):
        check_output(path, run)
    with ranks_of_torchrun() as ranks, Bars(quiet=not is_main_process()) as bars:
        bars.say(f"Attacking {opened.description}, {setting(radius, precision)}; writes {run / RECORD} and {picture}")
        try:
            with enough_memory(batch_size, ", which attacks again" if fresh else FINISHED_ATTACKS):
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
                    ranks=ranks,
                )
        except ValueError as error:  # an attack cannot use this model or these images
            raise UserError(f"{run}: {error}") from error
        except KeyboardInterrupt as stop:
            same = f"the same command{' without --fresh' if fresh else ''}"
            kept = f"what the attacks have found out is in {run / FILE}, and {same} goes on from there"
            raise interrupted(stop, kept) from None
    if not is_main_process():
        return
    figures, source = published.accuracies_of(opened.recipe, opened.data)
    title = f"{opened.name}: {opened.description}, {setting(radius, precision)}"
    show(table(results, title=title, published=figures), *explanation(results, source).splitlines())
    if json is not None:
        write_json(json, as_json(results, epsilon=radius, model=opened.network, data=opened.data))
    accuracies = {name: result.accuracy for name, result in results.items()}
    plots.evaluation(picture, accuracies, figures, title=title, source=source)
    if robustbench is not None:
        write_json(robustbench, entry(opened, results, radius))
    if gallery:
        draw_gallery(opened, radius, run / "gallery.png", seed=seed, precision=precision)
