"""Tests of `gpu_quarter.sh` without a GPU. It runs rarely, and time on a GPU must not be lost to its mistakes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu_quarter.sh"
SETUP = ROOT / "benchmarks/gpu_setup.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script, with the Python that runs the tests as python3."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    variables = {**os.environ, "PATH": path, **environment}
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=variables)


def test_every_file_that_it_names_exists() -> None:
    text = SCRIPT.read_text() + SETUP.read_text()
    named = set(re.findall(r"(?:tests|benchmarks)/\w+\.(?:py|sh)", text))
    named |= {f"benchmarks/bench_{name}.py" for name in re.search(r"bench_\{([\w,]+)\}", text)[1].split(",")}  # type: ignore[index]
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.slow
def test_the_check_of_the_script_passes() -> None:
    finished = run("check")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    counts = [int(count) for count in re.findall(r": (\d+) tests", finished.stdout)]
    assert sum(counts) > 1000


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {}, "the stage is missing; give one of facts, train,"),
        (("nothing",), {}, "there is no stage 'nothing'; give one of facts, train,"),
        (("facts",), {"BUDGET": "1.5"}, "BUDGET must be a whole number of seconds, at least 1; got '1.5'"),
        (("facts",), {"DEVICE": "cuda:0"}, "DEVICE must be cuda or cpu; got 'cuda:0'"),
        (("facts",), {"VARIANTS": "pdl-2 nonsense"}, "VARIANTS knows no 'nonsense'"),
        (("train",), {"DATA": "/nowhere"}, "there is no folder DATA=/nowhere"),
        (("prepare",), {}, "prepare needs the archive of the images"),
        (("prepare", "/nowhere.tar.xz"), {}, "there is no /nowhere.tar.xz"),
        (("train", "../.."), {"DEVICE": "cpu"}, "no recipe is called '../..'"),
        (("train", "n-fgsm"), {"DEVICE": "cpu"}, "there are no images: give DATA=FOLDER, or prepare IMAGES.tar.xz"),
        (("step", "lenet"), {"DEVICE": "cpu"}, "there is no network 'lenet'; give one of preact-512, wrn and resnet50"),
    ],
)
def test_bad_input_is_reported_in_a_sentence_and_no_file_is_lost(
    arguments: tuple[str, ...], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    kept = tmp_path / "gpu/kept"
    kept.parent.mkdir()
    kept.write_text("mine")
    places = {"GPU_FOLDER": str(tmp_path / "gpu"), "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    finished = run(*arguments, **places, **environment)
    assert finished.returncode != 0
    assert said in finished.stdout + finished.stderr
    assert kept.read_text() == "mine"


def test_it_stops_if_there_is_no_gpu(tmp_path: Path) -> None:
    finished = run("facts", OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"), CUDA_VISIBLE_DEVICES="")
    assert finished.returncode != 0
    assert "python3's torch sees no GPU" in finished.stdout


TORCH_WITHOUT_CUDA = """
import warnings

__version__ = "2.13.0"

class cuda:
    def is_available():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).")
        return False

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\\nPlease update it.")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with the script, a stand-in for torch that sees no GPU, and nothing to measure."""
    root = tmp_path / "checkout"
    for folder in ("benchmarks", "rmcla_fast/data", "rmcla_fast/ops", "local/gpu"):
        (root / folder).mkdir(parents=True)
    for script in (SCRIPT, SETUP):
        shutil.copy(script, root / "benchmarks")
    shutil.copy(ROOT / "rmcla_fast/errors.py", root / "rmcla_fast")
    for path, text in (
        ("torch.py", TORCH_WITHOUT_CUDA),
        ("triton.py", "__version__ = '3.9.0'"),
        ("rmcla_fast/__init__.py", ""),
        ("rmcla_fast/recipes.py", "def get(name): pass"),
        (
            "rmcla_fast/ops/extension.py",
            "build_config = True\ndef has_kernels(_): return True\ndef why_missing(_): return ''",
        ),
        (
            "rmcla_fast/data/__init__.py",
            "import os\nfrom rmcla_fast.errors import UserError\n"
            "def load(name, folder):\n"
            "    if not os.path.isdir(folder): raise UserError(f'there is no {folder}')\n"
            "    from types import SimpleNamespace\n"
            "    return SimpleNamespace(train=range(7))",
        ),
    ):
        (root / path).write_text(text)
    return root


