// The rule of joint_gradient for one row of logits, for host and device. The kernels find the extremes and the sums of
// a row, each in its own way, and compute the results by these functions.
#pragma once

#include "common/macros.h"

namespace rmcla {

enum class Target { kMostConfusing, kLeastLikely, kUntargeted, kMargin, kGiven };
enum class LabelScheme { kMain, kSup, kNone };

// A logit of at least this magnitude counts as infinite. Below it, no sum over a row overflows for any number of
// classes, beta and gamma, and no reciprocal of a sum is subnormal.
template <typename T>
constexpr T kInfiniteFrom = T(sizeof(T) == 8 ? 0x1p960 : 0x1p64);

// NaN if the logit is NaN or counts as infinite, else 0. In both types kInfiniteFrom * 2^64 is the first number that
// overflows.
template <typename T>
RMCLA_SHARED T taint_of(T z) {
  return z * T(0x1p64) * T(0);
}

// The true class keeps beta times the largest share, and every receiving class k gets its share
//   s_k = base - z_k + offset,
// all divided by their sum. main: s_k = v_k - v_MC + gamma with v_k = -log p_k; the log-sum-exp cancels, so that base
// is the largest other logit and offset is gamma. sup: s_k = v_k; base is the largest logit ("highest"), and offset is
// log_sum = log sum_j exp(z_j - highest). With two classes, sup gives the same labels for a share of 1, which is never
// 0.
template <typename T>
struct JointRule {
  Target target;
  LabelScheme scheme;
  T beta, gamma;
  int classes;
  int receivers;  // how many classes other than the true one receive mass

  RMCLA_SHARED bool by_logit() const {  // whether the logits choose the target
    return target == Target::kMostConfusing || target == Target::kMargin || target == Target::kLeastLikely;
  }
  RMCLA_SHARED bool sup() const { return scheme == LabelScheme::kSup; }
  RMCLA_SHARED bool pair() const { return sup() && classes == 2; }

  // `most` and `least` are the extremes of the logits other than that of the true class.
  RMCLA_SHARED T base(T most, T highest) const { return sup() ? highest : most; }
  // A tiny gamma is replaced, so that the reciprocal of a sum of such shares stays finite.
  RMCLA_SHARED T offset(T log_sum) const { return sup() ? log_sum : gamma > T(0x1p-100) ? gamma : T(0x1p-100); }
  RMCLA_SHARED T share(T z, T base, T offset) const { return pair() ? T(1) : share_of_many(z, base, offset); }
  static RMCLA_SHARED T share_of_many(T z, T base, T offset) {
    return (base - z) + offset;
  }  // of more than two classes
  RMCLA_SHARED T kept(T least, T base, T offset) const { return beta * share(least, base, offset); }
  // `gaps` is the sum over the receiving classes of base - z, term by term: a difference of two sums would cancel.
  RMCLA_SHARED T total(T gaps, T offset, T kept) const { return (pair() ? T(1) : gaps + T(receivers) * offset) + kept; }

  // The attack ascends log p_target, -log p_true if untargeted, or z_target - z_true for the margin.
  RMCLA_SHARED T objective(T z_true, T z_target, T highest, T log_sum) const {
    if (target == Target::kMargin) return z_target - z_true;
    return sign() * ((z_target - highest) - log_sum);
  }
  // Its gradient, for a class whose probability times sign() is `signed_p`.
  RMCLA_SHARED T gradient(bool is_target, T signed_p) const { return (is_target ? sign() : T(0)) - signed_p; }
  RMCLA_SHARED T sign() const { return target == Target::kUntargeted ? T(-1) : T(1); }
};

}  // namespace rmcla
