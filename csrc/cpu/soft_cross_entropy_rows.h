// soft_cross_entropy in vectors: row by row, or for short rows with one row in each lane.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/joint_gradient.h"
#include "cpu/rows.h"
#include "cpu/short_rows.h"

namespace rmcla {

// The arguments for a part of the rows. They are `logits_stride` and `soft_stride` apart in the inputs, and contiguous
// in the outputs. Either `labels` (class indices) or `soft` (soft labels) is null. `limit` and `soft_limit` are the
// ends of the memory that may be read. A label y is smoothed to (1 - smoothing) y + smoothing / classes.
template <typename T>
struct LossRows {
  const T* logits;
  int64_t logits_stride;
  const T* limit;
  const int64_t* labels;
  const T* soft;
  int64_t soft_stride;
  const T* soft_limit;
  double smoothing;
  T* loss;
  T* gradient;
  T* label_gradient;  // may be null
  int64_t rows, classes;
};

template <int Bytes, bool kSmoothed, typename T>
RMCLA_SHARED void loss_row(const LossRows<T>& a, int64_t row, T* exponentials) {
  using R = Row<T, Bytes>;
  using V = typename R::V;
  const int64_t classes = a.classes, label = a.labels ? a.labels[row] : 0;
  const R r(a.logits + row * a.logits_stride, classes, label, a.limit);
  T* const gradient = a.gradient + row * classes;
  T* const label_gradient = a.label_gradient ? a.label_gradient + row * classes : nullptr;
  V lowest;
  const Extremes<T> found = extremes(r, lowest);
  if (!found.finite) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    a.loss[row] = nan;
    std::fill_n(gradient, classes, nan);
    if (label_gradient) std::fill_n(label_gradient, classes, nan);
    return;
  }
  const T highest = std::max(found.most, r.z[label]);
  const V highest_v = simd::splat<V>(highest);
  Sum<V> exp_sum, weight_sum, weighted_gaps, gap_sum;
  const R y(a.labels ? r.z : a.soft + row * a.soft_stride, classes, label, a.labels ? a.limit : a.soft_limit);
  const bool weighted = !a.labels;
  r.each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
    const V e = simd::shifted_exp(V(v - highest_v));
    simd::store(exponentials + b * R::kCount, e);
    exp_sum.add(b, keep_inside(lanes, e, V{}));
    const V gap = keep_inside(lanes, V(highest_v - v), V{});
    if (weighted) {
      const V weight = keep_inside(lanes, y.block(b), V{});
      weight_sum.add(b, weight);
      weighted_gaps.add(b, V(weight * gap));
    }
    if (kSmoothed) gap_sum.add(b, gap);
  });
  const double shifted_sum = exp_sum.total();
  const double log_sum = std::log(shifted_sum) - simd::kExponentShift<T> * 0.69314718055994530942;
  const double keep = 1 - a.smoothing, share = a.smoothing / double(classes);
  const double weights = weighted ? keep * weight_sum.total() + a.smoothing : 1;
  const double gaps = weighted ? weighted_gaps.total() : double(highest) - double(r.z[label]);
  a.loss[row] = T(keep * gaps + share * gap_sum.total() + weights * log_sum);

  const V scale = simd::splat<V>(T(weights / shifted_sum)), log_sum_v = simd::splat<V>(T(log_sum));
  const V keep_v = simd::splat<V>(T(keep)), share_v = simd::splat<V>(T(share));
  store_row(r, gradient, a.gradient + a.rows * classes, [&](int64_t b, V) __attribute__((always_inline)) {
    const V p = simd::load<V>(exponentials + b * R::kCount) * scale;
    if (!weighted) return kSmoothed ? V(p - share_v) : p;
    return V(p - (kSmoothed ? V(keep_v * y.block(b) + share_v) : y.block(b)));
  });
  if (label_gradient)
    store_row(r, label_gradient, a.label_gradient + a.rows * classes, [&](int64_t, V z) __attribute__((always_inline)) {
      const V surprise = label_share(z, highest_v, log_sum_v);
      return kSmoothed ? V(keep_v * surprise) : surprise;
    });
  if (a.labels) gradient[label] = exponentials[label] * T(1 / shifted_sum) - T(keep + share);
}

