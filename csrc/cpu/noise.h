// The noise of random_start for any stretch of dense memory.
#pragma once

#include <cstdint>

namespace rmcla {

// Room that the uniforms of `count` elements take, from any element on.
constexpr int64_t noise_room(int64_t count) { return (count + 3 + 63) / 64 * 64; }

// out = image + radius * (2 u - 1), the product rounded to float32, then the sum; u of the elements `first`, ... of the
// batch's memory. `room` has noise_room(count) elements; a negative or NaN radius gives NaN.
void add_noise(int64_t seed, int64_t step, int64_t first, const float* image, float radius, float* out, int64_t count,
               float* room);

}  // namespace rmcla
