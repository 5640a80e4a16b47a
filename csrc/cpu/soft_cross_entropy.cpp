// soft_cross_entropy on the CPU: the loss and both gradients of a row while it is in cache.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/arguments.h"
#include "common/joint_gradient.h"
#include "cpu/convert.h"
#include "cpu/joint_gradient_rows.h"
#include "cpu/labels.h"

namespace rmcla {
namespace {

// Rows next to one another in memory. Either `labels` or `soft` is null.
template <typename T>
struct LossRows {
  const T* logits;
  int64_t logits_stride;
  const T* limit;
  const int64_t* labels;
  const T* soft;
  int64_t soft_stride;
  const T* soft_limit;
  T* loss;
  T* gradient;
  T* label_gradient;  // may be null
  int64_t rows, classes;
};

template <int Bytes, bool kShort, typename T>
RMCLA_SHARED void loss_row(const LossRows<T>& a, int64_t row, T* exponentials) {
  using R = Row<T, Bytes, kShort>;
  using V = typename R::V;
  const int64_t classes = a.classes, label = a.labels ? a.labels[row] : 0;
  const R r(a.logits + row * a.logits_stride, classes, label, a.limit);
  T* const gradient = a.gradient + row * classes;
  T* const label_gradient = a.label_gradient ? a.label_gradient + row * classes : nullptr;
  V lowest;
  const Extremes<T> found = extremes(r, lowest);
  if (!found.finite) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    a.loss[row] = nan;
    std::fill_n(gradient, classes, nan);
    if (label_gradient) std::fill_n(label_gradient, classes, nan);
    return;
  }
  const T highest = std::max(found.most, r.z[label]);
  const V highest_v = simd::splat<V>(highest);
  Sum<V> exp_sum, weight_sum, weighted_gaps;
  const R y(a.labels ? r.z : a.soft + row * a.soft_stride, classes, label, a.labels ? a.limit : a.soft_limit);
  const bool weighted = !a.labels;
  r.each_block([&](int64_t b, V v, auto lanes) __attribute__((always_inline)) {
    const V e = simd::shifted_exp(V(v - highest_v));
    simd::store(exponentials + b * R::kCount, e);
    exp_sum.add(b, keep_inside(lanes, e, V{}));
    if (weighted) {
      const V weight = keep_inside(lanes, y.block(b), V{});
      weight_sum.add(b, weight);
      weighted_gaps.add(b, V(weight * keep_inside(lanes, V(highest_v - v), V{})));
    }
  });
  const double shifted_sum = exp_sum.total();
  const double log_sum = std::log(shifted_sum) - simd::kExponentShift<T> * 0.69314718055994530942;
  const double weights = weighted ? weight_sum.total() : 1;
  const double gaps = weighted ? weighted_gaps.total() : double(highest) - double(r.z[label]);
  a.loss[row] = T(gaps + weights * log_sum);

  const V scale = simd::splat<V>(T(weights / shifted_sum)), log_sum_v = simd::splat<V>(T(log_sum));
  for (int64_t b = 0; b < r.blocks; ++b) {
    const V p = simd::load<V>(exponentials + b * R::kCount) * scale;
    store_row_block(gradient + b * R::kCount, weighted ? V(p - y.block(b)) : p, classes - b * R::kCount,
                    a.gradient + a.rows * classes);
    if (label_gradient)
      store_row_block(label_gradient + b * R::kCount, share_sup(r.block(b), highest_v, log_sum_v),
                      classes - b * R::kCount, a.label_gradient + a.rows * classes);
  }
  if (a.labels) gradient[label] = exponentials[label] * T(1 / shifted_sum) - 1;
}

template <int Bytes, typename T>
RMCLA_SHARED void loss_rows(const LossRows<T>& a) {
  const int64_t padded = (a.classes + 63) / 64 * 64;
  Scratch scratch(padded * int64_t(sizeof(T)) + 64);
  T* const exponentials = scratch.take<T>(padded);
  if (a.classes <= simd::Lanes<T, Bytes>::kCount) {
    for (int64_t row = 0; row < a.rows; ++row) loss_row<Bytes, true>(a, row, exponentials);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) loss_row<Bytes, false>(a, row, exponentials);
  }
}

template <int Bytes>
RMCLA_SHARED void loss_float_lanes(const LossRows<float>& rows) {
  loss_rows<Bytes>(rows);
}
template <int Bytes>
RMCLA_SHARED void loss_double_lanes(const LossRows<double>& rows) {
  loss_rows<Bytes>(rows);
}
RMCLA_KERNEL(loss_float, (const LossRows<float>& rows), (rows))
RMCLA_KERNEL(loss_double, (const LossRows<double>& rows), (rows))

void run_rows(const LossRows<float>& rows) { loss_float(rows); }
void run_rows(const LossRows<double>& rows) { loss_double(rows); }

