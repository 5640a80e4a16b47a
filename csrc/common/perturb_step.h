// The arithmetic of perturb_step for one element, for host and device.
#pragma once

#include "common/macros.h"

namespace rmcla {

// clip(clip(image + step * sign, center - radius, center + radius), lower, upper), where sign is -1, 0, +1 or NaN. NaN
// in any argument gives NaN. step * sign is exact, so a fused multiply-add gives the same bits.
template <typename T>
RMCLA_SHARED T clipped_step(T image, T step, T sign, T center, T radius, T lower, T upper) {
  const T least = center - radius;
  const T most = center + radius;
  T moved = image + step * sign;
  moved = moved < least ? least : moved;
  moved = moved > most ? most : moved;
  moved = moved < lower ? lower : moved;
  moved = moved > upper ? upper : moved;
  moved = least != least ? least : moved;
  return most != most ? most : moved;  // minus infinity plus infinity is NaN, too
}

// NaN for a negative or NaN radius, which a tensor may hold; raising an error would stall a GPU.
template <typename T>
RMCLA_SHARED T valid_radius(T radius) {
  return radius >= T(0) ? radius : T(__builtin_nanf(""));
}

}  // namespace rmcla
