"""Describe the machine and the code for a report. Nothing here fails if git or nvidia-smi is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # imports this checkout, even if another version is installed
from rmcla_fast.ops.dispatch import resolve  # noqa: E402


def commit() -> str:
    """Return the environment variable COMMIT, or else the commit that git reports, or else "unknown".

    COMMIT is for a copy of the checkout without its history.
    """
    return os.environ.get("COMMIT") or _output("git", "describe", "--always", "--dirty") or "unknown"


def clocks() -> str:
    """Return the GPU's present clocks, temperature and power, or "" if nvidia-smi is missing."""
    return _nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw")


def processor_name(device: torch.device) -> str:
    """Return the name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions, the commit and the load, for a JSON report."""
    about: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": processor_name(device),
        "backend": resolve(device.type, None),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "load average": os.getloadavg(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "processor": processor_name(torch.device("cpu")),
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory bytes": properties.total_memory,
            "L2 bytes": properties.L2_cache_size,
            "driver": _nvidia_smi("driver_version"),
            "clocks": clocks(),
            "highest clocks and power limit": _nvidia_smi("clocks.max.sm,clocks.max.mem,power.limit"),
        }
    return about


def _nvidia_smi(query: str) -> str:
    return _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")


def _output(*command: str) -> str:
    """Return what a command prints, or "" if the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
