"""The choice of the backend (by argument, RMCLA_BACKEND or availability), and the messages if one is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import rmcla_fast
from rmcla_fast.ops import dispatch, extension

ROOT = Path(rmcla_fast.__file__).parents[1]


def test_a_backend_that_cannot_run_the_tensor_says_why() -> None:
    with pytest.raises(ValueError, match="backend 'cuda' cannot run a cpu tensor: it runs cuda tensors only"):
        rmcla_fast.random_start(torch.rand(3), 0.1, rng=torch.tensor([0, 0]), backend="cuda")


def test_the_default_on_a_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = dispatch._best("cpu")
    assert chosen == ("cpu" if extension.has_kernels("cpu") else "reference")


@pytest.mark.gpu
def test_the_default_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    has_triton = importlib.util.find_spec("triton") is not None
    wanted = "cuda" if extension.has_kernels("cuda") else "triton" if has_triton else "reference"
    assert dispatch._best("cuda") == wanted
    with pytest.raises(ValueError, match="backend 'cpu' cannot run a cuda tensor: it runs cpu tensors only"):
        rmcla_fast.joint_gradient(torch.randn(2, 3).cuda(), torch.tensor([0, 1]).cuda(), backend="cpu")


def test_a_backend_says_in_one_sentence_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = "Triton kernels run on cuda tensors (on cpu tensors only in its interpreter, TRITON_INTERPRET=1)"
    assert [dispatch.why_not(device, "reference") for device in ("cpu", "cuda", "meta")] == ["", "", ""]
    assert dispatch.why_not("cuda", "cpu") == "it runs cpu tensors only"
    assert dispatch.why_not("cpu", "cuda") == "it runs cuda tensors only"
    monkeypatch.setattr(dispatch, "_triton_interpreted", False)
    monkeypatch.setattr(dispatch, "_triton_installed", True)
    assert [dispatch.why_not(device, "triton") for device in ("cpu", "cuda")] == [interpreter, ""]
    monkeypatch.setattr(dispatch, "_triton_installed", False)
    for device in ("cpu", "cuda"):
        assert dispatch.why_not(device, "triton") == "triton is not installed; pip install triton"
    monkeypatch.setattr(dispatch, "_triton_installed", True)
    monkeypatch.setattr(dispatch, "_triton_interpreted", True)
    assert [dispatch.why_not(device, "triton") for device in ("meta", "cuda")] == [interpreter, ""]


@pytest.mark.parametrize(
    ("device", "available", "chosen", "warned"),
    [
        ("cuda", {"cuda", "triton"}, "cuda", []),
        ("cuda", {"triton"}, "triton", []),
        ("cuda", {"cpu"}, "reference", ["rmcla_fast runs its plain-torch reference on cuda: no cuda on cuda"]),
        ("cpu", {"cpu", "triton"}, "cpu", []),
        ("cpu", {"cuda", "triton"}, "reference", ["rmcla_fast runs its plain-torch reference on cpu: no cpu on cpu"]),
        ("meta", set(), "reference", []),
    ],
)
def test_the_default_is_the_best_backend_that_is_available(
    monkeypatch: pytest.MonkeyPatch, device: str, available: set[str], chosen: str, warned: list[str]
) -> None:
    monkeypatch.setattr(dispatch, "_from_environment", None)
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(
        dispatch, "why_not", lambda device, backend: "" if backend in available else f"no {backend} on {device}"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert dispatch.resolve(device, None) == chosen
        assert dispatch.resolve(device, None) == chosen
    assert [str(each.message) for each in caught] == warned, "a choice that is made once warns once"


@pytest.mark.parametrize(("source", "given"), [("backend", "fast"), ("RMCLA_BACKEND", None)])
def test_a_backend_that_cannot_be_chosen_is_an_error(
    monkeypatch: pytest.MonkeyPatch, source: str, given: str | None
) -> None:
    monkeypatch.setattr(dispatch, "_from_environment", "fast")
    monkeypatch.setattr(dispatch, "_resolved", {})  # without the choices of earlier tests
    for _ in range(2):  # an error is not remembered as a choice
        with pytest.raises(ValueError) as raised:
            dispatch.resolve("cpu", given)
        known = "'reference', 'cpu', 'triton', 'cuda'"
        assert str(raised.value) == f"{source} must be one of {known} or unset; got 'fast'"
    assert dispatch.resolve("cpu", "reference") == "reference"
    assert dispatch.resolve("meta", "reference") == "reference"
    with pytest.raises(ValueError, match=r"^backend 'cpu' cannot run a meta tensor: it runs cpu tensors only$"):
        dispatch.resolve("meta", "cpu")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_environment_says_whether_triton_is_interpreted() -> None:
    assert dispatch._triton_interpreted is (os.environ.get("TRITON_INTERPRET") == "1")
    missing = dispatch._why_no_interpreter() if dispatch._triton_interpreted else ""
    device = "cpu" if dispatch._triton_interpreted else "cuda"
    assert dispatch.why_not(device, "triton") == missing


def test_each_backend_runs_its_registered_operator() -> None:
    operator = dispatch.choose("perturb_step.out", torch.zeros(2), "reference")
    assert operator is torch.ops.rmcla_fast.perturb_step_reference.out
    assert dispatch._operators["perturb_step.out"] == {
        "reference": torch.ops.rmcla_fast.perturb_step_reference.out,
        "cpu": torch.ops.rmcla_fast.perturb_step.out,
        "triton": torch.ops.rmcla_fast.perturb_step_triton.out,
        "cuda": torch.ops.rmcla_fast.perturb_step.out,
    }
    assert dispatch._operators["augment"] == {
        "reference": torch.ops.rmcla_fast.augment_reference.default,
        "cpu": torch.ops.rmcla_fast.augment.default,
        "triton": torch.ops.rmcla_fast.augment_triton.default,
        "cuda": torch.ops.rmcla_fast.augment.default,
    }
    assert set(dispatch._operators) == {
        *("augment", "joint_gradient", "soft_cross_entropy"),
        *(name + suffix for name in ("perturb_step", "random_start", "redistribute_labels") for suffix in ("", ".out")),
    }


def test_every_operator_is_registered_for_every_backend() -> None:
    for name in dispatch._operators:
        base, _, overload = name.partition(".")
        for qualified in (base, f"{base}_reference", f"{base}_triton"):
            assert (overload or "default") in getattr(torch.ops.rmcla_fast, qualified).overloads(), (name, qualified)


def kernel_signatures(source: str) -> dict[str, list[str]]:
    """Return, for each operator, the return and parameter types of the C++ function that a source registers for it."""
    source = source.replace("const Numbers&", "const std::optional<Tensor>&")
    found = {}
    for function, operator in re.findall(r'implement<&(\w+)>\("([\w.]+)"\)', source):
        (result, parameters), *others = re.findall(rf"^(\w[\w:<>, ]*) {function}\(([^)]*)\) {{", source, re.M)
        assert not others, operator
        types = re.split(r",(?![^<]*>)", parameters)
        found[operator] = [result.split(), *(text.split()[:-1] for text in types)]
    return found


def test_cpu_and_cuda_kernels_have_the_same_cpp_signatures() -> None:
    """A build without CUDA compares only the types of the CPU kernels with the schemas, when it is imported."""
    cuda, cpu = (
        {
            operator: signature
            for path in sorted((ROOT / "csrc" / folder).glob(pattern))
            for operator, signature in kernel_signatures(path.read_text()).items()
        }
        for folder, pattern in (("cuda", "*.cu"), ("cpu", "*.cpp"))
    )
    assert {"joint_gradient", "redistribute_labels.out", "perturb_step.out", "random_start.out"} <= set(cpu)
    assert cuda == cpu


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [("3.6.0", "2.5.5", False), ("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.7.0", "2.5.5", True)],
)
def test_an_interpreter_that_does_not_run_with_numpy_is_reported(
    monkeypatch: pytest.MonkeyPatch, triton: str, numpy: str, runs: bool
) -> None:
    modules = {
        name: types.SimpleNamespace(__version__=version) for name, version in (("triton", triton), ("numpy", numpy))
    }
    monkeypatch.setattr(dispatch, "_triton_installed", True)
    monkeypatch.setattr(dispatch, "_triton_interpreted", True)
    monkeypatch.setattr(dispatch.importlib, "import_module", modules.__getitem__)
    reason = dispatch.why_not("cpu", "triton")
    assert (reason == "") == runs
    assert runs or (numpy in reason and triton in reason and "pip install" in reason)
    assert dispatch.why_not("cuda", "triton") == ""


# Run before the import of the package, this hides the compiled kernels, as if they had not been built.
MISSING = """
from pathlib import Path
exists = Path.exists
Path.exists = lambda path, **options: "_kernels." not in path.name and exists(path, **options)
"""


def run(code: str, **environment: str) -> str:
    """Run `code` in a new interpreter and return its output; RMCLA_BACKEND and TRITON_INTERPRET are unset or given."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RMCLA_BACKEND", "TRITON_INTERPRET")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import warnings
