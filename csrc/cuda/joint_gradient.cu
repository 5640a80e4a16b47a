// joint_gradient and redistribute_labels on a GPU: one launch computes the objective, gradient, target and soft labels
// of every row. A row takes three passes (extremes, sums, results), with a reduction over the group of lanes that share
// it after each of the first two. With fewer receivers than other classes, a search for the threshold comes before the
// sums.
#include "common/joint_gradient.h"
#include "cuda/row_kernels.cuh"
#include "cuda/selection.cuh"

namespace rmcla {
namespace {

// The largest and smallest logit of the classes other than the true one. `taint` is the sum of taint_of over the whole
// row.
template <typename W>
struct Extremes {
  W most;
  W least;
  W taint;
};

struct MergeExtremes {
  template <typename W>
  __device__ __forceinline__ Extremes<W> operator()(const Extremes<W>& a, const Extremes<W>& b) const {
    return {std::fmax(a.most, b.most), std::fmin(a.least, b.least), a.taint + b.taint};
  }
};

template <class Group, class Row>
__device__ __forceinline__ Extremes<typename Row::Wide> extremes(Group& group, const Row& row, int label) {
  using W = typename Row::Wide;
  constexpr W kInfinity = W(__builtin_huge_valf());
  Extremes<W> mine{-kInfinity, kInfinity, W(0)};
  row.each([&](int index, W z) {
    mine.taint += taint_of(z);
    mine.most = index == label ? mine.most : std::fmax(mine.most, z);
    mine.least = index == label ? mine.least : std::fmin(mine.least, z);
  });
  return group.reduce(mine, MergeExtremes());
}

template <typename W>
struct JointSums {
  W exponentials;  // sum over all classes of exp(z - highest)
  W gaps;          // sum over the receiving classes of base - z
  int target;      // the target; if it is chosen by its logit, the lowest class with that logit
};

struct MergeJointSums {
  template <typename W>
  __device__ __forceinline__ JointSums<W> operator()(const JointSums<W>& a, const JointSums<W>& b) const {
    return {a.exponentials + b.exponentials, a.gaps + b.gaps, a.target < b.target ? a.target : b.target};
  }
};

// The arguments of a launch. Each of the results may be null, and none but the soft labels has gaps between its rows.
template <typename T>
struct JointOperator {
  using W = typename Storage<T>::Wide;

  Logits<T> logits;
  const int64_t* labels;
  int64_t label_stride;
  const int64_t* given;  // the targets, for Target::kGiven
  int64_t given_stride;
  JointRule<W> rule;
  W* objective;
  T* grad_logits;
  W* soft_labels;
  int64_t soft_stride;
  int64_t* targets;

  template <class Group, class Row>
  __device__ __forceinline__ void row(Group& group, const Row& row, int64_t r) const {
    const int classes = row.size();
    const T* const in_memory = logits.row(r);
    const int64_t label = labels[r * label_stride];
    const int64_t chosen = rule.target == Target::kGiven ? given[r * given_stride] : label;
    const bool known = label >= 0 && label < classes && chosen >= 0 && chosen < classes;
    const int true_class = known ? int(label) : 0, chosen_class = known ? int(chosen) : 0;
    const W z_true = Storage<T>::widen(in_memory[true_class]);
    const W z_chosen = rule.target == Target::kGiven ? Storage<T>::widen(in_memory[chosen_class]) : z_true;
    const Extremes<W> others = extremes(group, row, true_class);
    if (!known || !(others.taint == W(0))) return write_nan(group, row, r);
    const W z_target = !rule.by_logit() ? z_chosen : rule.target == Target::kLeastLikely ? others.least : others.most;
    const W highest = others.most > z_true ? others.most : z_true;
    const W base = rule.base(others.most, highest);
    Threshold<W> threshold{others.most, classes};  // admits every class
    if (soft_labels && rule.receivers < classes - 1) {
      threshold = select_smallest(group, row, uint32_t(rule.receivers), true_class, z_true, others.least, others.most);
    }

    const bool softmax = objective && rule.target != Target::kMargin;
    JointSums<W> sums{W(0), W(0), rule.by_logit() ? classes : chosen_class};
    if (softmax || (soft_labels && rule.sup())) {
      row.each([&](int, W z) { sums.exponentials += std::exp(z - highest); });
    }
    if (soft_labels) {
      row.each([&](int index, W z) {
        const bool receives = (index != true_class) & threshold.admits(z, index);
        sums.gaps += receives ? base - z : W(0);
      });
    }
    if (objective && rule.by_logit()) {
      row.each([&](int index, W z) {
        const bool earlier = (index != true_class) & (z == z_target) & (index < sums.target);
        sums.target = earlier ? index : sums.target;
      });
    }
    sums = group.reduce(sums, MergeJointSums());
    const int target = sums.target;
    const W log_sum = std::log(sums.exponentials);
    if (group.rank() == 0) {
      if (targets) targets[r] = target;
      if (objective) objective[r] = rule.objective(z_true, z_target, highest, log_sum);
    }

    if (grad_logits && softmax) {
      const W scale = rule.sign() * (W(1) / sums.exponentials);  // a reciprocal is cheaper than a quotient
      row.write(grad_logits + r * classes,
                [=](int index, W z) { return rule.gradient(index == target, std::exp(z - highest) * scale); });
    } else if (grad_logits) {  // of the margin
      row.write(grad_logits + r * classes, [=](int index, W) { return W(index == target) - W(index == true_class); });
    }
    if (soft_labels) {
      const W offset = rule.offset(log_sum);
      const W kept = rule.kept(others.least, base, offset);
      const W inverse = W(1) / rule.total(sums.gaps, offset, kept);
      row.write(soft_labels + r * soft_stride, [=](int index, W z) {
        const bool receives = threshold.admits(z, index);
        return inverse * (index == true_class ? kept : receives ? rule.share(z, base, offset) : W(0));
      });
    }
  }

