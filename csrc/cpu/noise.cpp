// Philox blocks in vector lanes, four words a block, interleaved into the order of memory.
#include "cpu/noise.h"

#include "common/perturb_step.h"
#include "common/philox.h"
#include "cpu/simd.h"

namespace rmcla {
namespace {

template <int Bytes>
RMCLA_SHARED void uniforms_lanes(int64_t seed, int64_t step, int64_t block, int64_t blocks, float* to) {
  constexpr int kTogether = 16;
  for (int64_t first = 0; first < blocks; first += kTogether) {
    float words[4][kTogether];
    for (int lane = 0; lane < kTogether; ++lane) {
      const PhiloxBlock b = philox_block(seed, step, uint64_t(block + first + lane), kRandomStart);
      for (int word = 0; word < 4; ++word) words[word][lane] = unit_uniform(b.word[word]);
    }
    for (int lane = 0; lane < kTogether; ++lane)
      for (int word = 0; word < 4; ++word) to[4 * (first + lane) + word] = words[word][lane];
  }
}
template <int Bytes>
RMCLA_SHARED void add_uniforms_lanes(const float* image, const float* uniform, float radius, float* out,
                                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = image[i] + radius * (2.0f * uniform[i] - 1.0f);
}
RMCLA_KERNEL(add_uniforms, (const float* image, const float* uniform, float radius, float* out, int64_t count),
             (image, uniform, radius, out, count))

}  // namespace

RMCLA_KERNEL(uniforms, (int64_t seed, int64_t step, int64_t block, int64_t blocks, float* to),
             (seed, step, block, blocks, to))

void add_noise(int64_t seed, int64_t step, int64_t first, const float* image, float radius, float* out, int64_t count,
               float* room) {
  const int64_t offset = first % 4;
  uniforms(seed, step, first / 4, (offset + count + 63) / 64 * 16, room);
  add_uniforms(image, room + offset, valid_radius(radius), out, count);
}

}  // namespace rmcla
