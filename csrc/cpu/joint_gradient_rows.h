// joint_gradient and redistribute_labels row by row, in vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/joint_gradient.h"
#include "cpu/rows.h"
#include "cpu/top_k.h"

namespace rmcla {

// The arguments for a part of the rows. They are `stride` apart in the logits and contiguous in the outputs. If
// `gradient` is null, only the soft labels are computed.
template <typename T>
struct JointRows {
  const T* logits;
  int64_t stride;
  const T* limit;  // the end of the memory that may be read
  const int64_t* labels;
  const int64_t* given;  // for Target::kGiven
  T* objective;
  T* gradient;     // may be null
  T* soft_labels;  // null for LabelScheme::kNone
  int64_t* targets;
  int64_t rows, classes;
  Target target;
  LabelScheme scheme;
  double beta, gamma;
  int64_t receivers;  // how many classes other than the true one receive mass

  RMCLA_SHARED bool exponential() const {
    return (gradient && target != Target::kMargin) || (scheme == LabelScheme::kSup && classes > 2);
  }
  // Whether top_k leaves classes out. Then the classes that receive mass are selected and written one by one.
  RMCLA_SHARED bool selects() const { return soft_labels && receivers < classes - 1; }
  RMCLA_SHARED int64_t padded() const { return (classes + 63) / 64 * 64; }
  RMCLA_SHARED int64_t scratch_bytes() const {
    return (exponential() ? padded() * int64_t(sizeof(T)) : 0) + (selects() ? TopK<T>::scratch_bytes(padded()) : 0) +
           128;
  }
};

template <typename T>
RMCLA_SHARED void nan_row(const JointRows<T>& a, int64_t row) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (a.gradient) {
    std::fill_n(a.gradient + row * a.classes, a.classes, nan);
    a.objective[row] = nan;
    a.targets[row] = -1;
  }
  if (a.soft_labels) std::fill_n(a.soft_labels + row * a.classes, a.classes, nan);
}

template <int Bytes, typename T>
RMCLA_SHARED void joint_row(const JointRows<T>& a, int64_t row, T* exponentials, TopK<T>& top) {
  using R = Row<T, Bytes>;
  using V = typename R::V;
  const int64_t classes = a.classes, label = a.labels[row];
  const R r(a.logits + row * a.stride, classes, label, a.limit);
  const T true_logit = r.z[label];
  V lowest;
  const Extremes<T> found = extremes(r, lowest);
  if (!found.finite) return nan_row(a, row);
  const T highest = std::max(found.most, true_logit);
  const bool sup = a.scheme == LabelScheme::kSup;
  const T base = sup ? highest : found.most;  // see label_share

  // Second pass: exp(z - max z), its sum, and the sum of base - z over the classes other than the true one.
  const V highest_v = simd::splat<V>(highest), base_v = simd::splat<V>(base);
  Sum<V> exp_sum, gap_sum;
  const bool with_exp = a.exponential(), select = a.selects(), with_gaps = a.soft_labels && !select;
  const auto exp_block = [&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
    const V e = simd::shifted_exp(V(v - highest_v));
    simd::store(exponentials + b * R::kCount, e);
    exp_sum.add(b, keep_inside(lanes, e, V{}));
  };
  const auto gap_block = [&](int64_t b, V v, auto lanes)
                             __attribute__((always_inline)) { gap_sum.add(b, keep_others(lanes, V(base_v - v), V{})); };
  if (with_exp && with_gaps) {
    r.each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
      exp_block(b, v, lanes);
      gap_block(b, v, lanes);
    });
  } else if (with_exp) {
    r.each_block(exp_block);
  } else if (with_gaps) {
    r.each_block(gap_block);
  }
  const double shifted_sum = with_exp ? exp_sum.total() : 1;
  const double log_sum = with_exp ? std::log(shifted_sum) - simd::kExponentShift<T> * 0.69314718055994530942 : 0;

  if (a.gradient) {
    int64_t target = label;
    if (a.target == Target::kGiven) {
      target = a.given[row];
    } else if (a.target == Target::kLeastLikely) {
      target = r.first_equal(found.least);
    } else if (a.target != Target::kUntargeted) {
      target = r.first_equal(found.most);
    }
    a.targets[row] = target;
    T* const gradient = a.gradient + row * classes;
    if (a.target == Target::kMargin) {
      a.objective[row] = found.most - true_logit;
      std::fill_n(gradient, classes, T(0));
      gradient[target] = 1;
      gradient[label] = -1;
    } else {
      const double log_p = double(r.z[target]) - double(highest) - log_sum;
      const T sign = a.target == Target::kUntargeted ? T(1) : T(-1);
      const T scale = sign * T(1 / shifted_sum);
      const V scale_v = simd::splat<V>(scale);
      store_row(r, gradient, a.gradient + a.rows * classes, [&](int64_t b, V) __attribute__((always_inline)) {
        return V(simd::load<V>(exponentials + b * R::kCount) * scale_v);
      });
      gradient[target] = exponentials[target] * scale - sign;
      a.objective[row] = T(sign * -log_p);
    }
  }

  if (!a.soft_labels) return;
  T* const soft = a.soft_labels + row * classes;
  const bool pair = sup && classes == 2;  // a share of 1 gives the same labels as v, and is never 0
  const T added = sup ? T(log_sum) : std::max(T(a.gamma), T(0x1p-100));
  const double largest = pair ? 1 : double(base - found.least) + double(added);
  const double kept = a.beta * largest;
  const int64_t count = select ? top.select(r, lowest, a.receivers) : classes - 1;
  double gaps = 0;
  if (select) {
    for (int64_t i = 0; i < count; ++i) gaps += double(base - top.value(i));
  } else {
    gaps = gap_sum.total();
  }
  const double total = pair ? 1 + kept : gaps + double(count) * double(added) + kept;
  const T scale = T(1 / total);
  if (select) {
    std::fill_n(soft, classes, T(0));
    for (int64_t i = 0; i < count; ++i) soft[top.index(i)] = label_share(top.value(i), base, added) * scale;
    soft[label] = T(kept / total);
    return;
  }
  const V scale_v = simd::splat<V>(scale), added_v = simd::splat<V>(added);
  store_row(r, soft, a.soft_labels + a.rows * classes,
            [&](int64_t, V z) __attribute__((always_inline)) { return V(label_share(z, base_v, added_v) * scale_v); });
  if (pair) soft[1 - label] = scale;
  soft[label] = T(kept / total);
}

template <int Bytes, typename T>
RMCLA_SHARED void joint_rows(const JointRows<T>& a) {
  Scratch scratch(a.scratch_bytes());
  T* const exponentials = a.exponential() ? scratch.take<T>(a.padded()) : nullptr;
  TopK<T> top;
  if (a.selects()) top.prepare(scratch, a.padded());
  for (int64_t row = 0; row < a.rows; ++row) joint_row<Bytes>(a, row, exponentials, top);
}

}  // namespace rmcla
