// Tensors through PyTorch's stable ABI, whose functions run with every release of torch from the one on that setup.py
// targets: metadata, new tensors, copies, and the memory layouts and overlaps that kernels over flat memory care about.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "common/dtype.h"

// Headers of torch before 2.13 know only the other macro, whose exceptions do not say what went wrong in PyTorch.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace rmcla {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// PyTorch's codes of the dtypes, in the order of DType. Only functions give them, since they are no part of the ABI.
inline const std::array<int32_t, int(DType::kOther)>& dtype_codes() {
  static const std::array<int32_t, int(DType::kOther)> codes = {
      aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_float16(), aoti_torch_dtype_bfloat16(),
      aoti_torch_dtype_uint8(),   aoti_torch_dtype_bool(),    aoti_torch_dtype_int64()};
  return codes;
}

inline DType dtype_of(const Tensor& tensor) {
  int32_t code;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return DType(std::find(dtype_codes().begin(), dtype_codes().end(), code) - dtype_codes().begin());
}

inline int32_t device_type_of(const Tensor& tensor) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return device_type_of(a) == device_type_of(b) && a.get_device_index() == b.get_device_index();
}

// While one exists, PyTorch records no graph of the copies that are made.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// Raises, in PyTorch's words, that memory could not be allocated. The stable ABI does not pass these words on.
[[noreturn]] inline void fail_to_allocate(Sizes sizes, DType dtype, const Tensor& like) {
  double bytes = double(aoti_torch_dtype_element_size(dtype_codes()[size_t(dtype)]));
  for (const int64_t size : sizes) bytes *= double(size);
  char text[128];
  std::snprintf(text, sizeof text, "%s: tried to allocate %.2f GiB",
                like.is_cpu() ? "can't allocate memory" : "CUDA out of memory", bytes / 0x1p30);
  throw std::runtime_error(text);
}

// A new tensor on the device of `like`, whose elements are not set.
inline Tensor empty_strided(Sizes sizes, Sizes strides, DType dtype, const Tensor& like) {
  AtenTensorHandle made;
  const AOTITorchError error =
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype_codes()[size_t(dtype)],
                               device_type_of(like), like.get_device_index(), &made);
  if (error != AOTI_TORCH_SUCCESS) fail_to_allocate(sizes, dtype, like);
  return Tensor(made);
}

inline std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(1, sizes[d])) strides[d] = stride;
  return strides;
}

// Most tensors have one or two dimensions, whose strides need no memory of their own.
inline Tensor empty(Sizes sizes, DType dtype, const Tensor& like) {
  if (sizes.size() == 1) return empty_strided(sizes, {1}, dtype, like);
  if (sizes.size() == 2) return empty_strided(sizes, {std::max<int64_t>(1, sizes[1]), 1}, dtype, like);
  return empty_strided(sizes, contiguous_strides(sizes), dtype, like);
}

inline void copy(const Tensor& to, const Tensor& from) {
  const NoGrad guard;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(to.get(), from.get(), 0));
}

// A copy of `tensor` with these strides and this dtype.
inline Tensor copied(const Tensor& tensor, Sizes strides, DType dtype) {
  Tensor made = empty_strided(tensor.sizes(), strides, dtype, tensor);
  copy(made, tensor);
  return made;
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : copied(tensor, contiguous_strides(tensor.sizes()), dtype_of(tensor));
}

// The matrix, or a copy of it, with neighbouring elements of a row side by side. Rows may be any distance apart.
inline Tensor with_dense_rows(const Tensor& matrix) {
  return matrix.stride(1) == 1 && matrix.stride(0) >= 0 ? matrix : as_contiguous(matrix);
}

// Whether the elements fill their memory, without gaps and overlaps, in any order of the dimensions.
inline bool is_dense(Sizes sizes, Sizes strides) {
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride and size
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return true;
    if (sizes[d] > 1) dimensions.emplace_back(strides[d], sizes[d]);
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The images if they are dense; else a contiguous copy. Element-wise kernels then run over flat memory, in which
// element i belongs to image (i / stride(0)) % B.
inline Tensor as_dense(const Tensor& images) {
  return images.is_contiguous() || is_dense(images.sizes(), images.strides()) ? images : as_contiguous(images);
}

// A batch of images that follow one another in memory, each of them dense: `images`, or a copy. Each image has its
// elements in the order in which `as_dense` has them for that image alone.
inline Tensor as_dense_images(const Tensor& images) {
  const Sizes sizes = images.sizes(), strides = images.strides();
  if (sizes[0] < 2 || images.numel() == 0) return as_dense(images);
  const int64_t image_size = images.numel() / sizes[0];
  if (!is_dense(sizes.slice(1), strides.slice(1))) return as_contiguous(images);
  if (strides[0] == image_size) return images;
  std::vector<int64_t> wanted = strides.vec();
  wanted[0] = image_size;
  return copied(images, wanted, dtype_of(images));
}

// `tensor`, or a copy of it, in the memory layout of the dense `images`.
inline Tensor in_layout_of(const Tensor& images, const Tensor& tensor) {
  return tensor.strides().equals(images.strides()) ? tensor : copied(tensor, images.strides(), dtype_of(tensor));
}

// Tells autograd that `out` was written, as every in-place operator must. PyTorch's own copy of a tensor to itself
// writes nothing and counts as a write. It comes before the kernel, since PyTorch may refuse it.
inline void mark_written(const Tensor& out) { copy(out, out); }

// Whether the memory from the first to the last element of one tensor overlaps that of the other. Addresses are
// compared and not storages, since two storages can share memory, as those of two tensors from one NumPy array do.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto range = [](const Tensor& tensor) {
    const Sizes sizes = tensor.sizes(), strides = tensor.strides();
    int64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    return std::pair(begin, begin + uintptr_t(last + 1) * tensor.element_size());
  };
  if (!a.numel() || !b.numel()) return false;
  const auto [a_begin, a_end] = range(a);
  const auto [b_begin, b_end] = range(b);
  return a_begin < b_end && b_begin < a_end;
}

inline bool same_elements(const Tensor& a, const Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && dtype_of(a) == dtype_of(b) && a.sizes().equals(b.sizes()) &&
         a.strides().equals(b.strides());
}

// Whether a kernel may write each element of `out` right after it has read the same element of every input: each input
// must have the very elements of `out`, or no memory in common with it.
inline bool writable_beside(const Tensor& out, const Tensor& input) {
  return same_elements(out, input) || !overlap(out, input);
}

inline bool writable_beside(const Tensor& out, const std::optional<Tensor>& input) {
  return !input || writable_beside(out, *input);
}

template <class First, class... Others>
bool writable_beside(const Tensor& out, const First& first, const Others&... others) {
  return writable_beside(out, first) && writable_beside(out, others...);
}

}  // namespace rmcla
