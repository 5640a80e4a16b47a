// What the host code of the operators shares. nvcc's device passes skip this file and PyTorch's headers, which would
// take most of their time.
#pragma once

#if !defined(__CUDA_ARCH__)

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/arguments.h"
#include "common/mask.h"
#include "common/overlap.h"
#include "cuda/elements.cuh"

namespace rmcla {

inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kHalf:
      return DType::kHalf;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(tensor.scalar_type() == at::kByte, "expected a float or uint8 tensor; got ",
                       tensor.scalar_type());
      return DType::kByte;
  }
}

inline at::ScalarType wide_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool aligned(const at::Tensor& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

// The matrix, or a copy of it, with neighbouring elements of a row side by side; rows may have any distance.
inline at::Tensor with_dense_rows(const at::Tensor& matrix) {
  return matrix.stride(1) == 1 ? matrix : matrix.contiguous();
}

// Whether every row can be read in packs of kPack elements.
inline bool rows_pack(const at::Tensor& matrix) {
  return matrix.size(1) % kPack == 0 && matrix.stride(0) % kPack == 0 && aligned(matrix, kPack * matrix.element_size());
}

// Whether vectors of `elements` elements can be read from the beginning of the tensor's memory on.
inline bool vectors_align(const at::Tensor& tensor, int64_t elements) {
  return aligned(tensor, std::min<int64_t>(16, elements * tensor.element_size()));
}

inline ImageIndex image_index(const at::Tensor& images) {
  const bool batch = images.dim() > 0 && images.size(0) > 1;
  return {batch ? images.stride(0) : 1, batch ? images.size(0) : 1};
}

inline PerImage<double> per_image(double value, const std::optional<at::Tensor>& values) {
  if (!values) return {value, nullptr, 0};
  const bool one = values->dim() == 0 || values->size(0) == 1;
  return {0.0, values->const_data_ptr<float>(), one ? 0 : values->stride(0)};
}

// Whether the number may differ between images.
inline bool varies(const PerImage<double>& number) { return number.stride != 0; }

// The mask that `mask_beside` gave, for a kernel.
inline MaskValues mask_of(const std::optional<at::Tensor>& mask) {
  if (!mask) return {};
  return {mask->const_data_ptr(), mask->numel(), mask->scalar_type() == at::kBool};
}

}  // namespace rmcla

#endif
