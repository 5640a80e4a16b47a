"""Build the source distribution and the wheels into dist, and audit them; `make wheel` runs this in its environment.

Each wheel is built from the source distribution. It has only kernels, which know no Python: so its tag is cp310-abi3,
and it installs on Python 3.10 and later. `1cu13` marks the wheel with CUDA kernels, which pip prefers to `0cpu`. Beside
a torch without CUDA its CPU kernels run all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DIST, WORK = ROOT / "dist", ROOT / "build/wheels"
ARCHITECTURES = "8.0;9.0;10.0+PTX"
OF_TORCH = ("libtorch*", "libc10*", "libcudart*")  # torch brings these along

sys.path.insert(0, str(ROOT))
import setup  # noqa: E402


def run(*command: object, **environment: str) -> None:
    """Run one of the environment's programs, and stop if it fails."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join((programs, os.environ["PATH"]))
    arguments = [str(word) for word in command]
    done = subprocess.run(arguments, cwd=ROOT, env={**os.environ, "PATH": path, **environment})
    if done.returncode != 0:
        sys.exit(f"`{' '.join(arguments[:4])} …` ended with {done.returncode}")


def build(source: Path, number: str, **environment: str) -> Path:
    """Build and audit a wheel; return its path in dist."""
    folder = WORK / number
    options = f"--config-settings=--build-option=--py-limited-api=cp310 --build-number={number}"
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", options)
    run(*pip, "--wheel-dir", folder, source, **environment)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "content")
    kernels = sorted((folder / "content/rmcla_fast").glob("_*_kernels.so"))
    wanted = ["_cpu_kernels.so", *(["_cuda_kernels.so"] if environment["RMCLA_WITH_CUDA"] == "1" else [])]
    if [path.name for path in kernels] != wanted:
        sys.exit(f"{wheel.name} has {[path.name for path in kernels]}, and should have {wanted}")
    run("torch-abi-audit", "--check", "torch", "--verbose", *kernels)
    excluded = [word for pattern in OF_TORCH for word in ("--exclude", pattern)]
    run("auditwheel", "show", wheel)
    run("auditwheel", "repair", "--strip", *excluded, "--wheel-dir", folder / "audited", wheel)
    (audited,) = (folder / "audited").glob("*.whl")
    return Path(shutil.move(audited, DIST))


def main() -> None:
    """Build what this machine can, and print the names."""
    for folder in (DIST, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, RMCLA_SKIP_NATIVE="1")
    (source,) = DIST.glob("*.tar.gz")
    made = [build(source, "0cpu", RMCLA_WITH_CUDA="0")]
    reason = setup.why_no_cuda(torch, setup.cuda_home())
    if not reason:
        number = "1cu" + torch.version.cuda.split(".")[0]
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        made.append(build(source, number, RMCLA_WITH_CUDA="1", TORCH_CUDA_ARCH_LIST=architectures))
    for path in (source, *made):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**20:.1f} MiB")
    if reason:
        print(f"no wheel with CUDA kernels: {reason}")


if __name__ == "__main__":
    main()
