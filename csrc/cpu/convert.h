// Conversion between the dtype in memory and that of the arithmetic: from every float dtype and uint8 to float or
// double, and back to the float dtypes.
#pragma once

#include "common/dtype.h"
#include "cpu/instruction_sets.h"
#include "cpu/math.h"

namespace rmcla {

template <typename T>
constexpr DType kArithmetic = sizeof(T) == 8 ? DType::kDouble : DType::kFloat;

// Calls visit(Type<T>()) with the type T of the arithmetic on `dtype`.
template <class Visit>
void with_arithmetic(DType dtype, const Visit& visit) {
  dtype == DType::kDouble ? visit(Type<double>()) : visit(Type<float>());
}

template <typename From, typename To, class F>
RMCLA_SHARED void convert_each(const void* from, To* to, int64_t count, F f) {
  const From* const values = static_cast<const From*>(from);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = f(values[i]);
}

// Converts `count` elements of `dtype`, rounded to nearest if the result is narrower. uint8 means value / 255.
template <typename T>
void widen(DType dtype, const void* from, T* to, int64_t count) {
  on_this_processor([=](auto) RMCLA_INLINE {
    switch (dtype) {
      case DType::kHalf:
        return convert_each<uint16_t>(from, to, count, [](uint16_t x) RMCLA_INLINE { return T(from_half(x)); });
      case DType::kBFloat16:
        return convert_each<uint16_t>(from, to, count, [](uint16_t x) RMCLA_INLINE { return T(from_bfloat16(x)); });
      case DType::kByte:
        return convert_each<uint8_t>(from, to, count, [](uint8_t x) RMCLA_INLINE { return T(x) / T(255); });
      case DType::kDouble:
        return convert_each<double>(from, to, count, [](double x) RMCLA_INLINE { return T(x); });
      default:
        return convert_each<float>(from, to, count, [](float x) RMCLA_INLINE { return T(x); });
    }
  });
}

// A pointer to the elements as T: `from` itself if they are of type T, else `room` with the converted elements.
template <typename T>
const T* as_arithmetic(DType dtype, const void* from, T* room, int64_t count) {
  if (dtype == kArithmetic<T>) return static_cast<const T*>(from);
  widen(dtype, from, room, count);
  return room;
}

// Converts `count` elements to a 16-bit dtype, rounded to nearest even.
inline void narrow(DType dtype, const float* from, void* to, int64_t count) {
  uint16_t* const halves = static_cast<uint16_t*>(to);
  on_this_processor([=](auto) RMCLA_INLINE {
    if (dtype == DType::kHalf) {
      convert_each<float>(from, halves, count, [](float x) RMCLA_INLINE { return to_half(x); });
    } else {
      convert_each<float>(from, halves, count, [](float x) RMCLA_INLINE { return to_bfloat16(x); });
    }
  });
}
inline void narrow(DType, const double*, void*, int64_t) {}  // only float64 is computed in double

}  // namespace rmcla
