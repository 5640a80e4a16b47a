"""`rmcla gradients`: the input gradients of a trained model."""

from __future__ import annotations

from rmcla_fast.attacks.gradient_norm import WHY_TWO_SCALES, gradient_norm
from rmcla_fast.attacks.suite import BATCH_SIZE
from rmcla_fast.cli.options import (
    BatchSize,
    DataDir,
    Device,
    Images,
    Json,
    Model,
    RunFolder,
    Which,
    check_output,
    enough_memory,
)
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import plots
from rmcla_fast.evaluation.progress import Bars
from rmcla_fast.evaluation.report import gradient_table, show, write_json
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.paper import published


def command(
    run: RunFolder,
    json: Json = None,
    images: Images = None,
    batch_size: BatchSize = BATCH_SIZE,
    data_dir: DataDir = None,
    model: Model = None,
    which: Which = "last",
    device: Device = None,
) -> None:
    """Measure the squared l2 norm of the input gradient over the test set, as the paper's table 4 does.

    Writes RUN/gradients.json and its histogram, RUN/gradients.png.
    """
    opened = open_run(run, data_dir=data_dir, model=model, which=which, device=device, images=images)
    check_output(json, run)
    picture, record = run / "gradients.png", run / "gradients.json"
    with Bars() as bars:
        bars.say(f"Input gradients of {opened.description}; writes {record} and {picture}")
        try:
            with enough_memory(batch_size):
                found = gradient_norm(
                    opened.model,
                    opened.images,
                    opened.labels,
                    batch_size=batch_size,
                    progress=lambda fraction: bars("gradients", fraction),
                )
        except ValueError as error:
            raise UserError(f"{run}: {error}") from error
    document = {"model": opened.network, "data": opened.data, "recipe": opened.recipe, **found.summary()}
    for path in (record, json):
        if path is not None:
            write_json(path, document)
    title = f"{opened.name}: {opened.description}"
    figures, source = published.gradients_of(opened.recipe, opened.data)
    lines = [WHY_TWO_SCALES]
    if document["nonfinite"]:
        lines.append(f"{document['nonfinite']} images, on which the model returns NaN or infinity, are left out.")
    show(gradient_table(found, title, figures, source), *lines)
    plots.gradient_histogram(picture, found.paper[found.finite], figures, title=title)
