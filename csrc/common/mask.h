// The place of a mask in memory, beside the images of perturb_step and random_start.
#pragma once

#include "common/tensors.h"

namespace rmcla {

// The mask in the memory order of the dense `images`: element i of their memory has value i % n of the result, which
// has n elements. A mask that repeats itself in this order is not repeated in memory, so that it stays in the caches. A
// bool mask stays bool, and any other becomes `arithmetic`. A mask that is of this form already is not copied. The
// images have at least one element.
inline std::optional<Tensor> mask_beside(const Tensor& images, const std::optional<Tensor>& given, DType arithmetic) {
  if (!given) return {};
  const Sizes of_mask = given->sizes(), strides = images.strides();
  const size_t dimensions = images.sizes().size(), missing = dimensions - of_mask.size();
  std::vector<int64_t> sizes = images.sizes().vec();  // of one period
  for (size_t d = 0; d < dimensions && (d < missing || of_mask[d - missing] == 1); ++d) {
    std::vector<int64_t> part = sizes;
    part[d] = 1;
    int64_t count = 1;
    for (const int64_t size : part) count *= size;
    // The kernels need whole vectors, and are slow on short pieces.
    if (count < 64 || count % 16 || !is_dense(part, strides)) break;
    sizes = part;
  }
  std::vector<int64_t> repeated(dimensions, 0);  // the strides of the mask, if it were expanded to one period
  for (size_t d = 0; d < of_mask.size(); ++d)
    if (of_mask[d] > 1) repeated[missing + d] = given->strides()[d];
  const DType dtype = dtype_of(*given) == DType::kBool ? DType::kBool : arithmetic;
  AtenTensorHandle view;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(given->get(), int64_t(dimensions), sizes.data(), repeated.data(), 0, &view));
  const Tensor values(view);
  bool as_is = dtype_of(*given) == dtype;
  for (size_t d = 0; d < dimensions; ++d) as_is = as_is && (sizes[d] == 1 || repeated[d] == strides[d]);
  return as_is ? values : copied(values, strides, dtype);
}

}  // namespace rmcla
