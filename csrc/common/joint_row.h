// One row of joint_gradient and redistribute_labels, by a group of lanes that share it: three sweeps over the row
// (extremes, sums, results) with a reduction over the group between them, and a search for the threshold where top_k is
// given.
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
  int top_k;  // 0: every class receives
};

// Where the row's results go; a null pointer is not written.
template <typename T, typename W>
struct JointOutputs {
  W* objective;
  T* grad_logits;
  W* soft_labels;
  int64_t* target;
};

// Of the classes other than the true one; `index` -1 where a lane saw none. `broken`: NaN or infinity somewhere in the
// row.
template <typename W>
struct Extremes {
  W most;
  W least;
  int argmost;
  int argleast;
  int broken;
};

struct MergeExtremes {
  template <typename W>
  RMCLA_SHARED Extremes<W> operator()(const Extremes<W>& a, const Extremes<W>& b) const {
    const bool b_most =
        b.argmost >= 0 && (a.argmost < 0 || b.most > a.most || (b.most == a.most && b.argmost < a.argmost));
    const bool b_least =
        b.argleast >= 0 && (a.argleast < 0 || b.least < a.least || (b.least == a.least && b.argleast < a.argleast));
    return {b_most ? b.most : a.most, b_least ? b.least : a.least, b_most ? b.argmost : a.argmost,
            b_least ? b.argleast : a.argleast, a.broken | b.broken};
  }
};

template <class Group, class Row>
RMCLA_SHARED Extremes<typename Row::Wide> extremes(Group& group, const Row& row, int label) {
  using W = typename Row::Wide;
  Extremes<W> mine{W(0), W(0), -1, -1, 0};
  row.each([&](int index, W z) {
    mine.broken |= !(z - z == W(0));
    if (index == label) return;
    if (mine.argmost < 0 || z > mine.most) {
      mine.most = z;
      mine.argmost = index;
    }
    if (mine.argleast < 0 || z < mine.least) {
      mine.least = z;
      mine.argleast = index;
    }
  });
  return group.reduce(mine, MergeExtremes());
}

template <typename W>
struct JointSums {
  W exponentials;  // sum over all classes of exp(z - max z)
  W gaps;          // sum over the receiving classes of base - z, all terms positive: subtracting sums would cancel
};

struct AddJointSums {
  template <typename W>
  RMCLA_SHARED JointSums<W> operator()(const JointSums<W>& a, const JointSums<W>& b) const {
    return {a.exponentials + b.exponentials, a.gaps + b.gaps};
  }
};

template <class Group, class Row, typename T, typename W>
RMCLA_SHARED void broken_row(const Group& group, const Row& row, const JointOutputs<T, W>& out) {
  const W nan = W(__builtin_nanf(""));
  if (out.grad_logits) row.write(out.grad_logits, [=](int, W) { return nan; });
  if (out.soft_labels) row.write(out.soft_labels, [=](int, W) { return nan; });
  if (group.rank() != 0) return;
  if (out.objective) *out.objective = nan;
  if (out.target) *out.target = -1;
}

// `logits` is the row in memory, for the true class and the target; `given` is read for Target::kGiven alone.
template <class Group, class Row, typename T, typename W>
RMCLA_SHARED void joint_row(Group& group, const Row& row, const T* logits, int64_t label, int64_t given,
                            const JointRule<W>& rule, const JointOutputs<T, W>& out) {
  const int classes = row.size();
  const bool known =
      label >= 0 && label < classes && (rule.target != Target::kGiven || (given >= 0 && given < classes));
  if (!known) return broken_row(group, row, out);
  const int true_class = int(label);
  const W z_true = Storage<T>::widen(logits[true_class]);
  const W z_given = rule.target == Target::kGiven ? Storage<T>::widen(logits[given]) : W(0);
  const Extremes<W> others = extremes(group, row, true_class);
  if (others.broken) return broken_row(group, row, out);

  int target = others.argmost;
  W z_target = others.most;
  if (rule.target == Target::kLeastLikely) {
    target = others.argleast;
    z_target = others.least;
  } else if (rule.target == Target::kUntargeted) {
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
  Threshold<W> threshold{others.most, classes};  // admits all
  if (out.soft_labels && rule.top_k > 0 && rule.top_k < receivers) {
    receivers = rule.top_k;
    threshold = select_smallest(group, row, uint32_t(receivers), true_class, others.least, others.most);
  }

  const bool softmax = out.objective && rule.target != Target::kMargin;
  JointSums<W> sums{W(0), W(0)};
  if (softmax || (out.soft_labels && sup)) row.each([&](int, W z) { sums.exponentials += std::exp(z - most); });
  if (out.soft_labels) {
    row.each([&](int index, W z) {
      if (index != true_class && threshold.admits(z, index)) sums.gaps += base - z;
    });
  }
  sums = group.reduce(sums, AddJointSums());
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
    const bool pair = sup && classes == 2;  // the limit's labels: the one other class has share 1
    const W offset = sup ? log_sum : rule.gamma;
    const auto share = [=](W z) { return pair ? W(1) : label_share(z, base, offset); };
    const W kept = rule.beta * share(others.least);
    const W total = (pair ? W(1) : sums.gaps + W(receivers) * offset) + kept;
    const W scale = total < W(0x1p-100) ? W(0x1p100) : W(1);  // so that the reciprocal of a tiny total stays finite
    // NaN where logits are hardly finite and their shares overflow: infinity would leave zeros.
    const W inverse = total - total == W(0) ? W(1) / (total * scale) : W(__builtin_nanf(""));
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
