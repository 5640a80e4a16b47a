// uint8 images mean value / 255, correctly rounded, without the division.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace rmcla {

// One Newton step from the rounded reciprocal. For the 256 bytes it gives the bits of value / 255, which a
// multiplication with the reciprocal alone does not; the tests try every byte.
template <typename T>
RMCLA_SHARED T unit_from_byte(uint8_t byte) {
  const T inverse = T(1) / T(255);
  const T value = T(byte);
  const T quotient = value * inverse;
  return std::fma(std::fma(-quotient, T(255), value), inverse, quotient);
}

}  // namespace rmcla
