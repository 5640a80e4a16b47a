// What the operators on rows of logits share: labels, matrices of any dtype, and the passes over one long row.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cmath>
#include <limits>

#include "common/row_checks.h"
#include "cpu/convert.h"
#include "cpu/lanes.h"

namespace rmcla {

// The labels in contiguous memory. Raises ValueError, naming the first label that is outside the classes.
inline Tensor checked_classes(const char* name, const Tensor& labels, int64_t classes) {
  Tensor dense = as_contiguous(labels);
  const int64_t* const label = dense.const_data_ptr<int64_t>();
  const int64_t rows = dense.numel();
  uint64_t largest = 0;  // a negative label is a huge unsigned one
  for (int64_t row = 0; row < rows; ++row) largest = std::max(largest, uint64_t(label[row]));
  if (largest >= uint64_t(classes)) {
    const auto outside = [=](int64_t c) { return uint64_t(c) >= uint64_t(classes); };
    const int64_t row = std::find_if(label, label + rows, outside) - label;
    fail(name, " must lie in [0, ", classes, "); got ", label[row], " in row ", row);
  }
  return dense;
}

// A (B, C) tensor of any float dtype, whose rows are computed as T. Rows of another dtype are converted in `room`.
template <typename T>
class Matrix {
 public:
  Matrix() = default;
  explicit Matrix(const Tensor& tensor)
      : tensor_(with_dense_rows(tensor)),
        data_(static_cast<char*>(tensor_->data_ptr())),
        rows_(tensor_->size(0)),
        classes_(tensor_->size(1)),
        step_(tensor_->stride(0)),
        size_(int64_t(tensor_->element_size())),
        dtype_(dtype_of(*tensor_)) {}

  explicit operator bool() const { return data_; }
  bool direct() const { return dtype_ == kArithmetic<T>; }
  int64_t room(int64_t rows) const { return direct() ? 0 : rows * classes_; }  // elements that `rows` rows need

  // The rows from `first` on, which are stride() apart.
  const T* read(int64_t first, int64_t rows, T* room) const {
    if (direct()) return reinterpret_cast<const T*>(at(first));
    const int64_t together = step_ == classes_ ? rows : 1;
    for (int64_t row = 0; row < rows; row += together)
      widen(dtype_, at(first + row), room + row * classes_, together * classes_);
    return room;
  }
  int64_t stride() const { return direct() ? step_ : classes_; }
  // The end of the memory that may be read where `rows` rows were read.
  const T* read_end(const T* read, int64_t rows) const {
    return direct() ? reinterpret_cast<const T*>(at(rows_ - 1)) + classes_ : read + rows * classes_;
  }

  // Where the contiguous rows from `first` on are to be written, before `finish`.
  T* place(int64_t first, T* room) const { return direct() ? reinterpret_cast<T*>(at(first)) : room; }
  void finish(int64_t first, int64_t rows, const T* room) const {
    if (!direct()) narrow(dtype_, room, at(first), rows * classes_);
  }

 private:
  char* at(int64_t row) const { return data_ + row * step_ * size_; }

  std::optional<Tensor> tensor_;
  char* data_ = nullptr;
  int64_t rows_ = 0, classes_ = 0, step_ = 0, size_ = 0;
  DType dtype_ = kArithmetic<T>;
};

// Calls body(begin, end) for parts of the rows, in several threads.
template <class Body>
void each_part(int64_t rows, int64_t classes, const Body& body) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 2048 / classes), body);
}

// Which elements of a block are classes, and which are classes other than the true one.
struct AllOthers {
  RMCLA_SHARED bool inside(int) const { return true; }
  RMCLA_SHARED bool other(int) const { return true; }
};
struct SomeOthers {
  int classes, label;
  RMCLA_SHARED bool inside(int k) const { return k < classes; }
  RMCLA_SHARED bool other(int k) const { return (k < classes) & (k != label); }
};

// A long row of logits z, and beside it a row y of as many elements, in blocks of kLanes elements. The last, partial
// blocks are copied to buffers, so that there is no loop over single elements.
template <typename T>
class Row {
 public:
  RMCLA_SHARED Row(const T* z, const T* y, int classes, int label)
      : z_(z), y_(y), classes_(classes), whole_(classes / kLanes * kLanes), label_(label) {
    for (int j = 0; j < classes - whole_; ++j) last_z_[j] = z[whole_ + j], last_y_[j] = y[whole_ + j];
  }