  // Writes NaN and target -1.
  template <class Group, class Row>
  __device__ __forceinline__ void write_nan(const Group& group, const Row& row, int64_t r) const {
    const W nan = W(__builtin_nanf(""));
    if (grad_logits) row.write(grad_logits + r * logits.classes, [=](int, W) { return nan; });
    if (soft_labels) row.write(soft_labels + r * soft_stride, [=](int, W) { return nan; });
    if (group.rank() != 0) return;
    if (objective) objective[r] = nan;
    if (targets) targets[r] = -1;
  }
};

struct JointResults {
  std::optional<Tensor> objective, grad_logits, soft_labels, targets;
};

// `given` has the targets for Target::kGiven. The rows of `logits` are dense.
void run(const Tensor& logits, const Tensor& labels, Target target, const std::optional<Tensor>& given, double beta,
         double gamma, std::optional<int64_t> top_k, LabelScheme scheme, const JointResults& out) {
  if (logits.size(0) == 0) return;
  const int classes = int(logits.size(1));
  const int receivers = top_k && *top_k < classes - 1 ? int(*top_k) : classes - 1;
  visit_float(dtype_of(logits), [&](auto type) {
    using T = typename decltype(type)::type;
    using W = typename Storage<T>::Wide;
    const JointOperator<T> operator_{{logits, !out.soft_labels || rows_pack(*out.soft_labels)},
                                     read<int64_t>(labels),
                                     labels.stride(0),
                                     read<int64_t>(given),
                                     given ? given->stride(0) : 0,
                                     {target, scheme, W(beta), W(gamma), classes, receivers},
                                     written<W>(out.objective),
                                     written<T>(out.grad_logits),
                                     written<W>(out.soft_labels),
                                     out.soft_labels ? out.soft_labels->stride(0) : 0,
                                     written<int64_t>(out.targets)};
    launch_beside(logits, [&](cudaStream_t stream) { launch_rows<T>(operator_, stream); });
  });
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, Tensor> joint_gradient(
    const Tensor& logits_, const Tensor& labels, const std::string& target_, const std::optional<Tensor>& target_labels,
    double beta, double gamma, std::optional<int64_t> top_k, const std::string& label_scheme) {
  check_joint(logits_, labels, beta, gamma, top_k);
  const Target target = parse_target(target_);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  const std::optional<Tensor> given = checked_targets(target, target_labels, logits_);
  const Tensor logits = with_dense_rows(logits_);
  const DType dtype = dtype_of(logits), wide = arithmetic_of(dtype);
  const Tensor objective = empty({logits.size(0)}, wide, logits), grad_logits = empty(logits.sizes(), dtype, logits);
  const Tensor targets = empty({logits.size(0)}, DType::kLong, logits);
  std::optional<Tensor> soft_labels;
  if (scheme != LabelScheme::kNone) soft_labels = empty(logits.sizes(), wide, logits);
  run(logits, labels, target, given, beta, gamma, top_k, scheme, {objective, grad_logits, soft_labels, targets});
  return {objective, grad_logits, soft_labels, targets};
}

void redistribute_labels_out(const Tensor& logits_, const Tensor& labels, double beta, double gamma,
                             std::optional<int64_t> top_k, const std::string& label_scheme, const Tensor& out) {
  const LabelScheme scheme = checked_redistribution(logits_, labels, beta, gamma, top_k, label_scheme);
  const DType wide = arithmetic_of(dtype_of(logits_));
  check_out(out, "logits", logits_, wide);
  const Tensor logits = with_dense_rows(logits_);
  const bool direct =
      out.stride(1) == 1 && (out.size(0) < 2 || out.stride(0) >= out.size(1)) && writable_beside(out, logits, labels);
  if (direct) mark_written(out);
  const Tensor result = direct ? out : empty(out.sizes(), wide, out);
  run(logits, labels, Target::kMostConfusing, {}, beta, gamma, top_k, scheme, {{}, {}, result, {}});
  if (!direct) copy(out, result);
}

Tensor redistribute_labels(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                           std::optional<int64_t> top_k, const std::string& label_scheme) {
  check_logits(logits);
  const Tensor out = empty(logits.sizes(), arithmetic_of(dtype_of(logits)), logits);
  redistribute_labels_out(logits, labels, beta, gamma, top_k, label_scheme, out);
  return out;
}

[[maybe_unused]] const bool listed_joint_gradient = implement<&joint_gradient>("joint_gradient") &&
                                                    implement<&redistribute_labels>("redistribute_labels") &&
                                                    implement<&redistribute_labels_out>("redistribute_labels.out");

}  // namespace
}  // namespace rmcla
