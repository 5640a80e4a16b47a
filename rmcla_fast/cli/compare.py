"""`rmcla compare`: several runs next to each other."""

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
    Precision,
    Seed,
    Which,
    bound,
    check_option,
    enough_memory,
)
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import compare as comparison
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.report import comparison_table, setting, show, write_json
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.precision import check_precision
from rmcla_fast.training.interrupt import interrupted


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.", show_default=False)],
    attacks: Attacks = DEFAULT_ATTACKS,
    epsilon: Epsilon = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pictures and comparison.json.")] = Path(
        "comparison"
    ),
    images: Images = None,
    batch_size: BatchSize = BATCH_SIZE,
    seed: Seed = 0,
    data_dir: DataDir = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="pkg.mod:factory of the runs that were trained with it; repeat it for each factory."),
    ] = None,
    which: Which = "last",
    device: Device = None,
    precision: Precision = "fp32",
) -> None:
    """Draw several runs next to each other, and look for signs of gradient masking.

    Writes FOLDER/comparison.png (accuracy under each attack and over epsilon),
    FOLDER/details.png (accuracy over iterations and training minutes, loss surfaces)
    and FOLDER/comparison.json. Attacks with results in RUN/evaluation.json do not run again.
    """
    wanted = check_option(attack_names, attacks)
    check_option(check_precision, precision)
    opened = [
        open_run(run, data_dir=data_dir, model=model or [], which=which, device=device, images=images) for run in runs
    ]
    radius = comparison.common_epsilon(opened, None if epsilon is None else bound(epsilon, opened[0]))
    with Bars() as bars:
        names = ", ".join(f"{run.name}{run.early}" for run in opened)
        bars.say(
            f"Comparing {names}, {setting(radius, precision)}; writes {out}/comparison.png, details.png and "
            "comparison.json"
        )
        try:
            with enough_memory(batch_size, FINISHED_ATTACKS):
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
        except KeyboardInterrupt as stop:
            raise interrupted(
                stop, "what the attacks have found out is kept, and the same command goes on from there"
            ) from None
    write_json(out / "comparison.json", [one.as_json(radius) for one in found])
    comparison.draw(found, wanted, radius, out / "comparison.png")
    comparison.draw_details(found, radius, out / "details.png")
    count = min(len(one.run.labels) for one in found)
    show(
        comparison_table({one.name: one.results for one in found}, setting(radius, precision)),
        f"Accuracy on {count} test images. One standard error is at most {50 / count**0.5:.1f} points.",
        *(f"{one.name}: {one.verdict}." for one in found),
        *dict.fromkeys(
            f"{one.name}: {note}." for one in found for result in one.results.values() for note in result.notes
        ),
        f"Pictures: {out / 'comparison.png'}, {out / 'details.png'}",
    )
