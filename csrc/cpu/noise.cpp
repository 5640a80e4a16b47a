// The noise of any stretch of dense memory.
#include "cpu/noise.h"

#include "common/perturb_step.h"
#include "cpu/kernels.h"

namespace rmcla {

void add_noise(int64_t seed, int64_t step, int64_t first, const float* image, float radius, float* out, int64_t count,
               float* room) {
  const int64_t offset = first % 4;
  kernels().uniforms(seed, step, first / 4, (offset + count + 63) / 64 * 16, room);
  kernels().float32.add_scaled(image, room + offset, valid_radius(radius), 0, 0, false, out, count);
}

}  // namespace rmcla
