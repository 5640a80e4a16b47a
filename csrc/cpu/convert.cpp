// Storage to arithmetic and back. fp16 and bf16 are taken apart as integers, so that no instruction set is needed for
// them.
#include "cpu/convert.h"

#include "cpu/simd.h"

namespace rmcla {
namespace {

using simd::bits;
using simd::splat;

template <int Bytes>
struct Words {
  static constexpr int kCount = Bytes / 4;
  typedef float Float __attribute__((vector_size(Bytes)));
  typedef int32_t Int __attribute__((vector_size(Bytes)));
  typedef uint32_t UInt __attribute__((vector_size(Bytes)));
  typedef uint16_t Half __attribute__((vector_size(Bytes / 2)));
};

// Runs `f(from, to)` on whole vectors, the last part by way of a buffer.
template <int Count, typename From, typename To, typename F>
RMCLA_SHARED void blocks(const From* from, To* to, int64_t count, F f) {
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
RMCLA_SHARED void widen_half_lanes(const uint16_t* from, float* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  using Float = typename W::Float;
  blocks<W::kCount>(from, to, count, [](const uint16_t* in, float* out) __attribute__((always_inline)) {
    const UInt h = __builtin_convertvector(simd::load<typename W::Half>(in), UInt);
    const UInt magnitude = h & 0x7fffu;
    const UInt normal = (magnitude << 13) + ((magnitude >= 0x7c00u ? splat<UInt>(224u) : splat<UInt>(112u)) << 23);
    const Float small = __builtin_convertvector(bits<typename W::Int>(magnitude), Float) * 5.9604644775390625e-8f;
    const UInt value = magnitude < 0x400u ? bits<UInt>(small) : normal;
    simd::store(out, value | ((h & 0x8000u) << 16));
  });
}

template <int Bytes>
RMCLA_SHARED void narrow_half_lanes(const float* from, uint16_t* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  using Float = typename W::Float;
  blocks<W::kCount>(from, to, count, [](const float* in, uint16_t* out) __attribute__((always_inline)) {
    const UInt f = simd::load<UInt>(in);
    const UInt magnitude = f & 0x7fffffffu;
    const UInt normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Below 2^-14 the addition rounds to a multiple of 2^-24, which is the number of half's smallest steps.
    const UInt small = bits<UInt>(Float(bits<Float>(magnitude) + 0.5f)) - 0x3f000000u;
    UInt h = magnitude < 0x38800000u ? small : normal;
    h = magnitude >= 0x477ff000u ? splat<UInt>(0x7c00u) : h;  // 65520 and more round to infinity
    h = magnitude > 0x7f800000u ? splat<UInt>(0x7e00u) : h;
    simd::store(out, __builtin_convertvector(h | ((f >> 16) & 0x8000u), typename W::Half));
  });
}

template <int Bytes>
RMCLA_SHARED void widen_bfloat_lanes(const uint16_t* from, float* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  blocks<W::kCount>(from, to, count, [](const uint16_t* in, float* out) __attribute__((always_inline)) {
    simd::store(out, UInt(__builtin_convertvector(simd::load<typename W::Half>(in), UInt) << 16));
  });
}

template <int Bytes>
RMCLA_SHARED void narrow_bfloat_lanes(const float* from, uint16_t* to, int64_t count) {
  using W = Words<Bytes>;
  using UInt = typename W::UInt;
  blocks<W::kCount>(from, to, count, [](const float* in, uint16_t* out) __attribute__((always_inline)) {
    const UInt f = simd::load<UInt>(in);
    const UInt rounded = (f + 0x7fffu + ((f >> 16) & 1u)) >> 16;
    const UInt h = (f & 0x7fffffffu) > 0x7f800000u ? splat<UInt>(0x7fc0u) : rounded;
    simd::store(out, __builtin_convertvector(h, typename W::Half));
  });
}

// The plain loops below are vectorised by the compiler, for each instruction set.
template <int Bytes>
RMCLA_SHARED void widen_bytes_lanes(const uint8_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]) / 255.0f;
}

template <int Bytes>
RMCLA_SHARED void widen_bytes_double_lanes(const uint8_t* from, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = double(from[i]) / 255.0;
}

template <int Bytes>
RMCLA_SHARED void float_to_double_lanes(const float* from, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <int Bytes>
RMCLA_SHARED void double_to_float_lanes(const double* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]);
}

template <int Bytes>
RMCLA_SHARED void double_signs_lanes(const double* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = from[i];
    to[i] = x > 0 ? 1.0f : x < 0 ? -1.0f : float(x - x);
  }
}

RMCLA_KERNEL(widen_half, (const uint16_t* from, float* to, int64_t count), (from, to, count))
RMCLA_KERNEL(narrow_half, (const float* from, uint16_t* to, int64_t count), (from, to, count))
RMCLA_KERNEL(widen_bfloat, (const uint16_t* from, float* to, int64_t count), (from, to, count))
RMCLA_KERNEL(narrow_bfloat, (const float* from, uint16_t* to, int64_t count), (from, to, count))
RMCLA_KERNEL(widen_bytes, (const uint8_t* from, float* to, int64_t count), (from, to, count))
RMCLA_KERNEL(widen_bytes_double, (const uint8_t* from, double* to, int64_t count), (from, to, count))
RMCLA_KERNEL(float_to_double, (const float* from, double* to, int64_t count), (from, to, count))
RMCLA_KERNEL(double_to_float, (const double* from, float* to, int64_t count), (from, to, count))
RMCLA_KERNEL(double_signs, (const double* from, float* to, int64_t count), (from, to, count))

}  // namespace

void widen(at::ScalarType dtype, const void* from, float* to, int64_t count) {
  switch (dtype) {
    case at::kHalf:
      return widen_half(static_cast<const uint16_t*>(from), to, count);
    case at::kBFloat16:
      return widen_bfloat(static_cast<const uint16_t*>(from), to, count);
    case at::kByte:
      return widen_bytes(static_cast<const uint8_t*>(from), to, count);
    case at::kDouble:
      return double_to_float(static_cast<const double*>(from), to, count);
    default:
      std::memcpy(to, from, size_t(count) * sizeof(float));
  }
}

void widen(at::ScalarType dtype, const void* from, double* to, int64_t count) {
  if (dtype == at::kByte) return widen_bytes_double(static_cast<const uint8_t*>(from), to, count);
  if (dtype == at::kFloat) return float_to_double(static_cast<const float*>(from), to, count);
  constexpr int64_t kPart = 1024;
  float part[kPart];
  for (int64_t i = 0; i < count; i += kPart) {
    const int64_t n = std::min(kPart, count - i);
    widen(dtype, static_cast<const uint16_t*>(from) + i, part, n);
    float_to_double(part, to + i, n);
  }
}

void narrow(at::ScalarType dtype, const float* from, void* to, int64_t count) {
  if (dtype == at::kHalf) return narrow_half(from, static_cast<uint16_t*>(to), count);
  if (dtype == at::kBFloat16) return narrow_bfloat(from, static_cast<uint16_t*>(to), count);
  std::memcpy(to, from, size_t(count) * sizeof(float));
}

void narrow(at::ScalarType, const double* from, void* to, int64_t count) {
  std::memcpy(to, from, size_t(count) * sizeof(double));  // only float64 storage is computed in double
}

void signs(const double* from, float* to, int64_t count) { double_signs(from, to, count); }

}  // namespace rmcla
