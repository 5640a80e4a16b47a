// perturb_step over flat memory, in vectors.
#pragma once

#include <algorithm>

#include "common/perturb_step.h"
#include "cpu/simd.h"

namespace rmcla {

template <typename T>
struct StepRun {
  const T* image;
  const T* origin;
  const T* grad;
  T* out;
  int64_t count;
  T step, radius, lower, upper;
  bool stream;       // store without caching
  const void* mask;  // the share of step and radius of each element, as M of step_elements
};

template <typename V>
RMCLA_SHARED void store_past_caches(void* to, V v) {
#if defined(__SSE2__)
  for (size_t part = 0; part < sizeof v; part += 16) {
    __m128i piece;
    std::memcpy(&piece, reinterpret_cast<const char*>(&v) + part, 16);
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + part), piece);
  }
#else
  simd::store(to, v);
#endif
}

// Vectors of kCount integers of several widths.
template <int kCount>
struct Widths {
  typedef int8_t Bits8 __attribute__((vector_size(kCount)));
  typedef int16_t Bits16 __attribute__((vector_size(2 * kCount)));
  typedef int32_t Bits32 __attribute__((vector_size(4 * kCount)));
};

// The shares of as many elements as V has lanes, from bools (as bytes) or from numbers. GCC makes one
// instruction of each conversion that doubles the width of the lanes, and many of one that quadruples it.
template <typename V, typename M>
RMCLA_SHARED V load_shares(const M* mask) {
  if constexpr (sizeof(M) == 1) {
    using W = Widths<simd::count_of<V>>;
    const auto bools = simd::load<typename W::Bits8>(mask) != 0;  // -1 for true
    const auto words = __builtin_convertvector(bools, typename W::Bits16);
    return __builtin_convertvector(-__builtin_convertvector(words, typename W::Bits32), V);
  } else {
    return simd::load<V>(mask);
  }
}

// M is void without a mask, T for a mask of shares, and uint8_t for a bool mask.
template <int Bytes, typename T, typename M>
RMCLA_SHARED void step_elements(const StepRun<T>& run) {
  using V = typename simd::Lanes<T, Bytes>::Vector;
  constexpr int64_t kCount = simd::Lanes<T, Bytes>::kCount;
  // Prefetch this many elements ahead, since the hardware's own prefetching stops at page borders.
  constexpr int64_t kAhead = 1024 / int64_t(sizeof(T));
  constexpr bool kMasked = !std::is_void_v<M>;
  using Share = std::conditional_t<kMasked, M, T>;
  const Share* const shares = static_cast<const Share*>(run.mask);
  const V step = simd::splat<V>(run.step), radius = simd::splat<V>(run.radius);
  const V lower = simd::splat<V>(run.lower), upper = simd::splat<V>(run.upper);
  const auto moved = [&](const T* image, const T* origin, const T* grad,
                         const Share* mask) __attribute__((always_inline)) {
    const V g = simd::load<V>(grad);
    // g - g is 0 for both zeros and NaN for NaN.
    const V sign = g > V{} ? simd::splat<V>(T(1)) : (g < V{} ? simd::splat<V>(T(-1)) : g - g);
    V own_step = step, own_radius = radius;
    if constexpr (kMasked) {
      const V share = load_shares<V>(mask);
      own_step = step * share;
      own_radius = radius * share;
    }
    return clipped_step(simd::load<V>(image), own_step, sign, simd::load<V>(origin), own_radius, lower, upper);
  };
  int64_t i = 0;
  const auto mask_at = [&](int64_t place) __attribute__((always_inline)) { return kMasked ? shares + place : nullptr; };
  const auto part = [&](int64_t count) __attribute__((always_inline)) {
    T image[kCount] = {}, origin[kCount] = {}, grad[kCount] = {};
    Share mask[kCount] = {};
    const size_t bytes = size_t(count) * sizeof(T);
    std::memcpy(image, run.image + i, bytes);
    std::memcpy(origin, run.origin + i, bytes);
    std::memcpy(grad, run.grad + i, bytes);
    if constexpr (kMasked) std::memcpy(mask, shares + i, size_t(count) * sizeof(Share));
    const V out = moved(image, origin, grad, mask);
    std::memcpy(run.out + i, &out, bytes);
    i += count;
  };
  if (run.stream) {
    const int64_t misaligned = int64_t(reinterpret_cast<uintptr_t>(run.out) % Bytes / sizeof(T));
    if (misaligned) part(std::min(run.count, kCount - misaligned));
    for (; i + kCount <= run.count; i += kCount) {
      __builtin_prefetch(run.image + i + kAhead);
      __builtin_prefetch(run.origin + i + kAhead);
      __builtin_prefetch(run.grad + i + kAhead);
      if constexpr (kMasked) __builtin_prefetch(shares + i + kAhead);
      store_past_caches(run.out + i, moved(run.image + i, run.origin + i, run.grad + i, mask_at(i)));
    }
  } else {
    for (; i + kCount <= run.count; i += kCount)
      simd::store(run.out + i, moved(run.image + i, run.origin + i, run.grad + i, mask_at(i)));
  }
  if (i < run.count) part(run.count - i);
#if defined(__SSE2__)
  if (run.stream) _mm_sfence();
#endif
}

}  // namespace rmcla
