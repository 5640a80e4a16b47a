// The rule of soft_cross_entropy for one row of logits, for host and device.
#pragma once

#include "common/macros.h"

namespace rmcla {

// Label smoothing: a label y becomes y' = keep y + share, where share is (1 - keep) / C. With log_sum as in
// joint_gradient.h, the loss is sum_k y'_k (highest - z_k) + mass log_sum, its gradient mass p - y', and the gradient
// of the labels -keep log p.
template <typename T>
struct Smoothing {
  T keep, share;

  RMCLA_SHARED T operator()(T y) const { return keep * y + share; }
  // The sum over a row of the smoothed labels. C shares, each of them rounded, would add up less accurately.
  RMCLA_SHARED T mass(T sum) const { return keep * sum + (T(1) - keep); }
};

}  // namespace rmcla
