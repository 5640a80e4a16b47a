// What the CPU and CUDA kernels over rows of logits share: options, which logits count as infinite, and a class's
// share.
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

// The share s_k = base - z_k + offset of class k in the label mass that the true class gives away.
// main: s_k = v_k - v_MC + gamma. The log-sum-exp cancels; base is the largest other logit, and offset is gamma.
// sup: s_k = v_k = -log p_k. base is the largest logit, and offset is log sum_j exp(z_j - base).
template <typename T>
RMCLA_SHARED T label_share(T z, T base, T offset) {
  return (base - z) + offset;
}

}  // namespace rmcla
