"""The picture curves.png: loss, learning rate and held-out accuracies over the epochs, from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from rmcla_fast.errors import RunFailed
from rmcla_fast.files import replacing
from rmcla_fast.pictures import new_figure
from rmcla_fast.training.metrics import METRICS, read_metrics
from rmcla_fast.training.run_folder import CURVES


def draw_curves(folder: Path) -> Path | None:
    """Draw RUN/curves.png and return its path, or None if no epoch has ended yet.

    Raises:
        RunFailed: the picture cannot be written; an earlier one is kept.
    """
    epochs = [row for row in read_metrics(folder / METRICS) if row["kind"] == "epoch"]
    if not epochs:
        return None
    figure = new_figure(10, 4, "curves.png")
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in epochs], [row["loss"] for row in epochs], color="tab:blue", marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    rates = left.twinx()
    rates.plot(
        [row["epoch"] for row in epochs], [row["lr"] for row in epochs], color="tab:grey", linestyle=":", marker="."
    )
    rates.set(ylabel="learning rate (dotted)", ylim=(0, None))
    measured = [row for row in epochs if "pgd" in row]
    for name, label in (("clean", "clean"), ("fgsm", "FGSM"), ("pgd", "PGD")):
        right.plot([row["epoch"] for row in measured], [row[name] for row in measured], label=label, marker=".")
    averaged = [row for row in measured if "weights_pgd" in row]
    if averaged:
        epochs_of, accuracies = [row["epoch"] for row in averaged], [row["weights_pgd"] for row in averaged]
        right.plot(epochs_of, accuracies, label="PGD without averaging", linestyle=":", color="tab:green")
    right.set(xlabel="epoch", ylabel="accuracy on the held-out images in %", ylim=(0, 100))
    if measured:
        right.legend()
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    path = folder / CURVES
    try:
        with replacing(path) as file:
            figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}); --resume draws it") from error
    return path
