// How the lanes of a group hold one row: in registers where it fits, else in memory. Same interface, for host and
// device.
#pragma once

#include <cstdint>

#include "common/macros.h"

// Small loops unroll, since what they index lives in registers; the sweeps over memory do not: their bodies are large.
#if defined(__CUDACC__)
#define RMCLA_UNROLL _Pragma("unroll")
#define RMCLA_UNROLL_ONCE _Pragma("unroll 1")
#else
#define RMCLA_UNROLL
#define RMCLA_UNROLL_ONCE
#endif

namespace rmcla {

// Storage type -> the type that arithmetic is done in, and the (correctly rounded) ways there and back. Where they are
// the same type it is this; 16-bit floats are specialised by whoever has them.
template <typename T>
struct Storage {
  using Wide = T;
  static RMCLA_SHARED T widen(T value) { return value; }
  static RMCLA_SHARED T narrow(T value) { return value; }
};

// N elements that are loaded and stored together, in 16 bytes at a time.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T item[N];
};

constexpr int kPack = 4;

// Lane `lane` of kLanes holds kItems elements: in packs of four neighbours where `packed` (then size % 4 == 0 and the
// row is aligned), else every kLanes-th.
template <typename T, int kItems, int kLanes>
class RegisterRow {
 public:
  using Stored = T;
  using Wide = typename Storage<T>::Wide;
  static constexpr int kCapacity = kItems * kLanes;
  static constexpr bool kCanPack = kItems % kPack == 0;

  RMCLA_SHARED RegisterRow(const T* row, int size, int lane, bool packed) : size_(size), lane_(lane), packed_(packed) {
    if constexpr (kCanPack) {
      if (packed) {
        RMCLA_UNROLL
        for (int k = 0; k < kItems; k += kPack) {
          Pack<T, kPack> pack{};
          if (index(k) < size) pack = *reinterpret_cast<const Pack<T, kPack>*>(row + index(k));
          RMCLA_UNROLL
          for (int j = 0; j < kPack; ++j) z_[k + j] = Storage<T>::widen(pack.item[j]);
        }
        return;
      }
    }
    RMCLA_UNROLL
    for (int k = 0; k < kItems; ++k) z_[k] = index(k) < size ? Storage<T>::widen(row[index(k)]) : Wide(0);
  }

  RMCLA_SHARED int size() const { return size_; }

  // visit(index, value) for every element that this lane holds, by rising index.
  template <class Visit>
  RMCLA_SHARED void each(Visit visit) const {
    RMCLA_UNROLL
    for (int k = 0; k < kItems; ++k) {
      if (index(k) < size_) visit(index(k), z_[k]);
    }
  }

  // out[index] = value_of(index, value), rounded to the storage type of `out`.
  template <typename Out, class ValueOf>
  RMCLA_SHARED void write(Out* out, ValueOf value_of) const {
    if constexpr (kCanPack) {
      if (packed_) {
        RMCLA_UNROLL
        for (int k = 0; k < kItems; k += kPack) {
          if (index(k) >= size_) continue;
          Pack<Out, kPack> pack;
          RMCLA_UNROLL
          for (int j = 0; j < kPack; ++j) pack.item[j] = Storage<Out>::narrow(value_of(index(k) + j, z_[k + j]));
          *reinterpret_cast<Pack<Out, kPack>*>(out + index(k)) = pack;
        }
        return;
      }
    }
    each([&](int i, Wide z) { out[i] = Storage<Out>::narrow(value_of(i, z)); });
  }

 private:
  RMCLA_SHARED int index(int k) const {
    if constexpr (kCanPack) {
      if (packed_) return (k / kPack * kLanes + lane_) * kPack + k % kPack;
    }
    return k * kLanes + lane_;
  }

  Wide z_[kItems];
  int size_;
  int lane_;
  bool packed_;
};

// The same elements a lane, read again from memory by each sweep: a row too long for registers waits in shared memory,
// or in the caches where it is too long for that.
template <typename T, int kLanes>
class MemoryRow {
 public:
  using Stored = T;
  using Wide = typename Storage<T>::Wide;

  RMCLA_SHARED MemoryRow(const T* row, int size, int lane, bool packed)
      : row_(row), size_(size), lane_(lane), packed_(packed) {}

  RMCLA_SHARED int size() const { return size_; }

  // Copies this lane's elements to `copy` (aligned where packed) and reads them there from now on: no lane reads
  // another's.
  RMCLA_SHARED void move_to(T* copy) {
    if (packed_) {
      for (int64_t i = int64_t(lane_) * kPack; i < size_; i += kLanes * kPack) pack_at(copy, i) = pack_at(row_, i);
    } else {
      for (int64_t i = lane_; i < size_; i += kLanes) copy[i] = row_[i];
    }
    row_ = copy;
  }

  template <class Visit>
  RMCLA_SHARED void each(Visit visit) const {
    if (packed_) {
      RMCLA_UNROLL_ONCE
      for (int64_t i = int64_t(lane_) * kPack; i < size_; i += kLanes * kPack) {
        const Pack<T, kPack> pack = pack_at(row_, i);
        RMCLA_UNROLL
        for (int j = 0; j < kPack; ++j) visit(int(i) + j, Storage<T>::widen(pack.item[j]));
      }
    } else {
      for (int64_t i = lane_; i < size_; i += kLanes) visit(int(i), Storage<T>::widen(row_[i]));
    }
  }

  template <typename Out, class ValueOf>
  RMCLA_SHARED void write(Out* out, ValueOf value_of) const {
    if (packed_) {
      RMCLA_UNROLL_ONCE
      for (int64_t i = int64_t(lane_) * kPack; i < size_; i += kLanes * kPack) {
        const Pack<T, kPack> pack = pack_at(row_, i);
        Pack<Out, kPack> result;
        RMCLA_UNROLL
        for (int j = 0; j < kPack; ++j) {
          result.item[j] = Storage<Out>::narrow(value_of(int(i) + j, Storage<T>::widen(pack.item[j])));
        }
        pack_at(out, i) = result;
      }
    } else {
      each([&](int i, Wide z) { out[i] = Storage<Out>::narrow(value_of(i, z)); });
    }
  }

 private:
  template <typename E>
  static RMCLA_SHARED Pack<E, kPack>& pack_at(E* data, int64_t i) {
    return *reinterpret_cast<Pack<E, kPack>*>(data + i);
  }
  template <typename E>
  static RMCLA_SHARED const Pack<E, kPack>& pack_at(const E* data, int64_t i) {
    return *reinterpret_cast<const Pack<E, kPack>*>(data + i);
  }

  const T* row_;
  int size_;
  int lane_;
  bool packed_;
};

}  // namespace rmcla
