// Rows of a few classes, which are computed side by side: the loop over the classes is outside, and that over the rows
// inside, so that no vector is half empty and nothing is reduced over the lanes of a vector.
#pragma once

#include "common/joint_gradient.h"
#include "cpu/rows.h"

namespace rmcla {

constexpr int kShortRow = 64;  // the most classes; a longer row fills enough vectors by itself

template <typename T>
using Columns = T[kShortRow][kLanes];  // a lane has one row
template <typename T>
using Square = T[kLanes * kLanes];

// Transposes a square. Each of the four steps interleaves the first half of the rows with the second.
template <typename T>
RMCLA_SHARED void transpose(Square<T>& square) {
  constexpr int kHalf = kLanes * kLanes / 2;
  Square<T> other;
  const auto interleave = [](const Square<T>& from, Square<T>& to) RMCLA_INLINE {
    for (int i = 0; i < kHalf; ++i) {
      to[2 * i] = from[i];
      to[2 * i + 1] = from[kHalf + i];
    }
  };
  for (int twice = 0; twice < 2; ++twice) {
    interleave(square, other);
    interleave(other, square);
  }
}

// std::copy_n would copy as many bytes as a string, which starts slowly.
template <typename T>
RMCLA_SHARED void copy_square(const T* from, T* to) {
#pragma omp simd
  for (int i = 0; i < kLanes * kLanes; ++i) to[i] = from[i];
}

// Copies kLanes elements, or `count` if not all of the memory may be used.
template <typename T>
RMCLA_SHARED void copy_lanes(const T* from, T* to, int count, bool all) {
  if (all) return void(std::copy_n(from, kLanes, to));
  std::copy_n(from, std::min(count, kLanes), to);
}

// Loads the logits of up to kLanes rows. Lanes without a row are 0. Memory before `end` may be read.
template <typename T>
RMCLA_SHARED void load_columns(const T* from, int64_t stride, int rows, int classes, const T* end,
                               Columns<T>& columns) {
  for (int first = 0; first < classes; first += kLanes) {
    Square<T> square;
    for (int r = 0; r < kLanes; ++r) {
      const T* const row = from + r * stride + first;
      T* const to = square + r * kLanes;
      if (r < rows) copy_lanes(row, to, classes - first, row + kLanes <= end);
      if (r >= rows) std::fill_n(to, kLanes, T(0));
    }
    transpose(square);
    copy_square(square, &columns[first][0]);
  }
}

// Stores the columns as contiguous rows. Whole vectors are stored, the last ones of the rows first, so that the first
// vectors of the next rows overwrite what these wrote beyond their rows. Nothing is written from `end` on.
template <typename T>
RMCLA_SHARED void store_columns(const Columns<T>& columns, int rows, int classes, T* to, const T* end) {
  for (int first = (classes - 1) / kLanes * kLanes; first >= 0; first -= kLanes) {
    Square<T> square;
    copy_square(&columns[first][0], square);
    transpose(square);
    for (int r = 0; r < rows; ++r) {
      T* const row = to + r * classes + first;
      copy_lanes(square + r * kLanes, row, classes - first, row + kLanes <= end);
    }
  }
}

template <typename Index>
RMCLA_SHARED void load_classes(const int64_t* from, int rows, Lanes<Index>& classes) {
  for (int r = 0; r < kLanes; ++r) classes[r] = r < rows ? Index(from[r]) : Index(0);
}

// Calls visit(k, r) for every class and lane.
template <class Visit>
RMCLA_SHARED void each_column(int classes, const Visit& visit) {
  for (int k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) visit(k, r);
  }
}

// Adds term(k, r) for every class k to `sums`. It adds eight terms at a time, so that the error is no more than a few
// units in the last place.
template <typename T, class Term>
RMCLA_SHARED void sum_columns(int classes, Lanes<T>& sums, const Term& term) {
  for (int first = 0; first < classes; first += 8) {
    Lanes<T> part{};
    each_column(std::min(8, classes - first), [&](int k, int r) RMCLA_INLINE { part[r] += term(first + k, r); });
    for (int r = 0; r < kLanes; ++r) sums[r] += part[r];
  }
}

// The logits of up to kLanes rows. taint is NaN for a row that is not finite, else 0.
template <typename T>
struct ShortRows {
  int rows, classes;
  Columns<T> z, exponentials;
  Lanes<T> highest, taint{}, sum{}, log_sum{};

  RMCLA_SHARED ShortRows(const T* from, int64_t stride, int rows, int classes, const T* end)
      : rows(rows), classes(classes) {
    load_columns(from, stride, rows, classes, end, z);
    for (T& value : highest) value = -std::numeric_limits<T>::infinity();
    each_column(classes, [&](int k, int r) RMCLA_INLINE {
      taint[r] += taint_of(z[k][r]);
      highest[r] = z[k][r] > highest[r] ? z[k][r] : highest[r];
    });
  }

  // Computes the shifted exp(z - highest), their sum, and its logarithm, not shifted.
  template <class Fusing>
  RMCLA_SHARED void exponentiate(Fusing) {
    Lanes<T> top;  // a copy, since the compiler cannot know that the loop does not change `highest`
    std::copy_n(highest, kLanes, top);
    for (int k = 0; k < classes; ++k) {
      Lanes<T> e;
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) e[r] = shifted_exp<Fusing>(z[k][r] - top[r]);
      std::copy_n(e, kLanes, exponentials[k]);
    }
    sum_columns(classes, sum, [&](int k, int r) RMCLA_INLINE { return exponentials[k][r]; });
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) log_sum[r] = shifted_log(sum[r]) + taint[r];
  }
};

}  // namespace rmcla
