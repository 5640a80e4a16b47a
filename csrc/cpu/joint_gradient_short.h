// joint_gradient and redistribute_labels for short rows: each lane of a vector computes one row.
#pragma once

#include "cpu/joint_gradient_rows.h"
#include "cpu/short_rows.h"

namespace rmcla {

// Computes as many rows from `first` on as a vector has lanes, or those that are left.
template <int Bytes, typename T>
RMCLA_SHARED void joint_lanes(const JointRows<T>& a, int64_t first) {
  using V = typename simd::Lanes<T, Bytes>::Vector;
  using M = typename simd::Lanes<T, Bytes>::Mask;
  using Integer = typename simd::Lanes<T, Bytes>::Integer;
  constexpr int64_t kCount = simd::count_of<V>;
  const int64_t classes = a.classes, rows = std::min(kCount, a.rows - first);
  const T infinity = std::numeric_limits<T>::infinity();
  const V nan = simd::splat<V>(std::numeric_limits<T>::quiet_NaN()), zero{};
  V z[kShortRow], e[kShortRow], result[kShortRow];
  load_columns(a.logits + first * a.stride, a.stride, rows, classes, a.limit, z);
  const M label = load_classes<M>(a.labels + first, rows);
  M target = a.given ? load_classes<M>(a.given + first, rows) : label;

  // The largest and smallest logit of the classes other than the true one, and their classes; ties go to the lower one.
  V most = simd::splat<V>(-infinity), least = simd::splat<V>(infinity), true_logit = zero, given_logit = zero;
  M most_at{}, least_at{}, magnitude{};
  for (int64_t k = 0; k < classes; ++k) {
    const V v = z[k];
    const M at = simd::splat<M>(Integer(k));
    const M abs = simd::bits<M>(v) & std::numeric_limits<Integer>::max();
    magnitude = abs > magnitude ? abs : magnitude;
    const V above = label == at ? simd::splat<V>(-infinity) : v, below = label == at ? simd::splat<V>(infinity) : v;
    true_logit = label == at ? v : true_logit;
    given_logit = target == at ? v : given_logit;
    most_at = above > most ? at : most_at;
    most = above > most ? above : most;
    least_at = below < least ? at : least_at;
    least = below < least ? below : least;
  }
  const M finite = magnitude < simd::bits<Integer>(kInfiniteFrom<T>);
  const V highest = simd::maximum(most, true_logit);
  const bool sup = a.scheme == LabelScheme::kSup;
  const V base = sup ? highest : most;
  ColumnSum<V> exp_sum, gap_sum;
  V log_sum = zero, inverse_sum = zero;
  if (a.exponential()) {
    for (int64_t k = 0; k < classes; ++k) {
      e[k] = simd::shifted_exp(V(z[k] - highest));
      exp_sum.add(k, e[k]);
    }
    log_sum = shifted_log(exp_sum.total());
    inverse_sum = T(1) / exp_sum.total();
  }

  if (a.gradient) {
    V target_logit = given_logit;
    if (a.target == Target::kLeastLikely) {
      target = least_at;
      target_logit = least;
    } else if (a.target == Target::kMostConfusing || a.target == Target::kMargin) {
      target = most_at;
      target_logit = most;
    }
    V objective;
    if (a.target == Target::kMargin) {
      objective = most - true_logit;
      for (int64_t k = 0; k < classes; ++k) {
        const M at = simd::splat<M>(Integer(k));
        const V g = target == at ? simd::splat<V>(T(1)) : zero;
        result[k] = finite ? V(label == at ? simd::splat<V>(T(-1)) : g) : nan;
      }
    } else {
      const T sign = a.target == Target::kUntargeted ? T(1) : T(-1);
      objective = sign * ((highest - target_logit) + log_sum);
      const V scale = finite ? V(sign * inverse_sum) : nan;
      for (int64_t k = 0; k < classes; ++k) {
        const V g = e[k] * scale;
        result[k] = target == simd::splat<M>(Integer(k)) ? g - sign : g;
      }
    }
    store_columns(result, rows, classes, a.gradient + first * classes, a.gradient + a.rows * classes);
    objective = finite ? objective : nan;
    std::memcpy(a.objective + first, &objective, size_t(rows) * sizeof(T));
    target |= ~finite;  // -1 in rows that are not finite
    Integer targets[kCount];
    simd::store(targets, target);
    for (int64_t row = 0; row < rows; ++row) a.targets[first + row] = targets[row];
  }

  if (!a.soft_labels) return;
  const bool pair = sup && classes == 2;  // a share of 1 gives the same labels as v, and is never 0
  const V added = sup ? log_sum : simd::splat<V>(std::max(T(a.gamma), T(0x1p-100)));
  for (int64_t k = 0; k < classes; ++k) {
    const V share = pair ? simd::splat<V>(T(1)) : label_share(z[k], base, added);
    result[k] = label == simd::splat<M>(Integer(k)) ? zero : share;
    gap_sum.add(k, result[k]);
  }
  const T beta = T(a.beta);
  const V kept = beta * (pair ? simd::splat<V>(T(1)) : label_share(least, base, added));
  const V total = gap_sum.total() + kept;
  const V scale = finite ? V(T(1) / total) : nan;
  const V kept_share = kept * scale;
  for (int64_t k = 0; k < classes; ++k)
    result[k] = label == simd::splat<M>(Integer(k)) ? kept_share : result[k] * scale;
  store_columns(result, rows, classes, a.soft_labels + first * classes, a.soft_labels + a.rows * classes);
}

template <int Bytes, typename T>
RMCLA_SHARED void joint_short_rows(const JointRows<T>& a) {
  for (int64_t first = 0; first < a.rows; first += simd::Lanes<T, Bytes>::kCount) joint_lanes<Bytes>(a, first);
}

}  // namespace rmcla
