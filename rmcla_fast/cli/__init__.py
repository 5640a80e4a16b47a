"""The command line, `rmcla`: every error is one sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from typing import Annotated, Any

from rmcla_fast.errors import UserError

try:
    import typer
except ImportError:  # the entry point is installed with the base package, which does without
    sys.exit("rmcla needs typer, which is not installed; pip install 'rmcla-fast[train]'")

DATA = "digits, cifar10, cifar100, svhn, imagenet, or folder (train/CLASS/*.png and test/CLASS/*.png)"
# What typer raises for arguments that do not fit: Click's exception, which newer typers carry inside and do not export.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="rmcla",
    help="Trains image classifiers that withstand adversarial images, for the price of one extra backward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, show_default=False)


@app.command()
def train(
    data: Annotated[str | None, _option(DATA)] = None,
    data_dir: Annotated[str | None, _option("the folder that holds the data set's own folder, or that folder")] = None,
    model: Annotated[
        str | None, _option("small-cnn, preact-resnet18, wrn-28-10, ..., or package.module:factory")
    ] = None,
    recipe: Annotated[str | None, _option("the training method; `rmcla recipes` lists them (r-mc-la)")] = None,
    epsilon: Annotated[str | None, _option("bound on the perturbation: 8/255, or 0.031")] = None,
    beta: Annotated[
        float | None, _option("how far the true class stays above the others in redistributed labels")
    ] = None,
    epochs: Annotated[int | None, _option("passes over the training images")] = None,
    batch_size: Annotated[int | None, _option("images an update")] = None,
    accumulate: Annotated[
        int | None, _option("equal pieces that a batch is cut into where memory is short; one update from all (1)")
    ] = None,
    lr: Annotated[float | None, _option("peak learning rate")] = None,
    schedule: Annotated[str | None, _option("piecewise (a tenth at half, a hundredth at 3/4) or one-cycle")] = None,
    momentum: Annotated[float | None, _option("of SGD (0.9)")] = None,
    weight_decay: Annotated[float | None, _option("on weights only, not on biases and batch norm (2e-4)")] = None,
    ema: Annotated[float | None, _option("decay of a running average of the weights; 0 keeps none (0)")] = None,
    clip_grad: Annotated[float | None, _option("largest norm of the gradient; 0 does not clip (0)")] = None,
    epsilon_warmup: Annotated[int | None, _option("epochs over which epsilon grows from 0 (0)")] = None,
    precision: Annotated[str | None, _option("fp32, bf16 or fp16 (fp32)")] = None,
    capture: Annotated[str | None, _option("how the update runs: auto, eager, compile or cuda-graph (auto)")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="crop with padding 4 and flip", show_default=False)
    ] = None,
    images_per_class: Annotated[int | None, _option("train on this many images of each class")] = None,
    seed: Annotated[int | None, _option("of every draw (0)")] = None,
    out: Annotated[str | None, _option("the run folder (runs/DATA-RECIPE)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint; start where there is none")
    ] = False,
    skip_unreadable: Annotated[
        bool | None,
        typer.Option("--skip-unreadable", help="leave out images that cannot be decoded", show_default=False),
    ] = None,
    skip_nonfinite: Annotated[
        bool | None, typer.Option("--skip-nonfinite", help="leave out updates that are not finite", show_default=False)
    ] = None,
    stop_on_overfitting: Annotated[
        bool | None,
        typer.Option("--stop-on-overfitting", help="stop when catastrophic overfitting begins", show_default=False),
    ] = None,
    monitor_images: Annotated[int | None, _option("training images held out to watch accuracy on; 0 for none")] = None,
    monitor_every: Annotated[int | None, _option("epochs between two looks at them")] = None,
    checkpoint_every: Annotated[
        int | None, _option("updates between checkpoints within an epoch; 0 for none (500)")
    ] = None,
    log_every: Annotated[int | None, _option("updates between logged ones")] = None,
    device: Annotated[str | None, _option("cpu, cuda, cuda:1 (a GPU where there is one)")] = None,
    threads: Annotated[int | None, _option("CPU threads")] = None,
    workers: Annotated[int | None, _option("processes that decode images, where they are streamed (8)")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")] = False,
) -> None:
    """Trains a model and writes a run folder: config.json, metrics.jsonl, checkpoints, TensorBoard events, curves.png.

    What is not given takes the default that is right for the data set; config.json records them all.
    """
    given = {name: value for name, value in locals().items() if name != "quiet"}
    from rmcla_fast.training import TrainConfig
    from rmcla_fast.training import train as run

    folder = run(TrainConfig(**given), quiet=quiet)
    typer.echo(str(folder))


@app.command()
def recipes() -> None:
    """Lists the training methods with their cost, in forward passes of the network an update."""
    from rmcla_fast import recipes as methods
    from rmcla_fast.errors import need

    table = need("rich.table", "train", "the table").Table(box=None, pad_edge=False)
    for column in ("recipe", "passes", "steps x eps", "start x eps", "target", "labels", "logits"):
        table.add_column(column, justify="right" if column == "passes" else "left", no_wrap=True)
    for name in methods.names():
        recipe = methods.get(name)
        steps = f"{recipe.steps} x {recipe.step_ratio:.4g}" if recipe.steps else "-"
        start = {"uniform": f"{recipe.start_ratio:g}", "normal": f"{recipe.start_ratio:g} sd", "none": "-"}
        labels = "one-hot" if recipe.label_scheme == "none" else recipe.label_scheme
        labels += f", top {recipe.top_k}" if recipe.top_k else ""
        target = "KL" if recipe.outer_loss == "trades" else recipe.target if recipe.steps else "-"
        from_logits = recipe.target != "untargeted" or recipe.label_scheme != "none"
        source = recipe.label_source if recipe.steps and from_logits else "-"
        table.add_row(name, f"{recipe.cost}F", steps, start[recipe.start], target, labels, source)
    need("rich.console", "train", "the table").Console().print(table)


@app.command()
def info() -> None:
    """Prints the build, versions, devices, and the backend that each operator would take, with the reason."""
    from rmcla_fast.cli.info import report

    typer.echo(report())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Runs the operators' benchmarks of a source checkout; what follows goes to pytest (-k joint_gradient)."""
    from pathlib import Path

    import rmcla_fast
    from rmcla_fast.errors import need

    folder = Path(rmcla_fast.__file__).parents[1] / "benchmarks"
    if not folder.is_dir():
        raise UserError(
            "the benchmarks are not installed with the package; run `make bench` in a checkout of the source"
        )
    need("pytest_benchmark", "dev", "a benchmark")
    pytest = need("pytest", "dev", "a benchmark")
    status = pytest.main([str(folder), "--benchmark-disable-gc", *context.args])
    if status:
        raise typer.Exit(2 if status == pytest.ExitCode.USAGE_ERROR else 1)


