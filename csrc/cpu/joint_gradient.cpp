// joint_gradient and redistribute_labels on the CPU, in plain loops that the compiler vectorises.
#include "common/joint_gradient.h"

#include "common/registration.h"
#include "cpu/rows.h"
#include "cpu/selection.h"
#include "cpu/short_rows.h"

namespace rmcla {
namespace {

// Without a gradient, only the soft labels are computed.
template <typename T>
struct JointRows {
  JointRule<T> rule;
  Matrix<T> logits, gradient;
  const int64_t* labels;
  const int64_t* given;  // for Target::kGiven
  T* objective;
  T* soft_labels;  // null for LabelScheme::kNone
  int64_t* targets;

  RMCLA_SHARED bool softmax() const { return gradient && rule.target != Target::kMargin; }
  RMCLA_SHARED bool exponential() const { return softmax() || (rule.sup() && rule.classes > 2); }
  // Whether top_k leaves classes out.
  RMCLA_SHARED bool selects() const { return soft_labels && rule.receivers < rule.classes - 1; }
  RMCLA_SHARED bool is_short() const { return rule.classes <= kShortRow && !selects(); }
};

// The lowest class other than the true one whose logit is `value`; there must be one.
template <typename T>
RMCLA_SHARED int first_equal(const Row<T>& row, T value) {
  const IndexOf<T> none = row.size();
  Lanes<IndexOf<T>> found;
  for (IndexOf<T>& at : found) at = none;
  row.each([&](IndexOf<T> first, const T* z, const T*, auto which) RMCLA_INLINE {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      const bool here = (z[j] == value) & which.other(int(first + j));
      const IndexOf<T> at = here ? first + j : none;
      found[j] = at < found[j] ? at : found[j];
    }
  });
  return int(lowest(found));
}

// Row r, whose logits are `z`. `gradient` may be null, and `room` and `chosen` hold one row, in whole blocks.
template <class Fusing, typename T>
RMCLA_SHARED void joint_row(const JointRows<T>& a, int64_t r, const T* z, T* gradient, T* room, int* chosen) {
  const JointRule<T> rule = a.rule;
  const int classes = rule.classes, label = int(a.labels[r]);
  const Row<T> row(z, z, classes, label);
  const OtherLogits<T> others = other_logits(row);
  T* const soft = a.soft_labels ? a.soft_labels + r * classes : nullptr;
  if (!others.finite) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    if (soft) std::fill_n(soft, classes, nan);
    if (!gradient) return;
    std::fill_n(gradient, classes, nan);
    a.objective[r] = nan;
    a.targets[r] = -1;
    return;
  }
  const T highest = std::max(others.most, z[label]), base = rule.base(others.most, highest);
  const bool selects = a.selects();
  if (selects) select_smallest(z, classes, label, rule.receivers, room, chosen);

  double sum = 1, gaps = 0;
  const auto exponential = [&](int k, T v, T, auto which) RMCLA_INLINE {
    room[k] = shifted_exp<Fusing>(v - highest);
    return which.inside(k) ? room[k] : T(0);
  };
  const auto gap = [&](int k, T v, T, auto which) RMCLA_INLINE { return which.other(k) ? base - v : T(0); };
  if (a.exponential() && soft && !selects) {
    const auto sums = row.sums(exponential, gap);
    sum = sums[0], gaps = sums[1];
  } else {
    if (a.exponential()) sum = row.sums(exponential)[0];
    if (soft && !selects) gaps = row.sums(gap)[0];
  }
  for (int i = 0; selects && i < rule.receivers; ++i) gaps += double(base - z[chosen[i]]);
  const T log_sum = a.exponential() ? T(log_of_sum<T>(sum)) : T(0);

  if (gradient) {
    int target = rule.target == Target::kGiven ? int(a.given[r]) : label;
    if (rule.by_logit()) target = first_equal(row, rule.target == Target::kLeastLikely ? others.least : others.most);
    a.targets[r] = target;
    a.objective[r] = rule.objective(z[label], z[target], highest, log_sum);
    const T scale = rule.sign() * T(1 / sum);
    if (a.softmax()) {
      row.write(gradient, [&](int k, T, T) RMCLA_INLINE { return rule.gradient(k == target, room[k] * scale); });
    } else {
      row.write(gradient, [&](int k, T, T) RMCLA_INLINE { return T(k == target) - T(k == label); });
    }
  }
  if (!soft) return;
  const T offset = rule.offset(log_sum), kept = rule.kept(others.least, base, offset);
  const T inverse = T(1) / rule.total(T(gaps), offset, kept);
  if (selects) {
    std::fill_n(soft, classes, T(0));
    for (int i = 0; i < rule.receivers; ++i) soft[chosen[i]] = rule.share_of_many(z[chosen[i]], base, offset) * inverse;
  } else {
    row.write(soft, [&](int, T v, T) RMCLA_INLINE { return rule.share_of_many(v, base, offset) * inverse; });
  }
  soft[label] = kept * inverse;
}

