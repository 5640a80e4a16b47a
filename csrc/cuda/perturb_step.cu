// perturb_step on a GPU: each thread makes three loads and one store of 128 bits, with the arithmetic in between.
#include "common/perturb_step.h"
#include "cuda/elements.cuh"
#include "cuda/tensors.h"

namespace rmcla {
namespace {

template <typename W>
struct StepRule {
  PerImage<W> step;
  PerImage<W> radius;
  W lower, upper;
  ImageIndex image;
  bool per_image;  // whether step or radius may differ between images
};

// The sign is taken in the gradient's own dtype, since a conversion would turn the smallest float64 numbers into 0.
template <typename W, typename G>
__device__ __forceinline__ W sign_of(G stored) {
  const auto g = Storage<G>::widen(stored);
  return g > 0 ? W(1) : g < 0 ? W(-1) : g == 0 ? W(0) : W(__builtin_nanf(""));
}

// No pointer is __restrict__: `out` may be any of the inputs.
template <typename I, typename O, typename G, bool kMasked, typename W = typename Storage<I>::Wide>
__global__ void __launch_bounds__(kThreads)
    step_elements(const I* images, const O* origin, const G* grad, I* out, int64_t count, bool packed, StepRule<W> rule,
                  MaskValues mask) {
  constexpr int kCount = kVector<I>;
  // `share` is the value of the mask.
  const auto moved = [&](I image, O center, G gradient, W step, W radius, W share) {
    if constexpr (kMasked) {
      step = product(step, share);
      radius = product(radius, share);
    }
    return Storage<I>::narrow(clipped_step<W>(Storage<I>::widen(image), step, sign_of<W>(gradient), pixel<W>(center),
                                              radius, rule.lower, rule.upper));
  };
  const int64_t tile = int64_t(blockIdx.x) * (kThreads * kCount);
  const int64_t first = tile + threadIdx.x * kCount;
  if (packed && first + kCount <= count) {
    const auto x = *reinterpret_cast<const Pack<I, kCount>*>(images + first);
    const auto o = *reinterpret_cast<const Pack<O, kCount>*>(origin + first);
    const auto g = *reinterpret_cast<const Pack<G, kCount>*>(grad + first);
    const int64_t image = rule.per_image ? rule.image.of(first) : 0;  // the whole vector is in one image
    const W step = rule.step.at(image);
    const W radius = valid_radius(rule.radius.at(image));
    W share[kCount] = {};
    if constexpr (kMasked) mask.load<kCount>(mask.place(first), share);
    Pack<I, kCount> result;
#pragma unroll
    for (int k = 0; k < kCount; ++k) result.item[k] = moved(x.item[k], o.item[k], g.item[k], step, radius, share[k]);
    *reinterpret_cast<Pack<I, kCount>*>(out + first) = result;
    return;
  }
  for (int k = 0; k < kCount; ++k) {
    const int64_t i = packed ? first + k : tile + k * kThreads + threadIdx.x;
    if (i >= count) return;
    const int64_t image = rule.per_image ? rule.image.of(i) : 0;
    const W share = kMasked ? mask.at<W>(mask.place(i)) : W(0);
    out[i] = moved(images[i], origin[i], grad[i], rule.step.at(image), valid_radius(rule.radius.at(image)), share);
  }
}

struct StepLaunch {
  DType images_dtype, origin_dtype, grad_dtype;
  const void *images, *origin, *grad;
  void* out;
  int64_t count;
  bool packed;
  StepRule<double> rule;
  MaskValues mask;
};

template <typename I, typename O>
void launch(const StepLaunch& a, cudaStream_t stream) {
  using W = typename Storage<I>::Wide;
  const auto narrow = [](const PerImage<double>& p) { return PerImage<W>{W(p.value), p.values, p.stride}; };
  const StepRule<W> rule{narrow(a.rule.step), narrow(a.rule.radius), W(a.rule.lower),
                         W(a.rule.upper),     a.rule.image,          a.rule.per_image};
  const unsigned blocks = unsigned(ceil_div(a.count, kThreads * kVector<I>));
  visit_float(a.grad_dtype, [&](auto type) {
    using G = typename decltype(type)::type;
    const auto kernel = a.mask.values ? step_elements<I, O, G, true> : step_elements<I, O, G, false>;
    kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const I*>(a.images), static_cast<const O*>(a.origin),
                                            static_cast<const G*>(a.grad), static_cast<I*>(a.out), a.count, a.packed,
                                            rule, a.mask);
  });
}

// The origin has dtype uint8, float32 or that of the images.
[[maybe_unused]] void launch(const StepLaunch& a, cudaStream_t stream) {
  visit_float(a.images_dtype, [&](auto type) {
    using I = typename decltype(type)::type;
    if (a.origin_dtype == DType::kByte) return launch<I, uint8_t>(a, stream);
    if (a.origin_dtype == DType::kFloat) return launch<I, float>(a, stream);
    launch<I, I>(a, stream);
  });
}

#if !defined(__CUDA_ARCH__)

using Numbers = std::optional<at::Tensor>;

void perturb_step_out(const at::Tensor& images_, const at::Tensor& origin_, const at::Tensor& grad_, double step_size,
                      const Numbers& step_sizes, double epsilon, const Numbers& epsilons, double lower, double upper,
                      const Numbers& mask_, const at::Tensor& out) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  TORCH_CHECK_TYPE(at::isFloatingType(images_.scalar_type()), "images must be float; got ", images_.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(grad_.scalar_type()), "grad must be float; got ", grad_.scalar_type());
  check_like("origin", origin_, images_);
  check_like("grad", grad_, images_);
  check_like("out", out, images_);
  TORCH_CHECK_TYPE(out.scalar_type() == images_.scalar_type(), "out must be ", images_.scalar_type(), "; got ",
                   out.scalar_type());
  check_per_image("step_size", step_sizes, images_);
  check_per_image("epsilon", epsilons, images_);
  check_mask(mask_, images_);
  if (images_.numel() == 0) return;
  const c10::cuda::CUDAGuard device(images_.device());
  const at::Tensor images = as_dense(images_);
  const bool as_is = origin_.scalar_type() == at::kByte || origin_.scalar_type() == images.scalar_type();
  const at::Tensor origin = in_layout_of(images, as_is ? origin_ : origin_.to(at::kFloat));
  const at::Tensor grad = in_layout_of(images, grad_);
  const Numbers mask = mask_beside(images, mask_, wide_type(images));
  const bool direct =
      out.strides() == images.strides() && writable_beside(out, images, origin, grad, step_sizes, epsilons, mask);
  const at::Tensor result = direct ? out : at::empty_like(images);

