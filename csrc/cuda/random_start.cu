// random_start on a GPU: each Philox block gives the noise of four neighbouring elements, in the thread that adds it,
// so that only the images are read from memory.
#include "common/perturb_step.h"
#include "common/philox.h"
#include "cuda/host.h"

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

constexpr int kWords = 4;  // of a Philox block

// Elements per thread: whole blocks, and at least a whole vector.
template <typename T>
constexpr int kElements = kVector<T> > kWords ? kVector<T> : kWords;

// With kRngPerImage every image has its own row of rng, `count` is the number of elements of one image, and rule.image
// is the index of a vector's image. The images lie one after another, and each of them begins with a new vector.
template <typename I, typename T, bool kRngPerImage, bool kMasked>
__global__ void __launch_bounds__(kThreads) start_elements(const I* images, T* out, int64_t count, bool packed,
                                                           StartRule<typename Storage<T>::Wide> rule, MaskValues mask) {
  using W = typename Storage<T>::Wide;
  constexpr int kCount = kElements<T>;
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
    const auto x = pack_at<kCount>(images, first);
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

void random_start_out(const Tensor& images_, double epsilon, const std::optional<Tensor>& epsilons, const Tensor& rng,
                      double lower, double upper, bool clip, const std::optional<Tensor>& mask_, const Tensor& out) {
  const DType dtype = checked_start(images_, epsilons, rng, mask_, out);
  if (images_.numel() == 0) return;
  const Tensor images = rng.dim() == 2 ? as_dense_images(images_) : as_dense(images_);
  // The noise is computed in float32, whatever the dtype of the images.
  const std::optional<Tensor> mask = mask_beside(images, mask_, DType::kFloat);
  const bool direct = out.strides().equals(images.strides()) && writable_beside(out, images, epsilons, rng, mask);
  if (direct) mark_written(out);
  const Tensor result = direct ? out : empty_strided(images.sizes(), images.strides(), dtype, images);

  const ImageIndex image = image_index(images);
  const bool rng_per_image = rng.dim() == 2 && image.count > 1;
  const int64_t count = images.numel() / (rng_per_image ? image.count : 1);
  const auto launch = [&](auto of_images, auto of_result) {
    using I = typename decltype(of_images)::type;
    using T = typename decltype(of_result)::type;
    using W = typename Storage<T>::Wide;
    constexpr int kCount = kElements<T>;
    StartRule<W> rule{per_image<float>(epsilon, epsilons),
                      read<int64_t>(rng),
                      rng.stride(rng.dim() - 1),
                      rng.stride(0),
                      W(lower),
                      W(upper),
                      clip,
                      image,
                      false};
    rule.per_image = rule.radius.varies();
    const bool packed = vectors_align(images, kCount) && vectors_align(result, kCount) &&
                        (!mask || vectors_align(*mask, kCount)) &&
                        (!(rng_per_image || rule.per_image) || image.stride % kCount == 0);
    int64_t vectors = ceil_div(count, kCount);
    if (rng_per_image) {
      rule.image.stride = vectors;
      vectors *= image.count;
    }
    const unsigned blocks = unsigned(ceil_div(vectors, kThreads));
    const auto kernel = rng_per_image ? mask ? start_elements<I, T, true, true> : start_elements<I, T, true, false>
                        : mask        ? start_elements<I, T, false, true>
                                      : start_elements<I, T, false, false>;
    launch_beside(images, [&](cudaStream_t stream) {
      kernel<<<blocks, kThreads, 0, stream>>>(read<I>(images), written<T>(result), count, packed, rule, mask_of(mask));
    });
  };
  if (dtype_of(images) == DType::kByte) {
    launch(Type<uint8_t>(), Type<float>());
  } else {
    visit_float(dtype, [&](auto type) { launch(type, type); });
  }
  if (!direct) copy(out, result);
}

Tensor random_start(const Tensor& images, double epsilon, const std::optional<Tensor>& epsilons, const Tensor& rng,
                    double lower, double upper, bool clip, const std::optional<Tensor>& mask) {
  const DType dtype = checked_start(images, epsilons, rng, mask, {});
  const Tensor dense = rng.dim() == 2 ? as_dense_images(images) : as_dense(images);
  const Tensor out = empty_strided(dense.sizes(), dense.strides(), dtype, dense);
  random_start_out(dense, epsilon, epsilons, rng, lower, upper, clip, mask, out);
  return out;
}

[[maybe_unused]] const bool listed_random_start =
    implement<&random_start>("random_start") && implement<&random_start_out>("random_start.out");

}  // namespace
}  // namespace rmcla