// The rows from `first` on, side by side. `gradient_end` and `soft_end` are the ends of what this thread may write.
template <class Fusing, typename T>
RMCLA_SHARED void joint_short_rows(const JointRows<T>& a, int64_t first, ShortRows<T>& rows, T* gradient,
                                   const T* gradient_end, const T* soft_end) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  using Index = IndexOf<T>;
  const JointRule<T> rule = a.rule;
  const int classes = rule.classes, count = rows.rows;
  const Columns<T>&z = rows.z, &exponentials = rows.exponentials;
  const Lanes<T>&highest = rows.highest, &taint = rows.taint, &sum = rows.sum, &log_sum = rows.log_sum;
  Columns<T> result;
  Lanes<Index> label, target, most_at{}, least_at{};
  Lanes<T> most, least, true_logit{}, target_logit{}, base, offset, gaps{}, kept, inverse, objective;
  load_classes(a.labels + first, count, label);
  load_classes((a.given ? a.given : a.labels) + first, count, target);
  for (int r = 0; r < kLanes; ++r) most[r] = -kInfinity, least[r] = kInfinity;
  each_column(classes, [&](Index k, int r) RMCLA_INLINE {
    const T v = z[k][r], above = label[r] == k ? -kInfinity : v, below = label[r] == k ? kInfinity : v;
    true_logit[r] = label[r] == k ? v : true_logit[r];
    target_logit[r] = target[r] == k ? v : target_logit[r];
    most_at[r] = above > most[r] ? k : most_at[r];  // ties go to the lower class
    most[r] = above > most[r] ? above : most[r];
    least_at[r] = below < least[r] ? k : least_at[r];
    least[r] = below < least[r] ? below : least[r];
  });
  if (a.exponential()) rows.exponentiate(Fusing());

  if (gradient) {
    const bool least_likely = rule.target == Target::kLeastLikely, softmax = a.softmax();
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      if (rule.by_logit()) {
        target[r] = least_likely ? least_at[r] : most_at[r];
        target_logit[r] = least_likely ? least[r] : most[r];
      }
      objective[r] = rule.objective(true_logit[r], target_logit[r], highest[r], log_sum[r]) + taint[r];
      inverse[r] = rule.sign() / sum[r] + taint[r];
    }
    each_column(classes, [&](Index k, int r) RMCLA_INLINE {
      result[k][r] = softmax ? rule.gradient(target[r] == k, exponentials[k][r] * inverse[r])
                             : T(target[r] == k) - T(label[r] == k) + taint[r];
    });
    store_columns(result, count, classes, gradient, gradient_end);
    for (int r = 0; r < count; ++r) {
      a.objective[first + r] = objective[r];
      a.targets[first + r] = taint[r] == T(0) ? target[r] : -1;
    }
  }
  if (!a.soft_labels) return;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    base[r] = rule.base(most[r], highest[r]);
    offset[r] = rule.offset(log_sum[r]);
  }
  sum_columns(classes, gaps, [&](Index k, int r) RMCLA_INLINE { return label[r] == k ? T(0) : base[r] - z[k][r]; });
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    kept[r] = rule.kept(least[r], base[r], offset[r]);
    inverse[r] = T(1) / rule.total(gaps[r], offset[r], kept[r]) + taint[r];
  }
  each_column(classes, [&](Index k, int r) RMCLA_INLINE {
    result[k][r] = (label[r] == k ? kept[r] : rule.share(z[k][r], base[r], offset[r])) * inverse[r];
  });
  store_columns(result, count, classes, a.soft_labels + first * classes, soft_end);
}

template <typename T>
void joint_rows(const JointRows<T>& a, int64_t begin, int64_t end) {
  const int classes = a.rule.classes;
  const int together = a.is_short() ? kLanes : 1;
  const Room<T> room(a.exponential() || a.selects() ? classes : 0), read(a.logits.room(together)),
      written(a.gradient.room(together));
  const Room<int> chosen(a.selects() ? classes : 0);
  on_this_processor([&](auto fusing) RMCLA_INLINE {
    using Fusing = decltype(fusing);
    for (int64_t first = begin; first < end; first += together) {
      const int rows = int(std::min<int64_t>(together, end - first));
      const T* const z = a.logits.read(first, rows, read.get());
      T* const gradient = a.gradient ? a.gradient.place(first, written.get()) : nullptr;
      if (together == 1) {
        joint_row<Fusing>(a, first, z, gradient, room.get(), chosen.get());
      } else {
        ShortRows<T> side_by_side(z, a.logits.stride(), rows, classes, a.logits.read_end(z, rows));
        const int64_t left = (a.gradient.direct() ? end - first : rows) * classes;
        joint_short_rows<Fusing>(a, first, side_by_side, gradient, gradient ? gradient + left : nullptr,
                                 a.soft_labels ? a.soft_labels + end * classes : nullptr);
      }
      if (gradient) a.gradient.finish(first, rows, gradient);
    }
  });
}