// A (B, C) tensor whose rows are dense, read as T a few rows at a time.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const at::Tensor& rows)
      : tensor_(rows.stride(1) == 1 && rows.stride(0) >= 0 ? rows : rows.contiguous()),
        from_(static_cast<const char*>(tensor_.const_data_ptr())),
        direct_(tensor_.scalar_type() == kArithmetic<T>) {}

  bool direct() const { return direct_; }
  int64_t stride() const { return direct_ ? tensor_.stride(0) : tensor_.size(1); }

  // Rows from `first` on, and the end of the memory that may be read.
  std::pair<const T*, const T*> read(int64_t first, int64_t rows, T* room) const {
    const int64_t classes = tensor_.size(1), stride = tensor_.stride(0), size = int64_t(tensor_.element_size());
    if (direct_) {
      const T* const all = reinterpret_cast<const T*>(from_);
      return {all + first * stride, all + (tensor_.size(0) - 1) * stride + classes};
    }
    for (int64_t row = 0; row < rows; ++row)
      widen(tensor_.scalar_type(), from_ + (first + row) * stride * size, room + row * classes, classes);
    return {room, room + rows * classes};
  }

 private:
  at::Tensor tensor_;
  const char* from_;
  bool direct_;
};

template <typename T>
void run_all(const at::Tensor& logits, const at::Tensor& labels, T* loss, const at::Tensor& gradient, T* label_gradient) {
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const bool hard = labels.dim() == 1;
  const RowReader<T> z(logits), y(hard ? logits : labels);
  const bool direct = z.direct() && y.direct();
  const bool direct_gradient = gradient.scalar_type() == kArithmetic<T>;
  char* const to = static_cast<char*>(gradient.mutable_data_ptr());
  const int64_t size = int64_t(gradient.element_size());
  at::parallel_for(0, batch, row_grain(classes), [&](int64_t begin, int64_t end) {
    const int64_t together = direct ? end - begin : std::max<int64_t>(1, 2048 / classes);
    const int64_t room = direct ? 0 : together * classes;
    Scratch scratch(3 * (room * int64_t(sizeof(T)) + 64));
    T* const wide = scratch.take<T>(room);
    T* const wide_labels = scratch.take<T>(room);
    T* const wide_gradient = scratch.take<T>(room);
    for (int64_t first = begin; first < end; first += together) {
      LossRows<T> part{};
      part.rows = std::min(together, end - first);
      part.classes = classes;
      std::tie(part.logits, part.limit) = z.read(first, part.rows, wide);
      part.logits_stride = z.stride();
      if (hard) {
        part.labels = labels.const_data_ptr<int64_t>() + first;
      } else {
        std::tie(part.soft, part.soft_limit) = y.read(first, part.rows, wide_labels);
        part.soft_stride = y.stride();
      }
      part.loss = loss + first;
      part.gradient = direct_gradient ? reinterpret_cast<T*>(to) + first * classes : wide_gradient;
      part.label_gradient = label_gradient ? label_gradient + first * classes : nullptr;
      run_rows(part);
      if (!direct_gradient) narrow(gradient.scalar_type(), wide_gradient, to + first * classes * size, part.rows * classes);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> soft_cross_entropy(const at::Tensor& logits,
                                                                                 const at::Tensor& labels,
                                                                                 std::string_view reduction,
                                                                                 bool label_gradient) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_logits(logits);
  const int64_t batch = logits.size(0);
  at::Tensor classes = labels;
  if (labels.scalar_type() == at::kLong) {
    check_classes("labels", labels, logits);
    classes = checked_classes("labels", labels, logits.size(1));
  } else {
    TORCH_CHECK_TYPE(at::isFloatingType(labels.scalar_type()), "labels must be float or int64; got ", labels.scalar_type());
    TORCH_CHECK_VALUE(labels.sizes() == logits.sizes(), "labels must have shape ", logits.sizes(), "; got ", labels.sizes());
    TORCH_CHECK_VALUE(labels.device() == logits.device(), "labels must be on ", logits.device(), "; got ", labels.device());
  }
  TORCH_CHECK_VALUE(reduction == "mean" || reduction == "sum" || reduction == "none",
                    "reduction must be 'mean', 'sum' or 'none'; got '", reduction, "'");
  const auto wide = logits.options().dtype(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  at::Tensor gradient = at::empty(logits.sizes(), logits.options()), rows = at::empty({batch}, wide);
  std::optional<at::Tensor> for_labels;
  if (label_gradient) for_labels = at::empty(logits.sizes(), wide);
  at::Tensor loss = rows;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* const row_loss = rows.mutable_data_ptr<T>();
    if (batch) run_all<T>(logits, classes, row_loss, gradient, for_labels ? for_labels->mutable_data_ptr<T>() : nullptr);
    if (reduction == "none") return;
    double sum = 0;  // in the rows' order: the same on every run
    for (int64_t row = 0; row < batch; ++row) sum += double(row_loss[row]);
    loss = at::empty({}, wide);
    *loss.mutable_data_ptr<T>() = T(reduction == "mean" ? sum / double(batch) : sum);
  };
  logits.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return {loss, gradient, for_labels};
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) { m.impl("soft_cross_entropy", soft_cross_entropy); }

}  // namespace rmcla
