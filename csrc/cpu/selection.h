// The classes that receive mass with top_k: those with the k smallest logits other than that of the true class, ties to
// the lower index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/rows.h"

namespace rmcla {

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

// Writes the classes whose logits may be among the k smallest to `at`, and returns how many there are.
//
// The row is cut into groups: class i is in group i % kGroups. The k-th smallest minimum of a group is at least the
// k-th smallest logit, so that only groups with a smaller minimum hold candidates, and few candidates are left.
template <int kGroups, typename T>
RMCLA_SHARED int find_candidates(const T* z, int classes, int k, int* at) {
  T least[kGroups], sorted[kGroups];
  for (T& value : least) value = std::numeric_limits<T>::infinity();
  int first = 0;
  for (; first + kGroups <= classes; first += kGroups) {
#pragma omp simd
    for (int j = 0; j < kGroups; ++j) least[j] = z[first + j] < least[j] ? z[first + j] : least[j];
  }
  for (int j = 0; first + j < classes; ++j) least[j] = std::min(least[j], z[first + j]);
  std::copy_n(least, kGroups, sorted);
  const T bound = kth_smallest(sorted, kGroups, k);
  int count = 0;
  for (int j = 0; j < kGroups; ++j) {
    if (least[j] > bound) continue;
    for (int i = j; i < classes; i += kGroups) {  // without a branch, which would be hard to predict
      at[count] = i;
      count += int(z[i] <= bound);
    }
  }
  return count;
}

// Writes k < classes - 1 classes of a row of finite logits to `chosen`, in any order. `chosen` and `room` have room for
// one row, in whole blocks.
template <typename T>
RMCLA_SHARED void select_smallest(const T* z, int classes, int label, int k, T* room, int* chosen) {
  int found = classes, count = 0;   // the true class may be one of k + 1 candidates
  if (classes > 4096 && k <= 96) {  // more groups take longer to rank, and leave fewer candidates
    found = find_candidates<128>(z, classes, k + 1, chosen);
  } else if (classes > 256 && k <= 24) {
    found = find_candidates<32>(z, classes, k + 1, chosen);
  } else if (classes > 32 && k <= 12) {
    found = find_candidates<16>(z, classes, k + 1, chosen);
  } else {
    for (int i = 0; i < classes; ++i) chosen[i] = i;
  }
  for (int i = 0; i < found; ++i) {
    const int at = chosen[i];
    chosen[count] = at;
    room[count] = z[at];
    count += int(at != label);
  }
  const T value = kth_smallest(room, count, k);
  int below = 0, equal = 0;
#pragma omp simd reduction(+ : below, equal)
  for (int i = 0; i < count; ++i) {
    below += room[i] < value ? 1 : 0;
    equal += room[i] == value ? 1 : 0;
  }
  // Of the classes with that value, those up to `last_tie` are chosen.
  int last_tie = classes, ties = k - below;
  if (ties < equal) {
    for (last_tie = -1; ties > 0; ties -= int(z[last_tie] == value) & int(last_tie != label)) ++last_tie;
  }
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const int at = chosen[i];
    chosen[kept] = at;
    kept += int(z[at] < value) | (int(z[at] == value) & int(at <= last_tie));
  }
}

}  // namespace rmcla