// Computes the rows. `all` has the outputs but the gradient.
template <typename T>
void run(JointRows<T> all, Target target, double beta, double gamma, std::optional<int64_t> top_k, LabelScheme scheme,
         const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& gradient) {
  const int64_t batch = logits.size(0), others = logits.size(1) - 1;
  all.rule = {target, scheme, T(beta), T(gamma), int(others + 1), int(std::min(top_k.value_or(others), others))};
  all.labels = labels.const_data_ptr<int64_t>();
  if (batch == 0) return;
  all.logits = Matrix<T>(logits);
  if (gradient) all.gradient = Matrix<T>(*gradient);
  each_part(batch, others + 1, [&](int64_t begin, int64_t end) { joint_rows(all, begin, end); });
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, Tensor> joint_gradient(
    const Tensor& logits, const Tensor& labels, const std::string& target, const std::optional<Tensor>& target_labels,
    double beta, double gamma, std::optional<int64_t> top_k, const std::string& label_scheme) {
  check_joint(logits, labels, beta, gamma, top_k);
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const DType dtype = dtype_of(logits), wide = arithmetic_of(dtype);
  const Target what = parse_target(target);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  const Tensor true_classes = checked_classes("labels", labels, classes);
  std::optional<Tensor> given = checked_targets(what, target_labels, logits);
  if (given) given = checked_classes("target", *given, classes);
  const Tensor objective = empty({batch}, wide, logits), gradient = empty({batch, classes}, dtype, logits);
  const Tensor targets = empty({batch}, DType::kLong, logits);
  std::optional<Tensor> soft_labels;
  if (scheme != LabelScheme::kNone) soft_labels = empty({batch, classes}, wide, logits);
  with_arithmetic(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    JointRows<T> rows{};
    rows.given = given ? given->const_data_ptr<int64_t>() : nullptr;
    rows.objective = objective.mutable_data_ptr<T>();
    rows.soft_labels = soft_labels ? soft_labels->mutable_data_ptr<T>() : nullptr;
    rows.targets = targets.mutable_data_ptr<int64_t>();
    run(rows, what, beta, gamma, top_k, scheme, logits, true_classes, gradient);
  });
  return {objective, gradient, soft_labels, targets};
}

// Writes to `out`, or returns a new tensor if it is not given.
Tensor labels_of(const Tensor& logits, const Tensor& labels, double beta, double gamma, std::optional<int64_t> top_k,
                 const std::string& label_scheme, const std::optional<Tensor>& out) {
  const LabelScheme scheme = checked_redistribution(logits, labels, beta, gamma, top_k, label_scheme);
  const DType wide = arithmetic_of(dtype_of(logits));
  if (out) check_out(*out, "logits", logits, wide);
  const Tensor true_classes = checked_classes("labels", labels, logits.size(1));
  const bool in_place = out && out->is_contiguous() && !overlap(*out, logits) && !overlap(*out, labels);
  if (in_place) mark_written(*out);
  const Tensor result = in_place ? *out : empty(logits.sizes(), wide, logits);
  with_arithmetic(wide, [&](auto type) {
    using T = typename decltype(type)::type;
    JointRows<T> rows{};
    rows.soft_labels = result.mutable_data_ptr<T>();
    run(rows, Target::kMostConfusing, beta, gamma, top_k, scheme, logits, true_classes, {});
  });
  if (out && !in_place) copy(*out, result);
  return result;
}

Tensor redistribute_labels(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                           std::optional<int64_t> top_k, const std::string& label_scheme) {
  return labels_of(logits, labels, beta, gamma, top_k, label_scheme, {});
}

void redistribute_labels_out(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                             std::optional<int64_t> top_k, const std::string& label_scheme, const Tensor& out) {
  labels_of(logits, labels, beta, gamma, top_k, label_scheme, out);
}

[[maybe_unused]] const bool listed_joint_gradient = implement<&joint_gradient>("joint_gradient") &&
                                                    implement<&redistribute_labels>("redistribute_labels") &&
                                                    implement<&redistribute_labels_out>("redistribute_labels.out");

}  // namespace
}  // namespace rmcla
