// Blocks of a fixed number of elements. The compiler makes vectors of the loops over them.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "common/macros.h"

namespace rmcla {

constexpr int kLanes = 16;
template <typename T>
using Lanes = T[kLanes];
template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // of a class, as wide as a logit

// A buffer of one thread.
template <typename T>
class Room {
 public:
  explicit Room(int64_t count) : blocks_(count ? new Block[size_t(count + kLanes - 1) / kLanes] : nullptr) {}
  T* get() const { return blocks_ ? blocks_[0].lanes : nullptr; }

 private:
  struct alignas(64) Block {
    Lanes<T> lanes;
  };
  std::unique_ptr<Block[]> blocks_;
};

// Combines all lanes in a fixed order.
template <typename T, class Combine>
RMCLA_SHARED T reduce(Lanes<T>& lanes, const Combine& combine) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] = combine(lanes[j], lanes[j + half]);
  return lanes[0];
}

template <typename T>
RMCLA_SHARED T lowest(Lanes<T>& lanes) {
  return reduce(lanes, [](T a, T b) RMCLA_INLINE { return a < b ? a : b; });
}
template <typename T>
RMCLA_SHARED T highest(Lanes<T>& lanes) {
  return reduce(lanes, [](T a, T b) RMCLA_INLINE { return a > b ? a : b; });
}
template <typename T>
RMCLA_SHARED T lane_sum(Lanes<T>& lanes) {
  return reduce(lanes, [](T a, T b) RMCLA_INLINE { return a + b; });
}

}  // namespace rmcla
