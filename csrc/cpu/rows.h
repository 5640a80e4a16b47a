// What the kernels over rows of logits share: passes over a row in vectors, extremes, sums, stores and buffers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "common/joint_gradient.h"
#include "cpu/simd.h"

namespace rmcla {

// The lanes of a vector that hold classes, and those that hold classes other than the true one.
template <typename M>
struct SomeLanes {
  M inside, others;
};
struct AllLanes {};

template <typename M>
RMCLA_SHARED M others_mask(AllLanes) {
  return ~M{};
}
template <typename M>
RMCLA_SHARED M others_mask(const SomeLanes<M>& lanes) {
  return lanes.others;
}

template <typename V>
RMCLA_SHARED V keep_others(AllLanes, V v, V) {
  return v;
}
template <typename M, typename V>
RMCLA_SHARED V keep_others(const SomeLanes<M>& lanes, V v, V otherwise) {
  return lanes.others ? v : otherwise;
}
template <typename V>
RMCLA_SHARED V keep_inside(AllLanes, V v, V) {
  return v;
}
template <typename M, typename V>
RMCLA_SHARED V keep_inside(const SomeLanes<M>& lanes, V v, V otherwise) {
  return lanes.inside ? v : otherwise;
}

// A row of T, in blocks of one vector each.
template <typename T, int Bytes>
struct Row {
  using V = typename simd::Lanes<T, Bytes>::Vector;
  using M = typename simd::Lanes<T, Bytes>::Mask;
  static constexpr int64_t kCount = simd::Lanes<T, Bytes>::kCount;

  const T* z;
  int64_t classes, label;
  int64_t full;    // the number of whole blocks
  int64_t blocks;  // the number of blocks, with the last, partial one
  int64_t true_block;
  V last{};

  // `limit` is the end of the memory that may be read.
  RMCLA_SHARED Row(const T* row, int64_t num_classes, int64_t true_class, const T* limit)
      : z(row),
        classes(num_classes),
        label(true_class),
        full(num_classes / kCount),
        blocks((num_classes + kCount - 1) / kCount),
        true_block(true_class / kCount) {
    const T* const tail = z + full * kCount;
    if (full == blocks) return;
    last = tail + kCount <= limit ? simd::load<V>(tail)
                                  : simd::load_part<V>(tail, (classes - full * kCount) * int64_t(sizeof(T)));
  }

  RMCLA_SHARED V block(int64_t b) const { return b < full ? simd::load<V>(z + b * kCount) : last; }

  RMCLA_SHARED SomeLanes<M> lanes(int64_t b) const {
    using Integer = typename simd::Lanes<T, Bytes>::Integer;
    const M lane = simd::iota<M>();
    const M inside = lane < Integer(std::min(kCount, classes - b * kCount));
    return {inside, inside & (lane != Integer(b == true_block ? label - b * kCount : -1))};
  }

  // Calls f(block, values, lanes). `lanes` is AllLanes except in the block of the true class and the last, partial one.
  template <typename F>
  RMCLA_SHARED void each_block(F f) const {
    int64_t b = 0;
    for (const int64_t stop = std::min(true_block, full); b < stop; ++b) f(b, block(b), AllLanes{});
    if (b < full) {
      f(b, block(b), lanes(b));
      for (++b; b < full; ++b) f(b, block(b), AllLanes{});
    }
    if (b < blocks) f(b, last, lanes(b));
  }

  // The lowest class other than the true one whose logit is `value`; there must be one.
  RMCLA_SHARED int64_t first_equal(T value) const {
    using Integer = typename simd::Lanes<T, Bytes>::Integer;
    const V wanted = simd::splat<V>(value), other = simd::splat<V>(std::numeric_limits<T>::quiet_NaN());
    M first = simd::splat<M>(Integer(blocks));  // for each lane, the first block that has the value
    each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
      const M earlier = simd::minimum(simd::splat<M>(Integer(b)), first);
      first = keep_others(lanes, v, other) == wanted ? earlier : first;
    });
    return simd::lowest_lane(M(first * Integer(kCount) + simd::iota<M>()));
  }
};

