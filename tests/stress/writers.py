"""Two commands at the same time in one place: the second is refused, waits, or both results are kept."""

from __future__ import annotations

import shutil

from children import command, rmcla, start, wait
from kills import differences, leftovers, run_content
from samples import EVALUATION, Samples, succeeded, train
from tally import Tally

from rmcla_fast import sealed
from rmcla_fast.data.cache import CACHE
from rmcla_fast.training import checkpoint


def write_together(samples: Samples, count: int, seed: int) -> list[Tally]:
    return [_train(samples, count), _evaluate(samples, count), _pack(samples, count), _save(samples, count)]


def _train(samples: Samples, count: int) -> Tally:
    tally, out = Tally("two trainings in one folder"), samples.root / "together"
    expected = run_content(samples.finished)
    for _ in range(count):
        shutil.rmtree(out, ignore_errors=True)
        both = [start(lambda: command(*train(out, samples.data))) for _ in range(2)]
        ended = sorted((wait(child) for child in both), key=lambda one: one.code)
        if [one.code for one in ended] == [0, 2] and "another process is writing the run" in ended[1].sentence:
            tally.seen["the second one refused in a sentence"] += 1
        elif [one.code for one in ended] == [0, 0]:
            tally.seen["one after the other"] += 1
        else:
            tally.seen["neither"] += 1
            tally.silent.append(f"exit codes {[one.code for one in ended]}: {ended[-1].said[-300:]}")
        tally.lost += differences(expected, run_content(out))[:5]
    return tally


def _evaluate(samples: Samples, count: int) -> Tally:
    tally, run = Tally("two evaluations of one run"), samples.root / "evaluated together"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(samples.finished, run)
    for _ in range(count):
        (run / "evaluation.json").unlink()
        both = [
            start(lambda names=names: command("evaluate", run, "--attacks", names, "--images", "40", "--device", "cpu"))
            for names in ("clean,fgsm", "ce20,mi")
        ]
        codes = [wait(child).code for child in both]
        kept = list(sealed.load(run / "evaluation.json")["attacks"])
        if codes == [0, 0] and kept == ["clean", "fgsm", "ce20", "mi"]:
            tally.seen["the results of both are kept"] += 1
        else:
            tally.seen["a result is missing"] += 1
            tally.lost.append(f"exit codes {codes}, kept {kept}")
    return tally


def _pack(samples: Samples, count: int) -> Tally:
    tally, images = Tally("two packers of one cache"), samples.root / "packed together"
    shutil.rmtree(images, ignore_errors=True)
    shutil.copytree(samples.data, images, ignore=shutil.ignore_patterns(CACHE), copy_function=shutil.copy2)
    run = samples.root / "evaluated here"
    succeeded(rmcla(*train(run, images)))
    expected = {path.name: path.read_bytes() for path in (images / CACHE).iterdir()}
    for _ in range(count):
        shutil.rmtree(images / CACHE)
        both = [start(lambda: command("evaluate", run, *EVALUATION)) for _ in range(3)]
        ended = [wait(child) for child in both]
        if any(one.code for one in ended):
            tally.silent.append(f"exit codes {[one.code for one in ended]}: {ended[0].said[-300:]}")
        waited = sum("waiting for it" in one.said for one in ended)
        tally.seen[f"{waited} of 3 waited" if waited else "none had to wait"] += 1
        found = {path.name: path.read_bytes() for path in (images / CACHE).iterdir()}
        tally.lost += [] if found == expected else ["the cache differs"]
        tally.lost += [path.name for path in leftovers(images)]
    return tally


def _save(samples: Samples, count: int) -> Tally:
    """Save different checkpoints under one name, from two processes, without the lock of the run folder."""
    tally, folder = Tally("two processes that save under one name"), samples.root / "saved together"
    folder.mkdir(exist_ok=True)
    state = vars(checkpoint.read(samples.finished / checkpoint.LAST))
    whole = {"first": {**state["model"]}, "second": {name: value + 1 for name, value in state["model"].items()}}

    def save(name: str) -> int:
        for _ in range(25):
            checkpoint.save(folder / checkpoint.LAST, {"model": whole[name]})
        return 0

    for _ in range(count):
        both = [start(lambda name=name: save(name)) for name in whole]
        codes = [wait(child).code for child in both]
        with (folder / checkpoint.LAST).open("rb") as file:
            sealed.check_seal(file)
        tally.seen["each file whole" if codes == [0, 0] else f"exit codes {codes}"] += 1
        tally.lost += [path.name for path in leftovers(folder)]
    return tally
