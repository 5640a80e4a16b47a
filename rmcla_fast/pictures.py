"""Figures of matplotlib that are saved to files, and the import of matplotlib in any environment."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from rmcla_fast.errors import need

BACKEND = "MPLBACKEND"


def import_matplotlib(purpose: str) -> ModuleType:
    """Import and return matplotlib; `purpose` is what needs it, as for `errors.need`.

    A notebook server leaves its backend in the variable MPLBACKEND of every process that it starts. Where that backend
    is not installed, matplotlib cannot be imported. A figure that is saved to a file needs no backend, so the variable
    is then ignored. It is obeyed otherwise, so that the caller's own figures still appear in the notebook.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        return need("matplotlib", "train", purpose)
    except ValueError:
        named = os.environ.pop(BACKEND, None)
        if "matplotlib" not in sys.modules:  # the parts of the import that failed know nothing of the next one
            for part in [name for name in sys.modules if name.startswith("matplotlib.")]:
                del sys.modules[part]
        try:
            return need("matplotlib", "train", purpose)
        finally:
            if named is not None:
                os.environ[BACKEND] = named


def new_figure(width: float, height: float, purpose: str, **options: Any) -> Any:
    """Create a figure of `width` x `height` inches that can only be saved to a file, with matplotlib's `options`.

    The caller's backend and figures are not touched.
    """
    import_matplotlib(purpose)
    figure_module = need("matplotlib.figure", "train", purpose)
    return figure_module.Figure(figsize=(width, height), layout="constrained", **options)