import torch
recorder = warnings.catch_warnings(record=True)
caught = recorder.__enter__()
warnings.simplefilter("always")
import rmcla_fast
logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
def call(**kwargs):
    try:
        rmcla_fast.joint_gradient(logits, labels, **kwargs)
        return "ran"
    except ValueError as error:
        return str(error)
"""


def test_the_argument_overrides_the_environment_which_overrides_the_default() -> None:
    printed = run(
        CALL
        + """
print(call())
print(call(backend="reference"))
from rmcla_fast.ops.dispatch import resolve
print(resolve("cpu", "reference"))
""",
        RMCLA_BACKEND="cuda",
    ).splitlines()
    assert printed == ["backend 'cuda' cannot run a cpu tensor: it runs cuda tensors only", "ran", "reference"]
    printed = run(
        CALL
        + """
from rmcla_fast.ops.dispatch import resolve
print(resolve("cpu", None), call(), len(caught))
""",
        RMCLA_BACKEND="reference",
    )
    assert printed.split() == ["reference", "ran", "0"], "a backend that was asked for needs no warning"


def test_an_unknown_backend_is_an_error() -> None:
    printed = run(CALL + "\nprint(call())", RMCLA_BACKEND="fast")
    assert printed.startswith("RMCLA_BACKEND must be one of 'reference', 'cpu', 'triton', 'cuda'")
    assert "'fast'" in printed
    with pytest.raises(ValueError, match=r"backend must be one of 'reference', 'cpu', 'triton', 'cuda' .*'fast'"):
        rmcla_fast.joint_gradient(torch.randn(2, 3), torch.tensor([0, 1]), backend="fast")


def test_import_and_first_call_load_no_heavy_module() -> None:
    """An empty RMCLA_BACKEND counts as unset, and an error about Triton says what it needs."""
    printed = run(
        CALL
        + """
