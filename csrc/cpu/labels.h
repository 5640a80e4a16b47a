// What the operators on rows of logits share: the check of class labels before anything is written, and new outputs.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

#include <algorithm>

namespace rmcla {

// The labels in contiguous memory. Raises ValueError, naming the first label that is outside the classes.
inline at::Tensor checked_classes(const char* name, const at::Tensor& labels, int64_t classes) {
  const at::Tensor dense = labels.contiguous();
  const int64_t* const label = dense.const_data_ptr<int64_t>();
  const int64_t rows = dense.numel();
  uint64_t largest = 0;  // a negative label is a huge unsigned one
  for (int64_t row = 0; row < rows; ++row) largest = std::max(largest, uint64_t(label[row]));
  if (largest >= uint64_t(classes)) {
    const int64_t row =
        std::find_if(label, label + rows, [&](int64_t c) { return uint64_t(c) >= uint64_t(classes); }) - label;
    TORCH_CHECK_VALUE(false, name, " must lie in [0, ", classes, "); got ", label[row], " in row ", row);
  }
  return dense;
}

// at::empty without the dispatcher's overhead, which small batches would pay four times.
inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) { return at::detail::empty_cpu(sizes, dtype); }

}  // namespace rmcla
