"""Tests of `benchmarks/count_launches.py` on a sample of generated code, and on both passes of a small network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from count_launches import count  # noqa: E402

GENERATED = """
triton_red_0 = async_compile.triton('triton_red_0', '''
@triton_heuristics.cooperative_reduction(size_hints={'x': 1})
def triton_red_0(in_ptr0):
    tl.extra.cuda.gdc_wait()
    another.run(in_ptr0)
''')
triton_poi_1 = async_compile.triton('triton_poi_1', 'def triton_poi_1(in_ptr0): pass')

def partition_0(args):
    triton_poi_1.run(args[0], 8, stream=stream0)

class Runner:
    def call(self, args):
        with torch.cuda._DeviceGuard(0):
            buf0 = empty_strided_cuda((8,), (1,), torch.float32)
            triton_red_0.run(buf0, 8, stream=stream0)
            triton_poi_1.run(buf0, 8, stream=stream0)
            extern_kernels.addmm(buf0, buf1, buf2, alpha=1, beta=1, out=buf3)
            buf4 = torch.ops.aten.convolution_backward.default(buf0, x, w, [0], [1], [1], [1], False, [0], 1, [%s])
            buf5 = buf4[0]
            x.copy_(buf5)
            workspace_0.zero_()

def benchmark_compiled_module(args):
    triton_poi_1.run(args[0], 8, stream=stream0)
"""


@pytest.mark.parametrize(
    ("mask", "extern"),
    [
        ("True, False, False", "convolution_backward to input"),
        ("True, True, False", "convolution_backward to input and weight"),
    ],
)
def test_launches_are_counted_and_definitions_are_not(mask: str, extern: str) -> None:
    counted = count(GENERATED % mask)
    assert counted.pop("extern") == {"addmm": 1, extern: 1}
    assert counted == {"triton": 3, "with PDL": 1, "cooperative": 1, "copies": 2}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # as after an import of Lightning
    command = (sys.executable, str(BENCHMARKS / "count_launches.py"), *arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_torch_without_cuda_is_reported_in_one_sentence() -> None:
    done = run()
    assert done.returncode == 1
    assert "is not built for CUDA" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not built for CUDA, so it generates no CUDA code")
def test_the_attack_has_no_weight_gradient_and_combo_kernels_add_no_launches(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    file = tmp_path / "launches.json"
    done = run(
        *["--models", "small-cnn", "--batch", "4", "--variants", "default,combo_kernels,pdl", "--json"], str(file)
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(file.read_text())["launches"]["small-cnn"]
    for parts in counted.values():
        gradients = {what for what in parts["attack backward"]["extern"] if what.startswith("convolution_backward")}
        assert gradients == {"convolution_backward to input"}
        assert "convolution_backward to weight" in parts["update backward"]["extern"]  # that of the first layer
    launches = {variant: sum(part["triton"] for part in parts.values()) for variant, parts in counted.items()}
    assert launches["combo_kernels"] <= launches["default"] == launches["pdl"]
    assert all(part["with PDL"] == part["triton"] > 0 for part in counted["pdl"].values())
    assert not any(part["with PDL"] for part in counted["default"].values())


def test_the_page_about_the_h100_has_these_counts() -> None:
    page = (BENCHMARKS.parent / "docs/h100.md").read_text()
    counted = json.loads((BENCHMARKS / "results/launches.json").read_text())["launches"]
    names = {"default": "as it is", "combo_kernels": "`combo_kernels`", "both": "both of them", "pdl": "PDL"}
    names["cooperative_reductions"] = "`triton.cooperative_reductions`"
    for variant, name in names.items():
        sums = [str(sum(part["triton"] for part in network[variant].values())) for network in counted.values()]
        assert f"| {' | '.join([name, *sums])} |" in page
    for network in counted.values():
        assert str(sum(sum(part["extern"].values()) for part in network["default"].values())) in page
