"""Build the compiled kernels. What cannot be built is left out, the install succeeds, and a frame says what is lost.

    pip install --no-build-isolation .        builds with the headers of the installed torch

`rmcla_fast/_cpu_kernels.so` and `_cuda_kernels.so` use PyTorch's stable ABI: they know no Python and run with every
torch from `FLOOR` on. `rmcla_fast._C` is a Python module that only reports the build. A wheel for every Python
(`bdist_wheel --py-limited-api=cp310`, as in `make wheel`) leaves it out.

RMCLA_WITH_CUDA=0/1 forces the CUDA kernels off or on; RMCLA_SKIP_NATIVE=1 leaves out everything that is compiled.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
FLOOR = (2, 10)  # the oldest torch whose stable ABI has all that the kernels call
ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST is set; PyTorch's default would need a GPU to build
MEMORY = {"nvcc": 2.5e9, "c++": 1e9}  # bytes that a compiler takes for one file
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"]
# Hidden, since a name that two libraries share, such as a static variable of an inline function, would be one variable.
CXX = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-fno-wrapv",  # setuptools passes on the -fwrapv of Python, which slows the loops over rows down
    "-g1",
    "-fvisibility=hidden",
    f"-ffile-prefix-map={ROOT}=.",  # so that no message has a path of the machine that built the file
]
NVCC = ["-std=c++17", "-O3", "-lineinfo"]
MSVC = ["/std:c++17", "/O2", "/fp:precise", "/permissive-", "/EHsc"]
LOST = {
    "rmcla_fast._cpu_kernels": "the CPU kernels are NOT built; the plain-torch reference runs instead",
    "rmcla_fast._cuda_kernels": "the CUDA kernels are NOT built; a GPU runs Triton or the plain-torch reference",
    "rmcla_fast._C": "the report of the build is left out; `rmcla info` does not show the compiler",
}


def warn(what: str, why: str) -> None:
    """Print in a frame what is not built, and why."""
    line = "*" * 100
    print(f"\n{line}\nrmcla_fast: {what}\n  because: {why}\n{line}\n", file=sys.stderr, flush=True)


def cuda_home() -> Path | None:
    """Return the folder of a CUDA toolkit with nvcc and libcudart; an nvcc on PATH may be only a wrapper.

    CUDA_HOME or CUDA_PATH, if set, is the only folder that counts.
    """
    nvcc = shutil.which("nvcc")
    candidates = [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    candidates += [*sorted(Path("/usr/local").glob("cuda-*"), reverse=True), "/usr/lib/cuda"]
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for home in (Path(candidate) for candidate in ([chosen] if chosen else candidates) if candidate):
        if any(home.glob("bin/nvcc*")) and any([*home.glob("lib*/libcudart.so*"), *home.glob("lib/*/cudart.lib")]):
            return home
    return None


def why_no_cuda(torch, home: Path | None) -> str:
    """Return why the CUDA kernels cannot be built; "" if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if home is None:
        return "no CUDA toolkit with nvcc and libcudart was found (set CUDA_HOME to its folder)"
    try:
        release = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        return f"nvcc in {home} does not run ({error})"
    found = re.search(r"release (\d+)\.", release)
    if not found or found[1] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc in {home} is release {found[1] if found else '?'} and torch was built with CUDA {torch.version.cuda}"
        )
    return ""


