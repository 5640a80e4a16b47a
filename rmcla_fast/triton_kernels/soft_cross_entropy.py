"""`soft_cross_entropy` in Triton (Wang and Zhang 2019, the method's step 5): one launch gives loss and gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.ops.tensors import compute_dtype
from rmcla_fast.triton_kernels import rows
from rmcla_fast.triton_kernels.conversion import alignment_of, arithmetic, narrow, scalar
from rmcla_fast.triton_kernels.rows import is_finite, tile

INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["batch", "classes", "logits_row", "labels_row"])
def _kernel(
    logits,  # (B, C)
    labels,  # (B, C) float, or (B,) int64
    losses,  # (B,)
    gradient,  # (B, C) contiguous
    label_gradient,  # (B, C) contiguous, or None
    batch,
    classes,  # C / ALIGNMENT; logits_row, and labels_row of float labels, are divided by it too
    logits_row,
    logits_column,
    labels_row,
    labels_column,
    keep: tl.float64,  # a label y is smoothed to keep * y + share
    share: tl.float64,
    INDEX: tl.constexpr,  # whether the labels are class indices
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr,  # whether a row fits one tile
    DTYPE: tl.constexpr,
):
    num_classes = classes * ALIGNMENT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < batch
    line = (logits + row * logits_row * ALIGNMENT)[:, None]
    end = COLUMNS if RESIDENT else num_classes
    keep = scalar(keep, DTYPE)
    share = scalar(share, DTYPE)
    valid = live
    if INDEX:
        label = tl.load(labels + row * labels_row, mask=live, other=0)
        valid &= (label >= 0) & (label < num_classes)
        label = tl.where(valid, label, -1).to(tl.int32)  # int32 as the columns are, to use fewer registers
    else:
        label_line = (labels + row * labels_row * ALIGNMENT)[:, None]
    if RESIDENT:
        z, columns, inside = tile(line, 0, logits_column, num_classes, live, COLUMNS, DTYPE)
        if INDEX:
            y = (columns == label[:, None]).to(DTYPE)
        else:
            y, columns, inside = tile(label_line, 0, labels_column, num_classes, live, COLUMNS, DTYPE)

    peaks = tl.full((ROWS, COLUMNS), -INFINITY, DTYPE)
    finite = tl.full((ROWS, COLUMNS), 1, tl.int32)
    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
        peaks = tl.where(inside & (z > peaks), z, peaks)
        finite = tl.where(is_finite(z), finite, 0)
    peak = tl.max(peaks, axis=1)
    valid &= tl.min(finite, axis=1) > 0

    exponentials = tl.zeros((ROWS, COLUMNS), DTYPE)
    masses = tl.zeros((ROWS, COLUMNS), DTYPE)
    distances = tl.zeros((ROWS, COLUMNS), DTYPE)
    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
            if INDEX:
                y = (columns == label[:, None]).to(DTYPE)
            else:
                y, columns, inside = tile(label_line, start, labels_column, num_classes, live, COLUMNS, DTYPE)
        exponentials += tl.where(inside, tl.exp(z - peak[:, None]), 0.0)
        masses += y
        distances += tl.where(inside, keep * y + share, 0.0) * (peak[:, None] - z)
    exponential_sum = tl.sum(exponentials, axis=1)
    log_sum = tl.log(exponential_sum)
    mass = keep * tl.sum(masses, axis=1) + (1.0 - keep)
    loss = tl.sum(distances, axis=1) + mass * log_sum
    tl.store(losses + row, tl.where(valid, loss, float("nan")), mask=live)

    for start in range(0, end, COLUMNS):
        if not RESIDENT:
            z, columns, inside = tile(line, start, logits_column, num_classes, live, COLUMNS, DTYPE)
            if INDEX:
                y = (columns == label[:, None]).to(DTYPE)
            else:
                y, columns, inside = tile(label_line, start, labels_column, num_classes, live, COLUMNS, DTYPE)
        slope = mass[:, None] * (tl.exp(z - peak[:, None]) / exponential_sum[:, None]) - (keep * y + share)
        slope = narrow(tl.where(valid[:, None], slope, float("nan")), gradient.dtype.element_ty)
        tl.store(gradient + row[:, None] * num_classes + columns, slope, mask=inside)
        if label_gradient is not None:
            surprise = keep * ((peak[:, None] - z) + log_sum[:, None])
            surprise = tl.where(valid[:, None], surprise, float("nan"))
            tl.store(label_gradient + row[:, None] * num_classes + columns, surprise, mask=inside)


def soft_cross_entropy(
    logits: Tensor, labels: Tensor, reduction: str, label_gradient: bool, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the loss -sum_k y'_k log p_k of the smoothed labels y' = (1 - s) y + s / C, and the gradients of each row.

    The gradients are sum(y') p - y' in the logits and -(1 - s) log p in the labels (None unless `label_gradient`), and
    are not reduced.
    """
    batch, num_classes = logits.shape
    wide = compute_dtype(logits)
    losses = torch.empty(batch, dtype=wide, device=logits.device)
    gradient = rows.result(logits)
    for_labels = rows.result(logits, wide) if label_gradient else None
    if batch > 0:
        index = labels.dim() == 1
        row, column = logits.stride()
        labels_row, labels_column = (labels.stride(0), 1) if index else labels.stride()
        alignment = alignment_of(num_classes, row, 0 if index else labels_row)
        labels_row = labels_row if index else labels_row // alignment
        per_program, columns, warps = rows.block_shape(num_classes, logits.dtype)
        with torch.cuda.device_of(logits):
            _kernel[(triton.cdiv(batch, per_program),)](
                logits,
                labels,
                losses,
                gradient,
                for_labels,
                batch,
                num_classes // alignment,
                row // alignment,
                column,
                labels_row,
                labels_column,
                1 - label_smoothing,
                label_smoothing / num_classes,
                INDEX=index,
                ALIGNMENT=alignment,
                ROWS=per_program,
                COLUMNS=columns,
                RESIDENT=num_classes <= columns,
                DTYPE=arithmetic(logits),
                num_warps=warps,
            )
    if reduction != "none":
        losses = losses.mean() if reduction == "mean" else losses.sum()
    return losses, gradient, for_labels
