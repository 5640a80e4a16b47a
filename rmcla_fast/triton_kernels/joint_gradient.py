"""`joint_gradient` and `redistribute_labels` in Triton (Wang and Zhang 2019, supplementary equations 2 to 6).

A program passes over its rows three times: for the extremes, the sums and the results. With top_k, a binary search over
the bits of the logits finds the k-th smallest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from rmcla_fast.ops.tensors import compute_dtype
from rmcla_fast.triton_kernels import rows
from rmcla_fast.triton_kernels.conversion import alignment_of, arithmetic, narrow, scalar, widen
from rmcla_fast.triton_kernels.memory import writable_beside
from rmcla_fast.triton_kernels.rows import NO_COLUMN, first_of_largest, is_finite, order_key, tile

INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["batch", "classes", "top_k", "logits_row", "labels_stride", "given_stride", "soft_row"])
def _kernel(
    logits,  # (B, C)
    labels,  # (B,) int64
    given,  # (B,) int64, or None
    objective,  # (B,), or None
    gradient,  # (B, C) contiguous, or None
    soft,  # (B, C), or None
    targets,  # (B,), or None
    batch,
    classes,  # C / ALIGNMENT; logits_row and soft_row are divided by it too
    top_k,
    beta: tl.float64,
    gamma: tl.float64,
    logits_row,
    logits_column,
    labels_stride,
    given_stride,
    soft_row,
    soft_column,
    TARGET: tl.constexpr,  # as in the schema, or "none" to compute only the labels
    SCHEME: tl.constexpr,
    SELECT: tl.constexpr,  # whether top_k leaves classes out
    KEY_BITS: tl.constexpr,  # how many leading bits of a logit can differ
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr,  # whether a row fits one tile
    DTYPE: tl.constexpr,
):
    ENTROPY: tl.constexpr = TARGET != "none" and TARGET != "margin"
    SHIFT: tl.constexpr = DTYPE.primitive_bitwidth - KEY_BITS
    num_classes = classes * ALIGNMENT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < batch
    label = tl.load(labels + row * labels_stride, mask=live, other=0)
    valid = (label >= 0) & (label < num_classes)
    true = tl.where(valid, label, 0).to(tl.int32)
    start_of_row = logits + row * logits_row * ALIGNMENT
    line = start_of_row[:, None]
    z_true = widen(tl.load(start_of_row + true.to(tl.int64) * logits_column, mask=live, other=0), DTYPE)
    end = COLUMNS if RESIDENT else num_classes
    if RESIDENT:
        z, columns, inside = tile(line, 0, logits_column, num_classes, live, COLUMNS, DTYPE)

    # The largest and smallest logit of the classes other than the true one; ties go to the lower class.
    tops = tl.full((ROWS, COLUMNS), -INFINITY, DTYPE)
    lows = tl.full((ROWS, COLUMNS), -INFINITY, DTYPE)  # of -z
    top_columns = tl.full((ROWS, COLUMNS), NO_COLUMN, tl.int32)
    low_columns = tl.full((ROWS, COLUMNS), NO_COLUMN, tl.int32)
    finite = tl.full((ROWS, COLUMNS), 1, tl.int32)
    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
        other = inside & (columns != true[:, None])
        higher = other & (z > tops)
        tops = tl.where(higher, z, tops)
        top_columns = tl.where(higher, columns, top_columns)
        lower = other & (-z > lows)
        lows = tl.where(lower, -z, lows)
        low_columns = tl.where(lower, columns, low_columns)
        finite = tl.where(is_finite(z), finite, 0)
    top, top_at = first_of_largest(tops, top_columns)
    low, low_at = first_of_largest(lows, low_columns)
    low = -low
    valid &= tl.min(finite, axis=1) > 0
    peak = tl.maximum(top, z_true)

    if SELECT:  # the largest threshold with fewer than top_k keys below it is the key of the top_k-th smallest logit
        if RESIDENT:
            key = order_key(z, inside & (columns != true[:, None]), SHIFT)
        threshold = tl.zeros((ROWS,), tl.uint64 if tl.float64 == DTYPE else tl.uint32)
        for step in range(KEY_BITS):
            candidate = threshold | (tl.full((ROWS,), 1, threshold.dtype) << (KEY_BITS - 1 - step))
            less = tl.zeros((ROWS, COLUMNS), tl.int32)
            for start in range(0, end, COLUMNS):
                if not RESIDENT:
                    z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
                    key = order_key(z, inside & (columns != true[:, None]), SHIFT)
                less += (key < candidate[:, None]).to(tl.int32)
            threshold = tl.where(tl.sum(less, axis=1) < top_k, candidate, threshold)

    # The sums of exp(z - peak), and of base - z over the classes that receive mass.
    # In "sup" with two classes the one other class has share 1: the labels are the same, and the share is never 0.
    base = tl.where(num_classes == 2, top, peak) if SCHEME == "sup" else top
    exponentials = tl.zeros((ROWS, COLUMNS), DTYPE)
    distances = tl.zeros((ROWS, COLUMNS), DTYPE)
    less = tl.zeros((ROWS, COLUMNS), tl.int32)
    at_threshold = tl.full((ROWS, COLUMNS), -INFINITY, DTYPE)
    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
        if ENTROPY or SCHEME == "sup":
            exponentials += tl.where(inside, tl.exp(z - peak[:, None]), 0.0)
        if SCHEME != "none":
            receives = inside & (columns != true[:, None])
            if SELECT:
                if not RESIDENT:
                    key = order_key(z, receives, SHIFT)
                at_threshold = tl.where(key == threshold[:, None], z, at_threshold)
                receives = key < threshold[:, None]
                less += receives.to(tl.int32)
            distances += tl.where(receives, base[:, None] - z, 0.0)
    if ENTROPY or SCHEME == "sup":
        exponential_sum = tl.sum(exponentials, axis=1)
        log_sum = tl.log(exponential_sum)

    if SCHEME != "none":
        if SCHEME == "sup":
            offset = tl.where(num_classes == 2, 1.0, log_sum)
        else:
            offset = tl.zeros((ROWS,), DTYPE) + scalar(gamma, DTYPE)
        spread = tl.sum(distances, axis=1)
        receivers = num_classes - 1
        if SELECT:
            receivers = top_k
            budget = top_k - tl.sum(less, axis=1)  # how many classes at the threshold receive mass, lowest first
            spread += budget.to(DTYPE) * (base - tl.max(at_threshold, axis=1))
        kept = scalar(beta, DTYPE) * (base - low + offset)
        total = spread + receivers.to(DTYPE) * offset + kept

    if TARGET != "none":
        if TARGET == "untargeted":
            target, z_target = true, z_true
        elif TARGET == "ll":
            target, z_target = low_at, low
        elif TARGET == "given":
            wanted = tl.load(given + row * given_stride, mask=live, other=0)
            valid &= (wanted >= 0) & (wanted < num_classes)
            target = tl.where((wanted >= 0) & (wanted < num_classes), wanted, 0).to(tl.int32)
            pointer = start_of_row + target.to(tl.int64) * logits_column
            z_target = widen(tl.load(pointer, mask=live, other=0), DTYPE)
        else:
            target, z_target = top_at, top
        ascends = z_target - z_true if TARGET == "margin" else (z_target - peak) - log_sum
        if TARGET == "untargeted":
            ascends = -ascends
        tl.store(objective + row, tl.where(valid, ascends, float("nan")), mask=live)
        tl.store(targets + row, tl.where(valid, target, -1).to(tl.int64), mask=live)

    seen = tl.zeros((ROWS,), tl.int32)
    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
        is_true = columns == true[:, None]
        if TARGET != "none":
            slope = (columns == target[:, None]).to(DTYPE)
            if TARGET == "margin":
                slope -= is_true.to(DTYPE)
            else:
                slope -= tl.exp(z - peak[:, None]) / exponential_sum[:, None]
            if TARGET == "untargeted":
                slope = -slope
            slope = narrow(tl.where(valid[:, None], slope, float("nan")), gradient.dtype.element_ty)
            tl.store(gradient + row[:, None] * num_classes + columns, slope, mask=inside)
        if SCHEME != "none":
            share = base[:, None] - z + offset[:, None]
            if SELECT:
                if not RESIDENT:
                    key = order_key(z, inside & (columns != true[:, None]), SHIFT)
                equal = (key == threshold[:, None]).to(tl.int32)
                rank = seen[:, None] + tl.cumsum(equal, axis=1)
                seen += tl.sum(equal, axis=1)
                receives = (key < threshold[:, None]) | ((equal > 0) & (rank <= budget[:, None]))
                share = tl.where(receives, share, 0.0)
            share = tl.where(is_true, kept[:, None], share) / total[:, None]
            share = tl.where(valid[:, None], share, float("nan"))
            tl.store(
                soft + row[:, None] * soft_row * ALIGNMENT + columns.to(tl.int64) * soft_column, share, mask=inside
            )


def joint_gradient(
    logits: Tensor,
    labels: Tensor,
    target: str,
    target_labels: Tensor | None,
    beta: float,
    gamma: float,
    top_k: int | None,
    label_scheme: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the objective (B,), its gradient (B, C), soft labels (B, C) or None, and targets (B,).

    `target_labels` are read for target "given".
    """
    wide = compute_dtype(logits)
    objective = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
    targets = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    gradient = rows.result(logits)
    soft_labels = None if label_scheme == "none" else rows.result(logits, wide)
    outputs = objective, gradient, soft_labels, targets
    _launch(logits, labels, target, target_labels, beta, gamma, top_k, label_scheme, outputs)
    return outputs


