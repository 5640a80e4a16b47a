// Selection of the k smallest elements of a row, by a search for their threshold instead of a sort. It works for any
// group of lanes that share a row (a warp, a block or a cluster) and any storage of the row.
#pragma once

#include <cstdint>
#include <cstring>

namespace rmcla {

// Keys: unsigned integers in the same order as the finite floats that they represent. A binary search over keys ends in
// as many steps as they have bits. -0 and +0 have different keys but are equal as floats, so elements are compared as
// floats and never as keys.
template <typename W>
struct OrderedKey;

template <>
struct OrderedKey<float> {
  using Key = uint32_t;
  using Signed = int32_t;
};

template <>
struct OrderedKey<double> {
  using Key = uint64_t;
  using Signed = int64_t;
};

template <typename W>
__device__ __forceinline__ typename OrderedKey<W>::Key to_key(W value) {
  using Key = typename OrderedKey<W>::Key;
  constexpr int kSign = sizeof(Key) * 8 - 1;
  Key bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> kSign ? ~bits : bits | (Key(1) << kSign);
}

template <typename W>
__device__ __forceinline__ W from_key(typename OrderedKey<W>::Key key) {
  using Key = typename OrderedKey<W>::Key;
  constexpr int kSign = sizeof(Key) * 8 - 1;
  const Key bits = key >> kSign ? key ^ (Key(1) << kSign) : ~key;
  W value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The selected elements are those below `value`, and those equal to it up to index `last_tie`.
template <typename W>
struct Threshold {
  W value;
  int last_tie;

  __device__ __forceinline__ bool admits(W z, int index) const {
    return bool(int(z < value) | (int(z == value) & int(index <= last_tie)));
  }
};

// The number of elements of the row for which test(index, z) is true.
template <class Group, class Row, class Test>
__device__ __forceinline__ uint32_t count(Group& group, const Row& row, Test test) {
  uint32_t mine = 0;
  row.each([&](int index, typename Row::Wide z) { mine += test(index, z) ? 1u : 0u; });
  return group.sum(mine);
}

// The next key to try, at least low and below high. In the first steps it is the key of the mean of both values, which
// is faster for logits: half of all keys belong to numbers between -1 and 1. After these it is the mean of both keys,
// so that the search ends after at most as many further steps as a key has bits.
template <typename W>
__device__ __forceinline__ typename OrderedKey<W>::Key between(typename OrderedKey<W>::Key low,
                                                               typename OrderedKey<W>::Key high, int step) {
  constexpr int kByValue = 8;
  const auto by_value = to_key(from_key<W>(low) / 2 + from_key<W>(high) / 2);
  return step < kByValue && by_value >= low && by_value < high ? by_value : low + (high - low) / 2;
}

// The threshold of the k smallest elements other than `excluded`, whose value is `z_excluded`. Ties go to the lower
// index. k is at least 1 and less than the number of other elements, which lie between `least` and `most`; all are
// finite. Every lane of the group calls this function and gets the same result.
template <class Group, class Row>
__device__ __forceinline__ Threshold<typename Row::Wide> select_smallest(Group& group, const Row& row, uint32_t k,
                                                                         int excluded, typename Row::Wide z_excluded,
                                                                         typename Row::Wide least,
                                                                         typename Row::Wide most) {
  using W = typename Row::Wide;
  constexpr int kAllTies = 0x7fffffff;
  // Counting every element and subtracting the excluded one saves a test for each element.
  const auto among_others = [&](auto test) { return count(group, row, test) - (test(excluded, z_excluded) ? 1u : 0u); };
  // Throughout the search, fewer than k elements are below from_key(low), and at least k are at most from_key(high).
  // Adding zero turns -0 into +0: a reduction may give lanes zeros of different signs, and every lane must take the
  // same steps.
  auto low = to_key(least + W(0));
  auto high = to_key(most + W(0));
  for (int step = 0; low < high; ++step) {
    const auto middle = between<W>(low, high, step);
    const W bound = from_key<W>(middle);
    const uint32_t found = among_others([=](int, W z) { return z <= bound; });
    if (found == k) return {bound, kAllTies};
    if (found > k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const W value = from_key<W>(low);
  const uint32_t below = among_others([=](int, W z) { return z < value; });
  int first = 0, last = row.size() - 1;  // a search for the smallest index up to which ties complete the k elements
  while (first < last) {
    const int middle = first + (last - first) / 2;
    const uint32_t found = among_others([=](int index, W z) { return z == value && index <= middle; });
    if (below + found >= k) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return {value, first};
}

}  // namespace rmcla
