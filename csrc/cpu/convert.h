// Conversion, in vectors, between the dtype in memory and that of the arithmetic: from every float dtype and uint8 to
// float or double, and back to the float dtypes.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace rmcla {

// Converts `count` elements of `dtype`, rounded to nearest if the result is narrower. uint8 means value / 255.
void widen(at::ScalarType dtype, const void* from, float* to, int64_t count);
void widen(at::ScalarType dtype, const void* from, double* to, int64_t count);

// Converts `count` elements to `dtype`, rounded to nearest even.
void narrow(at::ScalarType dtype, const float* from, void* to, int64_t count);
void narrow(at::ScalarType dtype, const double* from, void* to, int64_t count);

// Writes the signs of doubles as +-1, 0 or NaN. A conversion to float would turn the smallest doubles into 0.
void signs(const double* from, float* to, int64_t count);

template <typename T>
constexpr at::ScalarType kArithmetic = sizeof(T) == 8 ? at::kDouble : at::kFloat;

// A pointer to the elements as T: `from` itself if they are of type T, else `room` with the converted elements.
template <typename T>
const T* as_arithmetic(at::ScalarType dtype, const void* from, T* room, int64_t count) {
  if (dtype == kArithmetic<T>) return static_cast<const T*>(from);
  widen(dtype, from, room, count);
  return room;
}

}  // namespace rmcla
