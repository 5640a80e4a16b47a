"""The machine code of the CUDA kernels, compiled ahead of time: no spills, no local memory, 128-bit accesses.

These tests need nvcc, but no GPU and no CUDA build of torch, since every build has the headers of the stable ABI.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_emulation import STABLE_ABI
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path.stem for path in ROOT.glob("csrc/cuda/*.cu"))
ARCHITECTURES = ("sm_80", "sm_90")
LANGUAGE = ["-std=c++17", "--expt-relaxed-constexpr", *STABLE_ABI]
INCLUDES = [f"-I{ROOT / 'csrc'}", *(f"-isystem={path}" for path in cpp_extension.include_paths())]


def tool(name: str) -> str | None:
    """Return the path of a CUDA program, from the toolkit, the triton package (which has disassemblers) or PATH."""
    homes = [os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, "/usr/local/cuda"]
    triton = importlib.util.find_spec("triton")
    folders = [Path(home) / "bin" for home in homes if home]
    folders += [Path(triton.origin).parent / "backends/nvidia/bin"] if triton and triton.origin else []
    found = [path for folder in folders if os.access(path := folder / name, os.X_OK)]
    return str(found[0]) if found else shutil.which(name)


class Compiled:
    """Compiles each source once for each architecture; returns the cubin and the report of ptxas on every kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[str, str], tuple[Path, str]] = {}

    def __call__(self, source: str, architecture: str) -> tuple[Path, str]:
        nvcc = tool("nvcc")
        if nvcc is None:
            pytest.skip("compiling the CUDA kernels needs nvcc")
        if (source, architecture) not in self.done:
            cubin = self.folder / f"{source}.{architecture}.cubin"
            flags = ["-O3", "-lineinfo", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"]
            command = [nvcc, *LANGUAGE, *flags, *INCLUDES, str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(cubin)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            self.done[source, architecture] = cubin, result.stderr
        return self.done[source, architecture]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_spills_or_uses_local_memory(compiled: Compiled, source: str, architecture: str) -> None:
    report = compiled(source, architecture)[1]
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
        flags=re.DOTALL,
    )
    expected = {"joint_gradient": 36, "soft_cross_entropy": 36, "perturb_step": 88, "random_start": 20}
    expected |= {"augment": 1, "library": 0}
    assert len(kernels) == expected[source]
    assert not [kernel for kernel in kernels if kernel[1:] != (architecture, "0", "0", "0")]


def test_the_row_kernels_compile_for_an_older_gpu(compiled: Compiled) -> None:
    """TORCH_CUDA_ARCH_LIST may name an architecture without the integer reductions of sm_80."""
    compiled("soft_cross_entropy", "sm_75")
    compiled("joint_gradient", "sm_75")


def disassemble(cubin: Path) -> dict[str, str]:
    """Return the machine code of every kernel, by its mangled name."""
    nvdisasm = tool("nvdisasm")
    if nvdisasm is None:
        pytest.skip("reading machine code needs nvdisasm; pip install triton")
    listing = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", listing, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def kernel(listings: dict[str, str], name: str) -> str:
    found = [code for mangled, code in listings.items() if name in mangled]
    assert len(found) == 1, f"{len(found)} kernels are called {name}"
    return found[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtypes", "loads"),
    [("fff", 3), ("fhf", 2), ("ddd", 3), ("6__halfS2_S2_", 3), ("13__nv_bfloat16S2_S2_", 3), ("6__halffS2_", 4)],
)
def test_perturb_step_moves_128_bits_at_a_time(compiled: Compiled, architecture: str, dtypes: str, loads: int) -> None:
    """Images, origin and gradient are read, and the result is written, 16 bytes at a time; uint8 four at a time."""
    listings = disassemble(compiled("perturb_step", architecture)[0])
    mask_loads = {"fff": 1, "fhf": 1, "ddd": 1}.get(dtypes, 2)  # of the floats; bools are narrower
    for masked in (0, 1):
        code = kernel(listings, f"step_elementsI{dtypes}Lb{masked}E")
        assert len(re.findall(r"\bLDG\.E\.128\b", code)) == loads + masked * mask_loads
        assert len(re.findall(r"\bSTG\.E\.128\b", code)) == 1


@pytest.mark.parametrize("rng_per_image", [0, 1])
@pytest.mark.parametrize("dtypes", ["ff", "dd", "6__halfS2_", "13__nv_bfloat16S2_"])
def test_random_start_moves_128_bits_at_a_time(compiled: Compiled, dtypes: str, rng_per_image: int) -> None:
    listings = disassemble(compiled("random_start", "sm_90")[0])
    for masked in (0, 1):
        code = kernel(listings, f"start_elementsI{dtypes}Lb{rng_per_image}ELb{masked}E")
        assert re.search(r"\bLDG\.E\.128\b", code)
        assert re.search(r"\bSTG\.E\.128\b", code)


def test_augment_stores_128_bits_at_a_time(compiled: Compiled) -> None:
    """Sixteen bytes leave a thread at once. A crop's bytes lie at no such boundary, and are read one by one."""
    code = kernel(disassemble(compiled("augment", "sm_90")[0]), "augment_bytes")
    assert len(re.findall(r"\bSTG\.E\.128\b", code)) == 1
    assert not re.search(r"\b(LDL|STL|ATOM|ATOMG|RED|ATOMS)\b", code)


def test_noise_is_not_contracted(compiled: Compiled) -> None:
    """The product and the sum of random_start are rounded apart: an FFMA where the kernel adds would change bits."""
    listings = disassemble(compiled("random_start", "sm_90")[0])
    for rng_per_image, masked in itertools.product((0, 1), (0, 1)):
        additions = re.findall(r"\bFADD\b", kernel(listings, f"start_elementsIffLb{rng_per_image}ELb{masked}E"))
        assert len(additions) >= 8  # four in the vector, four in the tail


def test_the_part_of_a_budget_is_not_contracted(compiled: Compiled) -> None:
    """epsilon times the mask is rounded before it is subtracted from the origin: an FFMA would change bits."""
    code = kernel(disassemble(compiled("perturb_step", "sm_90")[0]), "step_elementsIfffLb1E")
    without = kernel(disassemble(compiled("perturb_step", "sm_90")[0]), "step_elementsIfffLb0E")
    count = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("FMUL", "FFMA", "FADD")}
    before = {name: len(re.findall(rf"\b{name}\b", without)) for name in count}
    assert count["FMUL"] >= before["FMUL"] + 10  # two products of each of the five elements: four, and one in the tail
    assert count["FFMA"] <= before["FFMA"]
    assert count["FADD"] >= before["FADD"]