import sys
heavy = "rmcla_fast.triton_kernels.perturb_step", "rmcla_fast.training", "rmcla_fast.attacks", "matplotlib"
print(call())
print([name for name in heavy if name in sys.modules])
print(call(backend="triton"))
""",
        RMCLA_BACKEND="",
    ).splitlines()
    assert printed[:2] == ["ran", "[]"]
    assert printed[2].startswith("backend 'triton' cannot run a cpu tensor: ")
    installed = importlib.util.find_spec("triton") is not None
    assert ("TRITON_INTERPRET=1" if installed else "pip install triton") in printed[2]


def test_without_the_extension_the_reference_runs_with_one_warning() -> None:
    printed = run(
        MISSING
        + CALL
        + """
print(call(), call())
rmcla_fast.perturb_step(logits, logits, logits, step_size=0.1, epsilon=0.1)
print(len(caught), caught[0].filename)
print(caught[0].message)
print(call(backend="cpu"))
"""
    ).splitlines()
    reason = f"the compiled extension was not built in {ROOT / 'rmcla_fast'}; build it with: pip install"
    assert printed[0] == "ran ran"
    assert printed[1] == "1 <string>", "there must be one warning, at the line of the caller"
    assert printed[2].startswith(f"rmcla_fast runs its plain-torch reference on cpu: {reason}")
    assert printed[3].startswith(f"backend 'cpu' cannot run a cpu tensor: {reason}")
