// The row arithmetic of joint_gradient and redistribute_labels: the paper's closed forms, written once for host and
// device.
#pragma once

#include "common/macros.h"

namespace rmcla {

enum class Target { kMostConfusing, kLeastLikely, kUntargeted, kMargin, kGiven };
enum class LabelScheme { kMain, kSup, kNone };

// A class's share of the label mass that leaves the true class, s_k = base - z_k + offset.
// main: v_k - v_MC + gamma, where the log-sum-exp cancels: base is the largest other logit, offset is gamma.
// sup: v_k = -log p_k: base is the largest logit, offset is log sum_j exp(z_j - base).
template <typename T>
RMCLA_SHARED T label_share(T z, T base, T offset) {
  return (base - z) + offset;
}

}  // namespace rmcla
