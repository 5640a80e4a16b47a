// The conversion loops of convert.h, in vectors. fp16 and bf16 are converted by integer arithmetic, which needs no
// special instruction set.
#pragma once

#include "cpu/simd.h"

namespace rmcla {

template <int Bytes>
struct Words {
  static constexpr int kCount = Bytes / 4;
  typedef float Float __attribute__((vector_size(Bytes)));
  typedef int32_t Int __attribute__((vector_size(Bytes)));
  typedef uint32_t UInt __attribute__((vector_size(Bytes)));
  typedef uint16_t Half __attribute__((vector_size(Bytes / 2)));
};

// Calls `f(from, to)` for whole vectors; the last, partial one goes through a buffer.
template <int Count, typename From, typename To, typename F>
RMCLA_SHARED void each_vector(const From* from, To* to, int64_t count, F f) {
  int64_t i = 0;
  for (; i + Count <= count; i += Count) f(from + i, to + i);
  if (i < count) {
    From last[Count] = {};
    To result[Count];
    std::memcpy(last, from + i, size_t(count - i) * sizeof(From));
    f(last, result);
    std::memcpy(to + i, result, size_t(count - i) * sizeof(To));
  }
}

template <int Bytes>
RMCLA_SHARED void widen_half(const uint16_t* from, float* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  using Float = typename W::Float;
  each_vector<W::kCount>(from, to, count, [](const uint16_t* in, float* out) __attribute__((always_inline)) {
    const UInt h = __builtin_convertvector(simd::load<typename W::Half>(in), UInt);
    const UInt magnitude = h & 0x7fffu;
    const UInt normal =
        (magnitude << 13) + ((magnitude >= 0x7c00u ? simd::splat<UInt>(224u) : simd::splat<UInt>(112u)) << 23);
    const Float small = __builtin_convertvector(simd::bits<typename W::Int>(magnitude), Float) * 5.9604644775390625e-8f;
    const UInt value = magnitude < 0x400u ? simd::bits<UInt>(small) : normal;
    simd::store(out, value | ((h & 0x8000u) << 16));
  });
}

template <int Bytes>
RMCLA_SHARED void narrow_half(const float* from, uint16_t* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  using Float = typename W::Float;
  each_vector<W::kCount>(from, to, count, [](const float* in, uint16_t* out) __attribute__((always_inline)) {
    const UInt f = simd::load<UInt>(in);
    const UInt magnitude = f & 0x7fffffffu;
    const UInt normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Below 2^-14 the addition rounds to a multiple of 2^-24, the smallest positive half; the bits count these steps.
    const UInt small = simd::bits<UInt>(Float(simd::bits<Float>(magnitude) + 0.5f)) - 0x3f000000u;
    UInt h = magnitude < 0x38800000u ? small : normal;
    h = magnitude >= 0x477ff000u ? simd::splat<UInt>(0x7c00u) : h;  // 65520 and more round to infinity
    h = magnitude > 0x7f800000u ? simd::splat<UInt>(0x7e00u) : h;
    simd::store(out, __builtin_convertvector(h | ((f >> 16) & 0x8000u), typename W::Half));
  });
}

template <int Bytes>
RMCLA_SHARED void widen_bfloat(const uint16_t* from, float* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  each_vector<W::kCount>(from, to, count, [](const uint16_t* in, float* out) __attribute__((always_inline)) {
    simd::store(out, UInt(__builtin_convertvector(simd::load<typename W::Half>(in), UInt) << 16));
  });
}

template <int Bytes>
RMCLA_SHARED void narrow_bfloat(const float* from, uint16_t* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  each_vector<W::kCount>(from, to, count, [](const float* in, uint16_t* out) __attribute__((always_inline)) {
    const UInt f = simd::load<UInt>(in);
    const UInt rounded = (f + 0x7fffu + ((f >> 16) & 1u)) >> 16;
    const UInt h = (f & 0x7fffffffu) > 0x7f800000u ? simd::splat<UInt>(0x7fc0u) : rounded;
    simd::store(out, __builtin_convertvector(h, typename W::Half));
  });
}

// The compiler vectorises the plain loops below.
template <int Bytes>
RMCLA_SHARED void widen_bytes(const uint8_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]) / 255.0f;
}

template <int Bytes>
RMCLA_SHARED void widen_bytes_double(const uint8_t* from, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = double(from[i]) / 255.0;
}

template <int Bytes>
RMCLA_SHARED void float_to_double(const float* from, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <int Bytes>
RMCLA_SHARED void double_to_float(const double* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]);
}

template <int Bytes>
RMCLA_SHARED void double_signs(const double* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = from[i];
    to[i] = x > 0 ? 1.0f : x < 0 ? -1.0f : float(x - x);
  }
}

}  // namespace rmcla
