// joint_gradient and redistribute_labels on the CPU, in plain loops that the compiler vectorises.
#include "common/joint_gradient.h"

#include <cmath>

#include "common/registration.h"
#include "cpu/rows.h"
#include "cpu/selection.h"
#include "cpu/short_rows.h"

namespace rmcla {
namespace {

// A part of the rows. They are `stride` apart in the logits, and contiguous in the outputs. If `gradient` is null, only
// the soft labels are computed.
template <typename T>
struct JointRows {
  const T* logits;
  int64_t rows, stride;
  const T* limit;  // the end of the logits' memory
  const int64_t* labels;
  const int64_t* given;  // for Target::kGiven
  T* objective;
  T* gradient;     // may be null
  T* soft_labels;  // null for LabelScheme::kNone
  int64_t* targets;
  JointRule<T> rule;

  RMCLA_SHARED bool softmax() const { return gradient && rule.target != Target::kMargin; }
  RMCLA_SHARED bool exponential() const { return softmax() || (rule.sup() && rule.classes > 2); }
  // Whether top_k leaves classes out.
  RMCLA_SHARED bool selects() const { return soft_labels && rule.receivers < rule.classes - 1; }
};

template <typename T>
RMCLA_SHARED void write_nan_row(const JointRows<T>& a, int64_t row) {
  const int classes = a.rule.classes;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (a.gradient) {
    std::fill_n(a.gradient + row * classes, classes, nan);
    a.objective[row] = nan;
    a.targets[row] = -1;
  }
  if (a.soft_labels) std::fill_n(a.soft_labels + row * classes, classes, nan);
}

// The lowest class other than the true one whose logit is `value`; there must be one.
template <typename T>
RMCLA_SHARED int first_equal(const Row<T>& row, T value) {
  using Index = IndexOf<T>;
  const Index none = row.size();
  Lanes<Index> found;
  for (Index& at : found) at = none;
  row.each([&](Index first, const T* z, auto which) RMCLA_INLINE {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const Index k = first + j;
      const bool here = (z[j] == value) & which.other(int(k));
      const Index at = here ? k : none;
      found[j] = at < found[j] ? at : found[j];
    }
  });
  return int(lowest(found));
}

// `room` holds one row, in whole blocks.
template <class Fusing, typename T>
RMCLA_SHARED void joint_row(const JointRows<T>& a, int64_t r, T* room) {
  const JointRule<T> rule = a.rule;
  const int classes = rule.classes, label = int(a.labels[r]);
  const T* const z = a.logits + r * a.stride;
  const Row<T> row(z, classes, label);
  const T true_logit = z[label];
  const OtherLogits<T> others = other_logits(row);
  if (!others.finite) return write_nan_row(a, r);
  const T highest = std::max(others.most, true_logit), base = rule.base(others.most, highest);
  const bool selects = a.selects(), with_gaps = a.soft_labels && !rule.pair();
  Selected<T> selected{others.most, classes};
  if (selects) selected = select_smallest(z, classes, label, rule.receivers, room);

  double exponentials = 1, gaps = 0;
  const auto exponential = [&](int k, T v, auto which) RMCLA_INLINE {
    room[k] = shifted_exp<Fusing>(v - highest);
    return which.inside(k) ? room[k] : T(0);
  };
  const auto gap = [&](int k, T v, auto which) RMCLA_INLINE { return which.other(k) ? base - v : T(0); };
  if (a.exponential() && with_gaps && !selects) {
    const auto both = row.sums(exponential, gap);
    exponentials = both[0], gaps = both[1];
  } else {
    if (a.exponential()) exponentials = row.sums(exponential)[0];
    if (with_gaps && selects) {
      gaps = row.sums([&](int k, T v, auto which) RMCLA_INLINE {
        return which.other(k) & selected.admits(v, k) ? base - v : T(0);
      })[0];
    } else if (with_gaps) {
      gaps = row.sums(gap)[0];
    }
  }
  const T log_sum = a.exponential() ? T(log_of_sum<T>(exponentials)) : T(0);

  if (a.gradient) {
    T* const gradient = a.gradient + r * classes;
    int target = label;
    if (rule.target == Target::kGiven) target = int(a.given[r]);
    if (rule.by_logit())
      target = first_equal(row, rule.target == Target::kLeastLikely ? others.least : others.most);
    a.targets[r] = target;
    a.objective[r] = rule.objective(true_logit, z[target], highest, log_sum);
    if (a.softmax()) {
      const T scale = rule.sign() * T(1 / exponentials);
      row.write(gradient, [&](int k, T) RMCLA_INLINE { return rule.gradient(k == target, room[k] * scale); });
    } else {
      row.write(gradient, [&](int k, T) RMCLA_INLINE { return T(k == target) - T(k == label); });
    }
  }
  if (!a.soft_labels) return;
  T* const soft = a.soft_labels + r * classes;
  const T offset = rule.offset(log_sum), kept = rule.kept(others.least, base, offset);
  const T inverse = T(1) / rule.total(T(gaps), offset, kept);
  if (selects) {
    row.write(soft, [&](int k, T v) RMCLA_INLINE {
      return selected.admits(v, k) ? rule.share(v, base, offset) * inverse : T(0);
    });
  } else {
    row.write(soft, [&](int, T v) RMCLA_INLINE { return rule.share(v, base, offset) * inverse; });
  }
  soft[label] = kept * inverse;
}

// Computes up to kLanes short rows from `first` on side by side: class k of row r is at [k][r] of a buffer, so that
// the compiler makes a vector of one class of all rows.
template <class Fusing, typename T>
RMCLA_SHARED void joint_short_rows(const JointRows<T>& a, int64_t first, int rows) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const JointRule<T> rule = a.rule;
  const int classes = rule.classes;
  Columns<T> z, e, result;
  Lanes<IndexOf<T>> label, target, most_at{}, least_at{};
  Lanes<T> most, least, true_logit{}, target_logit{}, highest, taint{}, sum{}, gaps{}, log_sum{};
  load_columns(a.logits + first * a.stride, a.stride, rows, classes, a.limit, z);
  load_classes(a.labels + first, rows, label);
  load_classes(a.given ? a.given + first : a.labels + first, rows, target);
  for (int r = 0; r < kLanes; ++r) most[r] = -kInfinity, least[r] = kInfinity;
  for (IndexOf<T> k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      const T v = z[k][r], above = label[r] == k ? -kInfinity : v, below = label[r] == k ? kInfinity : v;
      taint[r] += taint_of(v);
      true_logit[r] = label[r] == k ? v : true_logit[r];
      target_logit[r] = target[r] == k ? v : target_logit[r];
      most_at[r] = above > most[r] ? k : most_at[r];  // ties go to the lower class
      most[r] = above > most[r] ? above : most[r];
      least_at[r] = below < least[r] ? k : least_at[r];
      least[r] = below < least[r] ? below : least[r];
    }
  }
  for (int r = 0; r < kLanes; ++r) highest[r] = most[r] > true_logit[r] ? most[r] : true_logit[r];
  if (a.exponential()) {
    sum_columns(classes, sum, [&](int k, int r) RMCLA_INLINE {
      return e[k][r] = shifted_exp<Fusing>(z[k][r] - highest[r]);
    });
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) log_sum[r] = shifted_log(sum[r]);
  }

  if (a.gradient) {
    const bool least_likely = rule.target == Target::kLeastLikely, softmax = a.softmax();
    Lanes<T> objective;
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      if (rule.by_logit()) {
        target[r] = least_likely ? least_at[r] : most_at[r];
        target_logit[r] = least_likely ? least[r] : most[r];
      }
      objective[r] = rule.objective(true_logit[r], target_logit[r], highest[r], log_sum[r]) + taint[r];
      sum[r] = rule.sign() / sum[r] + taint[r];
    }
    for (IndexOf<T> k = 0; k < classes; ++k) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r)
        result[k][r] = softmax ? rule.gradient(target[r] == k, e[k][r] * sum[r])
                               : T(target[r] == k) - T(label[r] == k) + taint[r];
    }
    store_columns(result, rows, classes, a.gradient + first * classes, a.gradient + a.rows * classes);
    for (int r = 0; r < rows; ++r) {
      a.objective[first + r] = objective[r];
      a.targets[first + r] = taint[r] == T(0) ? target[r] : -1;
    }
  }

  if (!a.soft_labels) return;
  Lanes<T> base, offset, inverse;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    base[r] = rule.base(most[r], highest[r]);
    offset[r] = rule.offset(log_sum[r]);
  }
  sum_columns(classes, gaps, [&](IndexOf<T> k, int r) RMCLA_INLINE {
    return label[r] == k ? T(0) : base[r] - z[k][r];
  });
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    least[r] = rule.kept(least[r], base[r], offset[r]);
    inverse[r] = T(1) / rule.total(gaps[r], offset[r], least[r]) + taint[r];
  }
  for (IndexOf<T> k = 0; k < classes; ++k) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r)
      result[k][r] = (label[r] == k ? least[r] : rule.share(z[k][r], base[r], offset[r])) * inverse[r];
  }
  store_columns(result, rows, classes, a.soft_labels + first * classes, a.soft_labels + a.rows * classes);
}

