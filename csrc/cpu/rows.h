// What the operators on rows of logits share: labels, rows of any dtype as float or double, buffers, and threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <limits>
#include <memory>

#include "common/checks.h"
#include "common/joint_gradient.h"
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

// Reads the rows of a (B, C) tensor as T.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const Tensor& matrix)
      : matrix_(with_dense_rows(matrix)),
        from_(static_cast<const char*>(matrix_.const_data_ptr())),
        classes_(matrix_.size(1)),
        step_(matrix_.stride(0)),
        size_(int64_t(matrix_.element_size())),
        dtype_(dtype_of(matrix_)) {}

  bool direct() const { return dtype_ == kArithmetic<T>; }
  // The distance between the rows that `read` gives.
  int64_t stride() const { return direct() ? step_ : classes_; }

  // The rows from `first` on; `room` is for those that are converted.
  const T* read(int64_t first, int64_t rows, T* room) const {
    const char* const from = from_ + first * step_ * size_;
    if (direct()) return reinterpret_cast<const T*>(from);
    if (step_ == classes_) {
      widen(dtype_, from, room, rows * classes_);
    } else {
      for (int64_t row = 0; row < rows; ++row)
        widen(dtype_, from + row * step_ * size_, room + row * classes_, classes_);
    }
    return room;
  }

  // The end of the memory that may be read beside these rows.
  const T* limit(const T* read, int64_t rows) const {
    if (!direct()) return read + rows * classes_;
    return reinterpret_cast<const T*>(from_) + (matrix_.size(0) - 1) * step_ + classes_;
  }

 private:
  Tensor matrix_;
  const char* from_;
  int64_t classes_, step_, size_;
  DType dtype_;
};

// The rows of a new contiguous (B, C) tensor, which are computed as T.
template <typename T>
class RowWriter {
 public:
  explicit RowWriter(const std::optional<Tensor>& matrix)
      : to_(matrix ? static_cast<char*>(matrix->mutable_data_ptr()) : nullptr),
        classes_(matrix ? matrix->size(1) : 0),
        size_(matrix ? int64_t(matrix->element_size()) : 0),
        dtype_(matrix ? dtype_of(*matrix) : kArithmetic<T>) {}

  bool direct() const { return dtype_ == kArithmetic<T>; }

  // Where the rows from `first` on are computed: in the tensor, or in `room` if they must be converted.
  T* rows(int64_t first, T* room) const {
    return direct() ? (to_ ? reinterpret_cast<T*>(to_) + first * classes_ : nullptr) : room;
  }
  void finish(int64_t first, int64_t rows, const T* room) const {
    if (!direct()) narrow(dtype_, room, to_ + first * classes_ * size_, rows * classes_);
  }

 private:
  char* to_;
  int64_t classes_, size_;
  DType dtype_;
};

constexpr int whole_blocks(int classes) { return (classes + kLanes - 1) / kLanes * kLanes; }

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

// A row in blocks of kLanes elements, whose loops the compiler turns into vectors. The last, partial block is copied to a
// buffer, so that there is no loop over single elements.
template <typename T>
class Row {
 public:
  RMCLA_SHARED Row(const T* z, int classes, int label)
      : z_(z), classes_(classes), whole_(classes / kLanes * kLanes), label_(label) {
    for (int j = 0; j < classes - whole_; ++j) last_[j] = z[whole_ + j];
  }

  RMCLA_SHARED int size() const { return classes_; }

  // Calls visit(first, z, which) for each block, which begins with class `first`. `which` is AllOthers, except for the
  // last, partial block and that of the true class.
  template <class Visit>
  RMCLA_SHARED void each(const Visit& visit) const {
    int first = 0;
    for (const int stop : {label_block(), whole_}) {
      for (; first < stop; first += kLanes) visit(first, z_ + first, AllOthers());
      if (first < classes_) visit(first, first == whole_ ? last_ : z_ + first, SomeOthers{classes_, label_});
      first += kLanes;
    }
  }