def jobs(memory_of_one: float) -> int:
    """Return how many compilers may run at once: one a core, as far as the memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = []
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s*(\d+)", 1024),
        ("/sys/fs/cgroup/memory.max", r"^(\d+)", 1),  # "max" where the container has no limit
    ):
        if Path(path).exists() and (found := re.search(pattern, Path(path).read_text())):
            free.append(int(found[1]) * unit)
    return max(1, min([cores, *(int(memory / memory_of_one) for memory in free)]))


def extensions(torch, with_cuda: bool) -> list[Extension]:
    """Return what is to be compiled: the kernels of each device, then the report."""
    from torch.utils.cpp_extension import include_paths, library_paths

    windows = sys.platform == "win32"
    cxx = MSVC if windows else [*CXX, *WARNINGS]
    nvcc = NVCC if windows else [*NVCC, "-Xcompiler=-fvisibility=hidden"]
    headers = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("csrc/**/*.*h"))]  # .h and .cuh
    target = f"0x{FLOOR[0]:02x}{FLOOR[1]:02x}000000000000ULL"

    def kernels(device: str, pattern: str, libraries: list[str], *macros: tuple[str, None]) -> Extension:
        return Extension(
            f"rmcla_fast._{device}_kernels",
            [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern))],
            depends=headers,
            include_dirs=[str(ROOT / "csrc"), *include_paths(device)],
            library_dirs=library_paths(device),
            libraries=libraries,  # by name, since CppExtension adds libtorch_python, which no file here uses
            define_macros=[("TORCH_TARGET_VERSION", target), *macros],
            extra_compile_args={"cxx": [*cxx], "nvcc": [*nvcc]},
            export_symbols=["rmcla_operators", "rmcla_register"],
            language="c++",
        )

    found = [kernels("cpu", "csrc/cpu/*.cpp", ["torch_cpu"])]
    if with_cuda:
        found.append(kernels("cuda", "csrc/cuda/*.cu", ["torch_cpu", "torch_cuda", "cudart"], ("USE_CUDA", None)))
    report = Extension(
        "rmcla_fast._C",
        ["csrc/module.cpp"],
        include_dirs=include_paths(),
        define_macros=[("RMCLA_CUDA_ARCHITECTURES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else ""}"')],
        extra_compile_args={"cxx": [*cxx]},
        language="c++",
    )
    return [*found, report]


def native() -> dict:
    """Return setuptools' arguments for what is compiled; {} if nothing can be."""
    if os.environ.get("RMCLA_SKIP_NATIVE") == "1":
        warn("the compiled kernels are left out; the plain-torch reference runs instead", "RMCLA_SKIP_NATIVE=1")
        return {}
    forced = os.environ.get("RMCLA_WITH_CUDA")
    missing = "torch cannot be imported in this build; install torch, then: pip install --no-build-isolation ."
    try:
        import torch
    except ImportError:
        reason = missing
    else:
        found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
        needs = ".".join(map(str, FLOOR))
        reason = "" if found >= FLOOR else f"they need torch {needs} or later, and this is torch {torch.__version__}"
    if reason and forced == "1":
        raise SystemExit(f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {reason}")
    if reason:
        warn("the compiled kernels are NOT built; the plain-torch reference (on a GPU: Triton) runs instead", reason)
        return {}
    home = cuda_home()
    reason = "RMCLA_WITH_CUDA=0" if forced == "0" else why_no_cuda(torch, home)
    if reason and forced == "1":
        raise SystemExit(f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {reason}")
    if reason:
        warn(LOST["rmcla_fast._cuda_kernels"], reason)
    else:
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    os.environ.setdefault("MAX_JOBS", str(jobs(MEMORY["c++" if reason else "nvcc"])))

    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """A build step that compiles each file for itself and warns if the compiler is missing or fails."""

        def run(self) -> None:
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            wanted = [
                one for one in self.extensions if one.name != "rmcla_fast._C" or not (wheel and wheel.py_limited_api)
            ]
            inplace, compiler, built = self.inplace, self.compiler, []
            self.remove_what_was_built_before()
            for extension in wanted:
                self.extensions, self.inplace, self.compiler = [extension], inplace, compiler
                try:
                    super().run()
                    built.append(extension)
                except Exception as error:
                    if forced == "1" and extension.name == "rmcla_fast._cuda_kernels":
                        raise
                    said = (str(error).splitlines() or [type(error).__name__])[0]
                    why = f"the compiler failed ({said}); a C++17 compiler is needed, see above"
                    program = os.environ.get("CXX", "c++").strip() or "c++"
                    if sys.platform != "win32" and shutil.which(program.split()[0]) is None:
                        why = f"there is no C++17 compiler (no {program} on PATH; CXX names another one)"
                    warn(LOST[extension.name], why)
                    if extension.name == "rmcla_fast._cuda_kernels":  # the report comes last, and says so
                        wanted[-1].define_macros = [("RMCLA_CUDA_ARCHITECTURES", '""')]
            self.extensions, self.inplace = built, inplace

        def remove_what_was_built_before(self) -> None:
            """Remove the files of an earlier build: its kernels may be of other sources, or not wanted any more."""
            for folder in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
                for pattern in ("_C.*", "_cpu_kernels.*", "_cuda_kernels.*"):
                    for path in folder.glob(f"rmcla_fast/{pattern}"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

        def get_ext_filename(self, ext_name: str) -> str:
            if ext_name.endswith("_kernels"):  # no tag of a Python version, since the file knows no Python
                return os.path.join(*ext_name.split(".")) + (".dll" if sys.platform == "win32" else ".so")
            return super().get_ext_filename(ext_name)

    return {"ext_modules": extensions(torch, with_cuda=not reason), "cmdclass": {"build_ext": Build}}


if __name__ == "__main__":
    setup(**native())
