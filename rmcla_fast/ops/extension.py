"""The compiled kernels, loaded once, at import: `_cpu_kernels` and `_cuda_kernels`, each for itself.

The files use PyTorch's stable ABI: they know no Python and run with every torch from `FLOOR` on. `connect` registers
their kernels with the PyTorch dispatcher, one operator after another, if they take the types of its schema. A file that
cannot be used costs only its own device, and `why_missing` says why in one sentence. The module `rmcla_fast._C` only
reports what the kernels were built with.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

import torch
from torch.torch_version import TorchVersion

NAME, PACKAGE = "rmcla_fast._C", Path(__file__).parents[1]
# In a checkout the compiled files are beside the sources, where only an editable install puts them.
_EDITABLE = "--editable " if (PACKAGE.parent / "setup.py").exists() else ""
INSTALL = f"pip install --no-build-isolation {_EDITABLE}. (from a checkout, with torch installed)"
FLOOR = "2.10"  # the oldest torch whose stable ABI has all that the kernels call


def path_of(device_type: str) -> Path:
    """Return where the kernels for `device_type`, "cpu" or "cuda", are if they were built."""
    # In the folder of this package: an editable install of another checkout would offer its own kernels, which may
    # differ from the operators here.
    return PACKAGE / f"_{device_type}_kernels{'.dll' if sys.platform == 'win32' else '.so'}"


class Kernels(NamedTuple):
    """A loaded file: the types of its operators, as "name(Tensor, int) -> Tensor", and what registers a kernel."""

    types: dict[str, str]
    register: Callable[[bytes], None]


def _load(device_type: str) -> tuple[Kernels | None, str]:
    """Load the kernels for `device_type`; return (the kernels, "") or (None, why they are missing)."""
    path = path_of(device_type)
    if not path.exists():
        if device_type != "cpu" and path_of("cpu").exists():
            needs = "rebuild it with nvcc and a CUDA torch"
            return None, f"the compiled extension has no {device_type} kernels; {needs}: {INSTALL}"
        return None, f"the compiled extension was not built in {PACKAGE}; build it with: {INSTALL}"
    if TorchVersion(torch.__version__) < FLOOR:
        return None, f"the compiled extension needs torch {FLOOR} or later, and this is torch {torch.__version__}"
    if device_type == "cuda" and torch.version.cuda is None:
        return None, f"the CUDA kernels need a CUDA torch, and torch {torch.__version__} was built without CUDA"
    try:
        _check_whole(path)
        library = ctypes.CDLL(str(path))
        if device_type == "cuda":
            _check_cuda(library)
        library.rmcla_operators.restype = ctypes.c_char_p
        lines = library.rmcla_operators().decode(errors="replace").splitlines()
        library.rmcla_register.restype = None
        register = library.rmcla_register
    except (OSError, AttributeError) as error:  # OSError: an undefined symbol, a missing libcudart, a text file
        first_line = str(error).splitlines()[0]
        return None, f"the compiled extension does not load ({first_line}); rebuild it with: {INSTALL}"
    return Kernels({line.partition("(")[0]: line for line in lines}, register), ""


def _check_whole(path: Path) -> None:
    """Raise an OSError if the end of an ELF file is missing or zero: to load it could end the process with a signal."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01" or header[54:56] != b"\x38\x00":
            return  # the loader itself refuses what is no ELF file; other systems have other formats
        segments, sections = struct.unpack_from("<QQ", header, 32)
        segment_size, segment_count, section_size, section_count, names = struct.unpack_from("<HHHHH", header, 54)
        end = max(segments + segment_size * segment_count, sections + section_size * section_count)
        if end <= size:
            file.seek(segments)
            table = file.read(segment_size * segment_count)
            ends = (start + length for _, _, start, _, _, length, _, _ in struct.iter_unpack("<IIQQQQQQ", table))
            end = max(end, *ends)
            file.seek(sections + section_size * names)
            last_section = file.read(8)
    if size < end:
        raise OSError(f"{path} is cut short: it has {size} of {end} bytes")
    if not any(last_section):  # linkers write it last, so a copy into a file of the final size has not come so far
        raise OSError(f"{path} was not copied to its end")


def _check_cuda(library: ctypes.CDLL) -> None:
    """Raise an OSError if the kernels came with the runtime of another CUDA than torch's; the driver may be too old."""
    if not hasattr(library, "cudaRuntimeGetVersion"):
        return  # Windows does not look for it in what the file is linked to
    version = ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(version))
    if str(version.value // 1000) != str(torch.version.cuda).partition(".")[0]:
        raise OSError(f"it was built with CUDA {version.value // 1000}, and torch with CUDA {torch.version.cuda}")


def _report() -> tuple[dict[str, str] | None, str]:
    """Return (what the kernels were built with, "") or (None, why that is not known)."""
    found = PathFinder.find_spec(NAME, [str(PACKAGE)])
    if found is None or found.origin is None:
        return None, f"no report, since {NAME} was not built for this Python (a wheel for every Python leaves it out)"
    try:
        _check_whole(Path(found.origin))
        if b"libtorch_cpu" in Path(found.origin).read_bytes():
            raise ImportError("it is of an older version, whose kernels would replace these")
        return importlib.import_module(NAME).build_config(), ""
    except (OSError, ImportError, AttributeError) as error:
        return None, f"no report, since {NAME} does not load ({str(error).splitlines()[0]})"


_loaded = {device_type: _load(device_type) for device_type in ("cpu", "cuda")}
build_config, why_no_report = (
    _report() if any(kernels for kernels, _ in _loaded.values()) else (None, _loaded["cpu"][1])
)


def has_kernels(device_type: str) -> bool:
    """Return whether there are compiled kernels for tensors of `device_type`, "cpu" or "cuda"."""
    return device_type in _loaded and _loaded[device_type][0] is not None


def why_missing(device_type: str) -> str:
    """Return one sentence on why `has_kernels(device_type)` is false."""
    return _loaded[device_type][1]


def connect(name: str, schema: str) -> None:
    """Register the loaded kernels of the operator `name`, or give up those of a device that take or return other types.

    PyTorch does not compare the types: a kernel of the stable ABI would read an argument of another type as its own.
    """
    parsed = torch._C.parse_schema(f"rmcla_fast::{name}{schema}")
    arguments, returns = (", ".join(str(one.type) for one in some) for some in (parsed.arguments, parsed.returns))
    wanted = f"{name}({arguments}) -> {returns if len(parsed.returns) == 1 else f'({returns})'}"
    for device_type, (kernels, _) in _loaded.items():
        if kernels is None:
            continue
        if kernels.types.get(name) == wanted:
            kernels.register(name.encode())
        else:
            _loaded[device_type] = (
                None,
                f"the compiled extension in {PACKAGE} was built from other sources (its "
                f"{kernels.types.get(name, f'{name} is not there')}, here {wanted}); rebuild it with: {INSTALL}",
            )