def redistribute_labels(
    logits: Tensor, labels: Tensor, beta: float, gamma: float, top_k: int | None, label_scheme: str
) -> Tensor:
    """Return only the soft labels (B, C) of `joint_gradient`."""
    out = rows.result(logits, compute_dtype(logits))
    redistribute_labels_out(logits, labels, beta, gamma, top_k, label_scheme, out)
    return out


def redistribute_labels_out(
    logits: Tensor, labels: Tensor, beta: float, gamma: float, top_k: int | None, label_scheme: str, out: Tensor
) -> None:
    """Write the result of `redistribute_labels` into `out`, which may share memory with any of the inputs."""
    if writable_beside(out, logits, labels):
        _launch(logits, labels, "none", None, beta, gamma, top_k, label_scheme, (None, None, out, None))
        increment_version(out)
    else:
        out.copy_(redistribute_labels(logits, labels, beta, gamma, top_k, label_scheme))


def _launch(
    logits: Tensor,
    labels: Tensor,
    target: str,
    target_labels: Tensor | None,
    beta: float,
    gamma: float,
    top_k: int | None,
    label_scheme: str,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    batch, num_classes = logits.shape
    if batch == 0:
        return
    soft = outputs[2]
    soft_row, soft_column = (0, 1) if soft is None else soft.stride()
    row, column = logits.stride()
    per_program, columns, warps = rows.block_shape(num_classes, logits.dtype)
    select = label_scheme != "none" and top_k is not None and top_k < num_classes - 1
    alignment = alignment_of(num_classes, row, soft_row)
    with torch.cuda.device_of(logits):
        _kernel[(triton.cdiv(batch, per_program),)](
            logits,
            labels,
            target_labels,
            *outputs,
            batch,
            num_classes // alignment,
            top_k if select else 0,
            beta,
            gamma,
            row // alignment,
            column,
            labels.stride(0),
            0 if target_labels is None else target_labels.stride(0),
            soft_row // alignment,
            soft_column,
            TARGET=target,
            SCHEME=label_scheme,
            SELECT=select,
            KEY_BITS=KEY_BITS[logits.dtype] if select else 0,
            ALIGNMENT=alignment,
            ROWS=per_program,
            COLUMNS=columns,
            RESIDENT=num_classes <= columns,
            DTYPE=arithmetic(logits),
            num_warps=warps,
        )


# The leading bits that can differ: a float16 converted to float32 ends in 13 zero bits, a bfloat16 in 16.
KEY_BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 19, torch.bfloat16: 16}
