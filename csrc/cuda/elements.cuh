// What the element-wise kernels share: vectors of 128 bits, numbers that may differ between images, and conversions.
#pragma once

#include <cuda_runtime.h>

#include "common/bytes.h"
#include "cuda/types.cuh"

namespace rmcla {

constexpr int kThreads = 256;

// Elements per thread, which fill 128 bits.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// The image of an element. In a flat, dense batch, element i is in image (i / stride) % count, whatever the order of
// the dimensions.
struct ImageIndex {
  int64_t stride;
  int64_t count;

  __device__ __forceinline__ int64_t of(int64_t i) const {
    const uint64_t j = uint64_t(i), s = uint64_t(stride), n = uint64_t(count);
    if ((j | s | n) >> 32 == 0) return uint32_t(j) / uint32_t(s) % uint32_t(n);  // several times faster than in 64 bits
    return int64_t(j / s % n);
  }
};

// A number for every image: `value` if `values` is null, else one that the kernel reads. `values` has them `stride`
// apart, where 0 means that there is only one.
template <typename W>
struct PerImage {
  W value;
  const float* values;
  int64_t stride;

  __device__ __forceinline__ W at(int64_t image) const { return values ? W(values[image * stride]) : value; }
};

// A stored pixel converted to a number in [0, 1].
template <typename W, typename T>
__device__ __forceinline__ W pixel(T stored) {
  return W(Storage<T>::widen(stored));
}

template <>
__device__ __forceinline__ float pixel<float, uint8_t>(uint8_t stored) {
  return unit_from_byte<float>(stored);
}

template <>
__device__ __forceinline__ double pixel<double, uint8_t>(uint8_t stored) {
  return unit_from_byte<double>(stored);
}

}  // namespace rmcla
