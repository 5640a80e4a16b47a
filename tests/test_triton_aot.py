"""The Triton kernels compiled ahead of time for sm_80 and sm_90, without a GPU: no spills, wide loads, exact results.

The tests run this file as a script, in a process where Triton compiles and does not interpret. It compiles every
variant and prints a report, which the tests read.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

CAPABILITIES = (80, 90)
CLASSES = (2, 10, 100, 1000, 21_841)
POINTER = {torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
POINTER |= {torch.uint8: "*u8", torch.int64: "*i64"}

Variant = tuple[str, Any, dict[str, str], dict[str, Any], int]  # name, kernel, types, constants, warps


def row_variants() -> Iterator[Variant]:
    """Yield variants of the kernels on rows, for contiguous logits."""
    from rmcla_fast.triton_kernels import joint_gradient, rows, soft_cross_entropy
    from rmcla_fast.triton_kernels.conversion import alignment_of, arithmetic

    cases = [(torch.float32, classes) for classes in CLASSES]
    cases += [(dtype, classes) for dtype in (torch.bfloat16, torch.float64) for classes in (10, 1000, 21_841)]
    for dtype, classes in (*cases, (torch.float16, 100)):
        per_program, columns, warps = rows.block_shape(classes, dtype)
        wide = POINTER[torch.float64 if dtype == torch.float64 else torch.float32]
        shape = {
            "ALIGNMENT": alignment_of(classes),
            "ROWS": per_program,
            "COLUMNS": columns,
            "RESIDENT": classes <= columns,
            "DTYPE": arithmetic(torch.empty(0, dtype=dtype)),
            "logits_column": 1,
        }
        types = {"logits": POINTER[dtype], "labels": "*i64", "gradient": POINTER[dtype], "objective": wide}
        types |= {"given": "*i64", "soft": wide, "targets": "*i64", "beta": "fp64", "gamma": "fp64"}
        schemes = [("mc", "main", True), ("mc", "main", False)]
        if dtype == torch.float32:
            schemes += [("given", "sup", False), ("margin", "none", False), ("none", "sup", True)]
        for target, scheme, select in schemes:
            absent = ["given"] if target != "given" else []
            absent += ["soft"] if scheme == "none" else []
            absent += ["objective", "gradient", "targets"] if target == "none" else []
            rule = {"TARGET": target, "SCHEME": scheme, "SELECT": select, "soft_column": 1}
            rule["KEY_BITS"] = joint_gradient.KEY_BITS[dtype] if select else 0
            constants = shape | rule | dict.fromkeys(absent)
            name = f"joint_gradient {dtype} {classes} {target} {scheme} {select}"
            yield name, joint_gradient._kernel, types, constants, warps
        types = {"logits": POINTER[dtype], "gradient": POINTER[dtype], "losses": wide, "label_gradient": wide}
        types |= {"keep": "fp64", "share": "fp64"}
        for labels in ("*fp32", "*i64"):
            constants = shape | {"labels_column": 1, "INDEX": labels == "*i64"}
            if labels == "*i64":
                constants["label_gradient"] = None
            name = f"soft_cross_entropy {dtype} {classes} {labels}"
            yield name, soft_cross_entropy._kernel, types | {"labels": labels}, constants, warps


def element_variants() -> Iterator[Variant]:
    """Yield variants of `perturb_step` and `random_start`, for images whose size is a multiple of 16."""
    from rmcla_fast.triton_kernels import elements, perturb_step, random_start
    from rmcla_fast.triton_kernels.conversion import arithmetic

    numbers = dict.fromkeys(("step_size", "epsilon", "lower", "upper"), "fp64")
    for images, origin, grad, per_image in (
        (torch.float32, torch.float32, torch.float32, False),
        (torch.float32, torch.uint8, torch.bfloat16, True),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, False),
        (torch.float16, torch.float16, torch.float16, True),
        (torch.float64, torch.uint8, torch.float32, True),
    ):
        result = torch.float32 if images == torch.uint8 else images
        shape = {"ALIGNMENT": 16, "BLOCK": elements.BLOCK, "DTYPE": arithmetic(torch.empty(0, dtype=result))}
        types = {"images": POINTER[images], "origin": POINTER[origin], "grad": POINTER[grad], "out": POINTER[images]}
        types |= {"steps": "*fp32", "radii": "*fp32"} | numbers
        step_constants = shape | {"STEP_PER_IMAGE": per_image, "RADIUS_PER_IMAGE": per_image}
        if not per_image:
            step_constants |= {"steps": None, "radii": None}
        share = POINTER[torch.float64 if images == torch.float64 else torch.float32]
        for mask, mask_type, repeats in (
            ("", "", False),
            (", bool mask", "*i1", False),
            (", float mask", share, False),
            (", repeated mask", share, True),
        ):
            constants = step_constants | {"MASK_REPEATS": repeats} | ({} if mask else {"mask": None})
            name = f"perturb_step {images} {origin} {grad}{mask}"
            yield name, perturb_step._kernel, types | {"mask": mask_type}, constants, elements.WARPS

        types = {"images": POINTER[origin], "out": POINTER[images], "radii": "*fp32", "rng": "*i64"} | numbers
        for rng_per_image, mask_type, repeats in (
            (False, "", False),
            (True, "", False),
            (False, "*i1", False),
            (True, "*fp32", True),
        ):
            constants = shape | {"STREAM": 0, "RADIUS_PER_IMAGE": per_image and not rng_per_image, "CLIP": per_image}
            constants |= {"RNG_PER_IMAGE": rng_per_image, "MASK_REPEATS": repeats}
            if not per_image:
                constants |= {"radii": None}
            if not mask_type:
                constants |= {"mask": None}
            name = f"random_start {origin} {images}" + (", rng per image" if rng_per_image else "")
            name += f", mask {mask_type}" if mask_type else ""
            yield name, random_start._kernel, types | {"mask": mask_type}, constants, elements.WARPS


def augmentation_variants() -> Iterator[Variant]:
    """`augment` of CIFAR's images, and of images smaller than a program's block."""
    from rmcla_fast.triton_kernels import augment, elements

    types = {"dataset": "*u8", "index": "*i64", "images": "*u8", "rng": "*i64"}
    for side, channels_last in ((32, False), (32, True), (8, True)):
        constants = {"FLIP": True, "CHANNELS_LAST": channels_last, "CHANNELS": 3, "HEIGHT": side, "WIDTH": side}
        constants |= {"STREAM": 1, "ALIGNMENT": 16, "BLOCK": elements.BLOCK}
        yield f"augment {side} {channels_last}", augment._kernel, types, constants, elements.WARPS


def compile_variant(variant: Variant, capability: int) -> dict[str, Any]:
    """Compile a variant for one GPU and return facts about its code; arguments without a type are 32-bit integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, kernel, types, constants, warps = variant
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32") for argument in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    options = {"num_warps": warps, "enable_fp_fusion": name.startswith(("joint", "soft"))}
    source = ASTSource(kernel, signature, constants, aligned)
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    with redirect_stdout(io.StringIO()) as log:
        stages = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
    ptx, log = stages["ptx"], log.getvalue()
    return {
        "name": f"sm_{capability} {name}",
        "spilled_bytes": sum(int(count) for count in re.findall(r"(\d+) bytes spill", log)),
        "reported": "bytes spill stores" in log,
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "threads": 32 * warps,
        "narrow_counts": re.findall(r"muli %units,.*: i32", stages["ttir"]),
        "loads": sorted(set(re.findall(r"ld\.global\S*\.(?:v\d\.)?\w+", ptx))),
        "instructions": sorted({word.strip() for word in re.findall(r"^\s+(?:@\S+\s+)?([a-z][\w.:]+)\s", ptx, re.M)}),
    }


