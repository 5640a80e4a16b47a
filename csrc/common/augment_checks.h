// Checks of the arguments of augment, and its result.
#pragma once

#include "common/checks.h"

namespace rmcla {

inline void check_augmentation(const Tensor& dataset, const Tensor& index, const Tensor& rng, int64_t padding,
                               int64_t fill) {
  RMCLA_CHECK(dtype_of(dataset) == DType::kByte, "dataset must be uint8; got ", dtype_of(dataset));
  RMCLA_CHECK(dataset.dim() == 4 && dataset.is_contiguous(), "dataset must be contiguous (N, C, H, W); got ",
              text_of(dataset.sizes()), ", ", text_of(dataset.strides()));
  RMCLA_CHECK(dataset.size(1) * dataset.size(2) * dataset.size(3) < int64_t{1} << 31,
              "dataset must have images of less than 2**31 elements; got ", text_of(dataset.sizes()));
  RMCLA_CHECK(dtype_of(index) == DType::kLong, "index must be int64; got ", dtype_of(index));
  RMCLA_CHECK(index.dim() == 1, "index must have shape (B,); got ", text_of(index.sizes()));
  check_device("index", index, "dataset", dataset);
  RMCLA_CHECK(dtype_of(rng) == DType::kLong, "rng must be int64; got ", dtype_of(rng));
  RMCLA_CHECK(rng.dim() == 1 && rng.size(0) == 2, "rng must have shape (2,), seed and step; got ",
              text_of(rng.sizes()));
  check_device("rng", rng, "dataset", dataset);
  RMCLA_CHECK(padding >= 0 && padding < int64_t{1} << 30, "padding must lie in [0, 2**30); got ", padding);
  RMCLA_CHECK(fill >= 0 && fill < 256, "fill must lie in [0, 256); got ", fill);
}

// The batch of images to write, one for each index.
inline Tensor empty_crops(const Tensor& dataset, const Tensor& index, bool channels_last) {
  const int64_t batch = index.size(0), channels = dataset.size(1), height = dataset.size(2), width = dataset.size(3);
  if (!channels_last) return empty({batch, channels, height, width}, DType::kByte, dataset);
  return empty_strided({batch, channels, height, width}, {channels * height * width, 1, width * channels, channels},
                       DType::kByte, dataset);
}

}  // namespace rmcla
