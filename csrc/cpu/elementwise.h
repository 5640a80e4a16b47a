// What the element-wise operators share: numbers that may differ between images, masks, checks of `out`, and cache
// sizes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "common/arguments.h"
#include "common/mask.h"
#include "common/overlap.h"
#include "common/perturb_step.h"
#include "cpu/kernels.h"

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

// The mask of a dense tensor, in the order of its memory. Without a mask, all elements have the same share.
class Mask {
 public:
  // `arithmetic` is the dtype of the shares. A value outside [0, 1] is an error; NaN gives NaN.
  Mask(const std::optional<at::Tensor>& mask, const at::Tensor& dense, at::ScalarType arithmetic) {
    if (!mask || !dense.numel()) return;
    tensor_ = mask_beside(dense, mask, arithmetic);
    period_ = tensor_->numel();
    if (is_bool()) return;
    arithmetic == at::kDouble ? check<double>() : check<float>();
  }

  const std::optional<at::Tensor>& tensor() const { return tensor_; }

  // The variant of the kernel for this mask.
  template <typename F>
  F choose(const ForMasks<F>& kernel) const {
    return !tensor_ ? kernel.unmasked : is_bool() ? kernel.with_bools : kernel.with_shares;
  }

  // The end, at most `end`, of the elements from `element` on whose shares follow one another in memory.
  int64_t run_end(int64_t element, int64_t end) const {
    return tensor_ ? std::min(end, (element / period_ + 1) * period_) : end;
  }

  // The place in memory of an element's share; null without a mask.
  const void* at(int64_t element) const {
    if (!tensor_) return nullptr;
    return static_cast<const char*>(tensor_->const_data_ptr()) + element % period_ * int64_t(tensor_->element_size());
  }

 private:
  bool is_bool() const { return tensor_->scalar_type() == at::kBool; }

  template <typename T>
  void check() const {
    const T* const share = tensor_->const_data_ptr<T>();
    std::atomic<bool> bad = false;
    at::parallel_for(0, period_, at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
      int outside = 0;
      for (int64_t i = begin; i < end; ++i) outside |= int(share[i] < T(0)) | int(share[i] > T(1));
      if (outside) bad = true;
    });
    if (!bad) return;
    const at::Tensor outside = tensor_->masked_select(tensor_->lt(0).logical_or(tensor_->gt(1)));
    TORCH_CHECK_VALUE(false, "mask must lie in [0, 1]; got ", outside[0].item<double>());
  }

  std::optional<at::Tensor> tensor_;
  int64_t period_ = 1;
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
