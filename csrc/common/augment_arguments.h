// Checks of the arguments of augment. Python's checks come first and explain more; these protect callers from C++.
#pragma once

#include "common/arguments.h"

namespace rmcla {

inline void check_augmentation(const at::Tensor& dataset, const at::Tensor& index, const at::Tensor& rng,
                               int64_t padding, int64_t fill) {
  TORCH_CHECK_TYPE(dataset.scalar_type() == at::kByte, "dataset must be uint8; got ", dataset.scalar_type());
  TORCH_CHECK_VALUE(dataset.dim() == 4 && dataset.is_contiguous(), "dataset must be contiguous (N, C, H, W); got ",
                    dataset.sizes(), ", ", dataset.strides());
  TORCH_CHECK_VALUE(dataset.size(1) * dataset.size(2) * dataset.size(3) < int64_t{1} << 31,
                    "dataset must have images of less than 2**31 elements; got ", dataset.sizes());
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "index must be int64; got ", index.scalar_type());
  TORCH_CHECK_VALUE(index.dim() == 1, "index must have shape (B,); got ", index.sizes());
  TORCH_CHECK_VALUE(index.device() == dataset.device(), "index must be on ", dataset.device(), "; got ",
                    index.device());
  TORCH_CHECK_TYPE(rng.scalar_type() == at::kLong, "rng must be int64; got ", rng.scalar_type());
  TORCH_CHECK_VALUE(rng.dim() == 1 && rng.size(0) == 2, "rng must have shape (2,), seed and step; got ", rng.sizes());
  TORCH_CHECK_VALUE(rng.device() == dataset.device(), "rng must be on ", dataset.device(), "; got ", rng.device());
  TORCH_CHECK_VALUE(padding >= 0 && padding < int64_t{1} << 30, "padding must lie in [0, 2**30); got ", padding);
  TORCH_CHECK_VALUE(fill >= 0 && fill < 256, "fill must lie in [0, 256); got ", fill);
}

}  // namespace rmcla
