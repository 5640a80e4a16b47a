// The classes that receive mass with top_k: those with the k smallest logits other than the true class, ties to the
// lower index.
#pragma once

#include <algorithm>

#include "cpu/rows.h"

namespace rmcla {

// Selection by a bound. The k-th smallest of the lanes' minima is at least the k-th smallest of all values, so larger
// values are not candidates, and only few candidates are left to rank.
template <typename T>
class TopK {
 public:
  RMCLA_SHARED static int64_t scratch_bytes(int64_t padded) {
    return 2 * (padded + 64) * int64_t(sizeof(T)) + padded * 8 + 256;
  }

  RMCLA_SHARED void prepare(Scratch& scratch, int64_t padded) {
    values_ = scratch.take<T>(padded + 64);
    ranked_ = scratch.take<T>(padded + 64);
    indices_ = scratch.take<int64_t>(padded);
  }

  RMCLA_SHARED T value(int64_t i) const { return values_[i]; }
  RMCLA_SHARED int64_t index(int64_t i) const { return indices_[i]; }

  // Selects k < C - 1 classes and returns k. They are then index(0) to index(k - 1), in ascending order.
  template <typename R>
  RMCLA_SHARED int64_t select(const R& row, typename R::V lowest, int64_t k) {
    using V = typename R::V;
    using M = typename R::M;
    constexpr int64_t kCount = R::kCount;
    T bound = std::numeric_limits<T>::infinity();
    if (k <= kCount * 3 / 4) {
      simd::store(ranked_, lowest);
      bound = kth_smallest<V>(kCount, k);
    } else if (k <= kManyLanes * kCount) {
      bound = bound_of_many_lanes(row, k);
    }
    const V bound_v = simd::splat<V>(bound);
    int64_t count = 0;
    row.each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
      const M candidate = v <= bound_v ? others_mask<M>(lanes) : M{};
      if (!simd::any(candidate)) return;
      alignas(64) T value[kCount];
      alignas(64) typename std::remove_reference_t<decltype(M{}[0])> flag[kCount];
      simd::store(value, v);
      simd::store(flag, candidate);
      for (int64_t lane = 0; lane < kCount; ++lane) {  // without a branch, which would be hard to predict
        values_[count] = value[lane];
        indices_[count] = b * kCount + lane;
        count -= flag[lane];
      }
    });
    return keep_smallest<V>(count, k);
  }

 private:
  static constexpr int64_t kManyLanes = 4;
  static constexpr int64_t kRankByCounting = 64;  // with at most this many candidates; nth_element ranks more

  // The k-th smallest of ranked_[0, count): the smallest value such that at least k are not above it. It counts in
  // vectors, in O(count^2).
  template <typename V>
  RMCLA_SHARED T kth_smallest(int64_t count, int64_t k) {
    using M = typename simd::Lanes<T, int(sizeof(V))>::Mask;
    using Integer = std::remove_reference_t<decltype(M{}[0])>;
    constexpr int64_t kCount = simd::count_of<V>;
    const V above = simd::splat<V>(std::numeric_limits<T>::infinity());
    simd::store(ranked_ + count, above);
    V best = above;
    for (int64_t i = 0; i < count; i += kCount) {
      const V mine = simd::load<V>(ranked_ + i);
      M not_above{};
      for (int64_t j = 0; j < count; ++j)
        not_above = simd::splat<V>(ranked_[j]) <= mine ? not_above + Integer(1) : not_above;
      best = simd::minimum(V(not_above >= simd::splat<M>(Integer(k)) ? mine : above), best);
    }
    return simd::lowest_lane(best);
  }

  // A bound for a larger k from kManyLanes vectors of lane minima, to which the blocks contribute in turns.
  template <typename R>
  RMCLA_SHARED T bound_of_many_lanes(const R& row, int64_t k) {
    using V = typename R::V;
    const V above = simd::splat<V>(std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < kManyLanes; ++i) simd::store(ranked_ + i * R::kCount, above);
    row.each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
      T* const lane = ranked_ + b % kManyLanes * R::kCount;
      simd::store(lane, simd::minimum(keep_others(lanes, v, above), simd::load<V>(lane)));
    });
    return kth_smallest<V>(kManyLanes * R::kCount, k);
  }

  // Keeps the k smallest of the candidates, which are in ascending order of index, and removes the others.
  template <typename V>
  RMCLA_SHARED int64_t keep_smallest(int64_t count, int64_t k) {
    std::copy_n(values_, count, ranked_);
    T threshold;
    if (count <= kRankByCounting) {
      threshold = kth_smallest<V>(count, k);
    } else {
      std::nth_element(ranked_, ranked_ + k - 1, ranked_ + count);
      threshold = ranked_[k - 1];
    }
    int64_t ties = k;
    for (int64_t i = 0; i < count; ++i) ties -= values_[i] < threshold;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T value = values_[i];
      const int64_t index = indices_[i];
      const bool tie = value == threshold && ties > 0;
      ties -= tie;
      values_[kept] = value;
      indices_[kept] = index;
      kept += value < threshold || tie;
    }
    return kept;
  }

  T* values_ = nullptr;
  T* ranked_ = nullptr;
  int64_t* indices_ = nullptr;
};

}  // namespace rmcla
