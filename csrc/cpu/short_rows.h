// Rows of a few classes, which are computed side by side: the loop over the classes is outside, and that over the rows
// inside, so that no vector is half empty and nothing is reduced over the lanes of a vector.
#pragma once

#include "cpu/rows.h"

namespace rmcla {

constexpr int kShortRow = 32;  // the most classes; a longer row fills enough vectors by itself

template <typename T>
using Columns = T[kShortRow][kLanes];  // a lane has one row

template <typename T>
using Square = T[kLanes * kLanes];

// Interleaves the first half of the rows with the second. Four times this transposes a square.
template <typename T>
RMCLA_SHARED void interleave_halves(const Square<T>& from, Square<T>& to) {
  constexpr int kHalf = kLanes * kLanes / 2;
  for (int i = 0; i < kHalf; ++i) {
    to[2 * i] = from[i];
    to[2 * i + 1] = from[kHalf + i];
  }
}

template <typename T>
RMCLA_SHARED void transpose(Square<T>& square) {
  Square<T> other;
  for (int twice = 0; twice < 2; ++twice) {
    interleave_halves(square, other);
    interleave_halves(other, square);
  }
}

// Copies `count` elements, but as many as a vector has if these lie before `end`.
template <typename T>
RMCLA_SHARED void copy_lanes(const T* from, T* to, int count, bool all) {
  if (all) {
    for (int j = 0; j < kLanes; ++j) to[j] = from[j];
  } else {
    for (int j = 0; j < count; ++j) to[j] = from[j];
  }
}

// Loads the logits of up to kLanes rows. Lanes without a row are 0. Memory before `end` may be read.
template <typename T>
RMCLA_SHARED void load_columns(const T* from, int64_t stride, int rows, int classes, const T* end, Columns<T>& columns) {
  for (int first = 0; first < classes; first += kLanes) {
    Square<T> square;
    for (int r = 0; r < kLanes; ++r) {
      const T* const row = from + r * stride + first;
      if (r >= rows) {
        std::fill_n(square + r * kLanes, kLanes, T(0));
      } else {
        copy_lanes(row, square + r * kLanes, std::min(kLanes, classes - first), row + kLanes <= end);
      }
    }
    transpose(square);
    std::copy_n(square, kLanes * kLanes, &columns[first][0]);
  }
}

// Stores the columns as contiguous rows. Whole vectors are stored, the last ones of the rows first, so that the first
// vectors of the next rows overwrite what these wrote beyond their rows. Nothing is written from `end` on.
template <typename T>
RMCLA_SHARED void store_columns(const Columns<T>& columns, int rows, int classes, T* to, const T* end) {
  for (int first = (classes - 1) / kLanes * kLanes; first >= 0; first -= kLanes) {
    Square<T> square;
    std::copy_n(&columns[first][0], kLanes * kLanes, square);
    transpose(square);
    for (int r = 0; r < rows; ++r) {
      T* const row = to + r * classes + first;
      copy_lanes(square + r * kLanes, row, std::min(kLanes, classes - first), row + kLanes <= end);
    }
  }
}

template <typename Index>
RMCLA_SHARED void load_classes(const int64_t* from, int rows, Lanes<Index>& classes) {
  for (int r = 0; r < kLanes; ++r) classes[r] = r < rows ? Index(from[r]) : Index(0);
}

// Adds term(k, r) for every class k to `sums`. It adds eight terms at a time, so that the error is no more than a few
// units in the last place.
template <typename T, class Term>
RMCLA_SHARED void sum_columns(int classes, Lanes<T>& sums, const Term& term) {
  for (int first = 0; first < classes; first += 8) {
    Lanes<T> part{};
    const int end = std::min(first + 8, classes);
    for (int k = first; k < end; ++k) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) part[r] += term(k, r);
    }
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) sums[r] += part[r];
  }
}

}  // namespace rmcla
