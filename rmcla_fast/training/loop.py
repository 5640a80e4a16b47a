"""`train(config)`: a run from the first update to the last, with its measurements, logs and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmcla_fast import data as datasets
from rmcla_fast.data.extra import require_same
from rmcla_fast.data.splits import DataSplits, require_classes
from rmcla_fast.errors import RunFailed, UserError, need
from rmcla_fast.models import is_factory
from rmcla_fast.pictures import import_matplotlib
from rmcla_fast.training import checkpoint
from rmcla_fast.training.build import Parts, build, choose_device, choose_recipe, computed_by
from rmcla_fast.training.config import ResolvedConfig, TrainConfig
from rmcla_fast.training.distributed import World, is_main_process, joined, local_device
from rmcla_fast.training.endings import interrupted, not_finite, overfitted
from rmcla_fast.training.failures import reported
from rmcla_fast.training.initial_weights import initial_weights
from rmcla_fast.training.interrupt import StopRequest
from rmcla_fast.training.monitor import Accuracies
from rmcla_fast.training.plots import draw_curves
from rmcla_fast.training.progress import Display, say, shown
from rmcla_fast.training.record import describe
from rmcla_fast.training.remarks import mixed_in, remarks
from rmcla_fast.training.run_folder import CURVES, RunFolder, only_writer, open_run, run_path
from rmcla_fast.training.run_state import RunState, own_state, restored
from rmcla_fast.training.schedule import set_rate, warmed_up
from rmcla_fast.training.torch_settings import choose_cublas_workspace, torch_settings


def train(config: TrainConfig, *, quiet: bool = True) -> Path:
    """Train as `config` says and return the run folder. The command `rmcla train` calls this function.

    A run on the CPU that is killed at any instant and resumed ends with the same weights, bit for bit, as one that was
    not interrupted. So does a second run with the options in the first one's config.json, on the same machine with the
    same versions. On a GPU this needs `deterministic`, since cuDNN otherwise measures which of its algorithms are the
    fastest (`torch.backends.cudnn.benchmark`), and some of them add in any order. Torch's settings, among them its
    number of threads, are put back at the end.

    Args:
        config: the options. None means the default for the data set.
        quiet: whether to show no progress.

    Raises:
        UserError: the run cannot start. The message says why in one sentence, and nothing was written to the
            run folder.
        RunFailed: the run stopped midway: a loss that is not finite, a full disk, too little memory (OutOfMemory), a
            lost process, an operation that `deterministic` refuses, or catastrophic overfitting where
            `stop_on_overfitting` is set.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped it, after the checkpoint was written.
    """
    folder = run_path(config)
    with only_writer(folder) if is_main_process() else nullcontext():
        _train(folder, config, quiet)
    return folder


def _train(folder: Path, asked: TrainConfig, quiet: bool) -> None:
    named, (config, opened) = asked.model, open_run(folder, asked)
    from_best = opened is not None and opened.path.name == checkpoint.BEST
    if opened is not None and not from_best and opened.content.epoch >= config.epochs:
        say(f"{folder} is finished: {config.epochs} epochs; nothing is left to resume", quiet=quiet)
        drawn, last = folder / CURVES, folder / checkpoint.LAST
        if not drawn.exists() or drawn.stat().st_mtime_ns < last.stat().st_mtime_ns:  # killed before they were drawn
            draw_curves(folder)
        return
    if is_factory(config.model) and named is None:
        raise UserError(f"{folder} was started with the factory {config.model}; name it again (--model) to import it")
    if config.deterministic:
        choose_cublas_workspace(config.device)
    device = choose_device(local_device(config.device))
    if device.type == "cuda":  # for `memory_gib` of the run
        torch.cuda.reset_peak_memory_stats(device)
    threads = config.threads or torch.get_num_threads()
    config = dataclasses.replace(config, threads=threads)
    settings = torch_settings(device, threads, config.deterministic)
    with settings, joined(device) as world, reported(config, world.size):
        import_matplotlib("a run")  # this and the others now, and not after hours of work
        for module in ("rich", "torch.utils.tensorboard"):
            need(module, "train", "a run")
        choose_recipe(config)
        splits = _load(config, world, quiet)
        weights = None
        if config.init is not None and opened is None:
            weights, sha256 = initial_weights(config, splits)
            config = dataclasses.replace(config, init_sha256=sha256)
        parts = build(config, splits, device, world, weights)
        del weights  # they would take memory during the whole run
        run = _Run(config, splits, parts, folder, opened, quiet or not world.is_main)
        world.wait()  # every rank has looked at the folder before rank 0 writes into it
        run.train(save_first=from_best)


def _load(config: ResolvedConfig, world: World, quiet: bool) -> DataSplits:
    """Return the data set and the extra images. With several ranks, rank 0 is first, and packs what must be packed."""
    if not world.is_main:
        world.wait()
    progress = None if quiet or not world.is_main else shown
    splits = datasets.load(
        config.data,
        config.data_dir,
        images_per_class=config.images_per_class,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
        progress=progress,
    )
    if config.extra_data is not None:
        extra = datasets.load_extra(config.extra_data, splits, progress=progress)
        splits = dataclasses.replace(splits, extra=extra)
    if world.is_main:
        world.wait()
    return splits


class _Run:
    """A run at some step: its parts, its state, and the files that it writes."""

    def __init__(
        self,
        config: ResolvedConfig,
        splits: DataSplits,
        parts: Parts,
        folder: Path,
        opened: checkpoint.Opened | None,
        quiet: bool,
    ) -> None:
        self.config, self.parts, self.folder, self.quiet = config, parts, folder, quiet
        self.record = describe(config, splits, computed_by(parts))
        self.total_steps = config.epochs * parts.loader.steps
        if opened is not None:
            facts = opened.record.facts
            require_classes(splits, facts.classes, facts.num_classes, folder)
            require_same(splits.extra, facts.extra_images, facts.extra_checksum, folder)
        self.at = RunState() if opened is None else restored(opened, parts, self.total_steps, folder)
        self.pending: list[Tensor] = []  # losses that the host has not read yet
        self.stuck = 0  # the most held-out images without a gradient so far

    def train(self, *, save_first: bool = False) -> None:
        """Train to the end. `save_first` writes a checkpoint before the next update."""
        parts = self.parts
        self.files = RunFolder(self.folder, self.record, self.at.step) if parts.world.is_main else None
        self.display = Display(self.total_steps, self.at.step, quiet=self.quiet)
        self.since, self.since_step = time.perf_counter(), self.at.step
        # Signals are also held back while the files are closed, since torchrun sends them when a rank is lost.
        with StopRequest() as stop:
            try:
                with self.display:
                    if save_first:
                        self._save()
                    self._epochs(stop)
            except BaseException:
                with suppress(RunFailed):  # the first error is the one to report
                    self._finish()
                raise
            self._finish()

    def _finish(self) -> None:
        if self.files:
            self.files.close()
            draw_curves(self.folder)

    def _epochs(self, stop: StopRequest) -> None:
        parts, config = self.parts, self.config
        if self.at.step:
            self.display.say(f"resuming {self.folder} at step {self.at.step} of {self.total_steps}")
        else:
            more = mixed_in(config, self.record.facts.extra_images)
            self.display.say(
                f"training {config.model} with {config.recipe} on {parts.device}{more}; writing {self.folder}"
            )
            for remark in (*parts.remarks, *remarks(config, self.total_steps, self.record.facts.train_images)):
                self.display.say(remark)
        while self.at.epoch < config.epochs:
            self._epoch(stop)
        self.display.say(f"{self.folder} is done after {self.at.seconds:.0f} s of training")

    def _epoch(self, stop: StopRequest) -> None:
        parts, config = self.parts, self.config
        log_every, checkpoint_every = config.log_every, config.checkpoint_every
        first = self.at.step - self.at.epoch * parts.loader.steps
        self._warm_up()
        for images, labels in parts.loader.epoch(self.at.epoch, first):
            set_rate(parts.optimizer, parts.schedule.rate(self.at.step))
            self.pending.append(parts.step(images, labels))
            self.at.step += 1
            self._warm_up()
            if self.at.step % log_every == 0:
                self._log()
            ended = self.at.step == (self.at.epoch + 1) * parts.loader.steps
            if self._stops(stop) and not ended:
                self._save()
                self._interrupted(stop)
            if checkpoint_every and self.at.step % checkpoint_every == 0 and not ended:
                self._save()
        self._end_epoch()
        if self._stops(stop, ended=True) and self.at.epoch < config.epochs:
            self._interrupted(stop)

    def _stops(self, stop: StopRequest, ended: bool = False) -> bool:
        """Return whether a signal asks to stop. Several ranks must agree on the step, so they ask only now and then."""
        world = self.parts.world
        if world.size == 1 or ended or self.at.step % self.config.log_every == 0:
            return world.any(stop.signal is not None, self.parts.device)
        return False

    def _warm_up(self) -> None:
        """Set the epsilon of the next update during the warm-up, in which epsilon grows."""
        parts = self.parts
        if parts.warm_up_steps and self.at.step <= parts.warm_up_steps:
            parts.step.epsilon = warmed_up(parts.recipe.epsilon, self.at.step, parts.warm_up_steps)

    def _interrupted(self, stop: StopRequest) -> None:
        number = stop.signal or signal.SIGINT  # the signal may have reached only another rank
        at = f"step {self.at.step} of {self.total_steps}"
        raise interrupted(number, at, self.folder, self.config.model, self.parts.world.size)

    def _read_losses(self) -> None:
        """Read the losses since the last call, in one transfer. This is the only place where the host waits."""
        if not self.pending:
            return
        first = self.at.step - len(self.pending)
        losses = self.parts.world.mean(torch.stack(self.pending).double()).tolist()
        self.pending = []
        for place, loss in enumerate(losses):
            if math.isfinite(loss):
                self.at.recent.append(loss)
                self.at.epoch_loss += loss
                self.at.epoch_count += 1
            elif not self.config.skip_nonfinite:  # fp16 skips overflowing gradients by itself, but not such a loss
                self._not_finite(f"the loss of step {first + place} is {loss}", first + place)

    def _not_finite(self, what: str, step: int) -> None:
        raise not_finite(what, self.parts.schedule.rate(step), self.folder)

    def _log(self) -> None:
        self._read_losses()
        now = time.perf_counter()
        steps = self.at.step - self.since_step
        rate = steps * self.config.batch_size / max(now - self.since, 1e-9)
        self.at.seconds += now - self.since
        self.since, self.since_step = now, self.at.step
        if self.at.recent:
            loss = sum(self.at.recent) / len(self.at.recent)
            self.at.recent = []
            values = {"epoch": self.at.epoch + 1, "loss": loss, "lr": self.parts.schedule.rate(self.at.step - 1)}
            self._log_row("step", {**values, "images_per_second": rate})
            self.display.update(self.at.step, self._epoch_text(), loss, rate)

    def _epoch_text(self) -> str:
        return f"{min(self.at.epoch + 1, self.config.epochs)}/{self.config.epochs}"

    def _end_epoch(self) -> None:
        parts, config = self.parts, self.config
        self._read_losses()
        self.at.seconds += time.perf_counter() - self.since
        last = self.at.epoch + 1 == config.epochs
        if not self.at.epoch_count:
            self._not_finite(f"every loss of epoch {self.at.epoch + 1} was not finite", self.at.step - 1)
        values: dict[str, Any] = {
            "epoch": self.at.epoch + 1,
            "loss": self.at.epoch_loss / self.at.epoch_count,
            "lr": parts.schedule.rate(self.at.step - 1),
            "seconds": round(self.at.seconds, 3),
        }
        if parts.device.type == "cuda":
            values["memory_gib"] = round(torch.cuda.max_memory_allocated(parts.device) / 2**30, 3)
        if parts.step.skipped is not None:
            values["skipped"] = int(parts.step.skipped)
        if parts.ema is not None and self.at.step < parts.ema.horizon:
            parts.ema.restart(parts.model)
        best = False
        if parts.monitor and ((self.at.epoch + 1) % config.monitor_every == 0 or last):
            found = parts.monitor.measure_run(parts.model, None if parts.ema is None else parts.ema.module)
            values.update(found.values())
            self.display.measured(self.at.step, self._epoch_text(), values["loss"], found, self._seconds_left())
            values["overfitting"] = self._overfitting(found.newest)
            if parts.monitor.stuck > self.stuck:
                self.stuck = parts.monitor.stuck
                self.display.say(
                    f"the gradient is exactly zero for {self.stuck} of {len(parts.monitor.labels)} held-out images, "
                    "so attacks do not move them, and training may defend against nothing"
                )
            best = found.pgd >= self.at.best
            if best:
                self.at.best, self.at.best_of = found.pgd, found.best_of
        self._log_row("epoch", values)
        self.at.epoch += 1
        self.at.epoch_loss, self.at.epoch_count = 0.0, 0
        self._save(best=best)
        self.since, self.since_step = time.perf_counter(), self.at.step
        if config.stop_on_overfitting and parts.world.any(bool(values.get("overfitting")), parts.device):
            raise overfitted(self.at.epoch, self.folder)

    def _overfitting(self, seen: Accuracies) -> bool:
        found = self.parts.recipe.steps > 0 and seen.overfitted
        if found and not self.at.warned:
            self.display.say(
                f"catastrophic overfitting begins at epoch {self.at.epoch + 1}: FGSM accuracy {seen.fgsm:.1f} %, "
                f"PGD accuracy {seen.pgd:.1f} %"
            )
        self.at.warned = found
        return found

    def _seconds_left(self) -> float:
        return self.at.seconds / max(self.at.step, 1) * (self.total_steps - self.at.step)

    def _save(self, *, best: bool = False) -> None:
        self._read_losses()
        norms = torch._foreach_norm(list(self.parts.model.parameters()))
        if not bool(torch.stack(norms).isfinite().all()):
            self._not_finite(f"the weights after step {self.at.step - 1} are not finite", self.at.step - 1)
        ranks = self.parts.world.gathered(own_state(self.parts))
        if self.files:
            state = self.at.state(self.parts, self.total_steps, self.record, ranks)
            if best:
                self.files.save(state, best=True)
            self.files.save(state)

    def _log_row(self, kind: str, values: dict[str, Any]) -> None:
        if self.files:
            self.files.record(kind, self.at.step, values)
