"""`import rmcla_fast` takes little time: it imports torch and the standard library; `rmcla` adds typer and rich.

Nothing is timed here. `benchmarks/bench_import.py` measures the milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rmcla_fast.ops.dispatch import resolve

ROOT = Path(__file__).parents[1]
SLOW_PARTS_OF_TORCH = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.tensorboard")
OF_OTHER_COMMANDS = {  # what only training, pictures, data sets and attacks of other libraries need
    *("triton", "sklearn", "scipy", "matplotlib", "PIL", "tensorboard", "torchvision", "timm", "transformers"),
    *("foolbox", "eagerpy", "pyautoattack", "torchattacks", "lightning", "accelerate", "torchmetrics", "sympy"),
}


def imported_beside_torch(code: str, *arguments: str, **environment: str) -> set[str]:
    """Return the modules that `code` imports in a process of its own, without those that `import torch` imports."""
    program = f"""
import sys
import torch
before = set(sys.modules)
try:
{code}
finally:
    print("\\n".join(["MODULES", *(set(sys.modules) - before)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("MODULES\n")[2].split())


def distributions(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_package_imports_nothing_but_torch_numpy_and_the_standard_library() -> None:
    modules = imported_beside_torch("    import rmcla_fast")
    assert "rmcla_fast.ops.perturb_step" in modules
    foreign = distributions(modules) - set(sys.stdlib_module_names) - {"rmcla_fast", "torch", "numpy"}
    assert not {name for name in foreign if not name.startswith("_")}  # such as _sysconfigdata of this Python
    assert not modules & {*SLOW_PARTS_OF_TORCH, "rmcla_fast.training", "rmcla_fast.attacks", "rmcla_fast.data"}


@pytest.mark.parametrize("backend", ["", "reference"])
def test_an_update_imports_no_optional_library(backend: str) -> None:
    code = """
    import rmcla_fast
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images, labels, rng = torch.rand(2, 1, 2, 2), torch.tensor([0, 2]), torch.tensor([0, 0])
    recipe = rmcla_fast.recipes.get("r-mc-la+")
    example = rmcla_fast.adversarial_example(network, images, labels, recipe, rng=rng)
    rmcla_fast.soft_cross_entropy(network(example.images), example.soft_labels).backward()
"""
    modules = imported_beside_torch(code, RMCLA_BACKEND=backend)
    by_torch = {"sympy"}  # torch.autograd.grad imports it to compare shapes
    assert not distributions(modules) & {*OF_OTHER_COMMANDS, "typer", "rich"} - by_torch
    assert not modules & set(SLOW_PARTS_OF_TORCH)


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["recipes"], ["train", "--help"], ["evaluate", "--help"]])
def test_a_command_that_only_prints_imports_no_library_that_it_does_not_need(arguments: list[str]) -> None:
    pytest.importorskip("typer")
    code = """
    from rmcla_fast.cli import run
    assert run(sys.argv[1:]) == 0
"""
    modules = imported_beside_torch(code, *arguments)
    assert "typer" in modules
    assert not distributions(modules) & OF_OTHER_COMMANDS
    assert not modules & set(SLOW_PARTS_OF_TORCH)


def test_the_compiler_is_told_what_it_reads_without_its_import() -> None:
    """`dispatch.py` sets the attribute by hand that torch's own decorator would set."""

    @torch.compiler.assume_constant_result
    def decorated() -> None: ...

    assert vars(decorated).items() <= vars(resolve).items()
    assert vars(decorated)
