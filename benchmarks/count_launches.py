"""How many kernels the two compiled passes of an update launch, counted without a GPU in the code Inductor generates.

    python benchmarks/count_launches.py --json benchmarks/results/launches.json

It needs a torch built for CUDA, with triton; a GPU is neither needed nor used. The network holds fake tensors of device
"cuda", and Inductor is told that it is an H100; its code is kept and never compiled or run. What it would decide by
timing on the GPU is left out: matrix products are not padded. Kernels inside cuDNN and cuBLAS are not seen, so an
extern call counts once; nor are the optimizer and our own operators, which are outside the passes.

Against the profiles of an H100 with the same torch 2.11.0 (step-main.json, step-wrn.json): wrn-28-10 has the same
Triton kernels, name for name; so has preact-resnet18 once its classifier's product is padded, by a launch a forward.
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
H100 = SimpleNamespace(  # what Inductor asks of a device
    **{"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32},
    **{"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024},
    **{"shared_memory_per_block_optin": 232448, "total_memory": 80 * 2**30, "L2_cache_size": 50 * 2**20},
)


class Generated(Exception):
    """Raised in place of running generated code."""


def count(code: str) -> dict[str, Any]:
    """The launches of one generated module's `call`, which is straight-line code: each call in it runs exactly once."""
    tree = ast.parse(code)
    source = {  # of each kernel, by the name it is launched by
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
    """While it lasts, Inductor generates code for an H100; gives the list where (is backward, code) arrive."""
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

    def fold_on_cpu(folder: Any, *args: Any) -> Any:  # it computes constants for real
        with OnCpu():
            return fold(folder, *args)

    device: dict[str, Any] = {"get_device_properties": lambda device=None: H100, "current_device": lambda: 0}
    device["is_bf16_supported"] = lambda including_emulation=True: True
    stand_ins: list[tuple[Any, dict[str, Any]]] = [
        (torch.cuda, device | {"get_device_capability": lambda device=None: (9, 0), "device_count": lambda: 1}),
        (torch.cuda.amp.common, {"amp_definitely_not_available": lambda: False}),
        (CudaInterface, device | {"is_available": lambda: True}),
        (CudaInterface.Worker, {"get_device_properties": lambda device=None: H100}),
        (torch.utils._triton, {"triton_backend": lambda: SimpleNamespace(hash=lambda: "sm_90")}),
        # Without a device torch denies cuDNN's bfloat16, and falls back to a convolution that is not channels-last.
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
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # the GPU's thread would need a GPU
        stack.enter_context(no_contexts())
        yield codes


@contextmanager
def no_contexts() -> Iterator[None]:
    """Autograd hears that no device has a context; to look, as it does before every backward, needs a driver.

    No function in Python answers for it, so the answer is put into a copy of the table of virtual functions, at the
    place that the header beside the library gives it, after the two destructors.
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
    """The counts of each of PARTS, in bfloat16 and channels_last."""
    import torch._inductor.config
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch._dynamo.reset()
    warnings.filterwarnings("ignore", ".*force_disable_caches|Accessing the data pointer of FakeTensor")
    with torch.device("meta"):
        model = models.create(name, classes).to(memory_format=torch.channels_last)
    with pretended_h100() as codes, torch._inductor.config.patch(inductor), FakeTensorMode():
        for module in model.modules():  # Module.to() cannot turn its tensors into fake ones
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    if tensor is not None:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
                        held[key] = torch.nn.Parameter(fake) if held is module._parameters else fake
        passes = Passes(model, "bf16", compiled=True)
        images = passes.layout(torch.empty(batch, 3, size, size, device="cuda"))
        for run, trained in ((passes.attack, False), (passes.update, True)):  # in the default recipe's modes
            model.train(trained)
            with suppress(Generated):
                run(images.detach().requires_grad_(not trained))
    if [backward for backward, _ in codes] != [False, True, False, True]:
        raise SystemExit(f"{name}: each pass must be one forward and one backward graph; there are {len(codes)} graphs")
    return {part: count(code) for part, (_, code) in zip(PARTS, codes, strict=True)}


def row(name: str, variant: str, parts: dict[str, dict[str, Any]]) -> str:
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
    parser.add_argument("--json", type=Path, help="a file for all counts")
    options = parser.parse_args()
    if torch.version.cuda is None or find_spec("triton") is None:
        lacks = "has no triton beside it" if torch.version.cuda else "is not built for CUDA"
        raise SystemExit(f"torch {torch.__version__} {lacks}, so it can generate no CUDA code to count launches in")
    columns = ("network", "Inductor", "Triton", *PARTS, "with PDL", "cooperative", "copies, fills", "extern calls")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    found: dict[str, Any] = {}
    for name in options.models.split(","):
        for variant in options.variants.split(","):
            parts = launches(name, options.batch, options.size, options.classes, VARIANTS[variant])
            found.setdefault(name, {})[variant] = parts
            print(row(name, variant, parts), flush=True)
    if options.json:
        about = {"torch": torch.__version__, "batch": options.batch, "size": options.size, "classes": options.classes}
        options.json.write_text(json.dumps(about | {"launches": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
