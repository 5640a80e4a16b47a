// augment on a GPU: each byte is read once and written once, and a thread writes sixteen. Every block computes the plan
// of each of its images (where it is in the data set, and its crop) once, and keeps it in shared memory.
#include "common/augment.h"
#include "common/augment_checks.h"
#include "cuda/host.h"

namespace rmcla {
namespace {

struct AugmentRule {
  const uint8_t* dataset;  // (size, channels, height, width)
  const int64_t* index;    // elements are index_stride apart
  int64_t index_stride, size;
  const int64_t* rng;  // (seed, step), which are rng_stride apart
  int64_t rng_stride;
  ImageIndex image;
  uint32_t channels, height, width, padding;
  uint8_t fill;
  bool flip, channels_last;
};

struct ImagePlan {
  const uint8_t* pixels;  // null if the index is outside the data set
  Crop crop;
};

__device__ __forceinline__ ImagePlan plan_of(const AugmentRule& rule, int64_t image) {
  const int64_t source = rule.index[image * rule.index_stride];
  const bool known = source >= 0 && source < rule.size;
  const int64_t image_size = int64_t(rule.channels) * rule.height * rule.width;
  return {known ? rule.dataset + source * image_size : nullptr,
          crop_of(rule.rng[0], rule.rng[rule.rng_stride], image, rule.padding, rule.flip)};
}

struct Place {
  uint32_t channel, row, column;
};

__device__ __forceinline__ Place place_of(const AugmentRule& rule, uint32_t within) {
  if (rule.channels_last) {
    const uint32_t pixel = within / rule.channels, row = pixel / rule.width;
    return {within - pixel * rule.channels, row, pixel - row * rule.width};
  }
  const uint32_t line = within / rule.width, channel = line / rule.height;
  return {channel, line - channel * rule.height, within - line * rule.width};
}

// Moves `at` to the next element in memory, within an image.
__device__ __forceinline__ void advance(const AugmentRule& rule, Place& at) {
  if (rule.channels_last) {
    if (++at.channel < rule.channels) return;
    at.channel = 0;
    if (++at.column < rule.width) return;
    at.column = 0;
    ++at.row;
  } else {
    if (++at.column < rule.width) return;
    at.column = 0;
    if (++at.row < rule.height) return;
    at.row = 0;
    ++at.channel;
  }
}

__device__ __forceinline__ uint8_t cropped_pixel(const AugmentRule& rule, const ImagePlan& plan, const Place& at) {
  const uint32_t row = source_row(plan.crop, at.row);
  const uint32_t column = source_column(plan.crop, at.column, rule.width);
  if (!plan.pixels || row >= rule.height || column >= rule.width) return rule.fill;
  return plan.pixels[(at.channel * rule.height + row) * rule.width + column];
}

constexpr int kBytes = kVector<uint8_t>;  // per thread

__global__ void __launch_bounds__(kThreads) augment_bytes(uint8_t* images, int64_t count, AugmentRule rule) {
  constexpr int kTile = kThreads * kBytes;
  constexpr int kPlans = 64;
  __shared__ ImagePlan plans[kPlans];
  const int64_t tile = int64_t(blockIdx.x) * kTile;
  const int64_t tile_end = tile + kTile < count ? tile + kTile : count;
  const int64_t first_image = rule.image.of(tile);
  const int64_t images_here = rule.image.of(tile_end - 1) - first_image + 1;
  // A block of tiny images may have more images than plans. Then each thread makes its own plans.
  const bool planned = images_here <= kPlans;
  if (planned) {
    if (threadIdx.x < images_here) plans[threadIdx.x] = plan_of(rule, first_image + threadIdx.x);
    __syncthreads();
  }
  const auto plan_at = [&](int64_t image) { return planned ? plans[image - first_image] : plan_of(rule, image); };

  const int64_t first = tile + int64_t(threadIdx.x) * kBytes;
  if (first >= count) return;
  if (rule.image.stride % kBytes == 0) {  // then all sixteen bytes exist and are in one image
    const int64_t image = rule.image.of(first);
    const ImagePlan plan = plan_at(image);
    Place at = place_of(rule, uint32_t(first - image * rule.image.stride));
    Pack<uint8_t, kBytes> bytes;
#pragma unroll
    for (int k = 0; k < kBytes; ++k) {
      bytes.item[k] = cropped_pixel(rule, plan, at);
      advance(rule, at);
    }
    pack_at<kBytes>(images, first) = bytes;
    return;
  }
  for (int64_t i = first; i < first + kBytes && i < count; ++i) {
    const int64_t image = rule.image.of(i);
    images[i] = cropped_pixel(rule, plan_at(image), place_of(rule, uint32_t(i - image * rule.image.stride)));
  }
}

Tensor augment(const Tensor& dataset, const Tensor& index, const Tensor& rng, int64_t padding, bool flip, int64_t fill,
               bool channels_last) {
  check_augmentation(dataset, index, rng, padding, fill);
  const Tensor images = empty_crops(dataset, index, channels_last);
  const int64_t count = images.numel();
  if (count == 0) return images;
  const int64_t channels = dataset.size(1), height = dataset.size(2), width = dataset.size(3);
  const AugmentRule rule{read<uint8_t>(dataset),
                         read<int64_t>(index),
                         index.stride(0),
                         dataset.size(0),
                         read<int64_t>(rng),
                         rng.stride(0),
                         {channels * height * width, index.size(0)},
                         uint32_t(channels),
                         uint32_t(height),
                         uint32_t(width),
                         uint32_t(padding),
                         uint8_t(fill),
                         flip,
                         channels_last};
  const unsigned blocks = unsigned(ceil_div(count, kThreads * kBytes));
  launch_beside(images, [&](cudaStream_t stream) {
    augment_bytes<<<blocks, kThreads, 0, stream>>>(written<uint8_t>(images), count, rule);
  });
  return images;
}

[[maybe_unused]] const bool listed_augment = implement<&augment>("augment");

}  // namespace
}  // namespace rmcla