def rehearse(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the checkout, on the CPU if `environment` does not say otherwise."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    variables = {name: value for name, value in os.environ.items() if name not in ("DATA", "PYTHONPATH")}
    variables |= {"PATH": path, "DEVICE": "cpu", "WORK": str(checkout / "work"), **environment}
    variables |= {"OUT": str(checkout / "out"), "GPU_FOLDER": str(checkout / "local/gpu")}
    command = ["bash", str(checkout / "benchmarks/gpu_quarter.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=checkout)


def assert_reported(finished: subprocess.CompletedProcess[str], sentence: str) -> None:
    both = finished.stdout + finished.stderr
    assert finished.returncode == 1, both
    assert [line for line in both.splitlines() if sentence in line], both
    assert "Traceback" not in both
    assert "unbound variable" not in both


def test_a_driver_that_is_too_old_is_reported_with_the_message_of_torch(checkout: Path) -> None:
    finished = rehearse(checkout, "facts", DEVICE="cuda")
    assert finished.stdout == (
        "python3's torch sees no GPU (The NVIDIA driver on your system is too old (found version 11040). Please update "
        "it); DEVICE=cpu rehearses without one\n"
    )
    assert (finished.returncode, finished.stderr) == (1, "")


EXTENSION_THAT_READS_A_TEXT_FILE = """
import os, pathlib
build_config, why_no_report = None, "there is no report"
path = pathlib.Path(__file__).parents[1] / "_cpu_kernels.so"
if path.exists():
    content = path.read_text()
    if content == "cut short": os.abort()
    build_config = content if content.startswith("good") else None
def has_kernels(kind): return build_config in ("good for " + kind, "good for all")
def why_missing(kind): return "" if has_kernels(kind) else "the compiled extension does not load (invalid ELF header)"
"""


@pytest.mark.parametrize("prepared", ["garbage", "cut short", "good for cuda"])
@pytest.mark.parametrize("before", [None, "good for another"])
@pytest.mark.parametrize("builds", [True, False])
def test_an_extension_that_does_not_load_is_built_and_the_old_one_is_not_lost(
    checkout: Path, prepared: str, before: str | None, builds: bool
) -> None:
    (checkout / "rmcla_fast/ops/extension.py").write_text(EXTENSION_THAT_READS_A_TEXT_FILE)
    name = "_cpu_kernels.so"
    (checkout / "local/gpu" / name).write_text(prepared)
    own = checkout / "rmcla_fast" / name
    if before:
        own.write_text(before)
    kind = "('all', 'cuda')[int(os.environ['RMCLA_WITH_CUDA'])]"
    says = f"import os; open('rmcla_fast/{name}', 'w').write('good for ' + {kind})"
    (checkout / "setup.py").write_text(says if builds else "raise SystemExit('no compiler')")
    finished = rehearse(checkout, "train")
    assert_reported(
        finished, f"the extension in {checkout}/local/gpu does not load here, so this machine builds its own"
    )
    assert "there are no images" in finished.stdout  # it went on
    assert "Aborted" not in finished.stderr
    assert ("build: 1" in finished.stdout) == (not builds)
    assert ("there are no compiled kernels for cpu" in finished.stdout) == (not builds)
    assert (own.read_text() if own.exists() else None) == ("good for all" if builds else before)
    assert not list(own.parent.glob("*.before"))


def test_an_extension_that_loads_is_installed(checkout: Path) -> None:
    (checkout / "rmcla_fast/ops/extension.py").write_text(EXTENSION_THAT_READS_A_TEXT_FILE)
    name = "_cpu_kernels.so"
    for path, text in ((checkout / "local/gpu" / name, "good for all"), (checkout / "rmcla_fast" / name, "garbage")):
        path.write_text(text)
    finished = rehearse(checkout, "train")
    assert "kernels: good for all" in finished.stdout
    assert "build" not in finished.stdout.replace("built", "")
    assert [path.read_text() for path in (checkout / "rmcla_fast").glob("_c*")] == ["good for all"]


def test_missing_and_damaged_images_are_reported_in_a_sentence(checkout: Path) -> None:
    archive = checkout / "local/gpu/images.tar.xz"
    (checkout / "train").mkdir()
    (checkout / "train/0.png").write_bytes(os.urandom(50_000))
    assert_reported(rehearse(checkout, "train"), "there are no images: give DATA=FOLDER, or prepare IMAGES.tar.xz")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(checkout / "train", "train")
    whole = archive.read_bytes()
    for part in (whole[:20_000], b"", b"no archive at all" * 100):
        archive.write_bytes(part)
        finished = rehearse(checkout, "train")
        assert_reported(finished, f"{archive} cannot be unpacked (")
        assert f"{archive}: " not in finished.stderr
        assert finished.stdout.splitlines()[-1].endswith("failed: unpack: 1")
        assert not (checkout / "work/data").exists()
        assert f"{archive} is not an archive, or it is incomplete" in rehearse(checkout, "prepare", str(archive)).stdout
    archive.write_bytes(whole)
    assert "7 images" in rehearse(checkout, "train", BUDGET="1").stdout
    assert (checkout / "work/data/train/0.png").exists()


def test_without_time_nothing_is_started_and_earlier_results_are_kept(checkout: Path) -> None:
    kept = checkout / "work/runs/n-fgsm/checkpoint.pt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (checkout / "images").mkdir()
    for stage, failed in (
        (
            ("train", "n-fgsm", "r-mc-la+"),
            "train-n-fgsm: no time; train-r-mc-la-plus: no time; evaluate-n-fgsm: no time",
        ),
        (
            ("facts",),
            "step-main: no time; step-pdl-2: no time; tests: no time; step-uncaptured: no time; operators: no time",
        ),
        (("step", "wrn"), "step-wrn: no time"),
        (("operators",), "operators: no time"),
    ):
        finished = rehearse(checkout, *stage, BUDGET="1", VARIANTS="pdl-2", DATA=str(checkout / "images"))
        assert_reported(finished, f"; failed: {failed}")
        for name in failed.removesuffix(": no time").split(": no time; "):
            assert f"== {name}: no time is left\n" in finished.stdout
        assert (checkout / "out/raw.tgz").exists()
    assert kept.read_text() == "mine"