template <typename T>
void joint_rows(const JointRows<T>& a) {
  Scratch<T> room(a.exponential() || a.selects() ? whole_blocks(a.rule.classes) : 0);
  on_this_processor([&](auto fusing) RMCLA_INLINE {
    using Fusing = decltype(fusing);
    if (a.rule.classes <= kShortRow && !a.selects()) {
      for (int64_t first = 0; first < a.rows; first += kLanes)
        joint_short_rows<Fusing>(a, first, int(std::min<int64_t>(kLanes, a.rows - first)));
    } else {
      for (int64_t row = 0; row < a.rows; ++row) joint_row<Fusing>(a, row, room.get());
    }
  });
}

// Splits the batch among the threads. This function sets the logits, their stride and the gradient of each part; `all`
// has the rest.
template <typename T>
void run(const Tensor& logits, const JointRows<T>& all, const std::optional<Tensor>& gradient) {
  const int64_t classes = all.rule.classes;
  const RowReader<T> reader(logits);
  const RowWriter<T> writer(gradient);
  each_part(logits.size(0), classes, !reader.direct(), [&](int64_t first, int64_t rows) {
    Scratch<T> read(reader.direct() ? 0 : rows * classes), written(writer.direct() ? 0 : rows * classes);
    JointRows<T> part = all;
    part.logits = reader.read(first, rows, read.get());
    part.limit = reader.limit(part.logits, rows);
    part.rows = rows;
    part.stride = reader.stride();
    part.labels += first;
    if (part.given) part.given += first;
    if (part.objective) part.objective += first;
    if (part.targets) part.targets += first;
    if (part.soft_labels) part.soft_labels += first * classes;
    part.gradient = writer.rows(first, written.get());
    joint_rows(part);
    writer.finish(first, rows, written.get());
  });
}

