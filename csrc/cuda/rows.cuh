// How the lanes of a group hold one row: in registers if it fits, else in memory. Both classes have the same interface.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/types.cuh"

namespace rmcla {

constexpr int kPack = 4;  // elements of a row that are loaded and stored together, if the row allows it

// The position of an element: its class, and the register of its lane that holds it. Converted to int it is the class.
struct RowIndex {
  int index;
  int slot;

  __device__ __forceinline__ operator int() const { return index; }
};

// Small loops are unrolled, since they index registers. The loops over memory are not, since their bodies are large.

// A row in registers: lane `lane` of kLanes holds kItems elements. With kPacked, these are packs of four neighbours,
// size % 4 == 0 and the row is aligned. Otherwise they are every kLanes-th element.
template <typename T, int kItems, int kLanes, bool kPacked>
class RegisterRow {
 public:
  using Wide = typename Storage<T>::Wide;
  static constexpr int kCapacity = kItems * kLanes;
  static constexpr int kStep = kPacked ? kPack : 1;
  static_assert(kItems % kStep == 0);

  __device__ __forceinline__ RegisterRow(const T* row, int size, int lane)
      : RegisterRow(size, lane, [=](int i, Wide* z) { widen_pack(row + i, z); }) {}

  // Another row of the same size, held in the same way. If `row` is null, its elements are otherwise(index).
  template <typename U, class Otherwise>
  __device__ __forceinline__ auto beside(const U* row, Otherwise otherwise) const {
    using Other = RegisterRow<U, kItems, kLanes, kPacked>;
    return Other(size_, lane_, [=](int i, typename Other::Wide* y) {
      if (row) return Other::widen_pack(row + i, y);
#pragma unroll
      for (int j = 0; j < kStep; ++j) y[j] = otherwise(i + j);
    });
  }

  __device__ __forceinline__ int size() const { return size_; }

  __device__ __forceinline__ Wide operator[](RowIndex at) const { return z_[at.slot]; }

  // Calls visit(at, value) for every element that this lane holds, in ascending order of index.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
    for (int k = 0; k < kItems; k += kStep) {
      if (!holds(k)) continue;
#pragma unroll
      for (int j = 0; j < kStep; ++j) visit(RowIndex{index(k) + j, k + j}, z_[k + j]);
    }
  }

  // Writes out[index] = value_of(at, value) for every element of this lane, rounded to the storage type of `out`.
  template <typename Out, class ValueOf>
  __device__ __forceinline__ void write(Out* out, ValueOf value_of) const {
#pragma unroll
    for (int k = 0; k < kItems; k += kStep) {
      if (!holds(k)) continue;
      Pack<Out, kStep> pack;
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        pack.item[j] = Storage<Out>::narrow(value_of(RowIndex{index(k) + j, k + j}, z_[k + j]));
      }
      pack_at<kStep>(out, index(k)) = pack;
    }
  }

 private:
  template <typename, int, int, bool>
  friend class RegisterRow;

  // `load(index, z)` stores the kStep elements from `index` on in z.
  template <class Load>
  __device__ __forceinline__ RegisterRow(int size, int lane, Load load)
      : size_(size), lane_(lane), steps_((size / kStep - lane + kLanes - 1) / kLanes) {
#pragma unroll
    for (int k = 0; k < kItems; k += kStep) {
#pragma unroll
      for (int j = 0; j < kStep; ++j) z_[k + j] = Wide(0);
      if (holds(k)) load(index(k), z_ + k);
    }
  }

  static __device__ __forceinline__ void widen_pack(const T* row, Wide* z) {
    const auto pack = pack_at<kStep>(row, 0);
#pragma unroll
    for (int j = 0; j < kStep; ++j) z[j] = Storage<T>::widen(pack.item[j]);
  }

  // The index of the first element of the step at k, which is a multiple of kStep.
  __device__ __forceinline__ int index(int k) const { return (k / kStep * kLanes + lane_) * kStep; }

  // Whether index(k) < size. After unrolling, this compares steps_ with a constant, so that no index needs a register.
  __device__ __forceinline__ bool holds(int k) const { return k / kStep < steps_; }

  Wide z_[kItems];
  int size_;
  int lane_;
  int steps_;
};

// The elements of a row from `begin` up to `end`, which each pass reads again from memory. A row too long for registers
// is kept in shared memory, or in the caches if it is too long for that too. Several blocks can share a row, each with
// a piece of it. With `packed`, a piece begins and ends at a multiple of four and the row is aligned.
template <typename T, int kLanes>
class MemoryRow {
 public:
  using Wide = typename Storage<T>::Wide;

  __device__ __forceinline__ MemoryRow(const T* row, int size, int begin, int end, int lane, bool packed)
      : row_(row), size_(size), begin_(begin), end_(end), lane_(lane), packed_(packed) {}

  __device__ __forceinline__ int size() const { return size_; }

  // Copies this lane's elements to `copy` and reads them there from now on; no lane reads another lane's elements.
  // `copy` holds only the piece, and is aligned with `packed`.
  __device__ __forceinline__ void move_to(T* copy) {
    T* const from_begin = copy - begin_;
    sweep([&](auto step, int64_t i) {
      constexpr int kWidth = decltype(step)::value;
      pack_at<kWidth>(from_begin, i) = pack_at<kWidth>(row_, i);
    });
    row_ = from_begin;
  }

  // Another row of the same size in memory. If `row` is null, its elements are otherwise(index).
  template <typename U, class Otherwise>
  __device__ __forceinline__ auto beside(const U* row, Otherwise otherwise) const {
    return Beside<U, Otherwise>{row, otherwise};
  }

  // As in RegisterRow, except that no element has a register of its own: the slot is always 0.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    sweep([&](auto step, int64_t i) {
      constexpr int kWidth = decltype(step)::value;
      const auto pack = pack_at<kWidth>(row_, i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) visit(RowIndex{int(i) + j, 0}, Storage<T>::widen(pack.item[j]));
    });
  }

  template <typename Out, class ValueOf>
  __device__ __forceinline__ void write(Out* out, ValueOf value_of) const {
    sweep([&](auto step, int64_t i) {
      constexpr int kWidth = decltype(step)::value;
      const auto pack = pack_at<kWidth>(row_, i);
      Pack<Out, kWidth> result;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        result.item[j] = Storage<Out>::narrow(value_of(RowIndex{int(i) + j, 0}, Storage<T>::widen(pack.item[j])));
      }
      pack_at<kWidth>(out, i) = result;
    });
  }

 private:
  template <typename U, class Otherwise>
  struct Beside {
    const U* row;
    Otherwise otherwise;

    __device__ __forceinline__ U operator[](RowIndex at) const { return row ? row[at.index] : otherwise(at.index); }
  };

  // Calls body(step, index) for every pack of this lane; a pack has decltype(step)::value elements.
  template <class Body>
  __device__ __forceinline__ void sweep(Body body) const {
    if (packed_) {
#pragma unroll 1
      for (int64_t i = begin_ + int64_t(lane_) * kPack; i < end_; i += kLanes * kPack) {
        body(std::integral_constant<int, kPack>(), i);
      }
    } else {
      for (int64_t i = begin_ + lane_; i < end_; i += kLanes) body(std::integral_constant<int, 1>(), i);
    }
  }

  const T* row_;
  int size_;
  int begin_, end_;
  int lane_;
  bool packed_;
};

}  // namespace rmcla
