// soft_cross_entropy on the CPU: the loss and both gradients, row by row, so that a row stays in the caches, in plain
// loops that the compiler vectorises.
#include "common/soft_cross_entropy.h"

#include "common/registration.h"
#include "cpu/rows.h"
#include "cpu/short_rows.h"

namespace rmcla {
namespace {

// A part of the rows. They are `logits_stride` and `soft_stride` apart in the inputs, and contiguous in the outputs.
// Either `labels` (class indices) or `soft` (soft labels) is null. `limit` and `soft_limit` are the ends of their
// memory.
template <typename T>
struct LossRows {
  const T* logits;
  int64_t logits_stride;
  const T* limit;
  const int64_t* labels;
  const T* soft;
  int64_t soft_stride;
  const T* soft_limit;
  Smoothing<T> smoothed;
  T* loss;
  T* gradient;
  T* label_gradient;  // may be null
  int64_t rows;
  int classes;
};

// `room` holds two rows, in whole blocks. Without smoothing, the loops do no arithmetic for it.
template <class Fusing, bool kSmoothed, typename T>
RMCLA_SHARED void loss_row(const LossRows<T>& a, int64_t r, T* room) {
  const int classes = a.classes, label = a.labels ? int(a.labels[r]) : 0;
  const T* const z = a.logits + r * a.logits_stride;
  T* const exponentials = room;
  T* const labels = room + whole_blocks(classes);
  T* const gradient = a.gradient + r * classes;
  T* const label_gradient = a.label_gradient ? a.label_gradient + r * classes : nullptr;
  const Row<T> row(z, classes, label);
  const OtherLogits<T> others = other_logits(row);
  if (!others.finite) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    a.loss[r] = nan;
    std::fill_n(gradient, classes, nan);
    if (label_gradient) std::fill_n(label_gradient, classes, nan);
    return;
  }
  const T highest = std::max(others.most, z[label]), keep = a.smoothed.keep, share = a.smoothed.share;
  const auto smoothed = [=](T y) RMCLA_INLINE { return kSmoothed ? keep * y + share : y; };
  const auto exponential = [&](int k, T v, auto which) RMCLA_INLINE {
    exponentials[k] = shifted_exp<Fusing>(v - highest);
    return which.inside(k) ? exponentials[k] : T(0);
  };
  double sum, mass = 1, gaps = double(keep) * double(highest - z[label]);
  if (a.soft) {
    std::copy_n(a.soft + r * a.soft_stride, classes, labels);
    std::fill(labels + classes, labels + whole_blocks(classes), T(0));
    const auto [exponential_sum, label_sum, gap_sum] = row.sums(
        exponential, [&](int k, T, auto) RMCLA_INLINE { return labels[k]; },
        [&](int k, T v, auto which) RMCLA_INLINE {
          return which.inside(k) ? smoothed(labels[k]) * (highest - v) : T(0);
        });
    sum = exponential_sum;
    mass = a.smoothed.mass(T(label_sum));
    gaps = gap_sum;
  } else if (kSmoothed) {
    const auto [exponential_sum, gap_sum] = row.sums(
        exponential, [&](int k, T v, auto which) RMCLA_INLINE { return which.inside(k) ? highest - v : T(0); });
    sum = exponential_sum;
    gaps += double(share) * gap_sum;
  } else {
    sum = row.sums(exponential)[0];
  }
  const double log_sum = log_of_sum<T>(sum);
  a.loss[r] = T(gaps + mass * log_sum);

  const T scale = T(mass / sum);
  if (a.soft) {
    row.write(gradient, [&](int k, T) RMCLA_INLINE { return exponentials[k] * scale - smoothed(labels[k]); });
  } else {
    row.write(gradient, [&](int k, T) RMCLA_INLINE { return exponentials[k] * scale - smoothed(T(0)); });
    gradient[label] = exponentials[label] * scale - smoothed(T(1));
  }
  const T offset = T(log_sum);
  if (label_gradient)
    row.write(label_gradient, [&](int, T v) RMCLA_INLINE { return keep * ((highest - v) + offset); });
}

// Computes up to kLanes short rows from `first` on side by side.
template <class Fusing, typename T>
RMCLA_SHARED void loss_short_rows(const LossRows<T>& a, int64_t first) {
  const int classes = a.classes, rows = int(std::min<int64_t>(kLanes, a.rows - first));
  const Smoothing<T> smoothed = a.smoothed;
  Columns<T> z, y, e;
  Lanes<T> highest, taint{}, sum{}, mass{}, gaps{}, log_sum, scale, loss;
  load_columns(a.logits + first * a.logits_stride, a.logits_stride, rows, classes, a.limit, z);
  if (a.soft) {
    load_columns(a.soft + first * a.soft_stride, a.soft_stride, rows, classes, a.soft_limit, y);
  } else {
    Lanes<IndexOf<T>> label;
    load_classes(a.labels + first, rows, label);
    for (IndexOf<T> k = 0; k < classes; ++k)
      for (int r = 0; r < kLanes; ++r) y[k][r] = label[r] == k ? T(1) : T(0);
  }
  for (T& value : highest) value = -std::numeric_limits<T>::infinity();
  for (int k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      taint[r] += taint_of(z[k][r]);
      highest[r] = z[k][r] > highest[r] ? z[k][r] : highest[r];
    }
  }
  sum_columns(classes, sum, [&](int k, int r) RMCLA_INLINE {
    return e[k][r] = shifted_exp<Fusing>(z[k][r] - highest[r]);
  });
  sum_columns(classes, mass, [&](int k, int r) RMCLA_INLINE { return y[k][r]; });
  sum_columns(classes, gaps, [&](int k, int r) RMCLA_INLINE {
    y[k][r] = smoothed(y[k][r]);
    return y[k][r] * (highest[r] - z[k][r]);
  });
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    log_sum[r] = shifted_log(sum[r]) + taint[r];
    mass[r] = smoothed.mass(mass[r]);
    loss[r] = gaps[r] + mass[r] * log_sum[r];
    scale[r] = mass[r] / sum[r] + taint[r];
  }
  std::copy_n(loss, rows, a.loss + first);
  for (int k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) e[k][r] = e[k][r] * scale[r] - y[k][r];
  }
  store_columns(e, rows, classes, a.gradient + first * classes, a.gradient + a.rows * classes);
  if (!a.label_gradient) return;
  for (int k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) e[k][r] = smoothed.keep * ((highest[r] - z[k][r]) + log_sum[r]);
  }
  store_columns(e, rows, classes, a.label_gradient + first * classes, a.label_gradient + a.rows * classes);
}

