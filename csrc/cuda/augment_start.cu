// augment_start on a GPU: each pixel is read once, as the byte it is, and written twice, in 128 bits. What an image has
// one of (its place in the data set, its crop, its radius) is worked out once a block and kept in shared memory.
#include "common/augment_start.h"
#include "common/perturb_step.h"
#include "cuda/elements.cuh"
#include "cuda/tensors.h"

#if !defined(__CUDA_ARCH__)
#include "common/augment_arguments.h"
#endif

namespace rmcla {
namespace {

struct AugmentRule {
  const uint8_t* dataset;  // (size, channels, height, width)
  const int64_t* index;    // index_stride apart
  int64_t index_stride, size;
  PerImage<float> radius;
  const int64_t* rng;  // (seed, step), rng_stride apart
  int64_t rng_stride;
  ImageIndex image;
  uint32_t channels, height, width, padding;
  float fill;
  bool flip, channels_last;
};

struct ImagePlan {
  const uint8_t* pixels;  // null where the index is no image
  float radius;
  Crop crop;
};

__device__ __forceinline__ ImagePlan plan_of(const AugmentRule& rule, int64_t image) {
  const int64_t source = rule.index[image * rule.index_stride];
  const bool known = source >= 0 && source < rule.size;
  const int64_t image_size = int64_t(rule.channels) * rule.height * rule.width;
  return {known ? rule.dataset + source * image_size : nullptr, valid_radius(rule.radius.at(image)),
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

// To the next element in memory, within an image.
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

__device__ __forceinline__ float cropped_pixel(const AugmentRule& rule, const ImagePlan& plan, const Place& at) {
  if (!plan.pixels) return __builtin_nanf("");
  const uint32_t row = source_row(plan.crop, at.row);
  const uint32_t column = source_column(plan.crop, at.column, rule.width);
  if (row >= rule.height || column >= rule.width) return rule.fill;
  return unit_from_byte<float>(plan.pixels[(at.channel * rule.height + row) * rule.width + column]);
}

// The sum is that of the image as it is stored; product and sum are rounded apart, as random_start rounds them.
template <typename T>
__device__ __forceinline__ T started(T image, float radius, uint32_t word) {
  return Storage<T>::narrow(__fadd_rn(Storage<T>::widen(image), __fmul_rn(radius, 2.0f * unit_uniform(word) - 1.0f)));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    augment_elements(T* images, T* start, int64_t count, bool packed, AugmentRule rule) {
  constexpr int kWords = 4;
  constexpr int kCount = kVector<T> > kWords ? kVector<T> : kWords;
  constexpr int kTile = kThreads * kCount;
  constexpr int kPlans = 64;
  __shared__ ImagePlan plans[kPlans];
  const int64_t tile = int64_t(blockIdx.x) * kTile;
  const int64_t tile_end = tile + kTile < count ? tile + kTile : count;
  const int64_t first_image = rule.image.of(tile);
  const int64_t images_here = rule.image.of(tile_end - 1) - first_image + 1;
  const bool planned = images_here <= kPlans;  // tiny images are more: there each thread works out its own
  if (planned) {
    if (threadIdx.x < images_here) plans[threadIdx.x] = plan_of(rule, first_image + threadIdx.x);
    __syncthreads();
  }
  const auto plan_at = [&](int64_t image) { return planned ? plans[image - first_image] : plan_of(rule, image); };

  const int64_t first = tile + int64_t(threadIdx.x) * kCount;
  if (first >= count) return;
  uint32_t words[kCount];
#pragma unroll
  for (int k = 0; k < kCount; k += kWords) {
    const PhiloxBlock block =
        philox_block(rule.rng[0], rule.rng[rule.rng_stride], uint64_t(first + k) / kWords, kRandomStart);
#pragma unroll
    for (int j = 0; j < kWords; ++j) words[k + j] = block.word[j];
  }
  if (packed) {  // the vector lies in one image, and none is a tail
    const int64_t image = rule.image.of(first);
    const ImagePlan plan = plan_at(image);
    Place at = place_of(rule, uint32_t(first - image * rule.image.stride));
    Pack<T, kCount> clean, moved;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      clean.item[k] = Storage<T>::narrow(cropped_pixel(rule, plan, at));
      moved.item[k] = started(clean.item[k], plan.radius, words[k]);
      advance(rule, at);
    }
    *reinterpret_cast<Pack<T, kCount>*>(images + first) = clean;
    *reinterpret_cast<Pack<T, kCount>*>(start + first) = moved;
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int64_t i = first + k;
    if (i >= count) return;
    const int64_t image = rule.image.of(i);
    const ImagePlan plan = plan_at(image);
    const Place at = place_of(rule, uint32_t(i - image * rule.image.stride));
    const T clean = Storage<T>::narrow(cropped_pixel(rule, plan, at));
    images[i] = clean;
    start[i] = started(clean, plan.radius, words[k]);
  }
}

struct AugmentLaunch {
  DType dtype;
  void *images, *start;
  int64_t count;
  AugmentRule rule;
};

template <typename T>
void launch(const AugmentLaunch& a, cudaStream_t stream) {
  constexpr int kCount = kVector<T> > 4 ? kVector<T> : 4;
  const bool packed = a.rule.image.stride % kCount == 0;
  const unsigned blocks = unsigned(ceil_div(a.count, kThreads * kCount));
  T *const images = static_cast<T*>(a.images), *const start = static_cast<T*>(a.start);
  augment_elements<T><<<blocks, kThreads, 0, stream>>>(images, start, a.count, packed, a.rule);
}

[[maybe_unused]] void launch(const AugmentLaunch& a, cudaStream_t stream) {
  if (a.dtype == DType::kHalf) return launch<__half>(a, stream);
  if (a.dtype == DType::kBFloat16) return launch<__nv_bfloat16>(a, stream);
  launch<float>(a, stream);
}

#if !defined(__CUDA_ARCH__)

std::tuple<at::Tensor, at::Tensor> augment_start(const at::Tensor& dataset, const at::Tensor& index,
                                                 const at::Tensor& rng, double epsilon,
                                                 const std::optional<at::Tensor>& epsilons, int64_t padding, bool flip,
                                                 double fill, at::ScalarType dtype, bool channels_last) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_augmentation(dataset, index, rng, epsilons, padding, dtype);
  const c10::cuda::CUDAGuard device(dataset.device());
  const int64_t channels = dataset.size(1), height = dataset.size(2), width = dataset.size(3), batch = index.size(0);
  const at::Tensor images = at::empty({batch, channels, height, width}, dataset.options().dtype(dtype),
                                      channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  const at::Tensor start = at::empty_like(images);
  if (images.numel() == 0) return {images, start};

  AugmentLaunch a{};
  a.dtype = dtype_of(images);
  a.images = images.mutable_data_ptr();
  a.start = start.mutable_data_ptr();
  a.count = images.numel();
  const PerImage<double> radius = per_image(epsilon, epsilons);
  a.rule = {dataset.const_data_ptr<uint8_t>(),
            index.const_data_ptr<int64_t>(),
            index.stride(0),
            dataset.size(0),
            {float(radius.value), radius.values, radius.stride},
            rng.const_data_ptr<int64_t>(),
            rng.stride(0),
            {channels * height * width, batch},
            uint32_t(channels),
            uint32_t(height),
            uint32_t(width),
            uint32_t(padding),
            float(fill),
            flip,
            channels_last};
  launch(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {images, start};
}

#endif

}  // namespace
}  // namespace rmcla

#if !defined(__CUDA_ARCH__)
TORCH_LIBRARY_IMPL(rmcla_fast, CUDA, m) { m.impl("augment_start", rmcla::augment_start); }
#endif