template <typename T>
JointRule<T> rule_of(const Tensor& logits, Target target, double beta, double gamma, std::optional<int64_t> top_k,
                     LabelScheme scheme) {
  RMCLA_CHECK(beta > 0 && std::isfinite(beta), "beta must be positive and finite; got ", beta);
  RMCLA_CHECK(gamma > 0 && std::isfinite(gamma), "gamma must be positive and finite; got ", gamma);
  RMCLA_CHECK(!top_k || *top_k >= 1, "top_k must be at least 1; got ", *top_k);
  const int64_t others = logits.size(1) - 1;
  return {target, scheme, T(beta), T(gamma), int(others + 1), int(std::min(top_k.value_or(others), others))};
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, Tensor> joint_gradient(
    const Tensor& logits, const Tensor& labels, const std::string& target, const std::optional<Tensor>& target_labels,
    double beta, double gamma, std::optional<int64_t> top_k, const std::string& label_scheme) {
  check_logits(logits);
  check_classes("labels", labels, logits);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const DType dtype = dtype_of(logits), wide = arithmetic_of(dtype);
  const Target what = parse_target(target);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  const Tensor true_classes = checked_classes("labels", labels, classes);
  std::optional<Tensor> given;
  if (what == Target::kGiven) {
    RMCLA_CHECK(target_labels, "target 'given' needs target_labels");
    check_classes("target", *target_labels, logits);
    given = checked_classes("target", *target_labels, classes);
  }
  const Tensor objective = empty({batch}, wide, logits), gradient = empty({batch, classes}, dtype, logits);
  const Tensor targets = empty({batch}, DType::kLong, logits);
  std::optional<Tensor> soft_labels;
  if (scheme != LabelScheme::kNone) soft_labels = empty({batch, classes}, wide, logits);
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    JointRows<T> rows{};
    rows.labels = true_classes.const_data_ptr<int64_t>();
    rows.given = given ? given->const_data_ptr<int64_t>() : nullptr;
    rows.objective = objective.mutable_data_ptr<T>();
    rows.soft_labels = soft_labels ? soft_labels->mutable_data_ptr<T>() : nullptr;
    rows.targets = targets.mutable_data_ptr<int64_t>();
    rows.rule = rule_of<T>(logits, what, beta, gamma, top_k, scheme);
    if (batch) run(logits, rows, gradient);
  };
  dtype == DType::kDouble ? compute(double()) : compute(float());
  return {objective, gradient, soft_labels, targets};
}

