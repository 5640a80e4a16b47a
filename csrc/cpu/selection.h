// The classes that receive mass with top_k: those with the k smallest logits other than that of the true class, ties to
// the lower index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/rows.h"

namespace rmcla {

// The selected classes are those below `value`, and those equal to it up to index `last_tie`.
template <typename T>
struct Selected {
  T value;
  int last_tie;

  RMCLA_SHARED bool admits(T z, int index) const { return (z < value) | ((z == value) & (index <= last_tie)); }
};

// The k-th smallest of `count` values, which it may reorder. `values` has room for a whole last block.
template <typename T>
RMCLA_SHARED T kth_smallest(T* values, int count, int k) {
  constexpr int kCountAtMost = 64;
  if (count > kCountAtMost) {
    std::nth_element(values, values + k - 1, values + count);
    return values[k - 1];
  }
  // The smallest value that at least k values are not above. Counting in vectors is faster than sorting so few.
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  for (int i = count; i % kLanes; ++i) values[i] = kInfinity;
  Lanes<T> best;
  for (T& value : best) value = kInfinity;
  for (int first = 0; first < count; first += kLanes) {
    Lanes<IndexOf<T>> not_above{};
    for (int i = 0; i < count; ++i) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) not_above[j] += values[i] <= values[first + j] ? 1 : 0;
    }
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const T value = not_above[j] >= k ? values[first + j] : kInfinity;
      best[j] = value < best[j] ? value : best[j];
    }
  }
  return lowest(best);
}

// Copies the logits that may be among the k smallest to `to`, and returns how many there are.
//
// The row is cut into groups: class i is in group i % kGroups. The k-th smallest minimum of a group is at least the k-th
// smallest logit, so that only groups with a smaller minimum hold candidates, and few candidates are left.
template <int kGroups, typename T>
RMCLA_SHARED int copy_candidates(const T* z, int classes, int label, int k, T* to) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  T least[kGroups], sorted[kGroups];
  for (T& value : least) value = kInfinity;
  int first = 0;
  for (; first + kGroups <= classes; first += kGroups) {
#pragma omp simd
    for (int j = 0; j < kGroups; ++j) {
      const T v = first + j == label ? kInfinity : z[first + j];
      least[j] = v < least[j] ? v : least[j];
    }
  }
  for (; first < classes; ++first) {
    T& group = least[first % kGroups];
    group = z[first] < group && first != label ? z[first] : group;
  }
  std::copy_n(least, kGroups, sorted);
  const T bound = kth_smallest(sorted, kGroups, k);
  int count = 0;
  for (int j = 0; j < kGroups; ++j) {
    if (least[j] > bound) continue;
    for (int i = j; i < classes; i += kGroups) {  // without a branch, which would be hard to predict
      to[count] = z[i];
      count += int(z[i] <= bound) & int(i != label);
    }
  }
  return count;
}

// Selects k < classes - 1 classes of a row of finite logits. `room` holds one row, in whole blocks.
template <typename T>
RMCLA_SHARED Selected<T> select_smallest(const T* z, int classes, int label, int k, T* room) {
  int count = classes - 1;
  if (classes > 4096 && k <= 96) {  // more groups take longer to rank, and leave fewer candidates
    count = copy_candidates<128>(z, classes, label, k, room);
  } else if (classes > 256 && k <= 24) {
    count = copy_candidates<32>(z, classes, label, k, room);
  } else if (classes > 32 && k <= 12) {
    count = copy_candidates<16>(z, classes, label, k, room);
  } else {
    std::copy_n(z, label, room);
    std::copy_n(z + label + 1, classes - label - 1, room + label);
  }
  const T value = kth_smallest(room, count, k);
  int below = 0, equal = 0;
#pragma omp simd reduction(+ : below, equal)
  for (int i = 0; i < count; ++i) {
    below += room[i] < value ? 1 : 0;
    equal += room[i] == value ? 1 : 0;
  }
  int ties = k - below;  // that are selected
  if (ties == equal) return {value, classes};
  for (int i = 0;; ++i)
    if (z[i] == value && i != label && --ties == 0) return {value, i};
}

}  // namespace rmcla