importlib.import_module("rmcla_fast.cli.evaluation").register(app)


def main() -> None:
    """The entry point `rmcla`."""
    warnings.formatwarning = lambda message, *_: f"rmcla: warning: {message}\n"
    threading.excepthook = _thread_failed
    sys.path.append("")  # --model mine:net is in mine.py beside the caller, as for `python -m`
    sys.exit(run(sys.argv[1:]))


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and hands an error of the disk to the main one, which says it."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code: 0, 2 for what cannot be done as asked, 1 for a run that failed."""
    try:
        code = app(arguments or ["--help"], prog_name="rmcla", standalone_mode=False) or 0
        if code == 130:  # Ctrl-C, which typer takes for itself and says nothing of
            resumes = "; the last checkpoint stands, and --resume goes on from it" if arguments[:1] == ["train"] else ""
            return _say(f"stopped at once{resumes}", code)
        return code
    except typer.Exit as error:
        return error.exit_code
    except USAGE_ERROR as error:
        return _say(error.format_message(), 2)
    except typer.Abort:
        return _say("stopped", 130)
    except UserError as error:
        return _say(str(error), error.exit_code)
    except RuntimeError as error:  # torch's own, of a GPU and of the system
        if not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise
        return _say(f"memory is too short, give a smaller --batch-size: {str(error).splitlines()[0]}", 1)
    except BrokenPipeError:  # the reader of stdout, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _say(text: str, code: int) -> int:
    print(f"rmcla: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
