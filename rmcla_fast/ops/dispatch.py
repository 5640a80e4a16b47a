"""Registration of the operators, and the choice of the implementation that runs.

There are four backends: the compiled kernels ("cpu" and "cuda"), Triton, and the plain-torch reference. The `backend`
argument comes first, then the environment variable RMCLA_BACKEND, which is read once, at import. Without either, CPU
tensors use "cpu" if it is there and else "reference"; CUDA tensors use "cuda", else "triton", else "reference".
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from rmcla_fast.ops import extension

BACKENDS = ("reference", "cpu", "triton", "cuda")

_library = torch.library.Library("rmcla_fast", "DEF")
_operators: dict[str, dict[str, Callable[..., Any]]] = {}
_references: dict[str, Callable[..., Any]] = {}
_resolved: dict[tuple[str, str | None], str] = {}
_from_environment = os.environ.get("RMCLA_BACKEND") or None
_triton_installed = importlib.util.find_spec("triton") is not None
_triton_interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def define(stem: str, name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Register the operator `name` with PyTorch under one schema, for every backend.

    `rmcla_fast::NAME` is for the C++ and CUDA kernels; without them it runs the reference. `rmcla_fast::NAME_reference`
    and `rmcla_fast::NAME_triton` run the function NAME of `rmcla_fast.reference.STEM` and
    `rmcla_fast.triton_kernels.STEM`. An overload "NAME.out" is registered in the same way and runs `NAME_out`. The
    registered operators are not differentiable: their outputs never require grad. The public functions add the
    derivative.
    """
    base, _, overload = name.partition(".")
    function = f"{base}_{overload}" if overload else base
    plain = _references[name] = getattr(importlib.import_module(f"rmcla_fast.reference.{stem}"), function)

    def triton(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"rmcla_fast.triton_kernels.{stem}"), function)(*args, **kwargs)

    suffix = f".{overload}" if overload else ""
    for qualified, implementation in {
        name: plain,
        f"{base}_reference{suffix}": plain,
        f"{base}_triton{suffix}": triton,
    }.items():
        _library.define(qualified + schema)
        _library.impl(qualified, torch.no_grad()(implementation), "CompositeExplicitAutograd")
        _library.impl(qualified, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"rmcla_fast::{qualified}", fake, lib=_library)
    extension.connect(name, schema)

    def packet(qualified: str) -> Callable[..., Any]:
        return getattr(getattr(torch.ops.rmcla_fast, qualified), overload or "default")

    compiled = packet(base)
    _operators[name] = {
        "reference": packet(f"{base}_reference"),
        "cpu": compiled,
        "triton": packet(f"{base}_triton"),
        "cuda": compiled,
    }


def choose(name: str, tensor: Tensor, backend: str | None) -> Callable[..., Any]:
    """Return the registered operator that runs `name` on `tensor`.

    Raises:
        ValueError: an unknown backend, or one that cannot run this tensor.
    """
    device_type = "cpu" if tensor.is_cpu else tensor.device.type  # `is_cpu` takes less time than `device.type`
    return _operators[name][resolve(device_type, backend)]


def inside_transform() -> bool:
    """Return whether a transform of torch.func runs, such as `grad` or `vmap`.

    These transforms need plain torch: they take no `autograd.Function` of this kind, and no operator with an optional
    output.
    """
    return bool(torch._C._are_functorch_transforms_active())


def reference(name: str) -> Callable[..., Any]:
    """Return the function in plain torch that the operator `name` has as its reference."""
    return _references[name]


def resolve(device_type: str, backend: str | None) -> str:
    """Return the backend for tensors of `device_type`: `backend` itself, or the best available one for None."""
    known = _resolved.get((device_type, backend))
    if known is None:
        known = _resolved[device_type, backend] = _resolve(device_type, backend)
    return known


# So that torch.compile does not trace these. `torch.compiler.assume_constant_result` sets this attribute and does
# nothing else, but a call of it imports the compiler, which takes longer than all of `import torch`.
inside_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _resolve(device_type: str, backend: str | None) -> str:
    wanted = backend if backend is not None else _from_environment
    if wanted is None:
        return _best(device_type)
    if wanted not in BACKENDS:
        source = "backend" if backend is not None else "RMCLA_BACKEND"
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))} or unset; got {wanted!r}")
    reason = why_not(device_type, wanted)
    if reason:
        raise ValueError(f"backend {wanted!r} cannot run a {device_type} tensor: {reason}")
    return wanted


def why_not(device_type: str, backend: str) -> str:
    """Return one sentence on why `backend` cannot run tensors of `device_type`; "" if it can."""
    if backend == "reference":
        return ""
    if backend == "triton":
        if not _triton_installed:
            return "triton is not installed; pip install triton"
        if device_type == "cuda":
            return ""
        if device_type == "cpu" and _triton_interpreted:
            return _why_no_interpreter()
        return "Triton kernels run on cuda tensors (on cpu tensors only in its interpreter, TRITON_INTERPRET=1)"
    if backend != device_type:
        return f"it runs {backend} tensors only"
    return "" if extension.has_kernels(device_type) else extension.why_missing(device_type)


def _why_no_interpreter() -> str:
    """Return why Triton's interpreter cannot run here; "" if it can.

    Up to Triton 3.6 the interpreter calls int() on arrays of one element, which numpy refuses from 2.4 on.
    """
    triton, numpy = (TorchVersion(importlib.import_module(name).__version__) for name in ("triton", "numpy"))
    if triton < "3.7" and numpy >= "2.4":  # TorchVersion compares these strings as version numbers
        return f"the interpreter of triton {triton} does not run with numpy {numpy}; pip install 'numpy<2.4'"
    return ""


def _best(device_type: str) -> str:
    preferred = ("cuda", "triton") if device_type == "cuda" else ("cpu",)
    for backend in preferred:
        if not why_not(device_type, backend):
            return backend
    if device_type in ("cpu", "cuda"):
        reason = why_not(device_type, preferred[0])
        warnings.warn(f"rmcla_fast runs its plain-torch reference on {device_type}: {reason}", stacklevel=6)
    return "reference"
