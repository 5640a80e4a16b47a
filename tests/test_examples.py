"""Each example runs as it stands in `examples/`, in a small size, and prints what its first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")  # it brings the data
ROOT = Path(__file__).parents[1]
NEEDED = {"lightning_module": "lightning", "accelerate_loop": "accelerate", "own_operator": "triton"}
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SPEEDRUN = (
    "--data digits --model small-cnn --epsilon 0.15 --batch-size 32 --lr 0.2 --smoothing 0 --decay 0.99 --images 60 "
    "--levels 20 99.9"
)


def printed(name: str, options: str, *launcher: str) -> str:
    """Run an example in a process of its own, and return what it printed."""
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"examples/{name}.py needs {NEEDED[name]}, which is not installed")
    done = subprocess.run(
        [sys.executable, *launcher, ROOT / "examples" / f"{name}.py", *options.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "150"},  # so that no cell of a table takes two lines
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def row(text: str, first: str) -> list[float]:
    """Return the number that begins each cell of a row, such as 97.2 of "97.2 ± 0.9"; `first` begins the row."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {first}")]
    return [float(found) for found in re.findall(r"│ *(\d[\d.]*)", line)]


@pytest.mark.parametrize(
    ("name", "options", "launcher"),
    [
        ("your_loop", "", ()),
        ("speedrun", SPEEDRUN, ()),
        ("mixed_precision", "--precision bf16", ()),
        ("mixed_precision", "--precision fp16", ()),
        ("lightning_module", "", ()),
        ("accelerate_loop", "", ()),
        ("accelerate_loop", "--precision bf16", TWO_PROCESSES),
    ],
)
def test_a_loop_trains_a_robust_network(name: str, options: str, launcher: tuple[str, ...]) -> None:
    text = printed(name, f"--epochs 8 {options}", *launcher)
    clean, pgd, *autoattack = map(float, re.findall(r"accuracy ([\d.]+) %", text))
    assert clean > 85  # 10 % is chance
    assert pgd > 45  # an undefended network falls below 10 %
    if name == "speedrun":
        assert re.search(r"\* 20 % after [\d.]+ s\n", text)
        assert "* 99.9 % was not reached" in text
        assert 0 < autoattack[0] <= pgd
    if name == "accelerate_loop":
        assert text.startswith("processes: 2, mixed precision: bf16" if launcher else "processes: 1")


GLOO_AT_THE_END = """
import os, runpy, sys, time
from contextlib import suppress
from pathlib import Path
from accelerate import Accelerator

def threads():
    found = 0
    for comm in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has just ended
            found += "gloo" in comm.read_text()
    return found

def observed(self, end=Accelerator.end_training):
    before, deadline = threads(), time.monotonic() + 5
    end(self)
    while threads() and time.monotonic() < deadline:  # the kernel lists a thread for a moment after it has ended
        time.sleep(0.01)
    # One write, so that the other rank's line does not fall into this one.
    os.write(1, f"threads of gloo: {before > 0} {threads()}\\n".encode())

Accelerator.end_training = observed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads are read from Linux's /proc")
def test_no_thread_of_gloo_outlives_the_group_of_accelerate(tmp_path: Path) -> None:
    """A thread that waits for the interpreter lock when Python ends aborts the process.

    That is a rare race, so the test counts the threads instead.
    """
    (tmp_path / "observed.py").write_text(GLOO_AT_THE_END)
    text = printed("accelerate_loop", "--epochs 1", *TWO_PROCESSES, str(tmp_path / "observed.py"))
    assert text.count("threads of gloo: True 0\n") == 2


@pytest.mark.slow
def test_fine_tuning_makes_a_plain_network_robust() -> None:
    text = printed("fine_tune", "--epochs 8 --tuning-epochs 4 --test-images 150")
    before, after = row(text, "before: 8 epochs"), row(text, "after 4 epochs")
    assert before[0] > 90  # clean
    assert before[1] < 25  # under PGD
    assert after[0] > 85
    assert after[1] > before[1] + 20
    assert after[2] <= after[1]  # APGD is the stronger attack
    assert len(row(text, "the same 4 epochs")) == 3


@pytest.mark.slow
def test_recipes_of_ones_own_train_robust_networks() -> None:
    text = printed("own_recipe", "--epochs 5 --test-images 100")
    plain = row(text, "standard")[2]
    assert plain < 25
    for name in ("n-fgsm", "r-mc-la+, softer labels", "two steps"):
        _cost, clean, pgd, apgd = row(text, name)
        assert clean > 80
        assert pgd > plain + 15
        assert apgd <= pgd


def test_a_table_keeps_its_fixed_features() -> None:
    text = printed("tabular", "--epochs 40")
    plain, robust = row(text, "without attacks"), row(text, "against attacks")
    for clean, attacked in (plain, robust):
        assert clean > 65  # half of the patients are in each class
        assert attacked < clean
    assert robust[1] > plain[1]
    assert row(text, "age") == row(text, "sex") == [0, 0]
    for name in ("bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"):
        budget, move = row(text, name)
        assert 0.5 * budget < move <= 1.001 * budget


@pytest.mark.slow
def test_an_operator_of_ones_own_serves_an_attack() -> None:
    text = printed("own_operator", "--epochs 4")
    found = re.findall(r"^with.* accumulation: attacked network ([\d.]+) %, the other network ([\d.]+) %$", text, re.M)
    assert len(found) == 2
    for attacked, other in found:
        assert float(attacked) < float(other) < 90  # the attack fools the network that it saw more often


@pytest.mark.slow
def test_an_evaluation_says_that_a_model_hides_its_gradients() -> None:
    text = printed("any_model", "--epochs 20 --test-images 100")
    accuracy = {name: row(text, f"{name} ")[0] for name in ("clean", "fgsm", "ce20", "cw100", "apgd", "autoattack")}
    assert accuracy["ce20"] > accuracy["clean"] - 25  # it looks robust
    assert accuracy["apgd"] < 20
    assert accuracy["autoattack"] <= accuracy["apgd"]
    assert re.search(r"^\* ce20: the gradient was exactly zero for \d+ images", text, re.M)


def test_the_page_names_every_example() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    named = re.findall(r"^## \[examples/(\w+)\.py\]\(\.\./examples/(\w+)\.py\)$", page, re.M)
    assert sorted(shown for shown, _ in named) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    assert all(shown == linked for shown, linked in named)
