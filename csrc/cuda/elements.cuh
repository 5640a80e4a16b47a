// What the element-wise kernels share: vectors of 128 bits, numbers that may differ between images, masks, and
// conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/perturb_step.h"
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

  bool varies() const { return stride != 0; }

  __device__ __forceinline__ W at(int64_t image) const { return values ? W(values[image * stride]) : value; }
};

// Products that the compiler does not fuse with a sum.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

// NaN for a value of a mask outside [0, 1].
template <typename T>
__device__ __forceinline__ T valid_share(T share) {
  return share >= T(0) && share <= T(1) ? share : T(__builtin_nanf(""));
}

// The mask in the order of memory: bool, or the type W of the arithmetic. Element i has value i % period.
struct MaskValues {
  const void* values;
  int64_t period;
  bool is_bool;

  // The place of the value of element i.
  __device__ __forceinline__ int64_t place(int64_t i) const {
    if (i < period) return i;
    if ((i | period) >> 32 == 0) return uint32_t(i) % uint32_t(period);  // several times faster than in 64 bits
    return i % period;
  }

  // Reads the shares in kCount places, which are a whole vector of the mask. A share outside [0, 1] becomes NaN.
  template <int kCount, typename W>
  __device__ __forceinline__ void load(int64_t first, W* share) const {
    if (is_bool) {
      const auto m = pack_at<kCount>(static_cast<const uint8_t*>(values), first);
#pragma unroll
      for (int k = 0; k < kCount; ++k) share[k] = m.item[k] ? W(1) : W(0);
    } else {
      const auto m = pack_at<kCount>(static_cast<const W*>(values), first);
#pragma unroll
      for (int k = 0; k < kCount; ++k) share[k] = valid_share(m.item[k]);
    }
  }

  // The share in a place, which may be fewer than `period` places behind the end.
  template <typename W>
  __device__ __forceinline__ W at(int64_t place) const {
    if (place >= period) place -= period;
    if (is_bool) return static_cast<const uint8_t*>(values)[place] ? W(1) : W(0);
    return valid_share(static_cast<const W*>(values)[place]);
  }
};

// value / 255, correctly rounded, without a division: a product with the rounded reciprocal, corrected by one Newton
// step. For all 256 bytes, which the tests try, this gives the bits of value / 255. The product alone does not.
template <typename T>
__device__ __forceinline__ T unit_from_byte(uint8_t byte) {
  const T inverse = T(1) / T(255);
  const T value = T(byte);
  const T quotient = value * inverse;
  return std::fma(std::fma(-quotient, T(255), value), inverse, quotient);
}

// A stored pixel converted to a number in [0, 1].
template <typename W, typename T>
__device__ __forceinline__ W pixel(T stored) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return unit_from_byte<W>(stored);
  } else {
    return W(Storage<T>::widen(stored));
  }
}

}  // namespace rmcla
