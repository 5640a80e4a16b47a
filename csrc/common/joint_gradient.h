// What the CPU and CUDA kernels of joint_gradient and redistribute_labels share: their options, and a class's share.
#pragma once

#include "common/macros.h"

namespace rmcla {

enum class Target { kMostConfusing, kLeastLikely, kUntargeted, kMargin, kGiven };
enum class LabelScheme { kMain, kSup, kNone };

// The share s_k = base - z_k + offset of class k in the label mass that the true class gives away.
// main: s_k = v_k - v_MC + gamma. The log-sum-exp cancels; base is the largest other logit, and offset is gamma.
// sup: s_k = v_k = -log p_k. base is the largest logit, and offset is log sum_j exp(z_j - base).
template <typename T>
RMCLA_SHARED T label_share(T z, T base, T offset) {
  return (base - z) + offset;
}

}  // namespace rmcla
