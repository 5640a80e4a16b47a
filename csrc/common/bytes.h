// Conversion of uint8 to value / 255, correctly rounded, without a division.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace rmcla {

// Multiplies by the rounded reciprocal and corrects the result with one Newton step. For all 256 bytes, which the tests
// try, this gives the bits of value / 255. The multiplication alone does not.
template <typename T>
RMCLA_SHARED T unit_from_byte(uint8_t byte) {
  const T inverse = T(1) / T(255);
  const T value = T(byte);
  const T quotient = value * inverse;
  return std::fma(std::fma(-quotient, T(255), value), inverse, quotient);
}

}  // namespace rmcla
