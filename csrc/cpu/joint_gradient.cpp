// joint_gradient and redistribute_labels on the CPU. The kernels work on rows of float or double; 16-bit logits are
// converted a few rows at a time.
#include "common/joint_gradient.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/arguments.h"
#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/joint_gradient_rows.h"
#include "cpu/joint_gradient_short.h"
#include "cpu/kernels.h"
#include "cpu/labels.h"

namespace rmcla {
namespace {

template <typename T>
void run_rows(const JointRows<T>& rows) {
  const bool in_lanes = rows.classes <= kShortRow && !rows.selects();
  in_lanes ? kernels_of<T>().joint_short_rows(rows) : kernels_of<T>().joint_rows(rows);
}

at::ScalarType wide_dtype(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Splits `all` among the threads and runs the kernels. This function sets the logits, strides and gradient of each
// part; `all` has the rest. `gradient` may be undefined.
template <typename T>
void run_all(const at::Tensor& logits, JointRows<T> all, const at::Tensor& gradient) {
  const int64_t batch = logits.size(0), classes = logits.size(1), stride = logits.stride(0);
  const auto dtype = logits.scalar_type();
  const bool direct = dtype == kArithmetic<T>;
  const char* const from = static_cast<const char*>(logits.const_data_ptr());
  char* const to = gradient.defined() ? static_cast<char*>(gradient.mutable_data_ptr()) : nullptr;
  const int64_t size = int64_t(logits.element_size());
  all.classes = classes;
  at::parallel_for(0, batch, row_grain(classes), [&](int64_t begin, int64_t end) {
    const int64_t together = direct ? end - begin : std::max<int64_t>(1, 4096 / classes);
    Scratch scratch(direct ? 0 : 2 * together * classes * int64_t(sizeof(T)) + 128);
    T* const wide = direct ? nullptr : scratch.take<T>(together * classes);
    T* const wide_gradient = direct || !to ? nullptr : scratch.take<T>(together * classes);
    for (int64_t first = begin; first < end; first += together) {
      JointRows<T> part = all;
      part.rows = std::min(together, end - first);
      part.labels += first;
      if (part.given) part.given += first;
      if (part.objective) part.objective += first;
      if (part.targets) part.targets += first;
      if (part.soft_labels) part.soft_labels += first * classes;
      if (direct) {
        part.logits = reinterpret_cast<const T*>(from) + first * stride;
        part.stride = stride;
        part.limit = reinterpret_cast<const T*>(from) + (batch - 1) * stride + classes;
        if (to) part.gradient = reinterpret_cast<T*>(to) + first * classes;
      } else {
        if (stride == classes) {
          widen(dtype, from + first * stride * size, wide, part.rows * classes);
        } else {
          for (int64_t row = 0; row < part.rows; ++row)
            widen(dtype, from + (first + row) * stride * size, wide + row * classes, classes);
        }
        part.logits = wide;
        part.stride = classes;
        part.limit = wide + part.rows * classes;
        part.gradient = wide_gradient;
      }
      run_rows(part);
      if (!direct && to) narrow(dtype, wide_gradient, to + first * classes * size, part.rows * classes);
    }
  });
}

at::Tensor with_dense_rows(const at::Tensor& logits) {
  return logits.stride(1) == 1 && logits.stride(0) >= 0 ? logits : logits.contiguous();
}

struct Rule {
  double beta, gamma;
  int64_t receivers;
  LabelScheme scheme;
};

Rule parse_rule(const at::Tensor& logits, double beta, double gamma, std::optional<int64_t> top_k,
                std::string_view scheme) {
  TORCH_CHECK_VALUE(beta > 0 && std::isfinite(beta), "beta must be positive and finite; got ", beta);
  TORCH_CHECK_VALUE(gamma > 0 && std::isfinite(gamma), "gamma must be positive and finite; got ", gamma);
  TORCH_CHECK_VALUE(!top_k || *top_k >= 1, "top_k must be at least 1; got ", *top_k);
  const int64_t others = logits.size(1) - 1;
  return {beta, gamma, top_k ? std::min(*top_k, others) : others, parse_label_scheme(scheme)};
}

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>, at::Tensor> joint_gradient(
    const at::Tensor& logits, const at::Tensor& labels, std::string_view target,
    const std::optional<at::Tensor>& target_labels, double beta, double gamma, std::optional<int64_t> top_k,
    std::string_view label_scheme) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_logits(logits);
  check_classes("labels", labels, logits);
  const Target what = parse_target(target);
  const Rule rule = parse_rule(logits, beta, gamma, top_k, label_scheme);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const at::Tensor true_classes = checked_classes("labels", labels, classes);
  at::Tensor given;
  if (what == Target::kGiven) {
    TORCH_CHECK_VALUE(target_labels.has_value(), "target 'given' needs target_labels");
    check_classes("target", *target_labels, logits);
    given = checked_classes("target", *target_labels, classes);
  }
  at::Tensor objective = empty({batch}, wide_dtype(logits)), targets = empty({batch}, at::kLong);
  at::Tensor gradient = empty({batch, classes}, logits.scalar_type());
  std::optional<at::Tensor> soft_labels;
  if (rule.scheme != LabelScheme::kNone) soft_labels = empty({batch, classes}, wide_dtype(logits));
  if (batch) {
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      JointRows<T> rows{};
      rows.labels = true_classes.const_data_ptr<int64_t>();
      rows.given = given.defined() ? given.const_data_ptr<int64_t>() : nullptr;
      rows.objective = objective.mutable_data_ptr<T>();
      rows.soft_labels = soft_labels ? soft_labels->mutable_data_ptr<T>() : nullptr;
      rows.targets = targets.mutable_data_ptr<int64_t>();
      rows.target = what;
      rows.scheme = rule.scheme;
      rows.beta = rule.beta;
      rows.gamma = rule.gamma;
      rows.receivers = rule.receivers;
      run_all(with_dense_rows(logits), rows, gradient);
    };
    logits.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  }
  return {objective, gradient, soft_labels, targets};
}

void fill_labels(const at::Tensor& logits, const at::Tensor& labels, const Rule& rule, const at::Tensor& out) {
  const at::Tensor true_classes = checked_classes("labels", labels, logits.size(1));
  if (!logits.size(0)) return;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    JointRows<T> rows{};
    rows.labels = true_classes.const_data_ptr<int64_t>();
    rows.soft_labels = out.mutable_data_ptr<T>();
    rows.scheme = rule.scheme;
    rows.beta = rule.beta;
    rows.gamma = rule.gamma;
    rows.receivers = rule.receivers;
    run_all(with_dense_rows(logits), rows, at::Tensor());
  };
  logits.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

Rule parse_redistribution(const at::Tensor& logits, const at::Tensor& labels, double beta, double gamma,
                          std::optional<int64_t> top_k, std::string_view label_scheme) {
  check_logits(logits);
  check_classes("labels", labels, logits);
  const Rule rule = parse_rule(logits, beta, gamma, top_k, label_scheme);
  TORCH_CHECK_VALUE(rule.scheme != LabelScheme::kNone, "label_scheme must be 'main' or 'sup'; got 'none'");
  return rule;
}

at::Tensor redistribute_labels(const at::Tensor& logits, const at::Tensor& labels, double beta, double gamma,
                               std::optional<int64_t> top_k, std::string_view label_scheme) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Rule rule = parse_redistribution(logits, labels, beta, gamma, top_k, label_scheme);
  at::Tensor out = empty(logits.sizes(), wide_dtype(logits));
  fill_labels(logits, labels, rule, out);
  return out;
}

void redistribute_labels_out(const at::Tensor& logits, const at::Tensor& labels, double beta, double gamma,
                             std::optional<int64_t> top_k, std::string_view label_scheme, const at::Tensor& out) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Rule rule = parse_redistribution(logits, labels, beta, gamma, top_k, label_scheme);
  check_out(out, logits, wide_dtype(logits));
  // Whole vectors are written, also over the start of the next row, so `out` must not hold logits or labels that are
  // still needed.
  const bool in_place = out.is_contiguous() && !overlap(out, logits) && !overlap(out, labels);
  const at::Tensor result = in_place ? out : empty(logits.sizes(), wide_dtype(logits));
  fill_labels(logits, labels, rule, result);
  if (!in_place) out.copy_(result);
  mark_written(out);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) {
  m.impl("joint_gradient", joint_gradient);
  m.impl("redistribute_labels", redistribute_labels);
  m.impl("redistribute_labels.out", redistribute_labels_out);
}

}  // namespace rmcla
