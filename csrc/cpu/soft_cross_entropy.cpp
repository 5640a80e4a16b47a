// soft_cross_entropy on the CPU: the loss and both gradients, row by row, so that a row stays in cache.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/arguments.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/labels.h"
#include "cpu/soft_cross_entropy_rows.h"

namespace rmcla {
namespace {

template <typename T>
void run_rows(const LossRows<T>& rows) {
  rows.classes <= kShortRow ? kernels_of<T>().loss_short_rows(rows) : kernels_of<T>().loss_rows(rows);
}

// Reads a (B, C) tensor as T, a few rows at a time.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const at::Tensor& rows)
      : tensor_(rows.stride(1) == 1 && rows.stride(0) >= 0 ? rows : rows.contiguous()),
        from_(static_cast<const char*>(tensor_.const_data_ptr())),
        direct_(tensor_.scalar_type() == kArithmetic<T>) {}

  bool direct() const { return direct_; }
  int64_t stride() const { return direct_ ? tensor_.stride(0) : tensor_.size(1); }

  // The rows from `first` on, and the end of the memory that may be read. `room` is for converted rows.
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
void run_all(const at::Tensor& logits, const at::Tensor& labels, double smoothing, T* loss, const at::Tensor& gradient,
             T* label_gradient) {
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
      part.smoothing = smoothing;
      part.loss = loss + first;
      part.gradient = direct_gradient ? reinterpret_cast<T*>(to) + first * classes : wide_gradient;
      part.label_gradient = label_gradient ? label_gradient + first * classes : nullptr;
      run_rows(part);
      if (!direct_gradient)
        narrow(gradient.scalar_type(), wide_gradient, to + first * classes * size, part.rows * classes);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> soft_cross_entropy(const at::Tensor& logits,
                                                                                 const at::Tensor& labels,
                                                                                 std::string_view reduction,
                                                                                 bool label_gradient,
                                                                                 double label_smoothing) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_logits(logits);
  const int64_t batch = logits.size(0);
  at::Tensor classes = labels;
  if (labels.scalar_type() == at::kLong) {
    check_classes("labels", labels, logits);
    classes = checked_classes("labels", labels, logits.size(1));
  } else {
    TORCH_CHECK_TYPE(at::isFloatingType(labels.scalar_type()), "labels must be float or int64; got ",
                     labels.scalar_type());
    TORCH_CHECK_VALUE(labels.sizes() == logits.sizes(), "labels must have shape ", logits.sizes(), "; got ",
                      labels.sizes());
    TORCH_CHECK_VALUE(labels.device() == logits.device(), "labels must be on ", logits.device(), "; got ",
                      labels.device());
  }
  TORCH_CHECK_VALUE(reduction == "mean" || reduction == "sum" || reduction == "none",
                    "reduction must be 'mean', 'sum' or 'none'; got '", reduction, "'");
  check_label_smoothing(label_smoothing);
  const at::ScalarType wide = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor gradient = empty(logits.sizes(), logits.scalar_type()), rows = empty({batch}, wide);
  std::optional<at::Tensor> for_labels;
  if (label_gradient) for_labels = empty(logits.sizes(), wide);
  at::Tensor loss = rows;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* const row_loss = rows.mutable_data_ptr<T>();
    if (batch)
      run_all<T>(logits, classes, label_smoothing, row_loss, gradient,
                 for_labels ? for_labels->mutable_data_ptr<T>() : nullptr);
    if (reduction == "none") return;
    double sum = 0;  // added in the order of the rows, so that every run gives the same bits
    for (int64_t row = 0; row < batch; ++row) sum += double(row_loss[row]);
    loss = empty({}, wide);
    *loss.mutable_data_ptr<T>() = T(reduction == "mean" ? sum / double(batch) : sum);
  };
  logits.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return {loss, gradient, for_labels};
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) { m.impl("soft_cross_entropy", soft_cross_entropy); }

}  // namespace rmcla
