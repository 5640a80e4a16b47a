// The element arithmetic of perturb_step, for scalars and for vectors of the compiler's vector extension alike.
#pragma once

#include "common/macros.h"

namespace rmcla {

// clip(clip(image + step * sign, center - radius, center + radius), lower, upper). sign is -1, 0, +1 or NaN; NaN
// anywhere gives NaN. step * sign is exact, so contracting the multiply-add changes no bit.
template <typename T>
RMCLA_SHARED T clipped_step(T image, T step, T sign, T center, T radius, T lower, T upper) {
  const T least = center - radius;
  const T most = center + radius;
  T moved = image + step * sign;
  moved = moved < least ? least : moved;
  moved = moved > most ? most : moved;
  moved = moved < lower ? lower : moved;
  moved = moved > upper ? upper : moved;
  return least != least ? least : moved;
}

// A radius read from a tensor: negative and NaN both mean NaN, since raising would stall a GPU.
template <typename T>
RMCLA_SHARED T valid_radius(T radius) {
  return radius >= T(0) ? radius : T(__builtin_nanf(""));
}

}  // namespace rmcla