  // The sum of term(k, z_k, which) for each of the terms, which are called once for every element of every block. Each
  // lane adds up to kSumBlocks terms, and these parts are added in double, so that a row of any length sums to within a
  // few units in the last place.
  template <class... Term>
  RMCLA_SHARED std::array<double, sizeof...(Term)> sums(const Term&... term) const {
    constexpr int kSumBlocks = 16;
    std::array<double, sizeof...(Term)> totals{};
    int first = 0;
    for (const int stop : {label_block(), whole_}) {
      while (first < stop) {
        const int end = std::min(stop, first + kSumBlocks * kLanes);
        Lanes<T> parts[sizeof...(Term)] = {};
        for (; first < end; first += kLanes) add_terms(first, z_ + first, AllOthers(), parts, term...);
        for (size_t i = 0; i < sizeof...(Term); ++i) totals[i] += double(lane_sum(parts[i]));
      }
      if (first < classes_) {
        Lanes<T> parts[sizeof...(Term)] = {};
        add_terms(first, first == whole_ ? last_ : z_ + first, SomeOthers{classes_, label_}, parts, term...);
        for (size_t i = 0; i < sizeof...(Term); ++i) totals[i] += double(lane_sum(parts[i]));
      }
      first += kLanes;
    }
    return totals;
  }

  // Writes to[k] = value(k, z_k).
  template <class Value>
  RMCLA_SHARED void write(T* to, const Value& value) const {
    for (int first = 0; first < whole_; first += kLanes) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) to[first + j] = value(first + j, z_[first + j]);
    }
    if (whole_ == classes_) return;
    Lanes<T> last;
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) last[j] = value(whole_ + j, last_[j]);
    std::copy_n(last, classes_ - whole_, to + whole_);
  }

 private:
  template <class Which, class... Term>
  RMCLA_SHARED static void add_terms(int first, const T* z, Which which, Lanes<T>* parts, const Term&... term) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      int i = 0;
      ((parts[i++][j] += term(first + j, z[j], which)), ...);
    }
  }

  RMCLA_SHARED int label_block() const { return label_ / kLanes * kLanes; }

  const T* z_;
  int classes_;
  int whole_;  // the number of elements in whole blocks
  int label_;
  Lanes<T> last_{};
};

template <typename T>
struct OtherLogits {
  T most, least;  // of the classes other than the true one
  bool finite;    // whether no logit of the row is NaN or counts as infinite
};

template <typename T>
RMCLA_SHARED OtherLogits<T> other_logits(const Row<T>& row) {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Lanes<T> most, least;
  Lanes<Integer> magnitude{};  // the order of floats without a sign is that of their bits
  for (int j = 0; j < kLanes; ++j) most[j] = -kInfinity, least[j] = kInfinity;
  row.each([&](int first, const T* z, auto which) RMCLA_INLINE {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const bool other = which.other(first + j);
      const T above = other ? z[j] : -kInfinity, below = other ? z[j] : kInfinity;
      most[j] = above > most[j] ? above : most[j];
      least[j] = below < least[j] ? below : least[j];
      const Integer bits = bits_as<Integer>(z[j]) & std::numeric_limits<Integer>::max();
      magnitude[j] = bits > magnitude[j] ? bits : magnitude[j];
    }
  });
  return {highest(most), lowest(least), highest(magnitude) < bits_as<Integer>(kInfiniteFrom<T>)};
}

// log sum_k exp(z_k - highest), from the sum of the shifted exponentials.
template <typename T>
RMCLA_SHARED double log_of_sum(double sum) {
  return std::log(sum) - kExponentShift<T> * 0.69314718055994530942;
}

// A buffer of one thread, on the stack if it is small.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : heap_(count > kInline ? new T[size_t(count)] : nullptr) {}
  T* get() { return heap_ ? heap_.get() : inline_; }

 private:
  static constexpr int64_t kInline = 16384 / int64_t(sizeof(T));
  std::unique_ptr<T[]> heap_;
  alignas(64) T inline_[kInline];
};

// Calls body(first, rows) for parts of the batch, in several threads. `converted` parts are small, so that they stay in
// the first cache.
template <class Body>
void each_part(int64_t batch, int64_t classes, bool converted, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 2048 / classes);
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    const int64_t together = converted ? std::max<int64_t>(1, 2048 / classes) : end - begin;
    for (int64_t first = begin; first < end; first += together) body(first, std::min(together, end - first));
  });
}

}  // namespace rmcla