@pytest.mark.parametrize("source", ["joint_gradient", "soft_cross_entropy"])
def test_rows_are_read_in_packs_and_kept_on_the_chip(compiled: Compiled, source: str) -> None:
    listings = disassemble(compiled(source, "sm_90")[0])
    for name in ("warp_rowsIfLi32ELb1E", "block_rowsIfLb1E"):
        assert re.search(r"\bLDG\.E\.128\b", kernel(listings, name))
        assert re.search(r"\bSTG\.E\.128\b", kernel(listings, name))
    assert re.search(r"\bLDS\.128\b", kernel(listings, "long_rowsIfLb1E"))
    assert not [name for name, code in listings.items() if re.search(r"\b(LDL|STL|ATOM|ATOMG|RED|ATOMS)\b", code)]


@pytest.mark.parametrize("source", ["joint_gradient", "soft_cross_entropy"])
def test_kernels_with_a_row_per_warp_have_no_barrier(compiled: Compiled, source: str) -> None:
    """This includes the search for the top k. Blocks of a cluster have a barrier of the cluster."""
    listings = disassemble(compiled(source, "sm_90")[0])
    warps = [code for name, code in listings.items() if "warp_rows" in name]
    assert len(warps) == 20
    assert not [code for code in warps if re.search(r"\b(BAR|UCGABAR_ARV|UCGABAR_WAIT)\b", code)]
    assert re.search(r"\bUCGABAR_WAIT\b", kernel(listings, "long_rowsIfLb1E"))
    older = disassemble(compiled(source, "sm_80")[0])
    assert not re.search(r"\bUCGABAR", kernel(older, "long_rowsIfLb1E"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", ["joint_gradient", "soft_cross_entropy"])
def test_sixteen_warps_with_a_row_each_fit_a_multiprocessor(compiled: Compiled, source: str, architecture: str) -> None:
    """A row has up to 1,024 classes, and a multiprocessor 65,536 registers. In float64 only eight warps fit."""
    report = compiled(source, architecture)[1]
    found = re.findall(r"entry function '\w*warp_rowsI(\w+?)Li32E\w*'.*?Used (\d+) registers", report, flags=re.DOTALL)
    assert len(found) == 8
    assert not [(dtype, count) for dtype, count in found if int(count) > (200 if dtype == "d" else 128)]


@pytest.mark.parametrize("source", ["random_start", "soft_cross_entropy"])
def test_the_host_side_compiles_with_this_torch(source: str, tmp_path: Path) -> None:
    """Compile elements and rows, with the host code of their operators, which needs nothing but the stable ABI."""
    nvcc = tool("nvcc")
    if nvcc is None:
        pytest.skip("compiling the CUDA kernels needs nvcc")
    flags = ["-O0", "-arch=sm_90", "-c", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    command = [nvcc, *LANGUAGE, *flags, *INCLUDES, str(ROOT / f"csrc/cuda/{source}.cu")]
    compiled = tmp_path / f"{source}.o"
    result = subprocess.run([*command, "-o", str(compiled)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    needed = subprocess.run(["nm", "--undefined-only", str(compiled)], capture_output=True, text=True).stdout
    assert "torch_get_mutable_data_ptr" in needed
    assert not re.search(r"\b_ZN?K?(2at|3c10|5torch)", needed)  # C++ functions of torch may change with each release
