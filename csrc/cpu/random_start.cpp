// random_start on the CPU: for one part of memory after another, the noise and then its sum with the images.
#include <torch/library.h>

#include "common/perturb_step.h"
#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"

namespace rmcla {
namespace {

at::ScalarType result_dtype(const at::Tensor& images) {
  return images.scalar_type() == at::kByte ? at::kFloat : images.scalar_type();
}

// `rng` is (2,) or (B, 2). `images` and `out` are dense and have the same strides; with (B, 2) the batch is outermost.
template <typename T>
void start_all(const at::Tensor& images, const PerImage& radii, const Mask& mask, const at::Tensor& rng, T lower,
               T upper, bool clip, const at::Tensor& out) {
  const char* const from = static_cast<const char*>(images.const_data_ptr());
  char* const to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t from_size = int64_t(images.element_size()), to_size = int64_t(out.element_size());
  const int64_t rows = rng.dim() == 2 ? rng.size(0) : 1;
  const int64_t* const seeds = rng.const_data_ptr<int64_t>();
  const int64_t row_stride = rng.stride(0), step_stride = rng.stride(-1);
  const int64_t count = images.numel() / rows;  // elements that share a row of rng
  constexpr int64_t kPart = 2048;               // a multiple of the 64 elements that `uniforms` computes at a time
  const auto add_scaled = mask.choose(kernels_of<T>().add_scaled);
  const int64_t parts = (count + kPart - 1) / kPart;
  const int64_t grain = 4 * kPart / std::min(count, kPart);
  at::parallel_for(0, rows * parts, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float uniform[kPart];
    T image[kPart], start[kPart];
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index / parts, from_row = index % parts * kPart;
      const int64_t first = row * count + from_row, last = row * count + std::min(count, from_row + kPart);
      const int64_t* const seed = seeds + row * row_stride;
      kernels().uniforms(seed[0], seed[step_stride], from_row / 4, (last - first + 63) / 64 * 16, uniform);
      const T* const values = as_arithmetic(images.scalar_type(), from + first * from_size, image, last - first);
      const bool direct = out.scalar_type() == kArithmetic<T>;
      T* const result = direct ? reinterpret_cast<T*>(to + first * to_size) : start;
      for (int64_t i = first, stop; i < last; i = stop) {
        stop = std::min(radii.run_end(i, last), mask.run_end(i, last));
        add_scaled(values + (i - first), uniform + (i - first), valid_radius(float(radii.at(i))), lower, upper, clip,
                   result + (i - first), stop - i, mask.at(i));
      }
      if (!direct) narrow(out.scalar_type(), start, to + first * to_size, last - first);
    }
  });
}

// `out` may be undefined; otherwise it is written and returned.
at::Tensor run(const at::Tensor& images, double epsilon, const std::optional<at::Tensor>& epsilons,
               const at::Tensor& rng, double lower, double upper, bool clip, const std::optional<at::Tensor>& mask,
               at::Tensor out) {
  at::AutoDispatchBelowADInplaceOrView guard;
  TORCH_CHECK_TYPE(at::isFloatingType(images.scalar_type()) || images.scalar_type() == at::kByte,
                   "images must be float or uint8; got ", images.scalar_type());
  check_rng(rng, images);
  check_per_image("epsilon", epsilons, images);
  check_mask(mask, images);
  const at::ScalarType dtype = result_dtype(images);
  if (out.defined()) check_out(out, images, dtype);

  const at::Tensor dense = rng.dim() == 2 ? as_dense_images(images) : as_dense(images);
  const Mask shares(mask, dense, at::kFloat);  // the noise is computed in float32, whatever the images' dtype
  const bool in_place =
      out.defined() && out.strides() == dense.strides() && writable_beside(out, dense, epsilons, rng, shares.tensor());
  const at::Tensor result = in_place ? out : at::empty_like(dense, dense.options().dtype(dtype));
  if (result.numel()) {
    const PerImage radii(epsilon, epsilons, dense);
    if (dtype == at::kDouble) {
      start_all<double>(dense, radii, shares, rng, lower, upper, clip, result);
    } else {
      start_all<float>(dense, radii, shares, rng, float(lower), float(upper), clip, result);
    }
  }
  if (!out.defined()) return result;
  if (!in_place) out.copy_(result);
  mark_written(out);
  return out;
}

at::Tensor random_start(const at::Tensor& images, double epsilon, const std::optional<at::Tensor>& epsilons,
                        const at::Tensor& rng, double lower, double upper, bool clip,
                        const std::optional<at::Tensor>& mask) {
  return run(images, epsilon, epsilons, rng, lower, upper, clip, mask, {});
}

void random_start_out(const at::Tensor& images, double epsilon, const std::optional<at::Tensor>& epsilons,
                      const at::Tensor& rng, double lower, double upper, bool clip,
                      const std::optional<at::Tensor>& mask, const at::Tensor& out) {
  run(images, epsilon, epsilons, rng, lower, upper, clip, mask, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) {
  m.impl("random_start", random_start);
  m.impl("random_start.out", random_start_out);
}

}  // namespace rmcla
