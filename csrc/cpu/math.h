// Exponential, logarithm and conversions of 16-bit floats for one element, without branches and calls, so that the
// compiler vectorises the loops around them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

namespace rmcla {

template <typename To, typename From>
RMCLA_SHARED To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// a * b + c, rounded only once if the instruction set has a fused multiply-add.
template <class Fusing, typename T>
RMCLA_SHARED T multiply_add(T a, T b, T c) {
  if constexpr (Fusing::value) return std::fma(a, b, c);
  return a * b + c;
}

// exp(x) * 2^kExponentShift<T> for x <= 0, to 2 units in the last place. The shifted value is a normal number also if
// exp(x) is subnormal or 0, so that quotients of two such values are accurate down to subnormal results and 0.
template <typename T>
constexpr int kExponentShift = sizeof(T) == 8 ? 128 : 32;

template <class Fusing>
RMCLA_SHARED float shifted_exp(float x) {
  x = x < -108.0f ? -108.0f : x;  // below this, quotients are 0
  // n = round(x / ln 2) is in the low bits of the sum, and x = n ln 2 + r. ln 2 has two parts, so that n times the
  // first one is exact.
  const float sum = multiply_add<Fusing>(x, 1.44269504088896340736f, 12582912.0f);
  const float n = sum - 12582912.0f;
  const float r = multiply_add<Fusing>(n, 2.12194440e-4f, multiply_add<Fusing>(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;  // the minimax polynomial of Cephes' expf
  p = multiply_add<Fusing>(p, r, 1.3981999507e-3f);
  p = multiply_add<Fusing>(p, r, 8.3334519073e-3f);
  p = multiply_add<Fusing>(p, r, 4.1665795894e-2f);
  p = multiply_add<Fusing>(p, r, 1.6666665459e-1f);
  p = multiply_add<Fusing>(p, r, 5.0000001201e-1f);
  p = multiply_add<Fusing>(p, r * r, r) + 1.0f;
  constexpr uint32_t kBias = 127 + kExponentShift<float>;
  // In unsigned integers, since n can be anything for a NaN.
  return p * bits_as<float>((bits_as<uint32_t>(sum) << 23) + (kBias << 23));
}

template <class Fusing>
RMCLA_SHARED double shifted_exp(double x) {
  x = x < -790.0 ? -790.0 : x;
  const double sum = multiply_add<Fusing>(x, 1.44269504088896340736, 6755399441055744.0);
  const double n = sum - 6755399441055744.0;
  const double r = multiply_add<Fusing>(n, -1.42860682030941723212e-6, multiply_add<Fusing>(n, -6.93145751953125e-1, x));
  double p = 1.0 / 6227020800;  // a Taylor polynomial, whose first omitted term is below 2^-57
  p = multiply_add<Fusing>(p, r, 1.0 / 479001600);
  p = multiply_add<Fusing>(p, r, 1.0 / 39916800);
  p = multiply_add<Fusing>(p, r, 1.0 / 3628800);
  p = multiply_add<Fusing>(p, r, 1.0 / 362880);
  p = multiply_add<Fusing>(p, r, 1.0 / 40320);
  p = multiply_add<Fusing>(p, r, 1.0 / 5040);
  p = multiply_add<Fusing>(p, r, 1.0 / 720);
  p = multiply_add<Fusing>(p, r, 1.0 / 120);
  p = multiply_add<Fusing>(p, r, 1.0 / 24);
  p = multiply_add<Fusing>(p, r, 1.0 / 6);
  p = multiply_add<Fusing>(p, r, 0.5);
  p = multiply_add<Fusing>(p, r * r, r) + 1.0;
  constexpr uint64_t kBias = 1023 + kExponentShift<double>;
  return p * bits_as<double>((bits_as<uint64_t>(sum) << 52) + (kBias << 52));
}

// log(x) - kExponentShift ln 2, for normal x > 0.
RMCLA_SHARED double shifted_log(double x) { return std::log(x) - kExponentShift<double> * 0.69314718055994530942; }

RMCLA_SHARED float shifted_log(float x) {  // Cephes, logf: x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2)
  const int32_t shifted = bits_as<int32_t>(x) - 0x3f3504f3;
  const float e = float((shifted >> 23) - kExponentShift<float>);
  const float f = bits_as<float>((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  float p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  p = p * f * square + e * -2.12194440e-4f;
  return (p - 0.5f * square) + f + e * 0.693359375f;
}

RMCLA_SHARED float from_half(uint16_t half) {
  const uint32_t h = half, magnitude = h & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + ((magnitude >= 0x7c00u ? 224u : 112u) << 23);
  const uint32_t small = bits_as<uint32_t>(float(int32_t(magnitude)) * 5.9604644775390625e-8f);
  return bits_as<float>((magnitude < 0x400u ? small : normal) | ((h & 0x8000u) << 16));
}

// Rounds to nearest even.
RMCLA_SHARED uint16_t to_half(float value) {
  const uint32_t f = bits_as<uint32_t>(value), magnitude = f & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Below 2^-14 the addition rounds to a multiple of 2^-24, the smallest positive half; the bits count these steps.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t h = magnitude < 0x38800000u ? small : normal;
  h = magnitude >= 0x477ff000u ? 0x7c00u : h;  // 65520 and more round to infinity
  h = magnitude > 0x7f800000u ? 0x7e00u : h;
  return uint16_t(h | ((f >> 16) & 0x8000u));
}

RMCLA_SHARED float from_bfloat16(uint16_t value) { return bits_as<float>(uint32_t(value) << 16); }

// Rounds to nearest even.
RMCLA_SHARED uint16_t to_bfloat16(float value) {
  const uint32_t f = bits_as<uint32_t>(value);
  const uint32_t rounded = (f + 0x7fffu + ((f >> 16) & 1u)) >> 16;
  return uint16_t((f & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace rmcla
