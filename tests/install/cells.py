"""The ways to install the package, and what each has to say."""

from __future__ import annotations

from dataclasses import dataclass, field

BUILT, REFERENCE = r"cpu: cpu, all \d+ operators", r"cpu: reference, all \d+ operators"
NO_TOOLKIT = "no CUDA toolkit with nvcc and libcudart was found"


@dataclass(frozen=True)
class Cell:
    """One way to install the package.

    `says` are regular expressions for what the installation, the import, `rmcla info` and the operators print together.
    """

    name: str
    says: tuple[str, ...] = (BUILT,)
    python: str = ""  # the version of Python, or any
    torch: str = ""  # the version of torch, or any from the floor on
    cuda: bool | None = None  # whether torch is a build with CUDA, or any
    how: str = "install"  # "install", "editable", "isolated", or "wheel", which was built with another torch
    compiler: str = "all"  # "all", "no nvcc", "none", "fails halfway", or what a stand-in for nvcc does: "nvcc 12.1"
    environment: dict[str, str | None] = field(default_factory=dict)  # None unsets a variable
    folder: str = "here"
    damage: str = ""  # what is done to the installed kernels: "FILE: KIND"
    train: bool = False
    stops: bool = False  # the installation has to fail, with `says`


CELLS = (
    Cell("compiler-and-nvcc", (BUILT, "compiled cuda kernels: /"), cuda=True, train=True),
    Cell("compiler-only", (BUILT, NO_TOOLKIT), cuda=True, compiler="no nvcc", train=True),
    Cell("no-compiler", (REFERENCE, r"there is no C\+\+17 compiler"), compiler="none", train=True),
    Cell("torch-of-the-cpu", (BUILT, "is a build without CUDA"), cuda=False, train=True),
    *(
        Cell(
            f"wheel-{torch}",
            (BUILT, "no report, since rmcla_fast._C was not built"),
            torch=torch,
            how="wheel",
            train=True,
        )
        for torch in ("2.10", "2.11", "2.13", "2.14")
    ),
    *(Cell(f"python-{python}", python=python) for python in ("3.10", "3.11", "3.12", "3.13")),
    Cell("isolated", (REFERENCE, "torch cannot be imported in this build"), how="isolated"),
    Cell("isolated-editable", (REFERENCE, "torch cannot be imported in this build"), how="isolated editable"),
    Cell("editable", how="editable", train=True),
    Cell("path-with-spaces", folder="a path with spaces"),
    Cell("no-home", environment={"HOME": None, "USERPROFILE": None}, train=True),
    Cell("home-not-writable", environment={"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}, train=True),
    Cell("without-kernels", (REFERENCE, "RMCLA_SKIP_NATIVE=1"), environment={"RMCLA_SKIP_NATIVE": "1"}),
    Cell("without-cuda", (BUILT, "RMCLA_WITH_CUDA=0"), environment={"RMCLA_WITH_CUDA": "0"}),
    Cell("compiler-fails-halfway", (REFERENCE, "the compiler failed"), compiler="fails halfway"),
    Cell("nvcc-fails", (BUILT, "the CUDA kernels are NOT built"), cuda=True, compiler="nvcc {cuda}"),
    Cell("nvcc-older", (BUILT, "is release 11 and torch was built with CUDA"), cuda=True, compiler="nvcc 11.8"),
    Cell("nvcc-newer", (BUILT, "is release 99 and torch was built with CUDA"), cuda=True, compiler="nvcc 99.0"),
    Cell(
        "cuda-forced-without-nvcc",
        (f"RMCLA_WITH_CUDA=1, but the CUDA kernels cannot be built: {NO_TOOLKIT}",),
        cuda=True,
        compiler="no nvcc",
        environment={"RMCLA_WITH_CUDA": "1"},
        stops=True,
    ),
    Cell("torch-below-the-floor", (REFERENCE, "needs? torch 2.10 or later, and this is torch 2.9"), torch="2.9"),
    Cell(
        "wheel-below-the-floor",
        (REFERENCE, "needs torch 2.10 or later, and this is torch 2.9"),
        torch="2.9",
        how="wheel",
    ),
    *(
        Cell(f"kernels-{kind.replace(' ', '-')}", (REFERENCE, said), how="wheel", damage=f"_cpu_kernels: {kind}")
        for kind, said in {
            "missing": "the compiled extension was not built in",
            "empty": "file too short",
            "text": "(file too short|invalid ELF header)",
            "cut short": "is cut short: it has",
            "zero from half on": "was not copied to its end",
            "without its list": "undefined symbol: rmcla_operators",
            "of a missing library": "cannot open shared object file",
        }.items()
    ),
    Cell(
        "cuda-kernels-cut-short",
        (BUILT, "none, since the compiled extension does not load .* is cut short"),
        cuda=True,
        how="wheel",
        damage="_cuda_kernels: cut short",
    ),
    Cell(
        "cuda-kernels-of-another-cuda",
        (BUILT, "none, since the compiled extension does not load .*libcudart"),
        cuda=True,
        how="wheel",
        damage="_cuda_kernels: of another CUDA",
    ),
)
