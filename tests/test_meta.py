"""The registered operators on meta tensors have the shapes, dtypes, strides and devices of the real results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

IMAGES = torch.rand(2, 3, 4, 5)
LAST = IMAGES.contiguous(memory_format=torch.channels_last)
BYTES = (LAST * 255).byte()
LOGITS = torch.randn(3, 5)
LABELS = torch.tensor([0, 4, 2])
RNG = torch.tensor([1, 2])
RNGS = torch.tensor([[1, 2], [3, 4]])
DATASET = torch.zeros(6, 3, 4, 5, dtype=torch.uint8)
RULE = (9.0, 0.01, None)
STEP = (0.1, None, 0.1, None, 0.0, 1.0)
START = (0.1, None, RNG, 0.0, 1.0, False)
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    *(("augment", (DATASET, LABELS, RNG, 4, True, 128, channels_last)) for channels_last in (False, True)),
    *(("perturb_step", (images, IMAGES, IMAGES, *STEP)) for images in (IMAGES, LAST, LAST.half(), IMAGES.double())),
    ("perturb_step", (IMAGES[..., ::2], IMAGES[..., ::2], IMAGES[..., ::2], *STEP)),
    *(("random_start", (images, *START)) for images in (IMAGES, LAST, BYTES, IMAGES.bfloat16(), IMAGES[..., ::2])),
    *(("perturb_step", (images, IMAGES, IMAGES, *STEP, IMAGES[0, 0] < 0.5)) for images in (IMAGES, LAST.half())),
    *(("random_start", (images, *START, IMAGES)) for images in (LAST, BYTES, IMAGES.bfloat16())),
    *(
        ("random_start", (images, *START[:2], RNGS[: len(images)], *START[3:]))
        for images in (
            IMAGES,
            BYTES,
            IMAGES[..., ::2],
            IMAGES[:1],
            IMAGES[:0],
            torch.empty(2, 3, 0, 5),
            LAST[:1].expand(2, -1, -1, -1),
            LAST.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        )
    ),
    *(
        ("joint_gradient", (LOGITS.to(dtype), LABELS, "mc", None, *RULE, scheme))
        for dtype in (torch.float16, torch.float32, torch.float64)
        for scheme in ("main", "none")
    ),
    ("joint_gradient", (LOGITS.T.contiguous().T, LABELS, "ll", None, *RULE, "sup")),
    (
        "joint_gradient",
        (LOGITS[:1], torch.empty_strided((1,), (7,), dtype=torch.int64).zero_(), "ll", None, *RULE, "sup"),
    ),
    *(("redistribute_labels", (logits, LABELS, *RULE, "main")) for logits in (LOGITS, LOGITS.half(), LOGITS.double())),
    *(
        ("soft_cross_entropy", (LOGITS.to(dtype), LABELS, reduction, False, 0.1))
        for dtype in (torch.bfloat16, torch.float64)
        for reduction in ("mean", "sum", "none")
    ),
    ("soft_cross_entropy", (LOGITS.half(), LOGITS.softmax(1), "none", True, 0.0)),
]


def description(value: Any) -> list[Any]:
    outputs = value if isinstance(value, tuple) else (value,)
    return [
        (output.shape, output.dtype, output.stride()) if isinstance(output, Tensor) else output for output in outputs
    ]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_meta_tensors_give_the_description_of_the_result(name: str, arguments: tuple[Any, ...]) -> None:
    on_meta = [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(value, Tensor)
        else value
        for value in arguments
    ]
    operator = getattr(torch.ops.rmcla_fast, name)
    got = operator(*on_meta)
    assert description(got) == description(operator(*arguments))
    for output in got if isinstance(got, tuple) else (got,):
        assert output is None or output.device.type == "meta"
