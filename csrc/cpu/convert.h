// Storage to arithmetic and back: every float dtype and uint8 to float or double, and to the storage dtypes, in
// vectors.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace rmcla {

// `count` elements of `dtype`, uint8 meaning value / 255, as T; the nearest T where T is narrower.
void widen(at::ScalarType dtype, const void* from, float* to, int64_t count);
void widen(at::ScalarType dtype, const void* from, double* to, int64_t count);

// `count` elements as `dtype`, rounded to nearest even.
void narrow(at::ScalarType dtype, const float* from, void* to, int64_t count);
void narrow(at::ScalarType dtype, const double* from, void* to, int64_t count);

// Narrow floats whose sign and NaN alone matter: +-1, 0 or NaN, which a double below the smallest float keeps.
void signs(const double* from, float* to, int64_t count);

template <typename T>
constexpr at::ScalarType kArithmetic = sizeof(T) == 8 ? at::kDouble : at::kFloat;

// The elements as T, where they are or, converted, in `room`.
template <typename T>
const T* as_arithmetic(at::ScalarType dtype, const void* from, T* room, int64_t count) {
  if (dtype == kArithmetic<T>) return static_cast<const T*>(from);
  widen(dtype, from, room, count);
  return room;
}

}  // namespace rmcla
