// What the host code of the operators shares: how tensors become arguments of kernels, and where kernels are launched.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "common/element_checks.h"
#include "common/mask.h"
#include "common/registration.h"
#include "common/row_checks.h"
#include "cuda/elements.cuh"

namespace rmcla {

// Calls launch(stream) with the tensor's device and PyTorch's stream there, and reports a launch that failed.
template <class Launch>
void launch_beside(const Tensor& tensor, Launch launch) {
  const torch::stable::accelerator::DeviceGuard device(tensor.get_device_index());
  void* stream;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  launch(static_cast<cudaStream_t>(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The elements of a tensor, or null without one.
template <typename T>
const T* read(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* written(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

// The tensor, or a contiguous copy of it, with this dtype.
inline Tensor as_dtype(const Tensor& tensor, DType dtype) {
  return dtype_of(tensor) == dtype ? tensor : copied(tensor, contiguous_strides(tensor.sizes()), dtype);
}

// Whether vectors of `elements` elements can be read from the beginning of the tensor's memory on.
inline bool vectors_align(const Tensor& tensor, int64_t elements) {
  const int64_t bytes = std::min<int64_t>(16, elements * int64_t(tensor.element_size()));
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

inline ImageIndex image_index(const Tensor& images) {
  const bool batch = images.dim() > 0 && images.size(0) > 1;
  return {batch ? images.stride(0) : 1, batch ? images.size(0) : 1};
}

template <typename W>
PerImage<W> per_image(double value, const std::optional<Tensor>& values) {
  if (!values) return {W(value), nullptr, 0};
  const bool one = values->dim() == 0 || values->size(0) == 1;
  return {W(0), read<float>(values), one ? 0 : values->stride(0)};
}

// The mask that `mask_beside` gave, for a kernel.
inline MaskValues mask_of(const std::optional<Tensor>& mask) {
  if (!mask) return {};
  return {mask->const_data_ptr(), mask->numel(), dtype_of(*mask) == DType::kBool};
}

}  // namespace rmcla
