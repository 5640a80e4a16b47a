// soft_cross_entropy on the CPU: the loss and both gradients, row by row, so that a row stays in the caches, in plain
// loops that the compiler vectorises.
#include "common/soft_cross_entropy.h"

#include "common/registration.h"
#include "cpu/short_rows.h"

namespace rmcla {
namespace {

// Either `labels` (class indices) or `soft` (soft labels) is given.
template <typename T>
struct LossRows {
  int classes;
  Smoothing<T> smoothed;
  Matrix<T> logits, soft, gradient;
  const int64_t* labels;
  T* loss;
  T* label_gradient;  // may be null

  RMCLA_SHARED bool is_short() const { return classes <= kShortRow; }
};

// Row r, whose logits are `z` and whose soft labels are `y`, if not null. `exponentials` holds one row, in whole
// blocks. Without smoothing, the loops do no arithmetic for it.
template <class Fusing, bool kSmoothed, typename T>
RMCLA_SHARED void loss_row(const LossRows<T>& a, int64_t r, const T* z, const T* y, T* gradient, T* exponentials) {
  const int classes = a.classes, label = y ? 0 : int(a.labels[r]);  // any class will do for soft labels
  T* const label_gradient = a.label_gradient ? a.label_gradient + r * classes : nullptr;
  const Row<T> row(z, y ? y : z, classes, label);
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
  const auto exponential = [&](int k, T v, T, auto which) RMCLA_INLINE {
    exponentials[k] = shifted_exp<Fusing>(v - highest);
    return which.inside(k) ? exponentials[k] : T(0);
  };
  double sum, mass = 1, gaps = double(keep) * double(highest - z[label]);
  if (y) {
    const auto label_of = [](int k, T, T y, auto which) RMCLA_INLINE { return which.inside(k) ? y : T(0); };
    const auto gap = [&](int k, T v, T y, auto which)
                         RMCLA_INLINE { return which.inside(k) ? smoothed(y) * (highest - v) : T(0); };
    const auto sums = row.sums(exponential, label_of, gap);
    sum = sums[0], mass = a.smoothed.mass(T(sums[1])), gaps = sums[2];
  } else if (kSmoothed) {
    const auto gap = [&](int k, T v, T, auto which) RMCLA_INLINE { return which.inside(k) ? highest - v : T(0); };
    const auto sums = row.sums(exponential, gap);
    sum = sums[0], gaps += double(share) * sums[1];
  } else {
    sum = row.sums(exponential)[0];
  }
  const double log_sum = log_of_sum<T>(sum);
  a.loss[r] = T(gaps + mass * log_sum);

  const T scale = T(mass / sum), offset = T(log_sum);
  if (y) {
    row.write(gradient, [&](int k, T, T y) RMCLA_INLINE { return exponentials[k] * scale - smoothed(y); });
  } else {
    row.write(gradient, [&](int k, T, T) RMCLA_INLINE { return exponentials[k] * scale - smoothed(T(0)); });
    gradient[label] = exponentials[label] * scale - smoothed(T(1));
  }
  if (label_gradient)
    row.write(label_gradient, [&](int, T v, T) RMCLA_INLINE { return keep * ((highest - v) + offset); });
}

// The rows from `first` on, side by side. `gradient_end` and `label_end` are the ends of what this thread may write.
template <class Fusing, typename T>
RMCLA_SHARED void loss_short_rows(const LossRows<T>& a, int64_t first, ShortRows<T>& rows, Columns<T>& y, T* gradient,
                                  const T* gradient_end, const T* label_end) {
  const int classes = a.classes, count = rows.rows;
  const Columns<T>&z = rows.z, &exponentials = rows.exponentials;
  const Lanes<T>&highest = rows.highest, &taint = rows.taint, &sum = rows.sum, &log_sum = rows.log_sum;
  const Smoothing<T> smoothed = a.smoothed;
  Lanes<T> mass{}, gaps{}, scale, loss;
  Columns<T> result;
  rows.exponentiate(Fusing());
  sum_columns(classes, mass, [&](int k, int r) RMCLA_INLINE { return y[k][r]; });
  sum_columns(classes, gaps, [&](int k, int r) RMCLA_INLINE {
    y[k][r] = smoothed(y[k][r]);
    return y[k][r] * (highest[r] - z[k][r]);
  });
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    mass[r] = smoothed.mass(mass[r]);
    loss[r] = gaps[r] + mass[r] * log_sum[r];
    scale[r] = mass[r] / sum[r] + taint[r];
  }
  std::copy_n(loss, count, a.loss + first);
  each_column(classes, [&](int k, int r) RMCLA_INLINE { result[k][r] = exponentials[k][r] * scale[r] - y[k][r]; });
  store_columns(result, count, classes, gradient, gradient_end);
  if (!a.label_gradient) return;
  each_column(classes,
              [&](int k, int r) RMCLA_INLINE { result[k][r] = smoothed.keep * ((highest[r] - z[k][r]) + log_sum[r]); });
  store_columns(result, count, classes, a.label_gradient + first * classes, label_end);
}

template <typename T>
void loss_rows(const LossRows<T>& a, int64_t begin, int64_t end) {
  const int classes = a.classes, together = a.is_short() ? kLanes : 1;
  const Room<T> room(a.is_short() ? 0 : classes), for_z(a.logits.room(together)), for_y(a.soft.room(together)),
      for_gradient(a.gradient.room(together));
  on_this_processor([&](auto fusing) RMCLA_INLINE {
    using Fusing = decltype(fusing);
    for (int64_t first = begin; first < end; first += together) {
      const int rows = int(std::min<int64_t>(together, end - first));
      const T* const z = a.logits.read(first, rows, for_z.get());
      const T* const y = a.soft ? a.soft.read(first, rows, for_y.get()) : nullptr;
      T* const gradient = a.gradient.place(first, for_gradient.get());
      if (a.is_short()) {
        ShortRows<T> side_by_side(z, a.logits.stride(), rows, classes, a.logits.read_end(z, rows));
        Columns<T> labels;
        if (y) {
          load_columns(y, a.soft.stride(), rows, classes, a.soft.read_end(y, rows), labels);
        } else {
          Lanes<IndexOf<T>> label;
          load_classes(a.labels + first, rows, label);
          each_column(classes, [&](IndexOf<T> k, int r) RMCLA_INLINE { labels[k][r] = label[r] == k ? T(1) : T(0); });
        }
        const int64_t left = (a.gradient.direct() ? end - first : rows) * classes;
        loss_short_rows<Fusing>(a, first, side_by_side, labels, gradient, gradient + left,
                                a.label_gradient ? a.label_gradient + end * classes : nullptr);
      } else if (a.smoothed.share != T(0)) {
        loss_row<Fusing, true>(a, first, z, y, gradient, room.get());
      } else {
        loss_row<Fusing, false>(a, first, z, y, gradient, room.get());
      }
      a.gradient.finish(first, rows, gradient);
    }
  });
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> soft_cross_entropy(const Tensor& logits, const Tensor& labels,
                                                                     const std::string& reduction, bool label_gradient,
                                                                     double label_smoothing) {
  check_loss(logits, labels, reduction, label_smoothing);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const DType wide = arithmetic_of(dtype_of(logits));
  const bool hard = dtype_of(labels) == DType::kLong;
  const Tensor indices = hard ? checked_classes("labels", labels, classes) : labels;
  const Tensor gradient = empty(logits.sizes(), dtype_of(logits), logits), rows = empty({batch}, wide, logits);
  std::optional<Tensor> for_labels;
  if (label_gradient) for_labels = empty(logits.sizes(), wide, logits);
  Tensor loss = rows;
  with_arithmetic(wide, [&](auto type) {
    using T = typename decltype(type)::type;
    if (batch) {
      LossRows<T> all{};
      all.classes = int(classes);
      all.smoothed = {T(1 - label_smoothing), T(label_smoothing / double(classes))};
      all.logits = Matrix<T>(logits);
      if (!hard) all.soft = Matrix<T>(labels);
      all.gradient = Matrix<T>(gradient);
      all.labels = hard ? indices.const_data_ptr<int64_t>() : nullptr;
      all.loss = rows.mutable_data_ptr<T>();
      all.label_gradient = for_labels ? for_labels->mutable_data_ptr<T>() : nullptr;
      each_part(batch, classes, [&](int64_t begin, int64_t end) { loss_rows(all, begin, end); });
    }
    if (reduction == "none") return;
    const T* const row_loss = rows.const_data_ptr<T>();
    double sum = 0;  // added in the order of the rows, so that every run gives the same bits
    for (int64_t row = 0; row < batch; ++row) sum += double(row_loss[row]);
    loss = empty({}, wide, logits);
    *loss.mutable_data_ptr<T>() = T(reduction == "mean" ? sum / double(batch) : sum);
  });
  return {loss, gradient, for_labels};
}

[[maybe_unused]] const bool listed_soft_cross_entropy = implement<&soft_cross_entropy>("soft_cross_entropy");

}  // namespace
}  // namespace rmcla
