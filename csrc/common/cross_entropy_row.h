// One row of soft_cross_entropy, computed by a group of lanes that share it: the loss, the gradient of the logits and,
// if requested, the gradient of the labels. It takes three passes over the row, with a reduction over the group after
// each of the first two.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/joint_gradient.h"
#include "common/rows.h"

namespace rmcla {

// Where the results of a row are written. `grad_labels` may be null.
template <typename T, typename W>
struct CrossEntropyOutputs {
  W* loss;
  T* grad_logits;
  W* grad_labels;
};

// Label smoothing: a label y becomes keep * y + share, where share is (1 - keep) / C.
template <typename W>
struct Smoothing {
  W keep;
  W share;

  RMCLA_SHARED W operator()(W y) const { return keep * y + share; }
  // The sum over a row of the smoothed labels. C shares, each of them rounded, would add up less accurately.
  RMCLA_SHARED W total(W sum) const { return keep * sum + (W(1) - keep); }
};

template <typename W>
struct Largest {
  W most;
  W taint;  // see taint_of
};

struct MergeLargest {
  template <typename W>
  RMCLA_SHARED Largest<W> operator()(const Largest<W>& a, const Largest<W>& b) const {
    return {std::fmax(a.most, b.most), a.taint + b.taint};
  }
};

template <typename W>
struct CrossEntropySums {
  W exponentials;  // sum of exp(z - max z)
  W mass;          // sum of y, before smoothing
  W gaps;          // sum of y' (max z - z), where y' is smoothed
};

struct AddCrossEntropySums {
  template <typename W>
  RMCLA_SHARED CrossEntropySums<W> operator()(const CrossEntropySums<W>& a, const CrossEntropySums<W>& b) const {
    return {a.exponentials + b.exponentials, a.mass + b.mass, a.gaps + b.gaps};
  }
};

// `soft` is the row of labels in memory. If it is null, `label` is a class index, and the results are NaN if it is
// outside the classes.
template <class Group, class Row, typename T, typename W>
RMCLA_SHARED void cross_entropy_row(Group& group, const Row& row, const W* soft, int64_t label,
                                    const Smoothing<W>& smoothed, const CrossEntropyOutputs<T, W>& out) {
  const auto y = row.beside(soft, [=](int index) { return W(int64_t(index) == label); });
  Largest<W> largest{-W(__builtin_huge_valf()), W(0)};
  row.each([&](int, W z) {
    largest.taint += taint_of(z);
    largest.most = std::fmax(largest.most, z);
  });
  largest = group.reduce(largest, MergeLargest());
  if (!(largest.taint == W(0)) || (!soft && (label < 0 || label >= row.size()))) {
    const W nan = W(__builtin_nanf(""));
    row.write(out.grad_logits, [=](int, W) { return nan; });
    if (out.grad_labels) row.write(out.grad_labels, [=](int, W) { return nan; });
    if (group.rank() == 0) *out.loss = nan;
    return;
  }
  const W most = largest.most;
  CrossEntropySums<W> sums{W(0), W(0), W(0)};
  row.each([&](RowIndex at, W z) {
    const W weight = y[at];
    sums.exponentials += std::exp(z - most);
    sums.mass += weight;
    sums.gaps += smoothed(weight) * (most - z);
  });
  sums = group.reduce(sums, AddCrossEntropySums());
  const W log_sum = std::log(sums.exponentials);
  const W mass = smoothed.total(sums.mass), scale = mass / sums.exponentials;
  row.write(out.grad_logits, [&](RowIndex at, W z) { return std::exp(z - most) * scale - smoothed(y[at]); });
  const W keep = smoothed.keep;
  if (out.grad_labels) row.write(out.grad_labels, [=](int, W z) { return keep * label_share(z, most, log_sum); });
  if (group.rank() == 0) *out.loss = sums.gaps + mass * log_sum;
}

}  // namespace rmcla
