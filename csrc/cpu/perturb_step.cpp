// perturb_step on the CPU: flat loops over dense memory; other dtypes than the arithmetic's are converted in parts that
// stay in cache.
#include "common/perturb_step.h"

#include <torch/library.h>

#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace rmcla {
namespace {

template <typename T>
struct StepRun {
  const T* image;
  const T* origin;
  const T* grad;
  T* out;
  int64_t count;
  T step, radius, lower, upper;
  bool stream;  // store past the caches
};

template <typename V>
RMCLA_SHARED void store_past_caches(void* to, V v) {
#if defined(__SSE2__)
  for (size_t part = 0; part < sizeof v; part += 16) {
    __m128i piece;
    std::memcpy(&piece, reinterpret_cast<const char*>(&v) + part, 16);
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + part), piece);
  }
#else
  simd::store(to, v);
#endif
}

template <int Bytes, typename T>
RMCLA_SHARED void step_run(const StepRun<T>& run) {
  using V = typename simd::Lanes<T, Bytes>::Vector;
  constexpr int64_t kCount = simd::Lanes<T, Bytes>::kCount;
  constexpr int64_t kAhead = 1024 / int64_t(sizeof(T));  // elements: the hardware stops at page borders
  const V step = simd::splat<V>(run.step), radius = simd::splat<V>(run.radius);
  const V lower = simd::splat<V>(run.lower), upper = simd::splat<V>(run.upper);
  const auto moved = [&](const T* image, const T* origin, const T* grad) __attribute__((always_inline)) {
    const V g = simd::load<V>(grad);
    // 0 for both zeros, NaN for NaN.
    const V sign = g > V{} ? simd::splat<V>(T(1)) : (g < V{} ? simd::splat<V>(T(-1)) : g - g);
    return clipped_step(simd::load<V>(image), step, sign, simd::load<V>(origin), radius, lower, upper);
  };
  int64_t i = 0;
  const auto part = [&](int64_t count) __attribute__((always_inline)) {
    T image[kCount] = {}, origin[kCount] = {}, grad[kCount] = {};
    const size_t bytes = size_t(count) * sizeof(T);
    std::memcpy(image, run.image + i, bytes);
    std::memcpy(origin, run.origin + i, bytes);
    std::memcpy(grad, run.grad + i, bytes);
    const V out = moved(image, origin, grad);
    std::memcpy(run.out + i, &out, bytes);
    i += count;
  };
  if (run.stream) {
    const int64_t misaligned = int64_t(reinterpret_cast<uintptr_t>(run.out) % Bytes / sizeof(T));
    if (misaligned) part(std::min(run.count, kCount - misaligned));
    for (; i + kCount <= run.count; i += kCount) {
      __builtin_prefetch(run.image + i + kAhead);
      __builtin_prefetch(run.origin + i + kAhead);
      __builtin_prefetch(run.grad + i + kAhead);
      store_past_caches(run.out + i, moved(run.image + i, run.origin + i, run.grad + i));
    }
  } else {
    for (; i + kCount <= run.count; i += kCount)
      simd::store(run.out + i, moved(run.image + i, run.origin + i, run.grad + i));
  }
  if (i < run.count) part(run.count - i);
#if defined(__SSE2__)
  if (run.stream) _mm_sfence();
#endif
}

template <int Bytes>
RMCLA_SHARED void step_float_lanes(const StepRun<float>& run) {
  step_run<Bytes>(run);
}
template <int Bytes>
RMCLA_SHARED void step_double_lanes(const StepRun<double>& run) {
  step_run<Bytes>(run);
}
RMCLA_KERNEL(step_float, (const StepRun<float>& run), (run))
RMCLA_KERNEL(step_double, (const StepRun<double>& run), (run))

void step_elements(const StepRun<float>& run) { step_float(run); }
void step_elements(const StepRun<double>& run) { step_double(run); }

// A part of the gradient as T, or its signs where T would lose them.
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