def specializations(kernel: Any, **arguments: Any) -> list[Any]:
    """Return the key by which Triton's cache finds the kernel for these arguments; the others have fixed values."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    tensor = torch.empty(16)
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    others = {parameter.name: 1 if parameter.is_constexpr else tensor for parameter in kernel.params}
    _, key, _ = binder(**others | {name: value for name, value in arguments.items() if name in others})
    return key


def recompilations() -> dict[str, bool]:
    """Return, for each kernel, whether numbers that change from call to call make it compile again."""
    from rmcla_fast.triton_kernels import augment, joint_gradient, perturb_step, random_start, soft_cross_entropy

    numbers = {
        augment: ("units", "batch", "size", "padding", "fill", "index_stride", "rng_stride"),
        joint_gradient: ("batch", "classes", "top_k", "logits_row", "labels_stride", "given_stride", "soft_row"),
        soft_cross_entropy: ("batch", "classes", "logits_row", "labels_row"),
        perturb_step: ("units", "batch", "image_size", "steps_stride", "radii_stride", "mask_units"),
        random_start: ("units", "batch", "image_size", "radii_stride", "rng_stride", "rng_row", "mask_units"),
    }
    floats = ("beta", "gamma", "keep", "share", "step_size", "epsilon", "lower", "upper")
    result = {}
    for module, names in numbers.items():
        kernel = module._kernel
        calls = [
            specializations(kernel, **dict.fromkeys(names, number), **dict.fromkeys(floats, value))
            for number, value in ((1, 0.0), (16, 1.0), (17, 1 / 3), (2**31 - 1, 1e300))
        ]
        result[module.__name__] = any(call != calls[0] for call in calls)
    return result


def main() -> None:
    variants = [*row_variants(), *element_variants(), *augmentation_variants()]
    compiled = [
        compile_variant(variant, capability) for variant, capability in itertools.product(variants, CAPABILITIES)
    ]
    print(json.dumps({"compiled": compiled, "recompilations": recompilations()}))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    finished = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout)


def kernels(report: dict[str, Any], operator: str = "") -> list[dict[str, Any]]:
    found = [kernel for kernel in report["compiled"] if f" {operator}" in kernel["name"]]
    assert found
    return found


def test_no_kernel_spills(report: dict[str, Any]) -> None:
    assert all(kernel["reported"] for kernel in kernels(report))
    assert not {kernel["name"]: kernel["spilled_bytes"] for kernel in kernels(report) if kernel["spilled_bytes"]}
    assert not [k["name"] for k in kernels(report) if any(".local" in word for word in k["instructions"])]


def test_elements_are_loaded_128_bits_at_once(report: dict[str, Any]) -> None:
    for operator in ("perturb_step", "random_start"):
        for kernel in kernels(report, operator):
            wide = (".v4.b32", ".v2.b64", ".v2.b32") if "uint8" in kernel["name"] else (".v4.b32", ".v2.b64")
            assert any(load.endswith(wide) for load in kernel["loads"]), kernel
            store = [word for word in kernel["instructions"] if word.startswith("st.global")]
            assert all(word.endswith((".v4.b32", ".v2.b64")) for word in store), kernel
    for step in kernels(report, "perturb_step torch.float32 torch.float32"):
        eight_bools = ["ld.global.v2.b32"] if "bool" in step["name"] else []
        if "repeated" in step["name"]:  # Triton 3.8 and older load the mask's elements one by one
            assert "ld.global.v4.b32" in step["loads"], step
        else:
            assert step["loads"] == [*eight_bools, "ld.global.v4.b32"], step


def test_elements_are_counted_in_64_bits(report: dict[str, Any]) -> None:
    """The argument is 32-bit, and their number is its product with ALIGNMENT, which may need 64 bits: 2^27 times 16."""
    for operator in ("perturb_step", "random_start", "augment"):
        for kernel in kernels(report, operator):
            assert not kernel["narrow_counts"], kernel


def test_rows_are_loaded_wide_if_the_number_of_classes_allows_it(report: dict[str, Any]) -> None:
    for kernel in kernels(report):
        if " 1000 " in kernel["name"] or " 100 " in kernel["name"]:
            assert any(".v" in load for load in kernel["loads"]), kernel


def test_exact_arithmetic_uses_the_right_instructions(report: dict[str, Any]) -> None:
    """No multiply-add is fused, no subnormal becomes 0, uint8 is divided exactly, and the GPU rounds to bfloat16."""
    for operator in ("perturb_step", "random_start"):
        for kernel in kernels(report, operator):
            words = kernel["instructions"]
            assert not [word for word in words if word.startswith("fma") or ".ftz" in word], kernel
            if "uint8" in kernel["name"]:
                assert {"div.rn.f32", "div.rn.f64"} & set(words), kernel
            if "perturb_step torch.bfloat16" in kernel["name"]:
                assert any(word.startswith("cvt.rn.bf16") for word in words), kernel


def test_registers_leave_room_for_every_warp(report: dict[str, Any]) -> None:
    for kernel in kernels(report):
        assert kernel["registers"] * kernel["threads"] <= 65_536, kernel
        limit = 64 if "perturb_step" in kernel["name"] or "random_start" in kernel["name"] else 128
        limit = 80 if "repeated" in kernel["name"] else limit  # Triton 3.8 takes 72 for images in bytes
        assert kernel["registers"] <= (192 if "float64" in kernel["name"] else limit), kernel


def test_numbers_that_change_from_call_to_call_cause_no_compilation(report: dict[str, Any]) -> None:
    assert len(report["recompilations"]) == 5
    assert not any(report["recompilations"].values()), report["recompilations"]


if __name__ == "__main__":
    main()
