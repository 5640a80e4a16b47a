"""Build the compiled extension `rmcla_fast._C`; if it cannot be built, install without it and print what is lost.

    pip install --no-build-isolation .        builds the extension for the installed torch

RMCLA_WITH_CUDA=0/1 forces the CUDA kernels off or on; RMCLA_SKIP_NATIVE=1 leaves the whole extension out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST is set; PyTorch's default would need a GPU to build
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"]


def warn(what: str, why: str) -> None:
    """Print in a frame what is not built, and why."""
    line = "*" * 100
    print(f"\n{line}\nrmcla_fast: {what}\n  because: {why}\n{line}\n", file=sys.stderr, flush=True)


def cuda_home() -> Path | None:
    """Return the folder of a CUDA toolkit with nvcc and libcudart; an nvcc on PATH may be only a wrapper."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates += [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    candidates += [*sorted(Path("/usr/local").glob("cuda-*"), reverse=True), "/usr/lib/cuda"]
    for home in (Path(candidate) for candidate in candidates if candidate):
        if (home / "bin/nvcc").exists() and any(home.glob("lib*/libcudart.so*")):
            return home
    return None


def why_no_cuda(torch, home: Path | None) -> str:
    """Return why the CUDA kernels cannot be built; "" if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if home is None:
        return "no CUDA toolkit with nvcc and libcudart was found (set CUDA_HOME to its folder)"
    release = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", release)
    if not found or found[1] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc in {home} is release {found[1] if found else '?'} and torch was built with CUDA {torch.version.cuda}"
        )
    return ""


def extension() -> dict:
    """Return setuptools' arguments for the extension, with the CPU kernels and, if possible, the CUDA kernels."""
    if os.environ.get("RMCLA_SKIP_NATIVE") == "1":
        warn("the compiled kernels are left out; the plain-torch reference runs instead", "RMCLA_SKIP_NATIVE=1")
        return {}
    try:
        import torch
    except ImportError:
        warn(
            "the compiled kernels are NOT built; the plain-torch reference (on a GPU: Triton) runs instead",
            "torch cannot be imported in this build; install torch, then: pip install --no-build-isolation .",
        )
        return {}
    home = cuda_home()
    forced = os.environ.get("RMCLA_WITH_CUDA")
    reason = "RMCLA_WITH_CUDA=0" if forced == "0" else why_no_cuda(torch, home)
    if reason and forced == "1":
        raise SystemExit(f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {reason}")
    if home and not reason:
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)

    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        """A build step that warns if the compiler is missing or fails, so that the install succeeds without kernels."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if forced == "1":
                    raise
                warn(
                    "the compiled kernels are NOT built; the plain-torch reference (on a GPU: Triton) runs instead",
                    f"the compiler failed ({str(error).splitlines()[0]}); a C++17 compiler is needed, see above",
                )
                self.extensions = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    openmp = ["-fopenmp"] if sys.platform == "linux" else []  # without it at::parallel_for compiles to a serial loop
    cpp = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-g1", *openmp, *WARNINGS]
    nvcc = ["-O3", "-lineinfo"]
    sources = [ROOT / "csrc/module.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))]
    if reason:
        warn("the CUDA kernels are NOT built; the CPU kernels are", reason)
        kind, flags, macros = CppExtension, {"cxx": cpp}, []
    else:
        sources += sorted(ROOT.glob("csrc/cuda/*.cu"))
        quoted = '"' + os.environ["TORCH_CUDA_ARCH_LIST"] + '"'
        kind, flags, macros = (
            CUDAExtension,
            {"cxx": cpp, "nvcc": nvcc},
            [("RMCLA_WITH_CUDA", None), ("RMCLA_CUDA_ARCHITECTURES", quoted)],
        )
    module = kind(
        "rmcla_fast._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=openmp,
    )
    module.depends = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*h"))]  # .h and .cuh
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


if __name__ == "__main__":
    setup(**extension())