template <typename T>
void loss_rows(const LossRows<T>& a) {
  const bool is_short = a.classes <= kShortRow;
  Scratch<T> room(is_short ? 0 : 2 * whole_blocks(a.classes));
  on_this_processor([&](auto fusing) RMCLA_INLINE {
    using Fusing = decltype(fusing);
    if (is_short) {
      for (int64_t first = 0; first < a.rows; first += kLanes) loss_short_rows<Fusing>(a, first);
    } else if (a.smoothed.keep != T(1)) {
      for (int64_t row = 0; row < a.rows; ++row) loss_row<Fusing, true>(a, row, room.get());
    } else {
      for (int64_t row = 0; row < a.rows; ++row) loss_row<Fusing, false>(a, row, room.get());
    }
  });
}

// Splits the batch among the threads.
template <typename T>
void run(const Tensor& logits, const Tensor& labels, double smoothing, const Tensor& loss, const Tensor& gradient,
         const std::optional<Tensor>& label_gradient) {
  const int64_t classes = logits.size(1);
  const bool hard = labels.dim() == 1;
  const RowReader<T> z(logits), y(hard ? logits : labels);
  const RowWriter<T> writer(gradient), label_writer(label_gradient);
  LossRows<T> all{};
  all.labels = hard ? labels.const_data_ptr<int64_t>() : nullptr;
  all.smoothed = {T(1 - smoothing), T(smoothing / double(classes))};
  all.loss = loss.mutable_data_ptr<T>();
  all.classes = int(classes);
  each_part(logits.size(0), classes, !(z.direct() && y.direct()), [&](int64_t first, int64_t rows) {
    const auto room_if = [&](bool needed) { return needed ? rows * classes : 0; };
    Scratch<T> for_z(room_if(!z.direct())), for_y(room_if(!y.direct())), for_gradient(room_if(!writer.direct()));
    LossRows<T> part = all;
    part.rows = rows;
    part.logits = z.read(first, rows, for_z.get());
    part.logits_stride = z.stride();
    part.limit = z.limit(part.logits, rows);
    if (hard) {
      part.labels += first;
    } else {
      part.soft = y.read(first, rows, for_y.get());
      part.soft_stride = y.stride();
      part.soft_limit = y.limit(part.soft, rows);
    }
    part.loss += first;
    part.gradient = writer.rows(first, for_gradient.get());
    part.label_gradient = label_writer.rows(first, nullptr);
    loss_rows(part);
    writer.finish(first, rows, for_gradient.get());
  });
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> soft_cross_entropy(const Tensor& logits, const Tensor& labels,
                                                                     const std::string& reduction, bool label_gradient,
                                                                     double label_smoothing) {
  check_logits(logits);
  const int64_t batch = logits.size(0);
  const DType wide = arithmetic_of(dtype_of(logits));
  Tensor classes = labels;
  if (dtype_of(labels) == DType::kLong) {
    check_classes("labels", labels, logits);
    classes = checked_classes("labels", labels, logits.size(1));
  } else {
    RMCLA_CHECK(is_float(dtype_of(labels)), "labels must be float or int64; got ", dtype_of(labels));
    check_like("labels", labels, "logits", logits);
  }
  RMCLA_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none",
              "reduction must be 'mean', 'sum' or 'none'; got '", reduction, "'");
  check_label_smoothing(label_smoothing);
  const Tensor gradient = empty(logits.sizes(), dtype_of(logits), logits), rows = empty({batch}, wide, logits);
  std::optional<Tensor> for_labels;
  if (label_gradient) for_labels = empty(logits.sizes(), wide, logits);
  Tensor loss = rows;
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    if (batch) run<T>(logits, classes, label_smoothing, rows, gradient, for_labels);
    if (reduction == "none") return;
    const T* const row_loss = rows.const_data_ptr<T>();
    double sum = 0;  // added in the order of the rows, so that every run gives the same bits
    for (int64_t row = 0; row < batch; ++row) sum += double(row_loss[row]);
    loss = empty({}, wide, logits);
    *loss.mutable_data_ptr<T>() = T(reduction == "mean" ? sum / double(batch) : sum);
  };
  wide == DType::kDouble ? compute(double()) : compute(float());
  return {loss, gradient, for_labels};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) { implement<&soft_cross_entropy>(m, "soft_cross_entropy"); }

}  // namespace rmcla
