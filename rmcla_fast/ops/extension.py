"""The compiled extension `rmcla_fast._C`: found once, at import, or missing with one sentence that says why.

Importing it registers the C++ and CUDA kernels with the PyTorch dispatcher; nothing else is taken from it.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

INSTALL = "pip install --no-build-isolation . (from a checkout, with torch installed)"


def _load() -> tuple[dict[str, str | bool] | None, str]:
    """Returns (build configuration, "") or (None, the reason why there is none)."""
    if importlib.util.find_spec("rmcla_fast._C") is None:
        return None, f"the compiled extension was not built; build it with: {INSTALL}"
    try:
        config = importlib.import_module("rmcla_fast._C").build_config()
    except ImportError as error:  # typically an undefined symbol after torch was upgraded
        first_line = str(error).splitlines()[0]
        return None, f"the compiled extension does not load ({first_line}); rebuild it with: {INSTALL}"
    if config["torch"].split("+")[0] != torch.__version__.split("+")[0]:
        reason = f"the compiled extension was built for torch {config['torch']}, and this is torch {torch.__version__}"
        return None, f"{reason}; rebuild it with: {INSTALL}"
    return config, ""


build_config, missing_reason = _load()


def has_kernels(device_type: str) -> bool:
    """Whether the extension has compiled kernels for "cpu" or "cuda" tensors."""
    if build_config is None:
        return False
    return device_type == "cpu" or (device_type == "cuda" and bool(build_config["cuda"]))


def why_missing(device_type: str) -> str:
    """One sentence on why `has_kernels(device_type)` is false."""
    if build_config is None:
        return missing_reason
    return f"the compiled extension has no {device_type} kernels; rebuild it where nvcc and a CUDA torch are: {INSTALL}"
