"""`rmcla info`: the build, versions and devices of this installation, and the backend of each operator."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings

import torch
import typer

import rmcla_fast
from rmcla_fast import ops
from rmcla_fast.ops import dispatch, extension

PACKAGES = (
    "numpy",
    "triton",
    "typer",
    "rich",
    "scikit-learn",
    "pillow",
    "matplotlib",
    "tensorboard",
    "foolbox",
    "pyautoattack",
)


def command() -> None:
    """Print the build, the versions, the devices, and the backend that each operator would use, with the reason."""
    typer.echo(report())


def report() -> str:
    """Return several lines of text. A missing package or device is named and is no error."""
    lines = [f"rmcla_fast {rmcla_fast.__version__}, torch {torch.__version__}, Python {platform.python_version()}"]
    lines.append("packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    config = extension.build_config
    described = ", ".join(f"{name} {value or 'none'}" for name, value in config.items()) if config else ""
    lines.append(f"build: {described or extension.why_no_report}")
    for device_type in ("cpu", "cuda"):
        loaded = extension.has_kernels(device_type)
        found = extension.path_of(device_type) if loaded else f"none, since {extension.why_missing(device_type)}"
        lines.append(f"compiled {device_type} kernels: {found}")
    lines.append(
        f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {facts.name}, sm_{facts.major}{facts.minor}, {facts.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "no usable GPU or driver is found"
        lines.append(f"cuda: none, {built}")
    for device_type in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        chosen, reason = _chosen_backend(device_type)
        lines.append(f"operators on {device_type}:")
        operators = [name for name in ops.__all__ if name.islower()]
        lines += [f"  {name:<20} {chosen:<10} {reason}" for name in operators]
    return "\n".join(lines)


def _chosen_backend(device_type: str) -> tuple[str, str]:
    """Return the backend that runs on tensors of `device_type` if none is given, and the reason for it."""
    wanted = os.environ.get("RMCLA_BACKEND")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            chosen = dispatch.resolve(device_type, None)
        except ValueError as error:
            return "none", str(error)
    if wanted:
        return chosen, f"RMCLA_BACKEND={wanted}"
    better = ("cuda", "triton") if device_type == "cuda" else ("cpu",)
    passed_over = better[: better.index(chosen)] if chosen in better else better
    reasons = [f"no {name}: {dispatch.why_not(device_type, name)}" for name in passed_over]
    return chosen, "; ".join(reasons) or "the fastest that this build has"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
