// One row of joint_gradient and redistribute_labels, computed by a group of lanes that share it. It takes three passes
// over the row (extremes, sums, results), with a reduction over the group after each of the first two. With top_k, a
// search for the threshold comes before the sums.
#pragma once

#include <cmath>

#include "common/joint_gradient.h"
#include "common/rows.h"
#include "common/selection.h"

namespace rmcla {

template <typename W>
struct JointRule {
  Target target;
  LabelScheme scheme;
  W beta;
  W gamma;
  int top_k;  // 0: every other class receives mass
};

// Where the results of a row are written. Each pointer may be null.
template <typename T, typename W>
struct JointOutputs {
  W* objective;
  T* grad_logits;
  W* soft_labels;
  int64_t* target;
};

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
  RMCLA_SHARED Extremes<W> operator()(const Extremes<W>& a, const Extremes<W>& b) const {
    return {std::fmax(a.most, b.most), std::fmin(a.least, b.least), a.taint + b.taint};
  }
};

template <class Group, class Row>
RMCLA_SHARED Extremes<typename Row::Wide> extremes(Group& group, const Row& row, int label) {
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
  W exponentials;  // sum over all classes of exp(z - max z)
  W gaps;          // sum over the receiving classes of base - z, term by term: a difference of two sums would cancel
  int target;      // the target; if it is chosen by its logit, the lowest class with that logit
};

struct MergeJointSums {
  template <typename W>
  RMCLA_SHARED JointSums<W> operator()(const JointSums<W>& a, const JointSums<W>& b) const {
    return {a.exponentials + b.exponentials, a.gaps + b.gaps, a.target < b.target ? a.target : b.target};
  }
};

// Writes NaN and target -1.
template <class Group, class Row, typename T, typename W>
RMCLA_SHARED void write_nan_row(const Group& group, const Row& row, const JointOutputs<T, W>& out) {
  const W nan = W(__builtin_nanf(""));
  if (out.grad_logits) row.write(out.grad_logits, [=](int, W) { return nan; });
  if (out.soft_labels) row.write(out.soft_labels, [=](int, W) { return nan; });
  if (group.rank() != 0) return;
  if (out.objective) *out.objective = nan;
  if (out.target) *out.target = -1;
}

// `logits` is the row in memory, from which the logits of the true class and the target are read. `given` is used only
// for Target::kGiven.
template <class Group, class Row, typename T, typename W>
RMCLA_SHARED void joint_row(Group& group, const Row& row, const T* logits, int64_t label, int64_t given,
                            const JointRule<W>& rule, const JointOutputs<T, W>& out) {
  const int classes = row.size();
  const bool known =
      label >= 0 && label < classes && (rule.target != Target::kGiven || (given >= 0 && given < classes));
  const int true_class = known ? int(label) : 0;
  const W z_true = Storage<T>::widen(logits[true_class]);
  const W z_given = known && rule.target == Target::kGiven ? Storage<T>::widen(logits[given]) : W(0);
  const Extremes<W> others = extremes(group, row, true_class);
  if (!known || !(others.taint == W(0))) return write_nan_row(group, row, out);

  const bool by_logit =
      rule.target == Target::kMostConfusing || rule.target == Target::kMargin || rule.target == Target::kLeastLikely;
  W z_target = rule.target == Target::kLeastLikely ? others.least : others.most;
  int target = classes;
  if (rule.target == Target::kUntargeted) {
    target = true_class;
    z_target = z_true;
  } else if (rule.target == Target::kGiven) {
    target = int(given);
    z_target = z_given;
  }

  const bool sup = rule.scheme == LabelScheme::kSup;
  const W most = others.most > z_true ? others.most : z_true;
  const W base = sup ? most : others.most;
  int receivers = classes - 1;
  Threshold<W> threshold{others.most, classes};  // admits every class
  if (out.soft_labels && rule.top_k > 0 && rule.top_k < receivers) {
    receivers = rule.top_k;
    threshold = select_smallest(group, row, uint32_t(receivers), true_class, z_true, others.least, others.most);
  }

  const bool softmax = out.objective && rule.target != Target::kMargin;
  JointSums<W> sums{W(0), W(0), target};
  if (softmax || (out.soft_labels && sup)) row.each([&](int, W z) { sums.exponentials += std::exp(z - most); });
  if (out.soft_labels) {
    row.each([&](int index, W z) {
      const bool receives = (index != true_class) & threshold.admits(z, index);
      sums.gaps += receives ? base - z : W(0);
    });
  }
  if (out.objective && by_logit) {
    row.each([&](int index, W z) {
      const bool earlier = (index != true_class) & (z == z_target) & (index < sums.target);
      sums.target = earlier ? index : sums.target;
    });
  }
  sums = group.reduce(sums, MergeJointSums());
  target = sums.target;
  const W log_sum = std::log(sums.exponentials);

  if (out.grad_logits) {
    const W sign = rule.target == Target::kUntargeted ? W(-1) : W(1);
    if (softmax) {
      const W inverse = sign / sums.exponentials;
      row.write(out.grad_logits,
                [=](int index, W z) { return (index == target ? sign : W(0)) - std::exp(z - most) * inverse; });
    } else {
      row.write(out.grad_logits, [=](int index, W) { return W(index == target) - W(index == true_class); });
    }
  }
  if (out.soft_labels) {
    const bool pair = sup && classes == 2;  // a share of 1 gives the same labels as v, and is never 0
    const W offset = sup ? log_sum : rule.gamma;
    const auto share = [=](W z) { return pair ? W(1) : label_share(z, base, offset); };
    const W kept = rule.beta * share(others.least);
    const W total = (pair ? W(1) : sums.gaps + W(receivers) * offset) + kept;
    const W scale = total < W(0x1p-100) ? W(0x1p100) : W(1);  // so that the reciprocal of a tiny total stays finite
    const W inverse = W(1) / (total * scale);
    row.write(out.soft_labels, [=](int index, W z) {
      const W mine = index == true_class ? kept : threshold.admits(z, index) ? share(z) : W(0);
      return mine * scale * inverse;
    });
  }
  if (group.rank() != 0) return;
  if (out.target) *out.target = target;
  if (!out.objective) return;
  if (rule.target == Target::kMargin) {
    *out.objective = z_target - z_true;
  } else {
    const W log_p = (z_target - most) - log_sum;
    *out.objective = rule.target == Target::kUntargeted ? -log_p : log_p;
  }
}

}  // namespace rmcla
