// What the element-wise operators share: numbers that may differ between images, and masks.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "common/element_checks.h"
#include "common/mask.h"
#include "common/perturb_step.h"
#include "cpu/convert.h"
#include "cpu/lanes.h"

namespace rmcla {

constexpr int64_t kElementGrain = 32768;  // the smallest number of elements that is worth a thread

// A number for each element of a dense tensor: the same float for all, or values from a float32 tensor () or (B,).
class PerImageValues {
 public:
  PerImageValues(double value, const std::optional<Tensor>& values, const Tensor& dense) : value_(value) {
    if (!values) return;
    tensor_ = as_contiguous(*values);
    const float* const data = tensor_->const_data_ptr<float>();
    if (tensor_->numel() == 1) {
      value_ = *data;
    } else {
      values_ = data;
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
  std::optional<Tensor> tensor_;
  const float* values_ = nullptr;
  int64_t batch_ = 1, stride_ = 1;
};

// The mask of a dense tensor, in the order of its memory. Without a mask, all elements have the same share.
class Mask {
 public:
  // `arithmetic` is the dtype of the shares. A value outside [0, 1] is an error; NaN gives NaN.
  Mask(const std::optional<Tensor>& mask, const Tensor& dense, DType arithmetic) {
    if (!mask || !dense.numel()) return;
    tensor_ = mask_beside(dense, mask, arithmetic);
    values_ = static_cast<const char*>(tensor_->const_data_ptr());
    period_ = tensor_->numel();
    size_ = int64_t(tensor_->element_size());
    is_bool_ = dtype_of(*tensor_) == DType::kBool;
    if (is_bool_) return;
    arithmetic == DType::kDouble ? check<double>() : check<float>();
  }

  const std::optional<Tensor>& tensor() const { return tensor_; }

  // Calls visit(Type<M>()) with the type M that the mask has in memory: void without a mask, uint8_t for bools, T for
  // shares.
  template <typename T, class Visit>
  void with_type(const Visit& visit) const {
    if (!tensor_) return visit(Type<void>());
    is_bool_ ? visit(Type<uint8_t>()) : visit(Type<T>());
  }

  // The end, at most `end`, of the elements from `element` on whose shares follow one another in memory.
  int64_t run_end(int64_t element, int64_t end) const {
    return tensor_ ? std::min(end, (element / period_ + 1) * period_) : end;
  }

  // The place in memory of an element's share; null without a mask.
  const void* at(int64_t element) const { return tensor_ ? values_ + element % period_ * size_ : nullptr; }

 private:
  template <typename T>
  void check() const {
    const T* const share = reinterpret_cast<const T*>(values_);
    std::atomic<int64_t> bad = -1;
    torch::stable::parallel_for(0, period_, kElementGrain, [&](int64_t begin, int64_t end) {
      T least = 0, most = 1;
      on_this_processor([&](auto) RMCLA_INLINE {
        Lanes<T> low{}, high{};
        const auto look = [&](int j, T x) RMCLA_INLINE {
          low[j] = x < low[j] ? x : low[j];
          high[j] = x > high[j] ? x : high[j];
        };
        int64_t i = begin;
        for (; i + kLanes <= end; i += kLanes) {
#pragma omp simd
          for (int j = 0; j < kLanes; ++j) look(j, share[i + j]);
        }
        for (; i < end; ++i) look(0, share[i]);
        least = lowest(low), most = highest(high);
      });
      if (least == T(0) && most <= T(1)) return;
      bad = std::find_if(share + begin, share + end, [](T x) { return x < T(0) || x > T(1); }) - share;
    });
    RMCLA_CHECK(bad < 0, "mask must lie in [0, 1]; got ", share[bad]);
  }

  std::optional<Tensor> tensor_;
  const char* values_ = nullptr;
  int64_t period_ = 1, size_ = 1;
  bool is_bool_ = false;
};

// The share of element i: of the whole number without a mask.
template <typename T, typename M>
RMCLA_SHARED T share_of(const void* mask, int64_t i) {
  if constexpr (std::is_same_v<M, uint8_t>) return static_cast<const uint8_t*>(mask)[i] ? T(1) : T(0);
  if constexpr (std::is_same_v<M, T>) return static_cast<const T*>(mask)[i];
  return T(1);
}

}  // namespace rmcla
