// perturb_step on the CPU: flat loops over dense memory. Tensors of other dtypes than that of the arithmetic are
// converted in parts that stay in cache.
#include "common/perturb_step.h"

#include <torch/library.h>

#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/perturb_step_elements.h"

namespace rmcla {
namespace {

// A part of the gradient as T, or its signs if a conversion to T could lose them.
template <typename T>
const T* gradient_as(at::ScalarType dtype, const void* from, T* room, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    if (dtype == at::kDouble) {
      signs(static_cast<const double*>(from), room, count);
      return room;
    }
  }
  return as_arithmetic(dtype, from, room, count);
}

const char* element(const at::Tensor& tensor, int64_t i) {
  return static_cast<const char*>(tensor.const_data_ptr()) + i * int64_t(tensor.element_size());
}

// Images, origin, grad and out are dense and have the same strides. `fresh` means that `out` shares no memory with the
// inputs.
template <typename T>
void step_all(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, const PerImage& steps,
              const PerImage& radii, const Mask& mask, T lower, T upper, const at::Tensor& out, bool fresh) {
  const auto dtype = images.scalar_type();
  const bool direct =
      dtype == kArithmetic<T> && origin.scalar_type() == kArithmetic<T> && grad.scalar_type() == kArithmetic<T>;
  const auto step_elements = mask.choose(kernels_of<T>().step_elements);
  const bool stream = direct && fresh && int64_t(out.nbytes()) >= streaming_bytes();
  char* const result = static_cast<char*>(out.mutable_data_ptr());
  const int64_t size = int64_t(images.element_size());
  at::parallel_for(0, images.numel(), at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
    constexpr int64_t kPart = 512;  // so that four buffers and the elements before conversion fit the first cache
    T image[kPart], center[kPart], direction[kPart], moved[kPart];
    for (int64_t i = begin; i < end;) {
      int64_t stop = std::min({steps.run_end(i, end), radii.run_end(i, end), mask.run_end(i, end)});
      if (!direct) stop = std::min(stop, i + kPart);
      const int64_t count = stop - i;
      T* const to = dtype == kArithmetic<T> ? reinterpret_cast<T*>(result + i * size) : moved;
      step_elements(StepRun<T>{as_arithmetic(dtype, element(images, i), image, count),
                               as_arithmetic(origin.scalar_type(), element(origin, i), center, count),
                               gradient_as(grad.scalar_type(), element(grad, i), direction, count), to, count,
                               T(steps.at(i)), valid_radius(T(radii.at(i))), lower, upper, stream, mask.at(i)});
      if (to == moved) narrow(dtype, moved, result + i * size, count);
      i = stop;
    }
  });
}

// `out` may be undefined; otherwise it is written and returned.
at::Tensor run(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
               const std::optional<at::Tensor>& step_sizes, double epsilon, const std::optional<at::Tensor>& epsilons,
               double lower, double upper, const std::optional<at::Tensor>& mask, at::Tensor out) {
  at::AutoDispatchBelowADInplaceOrView guard;
  TORCH_CHECK_TYPE(at::isFloatingType(images.scalar_type()), "images must be float; got ", images.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(origin.scalar_type()) || origin.scalar_type() == at::kByte,
                   "origin must be float or uint8; got ", origin.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(grad.scalar_type()), "grad must be float; got ", grad.scalar_type());
  check_like("origin", origin, images);
  check_like("grad", grad, images);
  check_per_image("step_size", step_sizes, images);
  check_per_image("epsilon", epsilons, images);
  check_mask(mask, images);
  if (out.defined()) check_out(out, images, images.scalar_type());

  const at::Tensor dense = as_dense(images);
  const at::Tensor center = in_layout_of(dense, origin), direction = in_layout_of(dense, grad);
  const Mask shares(mask, dense, images.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const bool in_place = out.defined() && out.strides() == dense.strides() &&
                        writable_beside(out, dense, center, direction, step_sizes, epsilons, shares.tensor());
  const at::Tensor result = in_place ? out : at::empty_like(dense);
  if (result.numel()) {
    const bool fresh = !same_elements(result, dense) && !same_elements(result, center) &&
                       !same_elements(result, direction) &&
                       !(shares.tensor() && same_elements(result, *shares.tensor()));
    const PerImage steps(step_size, step_sizes, dense), radii(epsilon, epsilons, dense);
    if (images.scalar_type() == at::kDouble) {
      step_all<double>(dense, center, direction, steps, radii, shares, lower, upper, result, fresh);
    } else {
      step_all<float>(dense, center, direction, steps, radii, shares, float(lower), float(upper), result, fresh);
    }
  }
  if (!out.defined()) return result;
  if (!in_place) out.copy_(result);
  mark_written(out);
  return out;
}

at::Tensor perturb_step(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
                        const std::optional<at::Tensor>& step_sizes, double epsilon,
                        const std::optional<at::Tensor>& epsilons, double lower, double upper,
                        const std::optional<at::Tensor>& mask) {
  return run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, {});
}

void perturb_step_out(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
                      const std::optional<at::Tensor>& step_sizes, double epsilon,
                      const std::optional<at::Tensor>& epsilons, double lower, double upper,
                      const std::optional<at::Tensor>& mask, const at::Tensor& out) {
  run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, mask, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) {
  m.impl("perturb_step", perturb_step);
  m.impl("perturb_step.out", perturb_step_out);
}

}  // namespace rmcla
