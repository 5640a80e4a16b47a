// How augment draws a crop, and where each output pixel comes from, for host and device.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/philox.h"

namespace rmcla {

// The shifts from output pixels to source pixels, in [-padding, padding] modulo 2^32. A row or column beyond any border
// is then, as an unsigned number, not less than the size of the image, so that one comparison finds it.
struct Crop {
  uint32_t down, right;
  bool mirrored;
};

// The crop of image `image` of the batch, from block `image` of the augmentation's stream. `padding` is below 2^30.
RMCLA_SHARED Crop crop_of(int64_t seed, int64_t step, int64_t image, uint32_t padding, bool flip) {
  const PhiloxBlock block = philox_block(seed, step, uint64_t(image), kAugmentation);
  const uint64_t sides = 2 * uint64_t(padding) + 1;
  return {uint32_t((block.word[0] * sides) >> 32) - padding, uint32_t((block.word[1] * sides) >> 32) - padding,
          flip && block.word[2] >> 31 != 0};
}

// The row that output row `row` comes from. It is inside the image if it is less than the height.
RMCLA_SHARED uint32_t source_row(const Crop& crop, uint32_t row) { return row + crop.down; }

// The column that output column `column` comes from. It is inside the image if it is less than the width.
RMCLA_SHARED uint32_t source_column(const Crop& crop, uint32_t column, uint32_t width) {
  return (crop.mirrored ? width - 1 - column : column) + crop.right;
}

}  // namespace rmcla
