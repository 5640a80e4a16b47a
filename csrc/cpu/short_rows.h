// What the kernels for short rows share. Each lane of a vector computes one row, so that no lane idles and no reduction
// across lanes is needed. Blocks of rows are transposed when they are loaded and stored.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "cpu/rows.h"
#include "cpu/simd.h"

namespace rmcla {

constexpr int64_t kShortRow = 64;  // classes; a longer row fills enough vectors by itself

// The lanes of the lower (or, with High, the upper) halves of a and b, interleaved.
template <typename V, bool High, size_t... I>
RMCLA_SHARED V zipped(V a, V b, std::index_sequence<I...>) {
  constexpr int kHalf = simd::count_of<V> / 2;
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, int(I / 2 + (High ? kHalf : 0) + (I % 2) * kHalf * 2)...);
#else
  using Integer = std::conditional_t<sizeof(V{}[0]) == 8, int64_t, int32_t>;
  typedef Integer Order __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Order{Integer(I / 2 + (High ? kHalf : 0) + (I % 2) * kHalf * 2)...});
#endif
}

// Transposes a square of vectors. Each stage interleaves the first half of the rows with the second.
template <typename V>
RMCLA_SHARED void transpose(V* square) {
  constexpr int kCount = simd::count_of<V>;
  constexpr auto order = std::make_index_sequence<kCount>();
#pragma GCC unroll 4
  for (int stage = 1; stage < kCount; stage *= 2) {
    V next[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount / 2; ++i) {
      next[2 * i] = zipped<V, false>(square[i], square[i + kCount / 2], order);
      next[2 * i + 1] = zipped<V, true>(square[i], square[i + kCount / 2], order);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) square[i] = next[i];
  }
}

// Loads logit k of each row into a lane of `columns[k]`. There are at most as many rows as lanes; other lanes are 0.
template <typename V, typename T>
RMCLA_SHARED void load_columns(const T* from, int64_t stride, int64_t rows, int64_t classes, const T* limit,
                               V* columns) {
  constexpr int64_t kCount = simd::count_of<V>;
  for (int64_t first = 0; first < classes; first += kCount) {
    V square[kCount];
    for (int64_t row = 0; row < kCount; ++row) {
      square[row] = V{};
      if (row >= rows) continue;
      const T* const at = from + row * stride + first;
      square[row] = at + kCount <= limit
                        ? simd::load<V>(at)
                        : simd::load_part<V>(at, std::min(kCount, classes - first) * int64_t(sizeof(T)));
    }
    transpose(square);
    for (int64_t k = 0; k < kCount; ++k) columns[first + k] = square[k];
  }
}

// Stores `columns` as contiguous rows; `end` is the end of the last row of all. The last vectors of the rows are stored
// first, and the first vectors of the next rows overwrite what these wrote beyond their rows.
template <typename V, typename T>
RMCLA_SHARED void store_columns(const V* columns, int64_t rows, int64_t classes, T* to, const T* end) {
  constexpr int64_t kCount = simd::count_of<V>;
  for (int64_t first = (classes - 1) / kCount * kCount; first >= 0; first -= kCount) {
    V square[kCount];
    for (int64_t k = 0; k < kCount; ++k) square[k] = columns[first + k];
    transpose(square);
    for (int64_t row = 0; row < rows; ++row) {
      T* const at = to + row * classes + first;
      if (at + kCount <= end) {
        simd::store(at, square[row]);
      } else {
        std::memcpy(at, &square[row], size_t(std::min(kCount, classes - first)) * sizeof(T));
      }
    }
  }
}

// Loads one class index into each lane, and 0 into the lanes after `rows`.
template <typename M>
RMCLA_SHARED M load_classes(const int64_t* from, int64_t rows) {
  constexpr int64_t kCount = simd::count_of<M>;
  std::remove_reference_t<decltype(M{}[0])> lanes[kCount] = {};
  for (int64_t row = 0; row < rows; ++row) lanes[row] = std::remove_reference_t<decltype(M{}[0])>(from[row]);
  return simd::load<M>(lanes);
}

// log(x) - kExponentShift ln 2, for normal x > 0.
template <typename V>
RMCLA_SHARED V shifted_log(V x) {
  using T = std::remove_reference_t<decltype(V{}[0])>;
  using M = typename simd::Lanes<T, int(sizeof(V))>::Mask;
  if constexpr (sizeof(T) == 8) {
    for (int lane = 0; lane < simd::count_of<V>; ++lane) x[lane] = std::log(x[lane]);
    return x - simd::kExponentShift<T> * 0.69314718055994530942;
  } else {  // Cephes, logf: x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2)
    const M shifted = simd::bits<M>(x) - 0x3f3504f3;
    const V e = __builtin_convertvector(M((shifted >> 23) - simd::kExponentShift<T>), V);
    const V f = simd::bits<V>(M((shifted & 0x007fffff) + 0x3f3504f3)) - 1.0f;
    V p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const V square = f * f;
    p = p * f * square + e * -2.12194440e-4f;
    return (p - 0.5f * square) + f + e * 0.693359375f;
  }
}

// A sum in two levels, so that the error of 64 terms is no more than a few units in the last place.
template <typename V>
class ColumnSum {
 public:
  RMCLA_SHARED void add(int64_t k, V v) {
    part_ += v;
    if ((k & 7) == 7) {
      total_ += part_;
      part_ = V{};
    }
  }
  RMCLA_SHARED V total() const { return total_ + part_; }

 private:
  V part_{}, total_{};
};

}  // namespace rmcla
