"""Count the kernels that the compiled passes of an update launch, without a GPU, in the code that Inductor generates.

    python benchmarks/count_launches.py --json benchmarks/results/launches.json

This needs a torch built for CUDA, with triton, but no GPU. The network holds fake tensors on the device "cuda", and
Inductor is told that the device is an H100. Its code is kept, and never compiled or run. Three things are not counted:
the padding of matrix products, which Inductor decides by timing them on the GPU; the kernels inside cuDNN and cuBLAS,
so that a call of these libraries counts as one; and the optimizer and our own operators, which are outside the passes.

The counts were compared with the profiles of an H100 and the same torch 2.11.0 (step-main.json, step-wrn.json). For
wrn-28-10, all Triton kernels have the same names. For preact-resnet18 they do too, except that the GPU pads the matrix
product of the classifier, which adds one launch to each forward pass.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from rmcla_fast import models
from rmcla_fast.training.forward import Passes

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "combo_kernels": {"combo_kernels": True},
    "cooperative_reductions": {"triton.cooperative_reductions": True},
    "both": {"combo_kernels": True, "triton.cooperative_reductions": True},
    "pdl": {"triton.enable_pdl": True},  # what TORCHINDUCTOR_ENABLE_PDL=1 sets
}
PARTS = ("attack forward", "attack backward", "update forward", "update backward")
H100 = SimpleNamespace(  # the properties that Inductor reads from a device
    **{"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32},
    **{"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024},
    **{"shared_memory_per_block_optin": 232448, "total_memory": 80 * 2**30, "L2_cache_size": 50 * 2**20},
)


class Generated(Exception):
    """An exception that is raised in place of running generated code."""


def count(code: str) -> dict[str, Any]:
    """Count the launches in `call` of a generated module, which has no branches or loops: each line runs once."""
    tree = ast.parse(code)
    source = {  # the source of each kernel, by the name that launches it
        node.targets[0].id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    defined = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    launching = (function for function in defined if re.match(r"call$|partition_\d", function.name))
    counts: dict[str, Any] = {"triton": 0, "with PDL": 0, "cooperative": 0, "copies": 0, "extern": Counter()}
    for call in (node for function in launching for node in ast.walk(function) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if found := re.fullmatch(r"(triton_\w+)\.run", name):
            counts["triton"] += 1
            counts["with PDL"] += "gdc_wait" in source[found[1]]
            counts["cooperative"] += "@triton_heuristics.cooperative_reduction" in source[found[1]]
        elif re.search(r"\.(copy_|zero_|fill_)$", name):
            counts["copies"] += 1
        elif found := re.match(r"extern_kernels\.(\w+)|torch\.ops\.\w+\.(\w+)", name):
            called = found[1] or found[2]
            if called == "convolution_backward":
                wanted = zip(("input", "weight", "bias"), ast.literal_eval(call.args[-1]), strict=True)
                called += f" to {' and '.join(what for what, asked in wanted if asked)}"
            counts["extern"][called] += 1
    return counts


@contextmanager
def pretended_h100() -> Iterator[list[tuple[bool, str]]]:
    """Make Inductor generate code for an H100; yield the list that collects (is backward, code)."""
    import torch._functorch.config
    import torch._inductor.config
    import torch.utils._triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering
    from torch.utils._python_dispatch import TorchDispatchMode

    codes: list[tuple[bool, str]] = []

    class OnCpu(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            return func(*args, **(kwargs | {"device": torch.device("cpu")} if "device" in kwargs else kwargs))

    def keep(graph: Any, code: Any) -> SimpleNamespace:
        codes.append((graph.is_backward, code.value))
        return SimpleNamespace(call=mock.Mock(side_effect=Generated), __file__="", key="")

    fold = UniformValueConstantFolder.run

    def fold_on_cpu(folder: Any, *args: Any) -> Any:  # it computes constants, which needs a real device
        with OnCpu():
            return fold(folder, *args)

    device: dict[str, Any] = {"get_device_properties": lambda device=None: H100, "current_device": lambda: 0}
    device["is_bf16_supported"] = lambda including_emulation=True: True
    stand_ins: list[tuple[Any, dict[str, Any]]] = [
        (torch.cuda, device | {"get_device_capability": lambda device=None: (9, 0), "device_count": lambda: 1}),
        # With PYTORCH_NVML_BASED_CUDA_CHECK=1 torch would take the count above for a real device. Lightning sets it.
        (torch.cuda, {"_nvml_based_avail": lambda: False}),
        (torch.cuda.amp.common, {"amp_definitely_not_available": lambda: False}),
        (CudaInterface, device | {"is_available": lambda: True}),
        (CudaInterface.Worker, {"get_device_properties": lambda device=None: H100}),
        (torch.utils._triton, {"triton_backend": lambda: SimpleNamespace(hash=lambda: "sm_90")}),
        # Without a device torch rejects bfloat16 in cuDNN, and takes a convolution that is not channels-last.
        (torch._C, {"_select_conv_backend": lambda *args, **kwargs: torch._C._ConvBackend.Cudnn}),
        (UniformValueConstantFolder, {"run": fold_on_cpu}),
        (GraphLowering, {"_compile_to_module_lines": keep}),
    ]
    config: dict[str, Any] = {"force_disable_caches": True, "compile_threads": 1, "shape_padding": False}
    with ExitStack() as stack:
        for target, names in stand_ins:
            stack.enter_context(mock.patch.multiple(target, **names))
        stack.enter_context(torch._inductor.config.patch(config))
        stack.enter_context(torch._functorch.config.patch(force_non_lazy_backward_lowering=True))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # the thread of a GPU would need a GPU
        stack.enter_context(without_device_contexts())
        yield codes


@contextmanager
def without_device_contexts() -> Iterator[None]:
    """Make torch report that no device has a context. Autograd asks before every backward, and that needs a driver.

    The question cannot be answered from Python. So a C function that returns False is put into a copy of the table of
    virtual functions. Its place in the table, after the two destructors, is read from the header of the library.
    """
    folder, words = Path(torch.__file__).parent, ctypes.c_void_p * 66
    header = (folder / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
    place = 2 + re.findall(r"virtual [^~;{=]*?(\w+)\(", header).index("hasPrimaryContext")
    hooks_of = ctypes.CDLL(str(folder / "lib/libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    hooks_of.restype = ctypes.POINTER(ctypes.c_void_p)
    hooks, head = hooks_of(), 2 * ctypes.sizeof(ctypes.c_void_p)
    before = hooks[0]
    table = words.from_buffer_copy(words.from_address(before - head))
    never = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    table[2 + place] = ctypes.cast(never, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(table) + head
    try:
        yield
    finally:
        hooks[0] = before


def launches(name: str, batch: int, size: int, classes: int, inductor: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the counts for each of PARTS, in bfloat16 and channels_last."""
    import torch._inductor.config
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch._dynamo.reset()
    warnings.filterwarnings("ignore", ".*force_disable_caches|Accessing the data pointer of FakeTensor")
    with torch.device("meta"):
        model = models.create(name, classes).to(memory_format=torch.channels_last)
    with pretended_h100() as codes, torch._inductor.config.patch(inductor), FakeTensorMode():
        for module in model.modules():  # Module.to() cannot make fake tensors
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    if tensor is not None:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
                        held[key] = torch.nn.Parameter(fake) if held is module._parameters else fake
        passes = Passes(model, "bf16", compiled=True)
        images = passes.layout(torch.empty(batch, 3, size, size, device="cuda"))
        for run, trained in ((passes.attack, False), (passes.update, True)):  # the modes of the default recipe
            model.train(trained)
            with suppress(Generated):
                run(images.detach().requires_grad_(not trained))
    if [backward for backward, _ in codes] != [False, True, False, True]:
        raise SystemExit(f"each pass of {name} must have one forward and one backward graph; got {len(codes)} graphs")
    return {part: count(code) for part, (_, code) in zip(PARTS, codes, strict=True)}


