"""The compiled extension `rmcla_fast._C`, loaded once, at import.

Loading it registers the C++ and CUDA kernels with the PyTorch dispatcher. If it cannot be loaded, `missing_reason` says
why in one sentence.
"""

from __future__ import annotations

import importlib
from importlib.machinery import PathFinder
from pathlib import Path

import torch

NAME, PACKAGE = "rmcla_fast._C", Path(__file__).parents[1]
INSTALL = "pip install --no-build-isolation . (from a checkout, with torch installed)"


def _load() -> tuple[dict[str, str | bool] | None, str]:
    """Load the extension; return (its build configuration, "") or (None, why it is missing)."""
    # Only in the folder of this file: an editable install of another checkout would offer its own extension, whose
    # kernels may differ from the operators here.
    if PathFinder.find_spec(NAME, [str(PACKAGE)]) is None:
        return None, f"the compiled extension was not built in {PACKAGE}; build it with: {INSTALL}"
    try:
        config = importlib.import_module(NAME).build_config()
    except ImportError as error:  # usually an undefined symbol, after an upgrade of torch
        first_line = str(error).splitlines()[0]
        return None, f"the compiled extension does not load ({first_line}); rebuild it with: {INSTALL}"
    if config["torch"].split("+")[0] != torch.__version__.split("+")[0]:
        reason = f"the compiled extension was built for torch {config['torch']}, and this is torch {torch.__version__}"
        return None, f"{reason}; rebuild it with: {INSTALL}"
    return config, ""


build_config, missing_reason = _load()


def has_kernels(device_type: str) -> bool:
    """Return whether the extension has kernels for tensors of `device_type`, "cpu" or "cuda"."""
    if build_config is None:
        return False
    return device_type == "cpu" or (device_type == "cuda" and bool(build_config["cuda"]))


def why_missing(device_type: str) -> str:
    """Return one sentence on why `has_kernels(device_type)` is false."""
    if build_config is None:
        return missing_reason
    return f"the compiled extension has no {device_type} kernels; rebuild it with nvcc and a CUDA torch: {INSTALL}"
