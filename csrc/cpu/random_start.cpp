// random_start on the CPU: for one part of memory after another, the noise and then its sum with the images.
#include "common/perturb_step.h"
#include "common/philox.h"
#include "common/registration.h"
#include "cpu/elements.h"

namespace rmcla {
namespace {

// Writes the numbers in [0, 1) of `count` elements from element 4 * block on, and of those that complete the last group
// of 64. The loop over blocks becomes vectors, whose words are then put into the order of memory.
RMCLA_SHARED void uniforms(int64_t seed, int64_t step, int64_t block, int64_t count, float* to) {
  for (int64_t done = 0; done < count; done += 4 * kLanes, block += kLanes) {
    Lanes<float> words[4];
    for (int lane = 0; lane < kLanes; ++lane) {
      const PhiloxBlock b = philox_block(seed, step, uint64_t(block + lane), kRandomStart);
      for (int word = 0; word < 4; ++word) words[word][lane] = unit_uniform(b.word[word]);
    }
    for (int lane = 0; lane < kLanes; ++lane)
      for (int word = 0; word < 4; ++word) to[done + 4 * lane + word] = words[word][lane];
  }
}

// Computes image + radius * (2 u - 1). The product is rounded to float32, then the sum to T. `mask` has the share of
// the radius of each element, as M.
template <typename M, typename T>
RMCLA_SHARED void add_noise(const T* image, const float* uniform, T* out, int64_t count, float radius, T lower, T upper,
                            bool clip, const void* mask) {
  // Without clipping the limits change nothing, NaN included.
  const T least = clip ? lower : -std::numeric_limits<T>::infinity();
  const T most = clip ? upper : std::numeric_limits<T>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float own_radius = radius * share_of<float, M>(mask, i);
    const T x = image[i] + T(own_radius * (2.0f * uniform[i] - 1.0f));
    const T raised = x < least ? least : x;
    out[i] = raised > most ? most : raised;
  }
}

// `rng` is (2,) or (B, 2). `images` and `out` are dense and have the same strides; with (B, 2) the batch is outermost.
template <typename T>
void start_all(const Tensor& images, const PerImageValues& radii, const Mask& mask, const Tensor& rng, T lower, T upper,
               bool clip, const Tensor& out) {
  const char* const from = static_cast<const char*>(images.const_data_ptr());
  char* const to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t from_size = int64_t(images.element_size()), to_size = int64_t(out.element_size());
  const DType dtype = dtype_of(images), out_dtype = dtype_of(out);
  const bool per_image = rng.dim() == 2;
  const int64_t rows = per_image ? rng.size(0) : 1;
  const int64_t* const seeds = rng.const_data_ptr<int64_t>();
  const int64_t row_stride = rng.stride(0), step_stride = rng.stride(per_image ? 1 : 0);
  const int64_t count = images.numel() / rows;  // elements that share a row of rng
  constexpr int64_t kPart = 2048;               // a multiple of the 64 elements that `uniforms` computes at a time
  const int64_t parts = (count + kPart - 1) / kPart;
  const int64_t grain = 4 * kPart / std::min(count, kPart);
  mask.with_type<float>([&](auto type) {
    using M = typename decltype(type)::type;
    torch::stable::parallel_for(0, rows * parts, grain, [&](int64_t begin, int64_t end) {
      alignas(64) float uniform[kPart];
      T image[kPart], start[kPart];
      for (int64_t index = begin; index < end; ++index) {
        const int64_t row = index / parts, from_row = index % parts * kPart;
        const int64_t first = row * count + from_row, last = row * count + std::min(count, from_row + kPart);
        const int64_t* const seed = seeds + row * row_stride;
        const T* const values = as_arithmetic(dtype, from + first * from_size, image, last - first);
        T* const result = out_dtype == kArithmetic<T> ? reinterpret_cast<T*>(to + first * to_size) : start;
        on_this_processor([&](auto) RMCLA_INLINE {
          uniforms(seed[0], seed[step_stride], from_row / 4, last - first, uniform);
          for (int64_t i = first, stop; i < last; i = stop) {
            stop = std::min(radii.run_end(i, last), mask.run_end(i, last));
            add_noise<M>(values + (i - first), uniform + (i - first), result + (i - first), stop - i,
                         valid_radius(float(radii.at(i))), lower, upper, clip, mask.at(i));
          }
        });
        if (result == start) narrow(out_dtype, start, to + first * to_size, last - first);
      }
    });
  });
}

// `out`, if given, is written.
Tensor run(const Tensor& images, double epsilon, const std::optional<Tensor>& epsilons, const Tensor& rng, double lower,
           double upper, bool clip, const std::optional<Tensor>& mask, const std::optional<Tensor>& out) {
  const DType dtype = checked_start(images, epsilons, rng, mask, out);
  const Tensor dense = rng.dim() == 2 ? as_dense_images(images) : as_dense(images);
  const Mask shares(mask, dense, DType::kFloat);  // the noise is computed in float32, whatever the images' dtype
  const bool in_place =
      out && out->strides().equals(dense.strides()) && writable_beside(*out, dense, epsilons, rng, shares.tensor());
  if (in_place) mark_written(*out);
  const Tensor result = in_place ? *out : empty_strided(dense.sizes(), dense.strides(), dtype, dense);
  if (result.numel()) {
    const PerImageValues radii(epsilon, epsilons, dense);
    if (dtype == DType::kDouble) {
      start_all<double>(dense, radii, shares, rng, lower, upper, clip, result);
    } else {
      start_all<float>(dense, radii, shares, rng, float(lower), float(upper), clip, result);
    }
  }
  if (out && !in_place) copy(*out, result);
  return result;
}

Tensor random_start(const Tensor& images, double epsilon, const std::optional<Tensor>& epsilons, const Tensor& rng,
                    double lower, double upper, bool clip, const std::optional<Tensor>& mask) {
  return run(images, epsilon, epsilons, rng, lower, upper, clip, mask, {});
}

void random_start_out(const Tensor& images, double epsilon, const std::optional<Tensor>& epsilons, const Tensor& rng,
                      double lower, double upper, bool clip, const std::optional<Tensor>& mask, const Tensor& out) {
  run(images, epsilon, epsilons, rng, lower, upper, clip, mask, out);
}

[[maybe_unused]] const bool listed_random_start =
    implement<&random_start>("random_start") && implement<&random_start_out>("random_start.out");

}  // namespace
}  // namespace rmcla
