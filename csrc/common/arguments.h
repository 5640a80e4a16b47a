// Checks of the arguments of operators, and parsing of their string arguments. Python's checks come first and explain
// more; these protect callers from C++.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <vector>

#include "common/joint_gradient.h"

namespace rmcla {

inline Target parse_target(std::string_view word) {
  if (word == "mc") return Target::kMostConfusing;
  if (word == "ll") return Target::kLeastLikely;
  if (word == "untargeted") return Target::kUntargeted;
  if (word == "margin") return Target::kMargin;
  TORCH_CHECK_VALUE(word == "given", "target must be 'mc', 'll', 'untargeted', 'margin' or 'given'; got '", word, "'");
  return Target::kGiven;
}

inline LabelScheme parse_label_scheme(std::string_view word) {
  if (word == "main") return LabelScheme::kMain;
  if (word == "sup") return LabelScheme::kSup;
  TORCH_CHECK_VALUE(word == "none", "label_scheme must be 'main', 'sup' or 'none'; got '", word, "'");
  return LabelScheme::kNone;
}

inline void check_logits(const at::Tensor& logits) {
  TORCH_CHECK_TYPE(at::isFloatingType(logits.scalar_type()), "logits must be float; got ", logits.scalar_type());
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) >= 2, "logits must have shape (B, C), C >= 2; got ",
                    logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) < INT32_MAX - 1024, "logits must have fewer than 2**31 - 1025 classes; got ",
                    logits.size(1));
}

// Class indices must be int64 (B,) on the device of the logits.
inline void check_classes(const char* name, const at::Tensor& labels, const at::Tensor& logits) {
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, name, " must be int64; got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == logits.size(0), name, " must have shape (", logits.size(0),
                    ",); got ", labels.sizes());
  TORCH_CHECK_VALUE(labels.device() == logits.device(), name, " must be on ", logits.device(), "; got ",
                    labels.device());
}

// Label smoothing must lie in [0, 1). NaN does not.
inline void check_label_smoothing(double smoothing) {
  TORCH_CHECK_VALUE(smoothing >= 0 && smoothing < 1, "label_smoothing must lie in [0, 1); got ", smoothing);
}

// `tensor` must have the shape and device of `images`.
inline void check_like(const char* name, const at::Tensor& tensor, const at::Tensor& images) {
  TORCH_CHECK_VALUE(tensor.sizes() == images.sizes(), name, " must have shape ", images.sizes(), "; got ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == images.device(), name, " must be on ", images.device(), "; got ",
                    tensor.device());
}

// `values`, if given, must be float32 of shape () or (B,), on the device of the images, since the kernel reads it.
inline void check_per_image(const char* name, const std::optional<at::Tensor>& values, const at::Tensor& images) {
  if (!values) return;
  TORCH_CHECK_TYPE(values->scalar_type() == at::kFloat, name, " must be float32; got ", values->scalar_type());
  TORCH_CHECK_VALUE(values->dim() == 0 || (values->dim() == 1 && images.dim() && values->size(0) == images.size(0)),
                    name, " must have shape () or (B,); got ", values->sizes());
  TORCH_CHECK_VALUE(values->device() == images.device(), name, " must be on ", images.device(), "; got ",
                    values->device());
}

// `rng`, (seed, step) of the batch or (B, 2) with those of each image, must be int64 on the device of the images.
inline void check_rng(const at::Tensor& rng, const at::Tensor& images) {
  TORCH_CHECK_TYPE(rng.scalar_type() == at::kLong, "rng must be int64; got ", rng.scalar_type());
  const bool per_image = rng.dim() == 2 && images.dim() && rng.size(0) == images.size(0);
  TORCH_CHECK_VALUE((rng.dim() == 1 || per_image) && rng.size(-1) == 2,
                    "rng must have shape (2,) or (B, 2), seed and step; got ", rng.sizes());
  TORCH_CHECK_VALUE(rng.device() == images.device(), "rng must be on ", images.device(), "; got ", rng.device());
}

// The images if their memory has no gaps or overlaps, in any order of dimensions; else a contiguous copy.
// Element-wise kernels then run over flat memory, in which element i belongs to image (i / stride(0)) % B.
inline at::Tensor as_dense(const at::Tensor& images) {
  return images.is_non_overlapping_and_dense() ? images : images.contiguous();
}

// A batch of images that follow one another in memory, each of them without gaps or overlaps: `images`, or a copy. Each
// image has its elements in the order in which `as_dense` has them for that image alone.
inline at::Tensor as_dense_images(const at::Tensor& images) {
  if (images.size(0) < 2 || images.numel() == 0) return as_dense(images);
  const at::Tensor first = images.select(0, 0);
  if (!first.is_non_overlapping_and_dense()) return images.contiguous();
  if (images.stride(0) == first.numel()) return images;
  std::vector<int64_t> strides = images.strides().vec();
  strides[0] = first.numel();
  return at::empty_strided(images.sizes(), strides, images.options()).copy_(images);
}

// `tensor`, or a copy of it, in the memory layout of the dense `images`.
inline at::Tensor in_layout_of(const at::Tensor& images, const at::Tensor& tensor) {
  if (tensor.strides() == images.strides()) return tensor;
  return at::empty_like(images, tensor.options(), at::MemoryFormat::Preserve).copy_(tensor);
}

// Tells autograd that `out` was written, as every in-place operator must.
inline void mark_written(const at::Tensor& out) { out.unsafeGetTensorImpl()->bump_version(); }

}  // namespace rmcla
