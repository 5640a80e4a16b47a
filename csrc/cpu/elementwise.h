// What the element-wise operators share: numbers per image over flat memory, buffers that may be written, cache sizes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "common/arguments.h"
#include "common/perturb_step.h"

namespace rmcla {

// A float, or a float32 tensor of shape () or (B,), for the flat elements of a dense tensor.
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

  // The end of the run of elements from `element` on that share its number.
  int64_t run_end(int64_t element, int64_t end) const {
    return values_ ? std::min(end, (element / stride_ + 1) * stride_) : end;
  }

 private:
  double value_;
  at::Tensor tensor_;
  const float* values_ = nullptr;
  int64_t batch_ = 1, stride_ = 1;
};

// Whether a kernel that reads `input` and writes `out` element by element may write into out's memory as it goes.
inline bool writable_in_place(const at::Tensor& out, const at::Tensor& input) {
  return !out.is_alias_of(input) || (out.const_data_ptr() == input.const_data_ptr() && out.dtype() == input.dtype() &&
                                     out.strides() == input.strides());
}

inline void check_out(const at::Tensor& out, const at::Tensor& like, at::ScalarType dtype) {
  check_like("out", out, like);
  TORCH_CHECK_TYPE(out.scalar_type() == dtype, "out must be ", dtype, "; got ", out.scalar_type());
  TORCH_CHECK_VALUE(at::has_internal_overlap(out) != at::MemOverlap::Yes,
                    "out must not share memory between its elements; got strides ", out.strides());
}

// Outputs from this many bytes on are stored past the caches: with three inputs of their size they would not stay
// there.
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
