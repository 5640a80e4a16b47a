// The noise of random_start, and its sum with images, in plain loops that the compiler vectorises. Each lane computes a
// Philox block of four words, which are interleaved into the order of memory.
#pragma once

#include "common/philox.h"

namespace rmcla {

template <int Bytes>
RMCLA_SHARED void uniforms(int64_t seed, int64_t step, int64_t block, int64_t blocks, float* to) {
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

// Computes image + radius * (2 u - 1). The product is rounded to float32, then the sum to T. With a mask, the radius of
// each element is `radius` times its share, rounded to float32. M is void without a mask, float for a mask of shares,
// and uint8_t for a bool mask.
template <int Bytes, typename T, typename M>
RMCLA_SHARED void add_scaled(const T* image, const float* uniform, float radius, T lower, T upper, bool clip, T* out,
                             int64_t count, const void* mask) {
  const auto moved = [&](int64_t i) __attribute__((always_inline)) {
    float own_radius = radius;
    if constexpr (std::is_same_v<M, float>) own_radius *= static_cast<const float*>(mask)[i];
    if constexpr (std::is_same_v<M, uint8_t>) own_radius *= static_cast<const uint8_t*>(mask)[i] ? 1.0f : 0.0f;
    return image[i] + T(own_radius * (2.0f * uniform[i] - 1.0f));
  };
  if (clip) {
    for (int64_t i = 0; i < count; ++i) {
      T x = moved(i);
      x = x < lower ? lower : x;
      out[i] = x > upper ? upper : x;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = moved(i);
  }
}

}  // namespace rmcla
