// random_start on a GPU: each Philox block gives the noise of four neighbouring elements, in the thread that adds it,
// so that only the images are read from memory.
#include "common/perturb_step.h"
#include "common/philox.h"
#include "cuda/elements.cuh"
#include "cuda/tensors.h"

namespace rmcla {
namespace {

template <typename W>
struct StartRule {
  PerImage<float> radius;
  const int64_t* rng;  // (seed, step), which are rng_stride apart, in each row; the rows are rng_row apart
  int64_t rng_stride, rng_row;
  W lower, upper;
  bool clip;
  ImageIndex image;
  bool per_image;
};

// 2 u - 1 is exact. The product and the sum are rounded separately on every backend, without a fused multiply-add.
__device__ __forceinline__ float noise(float radius, uint32_t word) {
  return product(radius, 2.0f * unit_uniform(word) - 1.0f);
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, float b) { return __dadd_rn(a, double(b)); }

// With kRngPerImage every image has its own row of rng, `count` is the number of elements of one image, and rule.image
// is the index of a vector's image. The images lie one after another, and each of them begins with a new vector.
template <typename I, typename T, bool kRngPerImage, bool kMasked>
__global__ void __launch_bounds__(kThreads) start_elements(const I* images, T* out, int64_t count, bool packed,
                                                           StartRule<typename Storage<T>::Wide> rule, MaskValues mask) {
  using W = typename Storage<T>::Wide;
  constexpr int kWords = 4;
  constexpr int kCount = kVector<T> > kWords ? kVector<T> : kWords;
  const auto start = [&](I image, float radius, uint32_t word) {
    W value = add(pixel<W>(image), noise(radius, word));
    if (rule.clip) {
      value = value < rule.lower ? rule.lower : value;
      value = value > rule.upper ? rule.upper : value;
    }
    return Storage<T>::narrow(value);
  };
  int64_t vector = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t before = 0;            // the elements before the thread's image
  if constexpr (kRngPerImage) {  // the thread's image is all that it sees from here on
    if (vector >= rule.image.stride * rule.image.count) return;
    const int64_t image = rule.image.of(vector);
    vector -= image * rule.image.stride;
    before = image * count;
    images += before;
    out += before;
    rule.rng += image * rule.rng_row;
    rule.radius.values += image * rule.radius.stride;
  }
  const int64_t first = vector * kCount;
  if (first >= count) return;
  const int64_t seed = rule.rng[0];
  const int64_t step = rule.rng[rule.rng_stride];
  uint32_t words[kCount];
#pragma unroll
  for (int k = 0; k < kCount; k += kWords) {
    const PhiloxBlock block = philox_block(seed, step, uint64_t(first + k) / kWords, kRandomStart);
#pragma unroll
    for (int j = 0; j < kWords; ++j) words[k + j] = block.word[j];
  }
  const int64_t place = kMasked ? mask.place(before + first) : 0;
  if (packed && first + kCount <= count) {
    const auto x = *reinterpret_cast<const Pack<I, kCount>*>(images + first);
    // The whole vector is in one image.
    const int64_t image = !kRngPerImage && rule.per_image ? rule.image.of(first) : 0;
    const float radius = valid_radius(rule.radius.at(image));
    float share[kCount] = {};
    if constexpr (kMasked) mask.load<kCount>(place, share);
    Pack<T, kCount> result;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      result.item[k] = start(x.item[k], kMasked ? product(radius, share[k]) : radius, words[k]);
    // With the address of the scalar stores below, `out + first`, nvcc would store the elements one by one.
    reinterpret_cast<Pack<T, kCount>*>(out)[vector] = result;
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int64_t i = first + k;
    if (i >= count) return;
    const int64_t image = !kRngPerImage && rule.per_image ? rule.image.of(i) : 0;
    float radius = valid_radius(rule.radius.at(image));
    if constexpr (kMasked) radius = product(radius, mask.at<float>(place + k));
    out[i] = start(images[i], radius, words[k]);
  }
}

struct StartLaunch {
  DType images_dtype;
  const void* images;
  void* out;
  int64_t count;  // with rng_per_image, of one image
  bool packed, rng_per_image;
  StartRule<double> rule;
  MaskValues mask;
};

template <typename I, typename T>
void launch(const StartLaunch& a, cudaStream_t stream) {
  using W = typename Storage<T>::Wide;
  constexpr int kCount = kVector<T> > 4 ? kVector<T> : 4;
  StartRule<W> rule{a.rule.radius,   a.rule.rng,  a.rule.rng_stride, a.rule.rng_row,  W(a.rule.lower),
                    W(a.rule.upper), a.rule.clip, a.rule.image,      a.rule.per_image};
  const I* const images = static_cast<const I*>(a.images);
  T* const out = static_cast<T*>(a.out);
  int64_t vectors = ceil_div(a.count, kCount);
  if (a.rng_per_image) {
    rule.image.stride = vectors;
    vectors *= rule.image.count;
  }
  const unsigned blocks = unsigned(ceil_div(vectors, kThreads));
  const auto kernel = a.rng_per_image
                          ? a.mask.values ? start_elements<I, T, true, true> : start_elements<I, T, true, false>
                      : a.mask.values ? start_elements<I, T, false, true>
                                      : start_elements<I, T, false, false>;
  kernel<<<blocks, kThreads, 0, stream>>>(images, out, a.count, a.packed, rule, a.mask);
}

[[maybe_unused]] void launch(const StartLaunch& a, cudaStream_t stream) {
  if (a.images_dtype == DType::kByte) return launch<uint8_t, float>(a, stream);
  visit_float(a.images_dtype, [&](auto type) {
    using I = typename decltype(type)::type;
    launch<I, I>(a, stream);
  });
}

#if !defined(__CUDA_ARCH__)

at::ScalarType result_type(const at::Tensor& images) {
  return images.scalar_type() == at::kByte ? at::kFloat : images.scalar_type();
}

void random_start_out(const at::Tensor& images_, double epsilon, const std::optional<at::Tensor>& epsilons,
                      const at::Tensor& rng, double lower, double upper, bool clip,
                      const std::optional<at::Tensor>& mask_, const at::Tensor& out) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_like("out", out, images_);
  TORCH_CHECK_TYPE(out.scalar_type() == result_type(images_), "out must be ", result_type(images_), "; got ",
                   out.scalar_type());
  check_rng(rng, images_);
  check_per_image("epsilon", epsilons, images_);
  check_mask(mask_, images_);
  if (images_.numel() == 0) return;
  const c10::cuda::CUDAGuard device(images_.device());
  const at::Tensor images = rng.dim() == 2 ? as_dense_images(images_) : as_dense(images_);
  // The noise is computed in float32, whatever the dtype of the images.
  const std::optional<at::Tensor> mask = mask_beside(images, mask_, at::kFloat);
  const bool direct = out.strides() == images.strides() && writable_beside(out, images, epsilons, rng, mask);
  const at::Tensor result = direct ? out : at::empty_like(images, images.options().dtype(out.scalar_type()));

