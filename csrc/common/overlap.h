// Whether a kernel may write into a caller's buffer while it still reads its inputs, which may be on the same memory.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>

namespace rmcla {

// Whether the memory from the first to the last element of one tensor overlaps that of the other. Addresses are
// compared and not storages, since two storages can share memory, as those of two tensors from one NumPy array do.
inline bool overlap(const at::Tensor& a, const at::Tensor& b) {
  const auto begin = [](const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()); };
  const auto end = [&](const at::Tensor& tensor) {
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    return begin(tensor) + uintptr_t(last + 1) * tensor.element_size();
  };
  return a.numel() && b.numel() && begin(a) < end(b) && begin(b) < end(a);
}

inline bool same_elements(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides();
}

// Whether a kernel may write each element of `out` right after it has read the same element of every input: each input
// must have the very elements of `out`, or no memory in common with it.
inline bool writable_beside(const at::Tensor& out, const at::Tensor& input) {
  return same_elements(out, input) || !overlap(out, input);
}

inline bool writable_beside(const at::Tensor& out, const std::optional<at::Tensor>& input) {
  return !input || writable_beside(out, *input);
}

template <class First, class... Others>
bool writable_beside(const at::Tensor& out, const First& first, const Others&... others) {
  return writable_beside(out, first) && writable_beside(out, others...);
}

}  // namespace rmcla