template <int Bytes, typename T>
RMCLA_SHARED void loss_rows(const LossRows<T>& a) {
  const int64_t padded = (a.classes + 63) / 64 * 64;
  Scratch scratch(padded * int64_t(sizeof(T)) + 64);
  T* const exponentials = scratch.take<T>(padded);
  // Without smoothing, the loops over a row do no arithmetic for it.
  for (int64_t row = 0; row < a.rows; ++row)
    a.smoothing != 0 ? loss_row<Bytes, true>(a, row, exponentials) : loss_row<Bytes, false>(a, row, exponentials);
}

// Computes as many short rows from `first` on as a vector has lanes, or those that are left.
template <int Bytes, typename T>
RMCLA_SHARED void loss_lanes(const LossRows<T>& a, int64_t first) {
  using V = typename simd::Lanes<T, Bytes>::Vector;
  using M = typename simd::Lanes<T, Bytes>::Mask;
  using Integer = typename simd::Lanes<T, Bytes>::Integer;
  constexpr int64_t kCount = simd::count_of<V>;
  const int64_t classes = a.classes, rows = std::min(kCount, a.rows - first);
  const V nan = simd::splat<V>(std::numeric_limits<T>::quiet_NaN()), zero{};
  V z[kShortRow], y[kShortRow], result[kShortRow];
  load_columns(a.logits + first * a.logits_stride, a.logits_stride, rows, classes, a.limit, z);
  if (a.soft) {
    load_columns(a.soft + first * a.soft_stride, a.soft_stride, rows, classes, a.soft_limit, y);
  } else {
    const M label = load_classes<M>(a.labels + first, rows);
    for (int64_t k = 0; k < classes; ++k) y[k] = label == simd::splat<M>(Integer(k)) ? simd::splat<V>(T(1)) : zero;
  }
  const V keep = simd::splat<V>(T(1 - a.smoothing)), share = simd::splat<V>(T(a.smoothing / double(classes)));
  if (a.smoothing != 0)
    for (int64_t k = 0; k < classes; ++k) y[k] = keep * y[k] + share;
  V highest = simd::splat<V>(-std::numeric_limits<T>::infinity());
  M magnitude{};
  for (int64_t k = 0; k < classes; ++k) {
    const M abs = simd::bits<M>(z[k]) & std::numeric_limits<Integer>::max();
    magnitude = abs > magnitude ? abs : magnitude;
    highest = simd::maximum(z[k], highest);
  }
  const M finite = magnitude < simd::bits<Integer>(kInfiniteFrom<T>);
  ColumnSum<V> exp_sum, weight_sum, weighted_gaps;
  for (int64_t k = 0; k < classes; ++k) {
    result[k] = simd::shifted_exp(V(z[k] - highest));
    exp_sum.add(k, result[k]);
    weight_sum.add(k, y[k]);
    weighted_gaps.add(k, V(y[k] * (highest - z[k])));
  }
  const V log_sum = shifted_log(exp_sum.total()), weights = weight_sum.total();
  const V loss = finite ? V(weighted_gaps.total() + weights * log_sum) : nan;
  std::memcpy(a.loss + first, &loss, size_t(rows) * sizeof(T));
  const V scale = finite ? V(weights / exp_sum.total()) : nan;
  for (int64_t k = 0; k < classes; ++k) result[k] = result[k] * scale - y[k];
  store_columns(result, rows, classes, a.gradient + first * classes, a.gradient + a.rows * classes);
  if (!a.label_gradient) return;
  for (int64_t k = 0; k < classes; ++k) result[k] = finite ? V(keep * label_share(z[k], highest, log_sum)) : nan;
  store_columns(result, rows, classes, a.label_gradient + first * classes, a.label_gradient + a.rows * classes);
}

template <int Bytes, typename T>
RMCLA_SHARED void loss_short_rows(const LossRows<T>& a) {
  for (int64_t first = 0; first < a.rows; first += simd::Lanes<T, Bytes>::kCount) loss_lanes<Bytes>(a, first);
}

}  // namespace rmcla
