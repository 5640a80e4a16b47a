// What the element-wise operators share: numbers that may differ between images, checks of `out`, and cache sizes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "common/arguments.h"
#include "common/overlap.h"
#include "common/perturb_step.h"

namespace rmcla {

// A number for each element of a dense tensor: the same float for all, or values from a float32 tensor () or (B,).
class PerImage {
 public:
  PerImage(double value, const std::optional<at::Tensor>& values, const at::Tensor& dense) : value_(value) {
    if (!values) return;
    tensor_ = values->contiguous();
    if (tensor_.dim() == 0 || tensor_.numel() == 1) {
      value_ = *tensor_.const_data_ptr<float>();
    } else {
      values_ = tensor_.const_data_ptr<float>();
      batch_ = dense.size(0);
      stride_ = std::max<int64_t>(1, dense.stride(0));
    }
  }

  double at(int64_t element) const { return values_ ? values_[element / stride_ % batch_] : value_; }

  // The end, at most `end`, of the elements from `element` on that have the same number.
  int64_t run_end(int64_t element, int64_t end) const {
    return values_ ? std::min(end, (element / stride_ + 1) * stride_) : end;
  }

 private:
  double value_;
  at::Tensor tensor_;
  const float* values_ = nullptr;
  int64_t batch_ = 1, stride_ = 1;
};

inline void check_out(const at::Tensor& out, const at::Tensor& like, at::ScalarType dtype) {
  check_like("out", out, like);
  TORCH_CHECK_TYPE(out.scalar_type() == dtype, "out must be ", dtype, "; got ", out.scalar_type());
  TORCH_CHECK_VALUE(at::has_internal_overlap(out) != at::MemOverlap::Yes,
                    "out must not share memory between its elements; got strides ", out.strides());
}

// Outputs of at least this many bytes are stored without caching, since they and their three inputs exceed the cache.
inline int64_t streaming_bytes() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (const long size = sysconf(_SC_LEVEL3_CACHE_SIZE); size > 0) return int64_t(size) / 2;
#endif
    return int64_t{16} << 20;
  }();
  return bytes;
}

}  // namespace rmcla
