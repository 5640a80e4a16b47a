// The row arithmetic of joint_gradient and redistribute_labels: the paper's closed forms, written once for host and
// device.
#pragma once

#include "common/macros.h"

namespace rmcla {

enum class Target { kMostConfusing, kLeastLikely, kUntargeted, kMargin, kGiven };
enum class LabelScheme { kMain, kSup, kNone };

// A class's share of the label mass that leaves the true class.
// main: s_k = v_k - v_MC + gamma = max_other - z_k + gamma, the log-sum-exp cancels.
template <typename T>
RMCLA_SHARED T share_main(T z, T max_other, T gamma) {
  return (max_other - z) + gamma;
}

// sup: s_k = v_k = -log p_k, with log_sum = log sum_j exp(z_j - max_z).
template <typename T>
RMCLA_SHARED T share_sup(T z, T max_z, T log_sum) {
  return (max_z - z) + log_sum;
}

}  // namespace rmcla
