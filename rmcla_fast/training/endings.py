"""The errors with which a run ends early: each says in one sentence where it stopped and how to go on."""

from __future__ import annotations

import signal
from pathlib import Path

from rmcla_fast.errors import Interrupted, NotFinite, RunFailed
from rmcla_fast.models import is_factory
from rmcla_fast.text import shell_word
from rmcla_fast.training import checkpoint


def interrupted(signal_number: signal.Signals, at: str, folder: Path, model: str, ranks: int) -> Interrupted:
    """Return the error of a run that a signal stopped `at` "step 5 of 60", with the command that resumes it."""
    factory = f" --model {shell_word(model)}" if is_factory(model) else ""
    command = "rmcla train" if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m rmcla_fast.cli train"
    return Interrupted(
        f"stopped by {signal_number.name} at {at}; go on with: {command} --resume --out {shell_word(folder)}{factory}",
        signal_number,
    )


def not_finite(what: str, rate: float, folder: Path) -> NotFinite:
    """Return the error of a run at whose learning rate `rate` a loss or weight was no longer finite."""
    path = folder / checkpoint.LAST
    good = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
    return NotFinite(
        f"{what} at learning rate {rate:.4g}; {good}; start another run with a lower --lr, --clip-grad or "
        "--skip-nonfinite"
    )


def overfitted(epoch: int, folder: Path) -> RunFailed:
    """Return the error of a run that `stop_on_overfitting` ended after `epoch`."""
    return RunFailed(
        f"stopped at epoch {epoch}, where catastrophic overfitting began; the best model is "
        f"{folder / checkpoint.BEST}; a smaller --epsilon, another --recipe or a lower --lr may avoid it"
    )