  RMCLA_SHARED int size() const { return classes_; }

  // Calls visit(first, z, y, which) for each block, which begins with class `first`. `which` is AllOthers, except for
  // the last, partial block and that of the true class. Every 16 blocks, and at the end, it calls end_part().
  template <class Visit, class EndPart>
  RMCLA_SHARED void each(const Visit& visit, const EndPart& end_part) const {
    constexpr int kPart = 16 * kLanes;
    int first = 0, next_part = kPart;
    for (const int stop : {label_ / kLanes * kLanes, whole_}) {
      while (first < stop) {
        for (const int end = std::min(stop, next_part); first < end; first += kLanes)
          visit(first, z_ + first, y_ + first, AllOthers());
        if (first < next_part) break;
        end_part();
        next_part = first + kPart;
      }
      const bool last = first == whole_;
      if (first < classes_)
        visit(first, last ? last_z_ : z_ + first, last ? last_y_ : y_ + first, SomeOthers{classes_, label_});
      first += kLanes;
    }
    end_part();
  }
  template <class Visit>
  RMCLA_SHARED void each(const Visit& visit) const {
    each(visit, []() RMCLA_INLINE {});
  }

  // The sum of term(k, z_k, y_k, which) for each of the terms, which are called once for every element of every block.
  // The lanes add up the terms of a part, and the parts are added in double, so that a row of any length sums to within
  // a few units in the last place.
  template <class... Term>
  RMCLA_SHARED std::array<double, sizeof...(Term)> sums(const Term&... term) const {
    std::array<double, sizeof...(Term)> totals{};
    Lanes<T> parts[sizeof...(Term)] = {};
    each(
        [&](int first, const T* z, const T* y, auto which) RMCLA_INLINE {
#pragma omp simd
          for (int j = 0; j < kLanes; ++j) {
            int i = 0;
            ((parts[i++][j] += term(first + j, z[j], y[j], which)), ...);
          }
        },
        [&]() RMCLA_INLINE {
          for (size_t i = 0; i < sizeof...(Term); ++i) {
            totals[i] += double(lane_sum(parts[i]));
            for (T& part : parts[i]) part = T(0);
          }
        });
    return totals;
  }

  // Writes to[k] = value(k, z_k, y_k).
  template <class Value>
  RMCLA_SHARED void write(T* to, const Value& value) const {
    for (int first = 0; first < whole_; first += kLanes) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) to[first + j] = value(first + j, z_[first + j], y_[first + j]);
    }
    if (whole_ == classes_) return;
    Lanes<T> last;
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) last[j] = value(whole_ + j, last_z_[j], last_y_[j]);
    std::copy_n(last, classes_ - whole_, to + whole_);
  }

 private:
  const T *z_, *y_;
  int classes_;
  int whole_;  // the number of elements in whole blocks
  int label_;
  Lanes<T> last_z_{}, last_y_{};
};

template <typename T>
struct OtherLogits {
  T most, least;  // of the classes other than the true one
  bool finite;    // whether no logit of the row is NaN or counts as infinite
};

template <typename T>
RMCLA_SHARED OtherLogits<T> other_logits(const Row<T>& row) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Lanes<T> most, least;
  Lanes<IndexOf<T>> magnitude{};  // the order of floats without a sign is that of their bits
  for (int j = 0; j < kLanes; ++j) most[j] = -kInfinity, least[j] = kInfinity;
  row.each([&](int first, const T* z, const T*, auto which) RMCLA_INLINE {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const bool other = which.other(first + j);
      const T above = other ? z[j] : -kInfinity, below = other ? z[j] : kInfinity;
      most[j] = above > most[j] ? above : most[j];
      least[j] = below < least[j] ? below : least[j];
      const IndexOf<T> bits = bits_as<IndexOf<T>>(z[j]) & std::numeric_limits<IndexOf<T>>::max();
      magnitude[j] = bits > magnitude[j] ? bits : magnitude[j];
    }
  });
  return {highest(most), lowest(least), highest(magnitude) < bits_as<IndexOf<T>>(kInfiniteFrom<T>)};
}

}  // namespace rmcla
