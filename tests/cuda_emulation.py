"""The CUDA kernels, built for a CPU from their own source with tests/cuda_emulator, as operators `rmcla_emulated::`.

Most machines that run the tests have no GPU. The emulation shows that the kernels compute the right results, that all
threads of a block reach the same barriers, and that indices are right up to the last elements. What only a GPU can show
(streams, graphs, the memory model) is in test_cuda_device.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

import rmcla_fast  # noqa: F401  (defines the schemas)

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h")
OPERATORS = (
    "augment.default",
    "joint_gradient.default",
    "redistribute_labels.default",
    "redistribute_labels.out",
    "perturb_step.default",
    "perturb_step.out",
    "random_start.default",
    "random_start.out",
    "soft_cross_entropy.default",
)
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE"]
FLAGS += ["-Wl,-Bsymbolic"]  # the emulator's own versions of functions of torch
STABLE_ABI = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"]  # as in setup.py


def translate(source: str, namespace: str) -> str:
    """Rewrite the parts of CUDA C++ that a C++ compiler with the emulator's header does not understand."""
    source = re.sub(
        r"([\w:]+(?:<[\w, ]+>)?)<<<([^;]*?), stream>>>\((.*?)\);",
        r"emulator::launch(\2, [&] { \1(\3); });",
        source,
        flags=re.DOTALL,
    )
    source = source.replace("extern __shared__ uint4 staging[]", "uint4* staging = emulator::staging()")
    source = re.sub(
        r"__shared__ ([^;]+) (\w+);",
        r"static \1 \2_of[emulator::kMostBlocks]; auto& \2 = emulator::own(\2_of);",
        source,
    )
    return source.replace('RMCLA_LIBRARY("CUDA")', f'RMCLA_LIBRARY_OF("{namespace}", "CPU")')


def build(namespace: str = "rmcla_emulated") -> Path:
    """Compile the library that registers the kernels as `namespace::`, if the sources have changed; return its path."""
    sources = [*sorted(ROOT.glob("csrc/cuda/*.cu")), ROOT / "tests/cuda_emulator/probes.cpp"]
    read = [*sources, *sorted(ROOT.glob("csrc/**/*.*h")), *sorted(ROOT.glob("tests/cuda_emul*/*")), Path(__file__)]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in read) + torch.__version__.encode()).hexdigest()[:16]
    folder = ROOT / "build/cuda_emulation" / f"{namespace}-{key}"
    library = folder / "rmcla_emulated.so"
    if library.exists():
        return library
    for name in HEADERS:
        header = folder / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#include "emulator.h"\n')
    for path in ROOT.glob("csrc/cuda/*.cuh"):
        (folder / "cuda").mkdir(exist_ok=True)
        (folder / "cuda" / path.name).write_text(translate(path.read_text(), namespace))
    everything = folder / f"everything.{os.getpid()}.cpp"
    everything.write_text("\n".join(translate(path.read_text(), namespace) for path in sources))
    includes = [folder, ROOT / "tests/cuda_emulator", ROOT / "csrc", *cpp_extension.include_paths()]
    unfinished = folder / f"rmcla_emulated.{os.getpid()}.so"
    subprocess.run(
        [
            os.environ.get("CXX", "g++"),
            *FLAGS,
            *STABLE_ABI,
            *(f"-I{path}" for path in includes),
            str(everything),
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            "-ltorch_cpu",
            "-o",
            str(unfinished),
        ],
        check=True,
    )
    unfinished.replace(library)  # atomic, since another test process may build the same library
    return library


def register(namespace: str) -> None:
    """Load the library for `namespace`, and register its kernels as the operators of CPU tensors."""
    library = ctypes.CDLL(str(build(namespace)))
    for name in OPERATORS:
        library.rmcla_register(name.removesuffix(".default").encode())


def load() -> Any:
    """Return `torch.ops.rmcla_emulated`, which has the schemas of `torch.ops.rmcla_fast`."""
    namespace = torch.ops.rmcla_emulated
    if not hasattr(load, "library"):
        library = torch.library.Library("rmcla_emulated", "DEF")
        for name in OPERATORS:
            packet, overload = name.split(".")
            schema = getattr(getattr(torch.ops.rmcla_fast, packet), overload)._schema
            library.define(str(schema).removeprefix("rmcla_fast::"))
        register("rmcla_emulated")
        load.library = library  # type: ignore[attr-defined]
    return namespace
