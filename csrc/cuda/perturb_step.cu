// perturb_step on a GPU: each thread makes three loads and one store of 128 bits, with the arithmetic in between.
#include "common/perturb_step.h"
#include "cuda/host.h"

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
    const auto x = pack_at<kCount>(images, first);
    const auto o = pack_at<kCount>(origin, first);
    const auto g = pack_at<kCount>(grad, first);
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

using Numbers = std::optional<Tensor>;

void perturb_step_out(const Tensor& images_, const Tensor& origin_, const Tensor& grad_, double step_size,
                      const Numbers& step_sizes, double epsilon, const Numbers& epsilons, double lower, double upper,
                      const Numbers& mask_, const Tensor& out) {
  check_step(images_, origin_, grad_, step_sizes, epsilons, mask_, out);
  const DType dtype = dtype_of(images_), grad_dtype = dtype_of(grad_);
  const bool bytes = dtype_of(origin_) == DType::kByte;
  if (images_.numel() == 0) return;
  const Tensor images = as_dense(images_);
  // The kernels have an origin of uint8, float32 or the dtype of the images.
  const bool as_is = bytes || dtype_of(origin_) == dtype;
  const Tensor origin = in_layout_of(images, as_is ? origin_ : as_dtype(origin_, DType::kFloat));
  const Tensor grad = in_layout_of(images, grad_);
  const Numbers mask = mask_beside(images, mask_, arithmetic_of(dtype));
  const bool direct =
      out.strides().equals(images.strides()) && writable_beside(out, images, origin, grad, step_sizes, epsilons, mask);
  if (direct) mark_written(out);
  const Tensor result = direct ? out : empty_strided(images.sizes(), images.strides(), dtype, images);

  visit_float(dtype, [&](auto of_images) {
    using I = typename decltype(of_images)::type;
    using W = typename Storage<I>::Wide;
    constexpr int kCount = kVector<I>;
    StepRule<W> rule{per_image<W>(step_size, step_sizes),
                     per_image<W>(epsilon, epsilons),
                     W(lower),
                     W(upper),
                     image_index(images),
                     false};
    rule.per_image = rule.step.varies() || rule.radius.varies();
    const bool packed = vectors_align(images, kCount) && vectors_align(origin, kCount) && vectors_align(grad, kCount) &&
                        vectors_align(result, kCount) && (!mask || vectors_align(*mask, kCount)) &&
                        (!rule.per_image || rule.image.stride % kCount == 0);
    const int64_t count = images.numel();
    const unsigned blocks = unsigned(ceil_div(count, kThreads * kCount));
    const auto launch = [&](auto of_origin) {
      using O = typename decltype(of_origin)::type;
      visit_float(grad_dtype, [&](auto of_grad) {
        using G = typename decltype(of_grad)::type;
        const auto kernel = mask ? step_elements<I, O, G, true> : step_elements<I, O, G, false>;
        launch_beside(images, [&](cudaStream_t stream) {
          kernel<<<blocks, kThreads, 0, stream>>>(read<I>(images), read<O>(origin), read<G>(grad), written<I>(result),
                                                  count, packed, rule, mask_of(mask));
        });
      });
    };
    if (bytes) return launch(Type<uint8_t>());
    if (dtype_of(origin) == DType::kFloat) return launch(Type<float>());
    launch(Type<I>());
  });
  if (!direct) copy(out, result);
}

Tensor perturb_step(const Tensor& images, const Tensor& origin, const Tensor& grad, double step_size,
                    const Numbers& step_sizes, double epsilon, const Numbers& epsilons, double lower, double upper,
                    const Numbers& mask) {
  check_step(images, origin, grad, step_sizes, epsilons, mask, {});
  const Tensor dense = as_dense(images);
  const Tensor out = empty_strided(dense.sizes(), dense.strides(), dtype_of(images), dense);
  perturb_step_out(dense, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out);
  return out;
}

[[maybe_unused]] const bool listed_perturb_step =
    implement<&perturb_step>("perturb_step") && implement<&perturb_step_out>("perturb_step.out");

}  // namespace
}  // namespace rmcla
