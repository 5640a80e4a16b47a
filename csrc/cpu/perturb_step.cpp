// perturb_step on the CPU: flat loops over dense memory. Tensors of other dtypes than that of the arithmetic are
// converted in parts that stay in the first cache.
#include "common/perturb_step.h"

#include "common/registration.h"
#include "cpu/elements.h"

namespace rmcla {
namespace {

// `mask` has the share of step and radius of each element, as M.
template <typename M, typename T>
RMCLA_SHARED void step_elements(const T* image, const T* origin, const T* grad, T* out, int64_t count, T step, T radius,
                                T lower, T upper, const void* mask) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T g = grad[i];
    const T sign = g > T(0) ? T(1) : g < T(0) ? T(-1) : g - g;  // g - g is 0 for both zeros and NaN for NaN
    const T share = share_of<T, M>(mask, i);
    out[i] = clipped_step(image[i], step * share, sign, origin[i], radius * share, lower, upper);
  }
}

// A part of the gradient as T. float64 becomes the signs, since a conversion to float would turn the smallest numbers
// into 0.
template <typename T>
const T* gradient_as(DType dtype, const void* from, T* room, int64_t count) {
  if (dtype != DType::kDouble || kArithmetic<T> == DType::kDouble) return as_arithmetic(dtype, from, room, count);
  on_this_processor([=](auto) RMCLA_INLINE {
    convert_each<double>(from, room, count, [](double x) RMCLA_INLINE {
      return x > 0 ? T(1) : x < 0 ? T(-1) : T(x - x);
    });
  });
  return room;
}

// Images, origin, grad and out are dense and have the same strides.
template <typename T>
void step_all(const Tensor& images, const Tensor& origin, const Tensor& grad, const PerImageValues& steps,
              const PerImageValues& radii, const Mask& mask, T lower, T upper, const Tensor& out) {
  const DType dtype = dtype_of(images), origin_dtype = dtype_of(origin), grad_dtype = dtype_of(grad);
  const bool direct = dtype == kArithmetic<T> && origin_dtype == kArithmetic<T> && grad_dtype == kArithmetic<T>;
  const int64_t size = int64_t(images.element_size());
  const auto bytes_of = [](const Tensor& tensor) { return static_cast<const char*>(tensor.const_data_ptr()); };
  const char *const image_data = bytes_of(images), *const origin_data = bytes_of(origin),
                    *const grad_data = bytes_of(grad);
  const int64_t origin_size = int64_t(origin.element_size()), grad_size = int64_t(grad.element_size());
  char* const result = static_cast<char*>(out.mutable_data_ptr());
  mask.with_type<T>([&](auto type) {
    using M = typename decltype(type)::type;
    torch::stable::parallel_for(0, images.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
      constexpr int64_t kPart = 512;  // so that four buffers and the elements before conversion fit the first cache
      alignas(64) T image[kPart], center[kPart], direction[kPart], moved[kPart];
      for (int64_t i = begin, stop; i < end; i = stop) {
        stop = std::min({steps.run_end(i, end), radii.run_end(i, end), mask.run_end(i, end)});
        if (!direct) stop = std::min(stop, i + kPart);
        const int64_t count = stop - i;
        T* const to = dtype == kArithmetic<T> ? reinterpret_cast<T*>(result + i * size) : moved;
        const T* const x = as_arithmetic(dtype, image_data + i * size, image, count);
        const T* const o = as_arithmetic(origin_dtype, origin_data + i * origin_size, center, count);
        const T* const g = gradient_as(grad_dtype, grad_data + i * grad_size, direction, count);
        on_this_processor([&](auto) RMCLA_INLINE {
          step_elements<M>(x, o, g, to, count, T(steps.at(i)), valid_radius(T(radii.at(i))), lower, upper, mask.at(i));
        });
        if (to == moved) narrow(dtype, moved, result + i * size, count);
      }
    });
  });
}

// `out`, if given, is written.
Tensor run(const Tensor& images, const Tensor& origin, const Tensor& grad, double step_size,
           const std::optional<Tensor>& step_sizes, double epsilon, const std::optional<Tensor>& epsilons, double lower,
           double upper, const std::optional<Tensor>& mask, const std::optional<Tensor>& out) {
  check_step(images, origin, grad, step_sizes, epsilons, mask, out);
  const DType dtype = dtype_of(images);
  const Tensor dense = as_dense(images), center = in_layout_of(dense, origin), direction = in_layout_of(dense, grad);
  const Mask shares(mask, dense, arithmetic_of(dtype));
  const bool in_place = out && out->strides().equals(dense.strides()) &&
                        writable_beside(*out, dense, center, direction, step_sizes, epsilons, shares.tensor());
  if (in_place) mark_written(*out);
  Tensor result = in_place ? *out : empty_strided(dense.sizes(), dense.strides(), dtype, dense);
  if (result.numel()) {
    const PerImageValues steps(step_size, step_sizes, dense), radii(epsilon, epsilons, dense);
    if (dtype == DType::kDouble) {
      step_all<double>(dense, center, direction, steps, radii, shares, lower, upper, result);
    } else {
      step_all<float>(dense, center, direction, steps, radii, shares, float(lower), float(upper), result);
    }
  }
  if (out && !in_place) copy(*out, result);
  return result;
}

Tensor perturb_step(const Tensor& images, const Tensor& origin, const Tensor& grad, double step_size,
                    const std::optional<Tensor>& step_sizes, double epsilon, const std::optional<Tensor>& epsilons,
                    double lower, double upper, const std::optional<Tensor>& mask) {
  return run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, {});
}

void perturb_step_out(const Tensor& images, const Tensor& origin, const Tensor& grad, double step_size,
                      const std::optional<Tensor>& step_sizes, double epsilon, const std::optional<Tensor>& epsilons,
                      double lower, double upper, const std::optional<Tensor>& mask, const Tensor& out) {
  run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out);
}

[[maybe_unused]] const bool listed_perturb_step =
    implement<&perturb_step>("perturb_step") && implement<&perturb_step_out>("perturb_step.out");

}  // namespace
}  // namespace rmcla