// All four are dense, with the same strides.
template <typename T>
void step_all(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, const PerImage& steps,
              const PerImage& radii, T lower, T upper, const at::Tensor& out, bool fresh) {
  const auto dtype = images.scalar_type();
  const bool direct =
      dtype == kArithmetic<T> && origin.scalar_type() == kArithmetic<T> && grad.scalar_type() == kArithmetic<T>;
  const bool stream = direct && fresh && int64_t(out.nbytes()) >= streaming_bytes();
  char* const result = static_cast<char*>(out.mutable_data_ptr());
  const int64_t size = int64_t(images.element_size());
  at::parallel_for(0, images.numel(), at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
    constexpr int64_t kPart = 2048;
    T image[kPart], center[kPart], direction[kPart], moved[kPart];
    for (int64_t i = begin; i < end;) {
      int64_t stop = std::min(steps.run_end(i, end), radii.run_end(i, end));
      if (!direct) stop = std::min(stop, i + kPart);
      const int64_t count = stop - i;
      T* const to = dtype == kArithmetic<T> ? reinterpret_cast<T*>(result + i * size) : moved;
      step_elements(StepRun<T>{as_arithmetic(dtype, element(images, i), image, count),
                               as_arithmetic(origin.scalar_type(), element(origin, i), center, count),
                               gradient_as(grad.scalar_type(), element(grad, i), direction, count), to, count,
                               T(steps.at(i)), valid_radius(T(radii.at(i))), lower, upper, stream});
      if (to == moved) narrow(dtype, moved, result + i * size, count);
      i = stop;
    }
  });
}

// `out` is undefined, or written.
at::Tensor run(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
               const std::optional<at::Tensor>& step_sizes, double epsilon, const std::optional<at::Tensor>& epsilons,
               double lower, double upper, at::Tensor out) {
  at::AutoDispatchBelowADInplaceOrView guard;
  TORCH_CHECK_TYPE(at::isFloatingType(images.scalar_type()), "images must be float; got ", images.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(origin.scalar_type()) || origin.scalar_type() == at::kByte,
                   "origin must be float or uint8; got ", origin.scalar_type());
  TORCH_CHECK_TYPE(at::isFloatingType(grad.scalar_type()), "grad must be float; got ", grad.scalar_type());
  check_like("origin", origin, images);
  check_like("grad", grad, images);
  check_per_image("step_size", step_sizes, images);
  check_per_image("epsilon", epsilons, images);
  if (out.defined()) check_out(out, images, images.scalar_type());

  const at::Tensor dense = as_dense(images);
  const at::Tensor center = in_layout_of(dense, origin), direction = in_layout_of(dense, grad);
  const bool in_place = out.defined() && out.strides() == dense.strides() && writable_in_place(out, dense) &&
                        writable_in_place(out, center) && writable_in_place(out, direction);
  const at::Tensor result = in_place ? out : at::empty_like(dense);
  if (result.numel()) {
    const bool fresh = !result.is_alias_of(dense) && !result.is_alias_of(center) && !result.is_alias_of(direction);
    const PerImage steps(step_size, step_sizes, dense), radii(epsilon, epsilons, dense);
    if (images.scalar_type() == at::kDouble) {
      step_all<double>(dense, center, direction, steps, radii, lower, upper, result, fresh);
    } else {
      step_all<float>(dense, center, direction, steps, radii, float(lower), float(upper), result, fresh);
    }
  }
  if (!out.defined()) return result;
  if (!in_place) out.copy_(result);
  written(out);
  return out;
}

at::Tensor perturb_step(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
                        const std::optional<at::Tensor>& step_sizes, double epsilon,
                        const std::optional<at::Tensor>& epsilons, double lower, double upper) {
  return run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, {});
}

void perturb_step_out(const at::Tensor& images, const at::Tensor& origin, const at::Tensor& grad, double step_size,
                      const std::optional<at::Tensor>& step_sizes, double epsilon,
                      const std::optional<at::Tensor>& epsilons, double lower, double upper, const at::Tensor& out) {
  run(images, origin, grad, step_size, step_sizes, epsilon, epsilons, lower, upper, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) {
  m.impl("perturb_step", perturb_step);
  m.impl("perturb_step.out", perturb_step_out);
}

}  // namespace rmcla