void fill_labels(const Tensor& logits, const Tensor& labels, double beta, double gamma, std::optional<int64_t> top_k,
                 LabelScheme scheme, const Tensor& out) {
  const Tensor true_classes = checked_classes("labels", labels, logits.size(1));
  const auto compute = [&](auto zero) {
    using T = decltype(zero);
    JointRows<T> rows{};
    rows.labels = true_classes.const_data_ptr<int64_t>();
    rows.soft_labels = out.mutable_data_ptr<T>();
    rows.rule = rule_of<T>(logits, Target::kMostConfusing, beta, gamma, top_k, scheme);
    if (logits.size(0)) run(logits, rows, std::nullopt);
  };
  dtype_of(out) == DType::kDouble ? compute(double()) : compute(float());
}

LabelScheme check_redistribution(const Tensor& logits, const Tensor& labels, const std::string& label_scheme) {
  check_logits(logits);
  check_classes("labels", labels, logits);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  RMCLA_CHECK(scheme != LabelScheme::kNone, "label_scheme must be 'main' or 'sup'; got 'none'");
  return scheme;
}

Tensor redistribute_labels(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                           std::optional<int64_t> top_k, const std::string& label_scheme) {
  const LabelScheme scheme = check_redistribution(logits, labels, label_scheme);
  const Tensor out = empty(logits.sizes(), arithmetic_of(dtype_of(logits)), logits);
  fill_labels(logits, labels, beta, gamma, top_k, scheme, out);
  return out;
}

void redistribute_labels_out(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                             std::optional<int64_t> top_k, const std::string& label_scheme, const Tensor& out) {
  const LabelScheme scheme = check_redistribution(logits, labels, label_scheme);
  check_out(out, "logits", logits, arithmetic_of(dtype_of(logits)));
  const bool in_place = out.is_contiguous() && !overlap(out, logits) && !overlap(out, labels);
  const Tensor result = in_place ? out : empty(out.sizes(), dtype_of(out), out);
  fill_labels(logits, labels, beta, gamma, top_k, scheme, result);
  if (!in_place) copy(out, result);
  mark_written(out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) {
  implement<&joint_gradient>(m, "joint_gradient");
  implement<&redistribute_labels>(m, "redistribute_labels");
  implement<&redistribute_labels_out>(m, "redistribute_labels.out");
}

}  // namespace rmcla