// The sum over the blocks of a row. It adds eight vectors at a time, then eight of these sums, and the rest in double,
// so that a row of any length sums to within a few units in the last place.
template <typename V>
class Sum {
 public:
  RMCLA_SHARED void add(int64_t block, V v) {
    part_ += v;
    if ((block & 7) != 7) return;
    parts_ += part_;
    part_ = V{};
    if ((block & 63) == 63) flush();
  }
  RMCLA_SHARED double total() {
    parts_ += part_;
    flush();
    return total_;
  }

 private:
  RMCLA_SHARED void flush() {
    total_ += double(simd::sum_of_lanes(parts_));
    parts_ = V{};
  }
  V part_{}, parts_{};
  double total_ = 0;
};

template <typename T>
struct Extremes {
  T most, least;  // of the classes other than the true one
  bool finite;    // whether no logit of the row is NaN or counts as infinite
};

// The first pass over a row. `lowest` becomes the smallest other logit of each lane, infinity if it has none.
template <typename R>
RMCLA_SHARED auto extremes(const R& row, typename R::V& lowest) {
  using V = typename R::V;
  using M = typename R::M;
  using T = std::remove_cv_t<std::remove_reference_t<decltype(*row.z)>>;
  using Integer = std::remove_reference_t<decltype(M{}[0])>;
  const T infinity = std::numeric_limits<T>::infinity();
  const V above = simd::splat<V>(infinity), below = simd::splat<V>(-infinity);
  const Integer infinite = simd::bits<Integer>(kInfiniteFrom<T>);
  V low = above, high = below;
  M magnitude{};
  row.each_block([&](int64_t, V v, auto lanes) __attribute__((always_inline)) {
    low = simd::minimum(keep_others(lanes, v, above), low);
    high = simd::maximum(keep_others(lanes, v, below), high);
    const M abs = simd::bits<M>(keep_inside(lanes, v, V{})) & std::numeric_limits<Integer>::max();
    magnitude = abs > magnitude ? abs : magnitude;
  });
  lowest = low;
  return Extremes<T>{simd::highest_lane(high), simd::lowest_lane(low), !simd::any(M(magnitude >= infinite))};
}

// Writes value(block, values of the block) to `to`. Rows are written in order with whole vectors, and each row
// overwrites what the one before wrote beyond its end. `end` is the end of the last row of all.
template <typename R, typename T, typename F>
RMCLA_SHARED void store_row(const R& row, T* to, const T* end, F value) {
  for (int64_t b = 0; b < row.full; ++b)
    simd::store(to + b * R::kCount, value(b, simd::load<typename R::V>(row.z + b * R::kCount)));
  if (row.full == row.blocks) return;
  const typename R::V last = value(row.full, row.last);
  to += row.full * R::kCount;
  if (to + R::kCount <= end) {
    simd::store(to, last);
  } else {
    std::memcpy(to, &last, size_t(row.classes - row.full * R::kCount) * sizeof(T));
  }
}

// The buffers of one thread, on the stack if they are small.
class Scratch {
 public:
  RMCLA_SHARED explicit Scratch(int64_t bytes) : heap_(bytes > kInline ? new char[size_t(bytes) + 64] : nullptr) {
    next_ = heap_ ? heap_.get() : inline_;
  }
  RMCLA_SHARED ~Scratch() = default;

  template <typename T>
  RMCLA_SHARED T* take(int64_t count) {
    const auto at = (reinterpret_cast<uintptr_t>(next_) + 63) / 64 * 64;
    next_ = reinterpret_cast<char*>(at) + size_t(count) * sizeof(T);
    return reinterpret_cast<T*>(at);
  }

 private:
  static constexpr int64_t kInline = 32768;
  std::unique_ptr<char[]> heap_;
  char* next_;
  char inline_[kInline + 64];
};

// The smallest number of rows that is worth a thread.
inline int64_t row_grain(int64_t classes) { return std::max<int64_t>(1, 2048 / classes); }

}  // namespace rmcla