  StartLaunch a{};
  a.images_dtype = dtype_of(images);
  a.images = images.const_data_ptr();
  a.out = result.mutable_data_ptr();
  const ImageIndex image = image_index(images);
  a.rng_per_image = rng.dim() == 2 && image.count > 1;
  a.count = images.numel() / (a.rng_per_image ? image.count : 1);
  const PerImage<double> radius = per_image(epsilon, epsilons);
  a.rule = {{float(radius.value), radius.values, radius.stride},
            rng.const_data_ptr<int64_t>(),
            rng.stride(-1),
            rng.stride(0),
            lower,
            upper,
            clip,
            image,
            varies(radius)};
  a.mask = mask_of(mask);
  const int64_t vector = std::max<int64_t>(4, 16 / result.element_size());
  a.packed = vectors_align(images, vector) && vectors_align(result, vector) &&
             (!mask || vectors_align(*mask, vector)) &&
             (!(a.rng_per_image || a.rule.per_image) || image.stride % vector == 0);
  launch(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!direct) out.copy_(result);
  mark_written(out);
}

at::Tensor random_start(const at::Tensor& images, double epsilon, const std::optional<at::Tensor>& epsilons,
                        const at::Tensor& rng, double lower, double upper, bool clip,
                        const std::optional<at::Tensor>& mask) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard device(images.device());
  check_rng(rng, images);
  const at::Tensor dense = rng.dim() == 2 ? as_dense_images(images) : as_dense(images);
  at::Tensor out = at::empty_like(dense, dense.options().dtype(result_type(images)));
  random_start_out(dense, epsilon, epsilons, rng, lower, upper, clip, mask, out);
  return out;
}

#endif

}  // namespace
}  // namespace rmcla

#if !defined(__CUDA_ARCH__)
TORCH_LIBRARY_IMPL(rmcla_fast, CUDA, m) {
  m.impl("random_start", rmcla::random_start);
  m.impl("random_start.out", rmcla::random_start_out);
}
#endif