def table_row(name: str, variant: str, parts: dict[str, dict[str, Any]]) -> str:
    triton, pdl, cooperative, copies = (
        sum(part[what] for part in parts.values()) for what in ("triton", "with PDL", "cooperative", "copies")
    )
    extern = sum((Counter(part["extern"]) for part in parts.values()), Counter())
    named = ", ".join(f"{number} {what}" for what, number in sorted(extern.items()))
    cells = [name, variant, triton, *(parts[part]["triton"] for part in PARTS), pdl, cooperative, copies]
    return f"| {' | '.join(map(str, cells))} | {extern.total()}: {named} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="preact-resnet18,wrn-28-10")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all counts to this file")
    options = parser.parse_args()
    if torch.version.cuda is None or find_spec("triton") is None:
        lacks = "has no triton beside it" if torch.version.cuda else "is not built for CUDA"
        raise SystemExit(f"torch {torch.__version__} {lacks}, so it cannot generate CUDA code to count launches in")
    columns = ("network", "Inductor", "Triton", *PARTS, "with PDL", "cooperative", "copies, fills", "extern calls")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    found: dict[str, Any] = {}
    for name in options.models.split(","):
        for variant in options.variants.split(","):
            parts = launches(name, options.batch, options.size, options.classes, VARIANTS[variant])
            found.setdefault(name, {})[variant] = parts
            print(table_row(name, variant, parts), flush=True)
    if options.json:
        about = {"torch": torch.__version__, "batch": options.batch, "size": options.size, "classes": options.classes}
        options.json.write_text(json.dumps(about | {"launches": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
