// What the element-wise kernels share: vectors of 128 bits, numbers that differ from image to image, and conversions.
#pragma once

#include <cuda_runtime.h>

#include "common/bytes.h"
#include "cuda/types.cuh"

namespace rmcla {

constexpr int kThreads = 256;

// So many elements a thread that its share of T fills 128 bits.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// Element i of a flat, dense batch of images lies in image (i / stride) % count, whatever the order of its dimensions.
struct ImageIndex {
  int64_t stride;
  int64_t count;

  __device__ __forceinline__ int64_t of(int64_t i) const {
    const uint64_t j = uint64_t(i), s = uint64_t(stride), n = uint64_t(count);
    if ((j | s | n) >> 32 == 0) return uint32_t(j) / uint32_t(s) % uint32_t(n);  // several times faster than 64 bits
    return int64_t(j / s % n);
  }
};

// A number, or one for each image, read by the kernel: `values` is null, or holds them `stride` apart (0: one for all).
template <typename W>
struct PerImage {
  W value;
  const float* values;
  int64_t stride;

  __device__ __forceinline__ W at(int64_t image) const { return values ? W(values[image * stride]) : value; }
};

// A stored pixel as a number in [0, 1].
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