  StepLaunch a{};
  a.images_dtype = dtype_of(images);
  a.origin_dtype = dtype_of(origin);
  a.grad_dtype = dtype_of(grad);
  a.images = images.const_data_ptr();
  a.origin = origin.const_data_ptr();
  a.grad = grad.const_data_ptr();
  a.out = result.mutable_data_ptr();
  a.count = images.numel();
  a.rule = {per_image(step_size, step_sizes), per_image(epsilon, epsilons), lower, upper, image_index(images), false};
  a.rule.per_image = varies(a.rule.step) || varies(a.rule.radius);
  a.mask = mask_of(mask);
  const int64_t vector = 16 / images.element_size();
  a.packed = vectors_align(images, vector) && vectors_align(origin, vector) && vectors_align(grad, vector) &&
             vectors_align(result, vector) && (!mask || vectors_align(*mask, vector)) &&
             (!a.rule.per_image || a.rule.image.stride % vector == 0);
  launch(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!direct) out.copy_(result);
  mark_written(out);
}

at::Tensor perturb_step(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
                        const Numbers& step_sizes, double epsilon, const Numbers& epsilons, double lower, double upper,
                        const Numbers& mask) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard device(images.device());
  const at::Tensor dense = as_dense(images);
  at::Tensor out = at::empty_like(dense);
  perturb_step_out(dense, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out);
  return out;
}

#endif

}  // namespace
}  // namespace rmcla

#if !defined(__CUDA_ARCH__)
TORCH_LIBRARY_IMPL(rmcla_fast, CUDA, m) {
  m.impl("perturb_step", rmcla::perturb_step);
  m.impl("perturb_step.out", rmcla::perturb_step_out);
}
#endif
