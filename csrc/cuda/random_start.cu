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
  const int64_t* rng;  // (seed, step), which are rng_stride apart
  int64_t rng_stride;
  W lower, upper;
  bool clip;
  ImageIndex image;
  bool per_image;
};

// 2 u - 1 is exact. The product and the sum are rounded separately on every backend, without a fused multiply-add.
__device__ __forceinline__ float noise(float radius, uint32_t word) {
  return __fmul_rn(radius, 2.0f * unit_uniform(word) - 1.0f);
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, float b) { return __dadd_rn(a, double(b)); }

template <typename I, typename T>
__global__ void __launch_bounds__(kThreads)
    start_elements(const I* images, T* out, int64_t count, bool packed, StartRule<typename Storage<T>::Wide> rule) {
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
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
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
  if (packed && first + kCount <= count) {
    const auto x = *reinterpret_cast<const Pack<I, kCount>*>(images + first);
    const int64_t image = rule.per_image ? rule.image.of(first) : 0;  // the whole vector is in one image
    const float radius = valid_radius(rule.radius.at(image));
    Pack<T, kCount> result;
#pragma unroll
    for (int k = 0; k < kCount; ++k) result.item[k] = start(x.item[k], radius, words[k]);
    *reinterpret_cast<Pack<T, kCount>*>(out + first) = result;
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int64_t i = first + k;
    if (i >= count) return;
    const int64_t image = rule.per_image ? rule.image.of(i) : 0;
    out[i] = start(images[i], valid_radius(rule.radius.at(image)), words[k]);
  }
}

struct StartLaunch {
  DType images_dtype;
  const void* images;
  void* out;
  int64_t count;
  bool packed;
  StartRule<double> rule;
};

template <typename I, typename T>
void launch(const StartLaunch& a, cudaStream_t stream) {
  using W = typename Storage<T>::Wide;
  constexpr int kCount = kVector<T> > 4 ? kVector<T> : 4;
  const StartRule<W> rule{a.rule.radius,   a.rule.rng,  a.rule.rng_stride, W(a.rule.lower),
                          W(a.rule.upper), a.rule.clip, a.rule.image,      a.rule.per_image};
  const unsigned blocks = unsigned(ceil_div(a.count, kThreads * kCount));
  start_elements<I, T><<<blocks, kThreads, 0, stream>>>(static_cast<const I*>(a.images), static_cast<T*>(a.out),
                                                        a.count, a.packed, rule);
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
                      const at::Tensor& rng, double lower, double upper, bool clip, const at::Tensor& out) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_like("out", out, images_);
  TORCH_CHECK_TYPE(out.scalar_type() == result_type(images_), "out must be ", result_type(images_), "; got ",
                   out.scalar_type());
  TORCH_CHECK_TYPE(rng.scalar_type() == at::kLong, "rng must be int64; got ", rng.scalar_type());
  TORCH_CHECK_VALUE(rng.dim() == 1 && rng.size(0) == 2, "rng must have shape (2,); got ", rng.sizes());
  TORCH_CHECK_VALUE(rng.device() == images_.device(), "rng must be on ", images_.device(), "; got ", rng.device());
  check_per_image("epsilon", epsilons, images_);
  if (images_.numel() == 0) return;
  const c10::cuda::CUDAGuard device(images_.device());
  const at::Tensor images = as_dense(images_);
  const bool direct = out.strides() == images.strides() && writable_beside(out, images, epsilons, rng);
  const at::Tensor result = direct ? out : at::empty_like(images, images.options().dtype(out.scalar_type()));

  StartLaunch a{};
  a.images_dtype = dtype_of(images);
  a.images = images.const_data_ptr();
  a.out = result.mutable_data_ptr();
  a.count = images.numel();
  const PerImage<double> radius = per_image(epsilon, epsilons);
  a.rule = {{float(radius.value), radius.values, radius.stride},
            rng.const_data_ptr<int64_t>(),
            rng.stride(0),
            lower,
            upper,
            clip,
            image_index(images),
            varies(radius)};
  const int64_t vector = std::max<int64_t>(4, 16 / result.element_size());
  a.packed = vectors_align(images, vector) && vectors_align(result, vector) &&
             (!a.rule.per_image || a.rule.image.stride % vector == 0);
  launch(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!direct) out.copy_(result);
  mark_written(out);
}

at::Tensor random_start(const at::Tensor& images, double epsilon, const std::optional<at::Tensor>& epsilons,
                        const at::Tensor& rng, double lower, double upper, bool clip) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard device(images.device());
  const at::Tensor dense = as_dense(images);
  at::Tensor out = at::empty_like(dense, dense.options().dtype(result_type(images)));
  random_start_out(dense, epsilon, epsilons, rng, lower, upper, clip, out);
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
