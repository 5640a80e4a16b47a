// The choice of the conversion for each dtype.
#include "cpu/convert.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"

namespace rmcla {

void widen(at::ScalarType dtype, const void* from, float* to, int64_t count) {
  switch (dtype) {
    case at::kHalf:
      return kernels().widen_half(static_cast<const uint16_t*>(from), to, count);
    case at::kBFloat16:
      return kernels().widen_bfloat(static_cast<const uint16_t*>(from), to, count);
    case at::kByte:
      return kernels().widen_bytes(static_cast<const uint8_t*>(from), to, count);
    case at::kDouble:
      return kernels().double_to_float(static_cast<const double*>(from), to, count);
    default:
      std::memcpy(to, from, size_t(count) * sizeof(float));
  }
}

void widen(at::ScalarType dtype, const void* from, double* to, int64_t count) {
  if (dtype == at::kByte) return kernels().widen_bytes_double(static_cast<const uint8_t*>(from), to, count);
  if (dtype == at::kFloat) return kernels().float_to_double(static_cast<const float*>(from), to, count);
  constexpr int64_t kPart = 1024;
  float part[kPart];
  for (int64_t i = 0; i < count; i += kPart) {
    const int64_t n = std::min(kPart, count - i);
    widen(dtype, static_cast<const uint16_t*>(from) + i, part, n);
    kernels().float_to_double(part, to + i, n);
  }
}

void narrow(at::ScalarType dtype, const float* from, void* to, int64_t count) {
  if (dtype == at::kHalf) return kernels().narrow_half(from, static_cast<uint16_t*>(to), count);
  if (dtype == at::kBFloat16) return kernels().narrow_bfloat(from, static_cast<uint16_t*>(to), count);
  std::memcpy(to, from, size_t(count) * sizeof(float));
}

void narrow(at::ScalarType, const double* from, void* to, int64_t count) {
  std::memcpy(to, from, size_t(count) * sizeof(double));  // only float64 storage is computed in double
}

void signs(const double* from, float* to, int64_t count) { kernels().double_signs(from, to, count); }

}  // namespace rmcla
