// Checks of the arguments of the element-wise operators.
#pragma once

#include "common/checks.h"

namespace rmcla {

// `values`, if given, must be float32 of shape () or (B,), on the device of the images, since the kernel reads it.
inline void check_per_image(const char* name, const std::optional<Tensor>& values, const Tensor& images) {
  if (!values) return;
  RMCLA_CHECK(dtype_of(*values) == DType::kFloat, name, " must be float32; got ", dtype_of(*values));
  RMCLA_CHECK(values->dim() == 0 || (values->dim() == 1 && images.dim() && values->size(0) == images.size(0)), name,
              " must have shape () or (B,); got ", text_of(values->sizes()));
  check_device(name, *values, "images", images);
}

// `rng`, (seed, step) of the batch or (B, 2) with those of each image, must be int64 on the device of the images.
inline void check_rng(const Tensor& rng, const Tensor& images) {
  RMCLA_CHECK(dtype_of(rng) == DType::kLong, "rng must be int64; got ", dtype_of(rng));
  const int64_t dim = rng.dim();
  const bool per_image = dim == 2 && images.dim() && rng.size(0) == images.size(0);
  RMCLA_CHECK((dim == 1 || per_image) && rng.size(dim - 1) == 2,
              "rng must have shape (2,) or (B, 2), seed and step; got ", text_of(rng.sizes()));
  check_device("rng", rng, "images", images);
}

// `mask`, if given, must be bool or float, broadcast to the shape of the images, and be on their device.
inline void check_mask(const std::optional<Tensor>& mask, const Tensor& images) {
  if (!mask) return;
  const DType dtype = dtype_of(*mask);
  RMCLA_CHECK(dtype == DType::kBool || is_float(dtype), "mask must be bool or float; got ", dtype);
  const Sizes sizes = images.sizes(), of_mask = mask->sizes();
  bool fits = of_mask.size() <= sizes.size();
  for (size_t d = 0; fits && d < of_mask.size(); ++d)
    fits = of_mask[d] == 1 || of_mask[d] == sizes[sizes.size() - of_mask.size() + d];
  RMCLA_CHECK(fits, "mask must broadcast to shape ", text_of(sizes), "; got ", text_of(of_mask));
  check_device("mask", *mask, "images", images);
}

inline void check_step(const Tensor& images, const Tensor& origin, const Tensor& grad,
                       const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& epsilons,
                       const std::optional<Tensor>& mask, const std::optional<Tensor>& out) {
  RMCLA_CHECK(is_float(dtype_of(images)), "images must be float; got ", dtype_of(images));
  RMCLA_CHECK(is_float(dtype_of(origin)) || dtype_of(origin) == DType::kByte, "origin must be float or uint8; got ",
              dtype_of(origin));
  RMCLA_CHECK(is_float(dtype_of(grad)), "grad must be float; got ", dtype_of(grad));
  check_like("origin", origin, "images", images);
  check_like("grad", grad, "images", images);
  check_per_image("step_size", step_sizes, images);
  check_per_image("epsilon", epsilons, images);
  check_mask(mask, images);
  if (out) check_out(*out, "images", images, dtype_of(images));
}

// Returns the dtype of the result of random_start.
inline DType checked_start(const Tensor& images, const std::optional<Tensor>& epsilons, const Tensor& rng,
                           const std::optional<Tensor>& mask, const std::optional<Tensor>& out) {
  const DType dtype = dtype_of(images) == DType::kByte ? DType::kFloat : dtype_of(images);
  RMCLA_CHECK(is_float(dtype), "images must be float or uint8; got ", dtype);
  check_rng(rng, images);
  check_per_image("epsilon", epsilons, images);
  check_mask(mask, images);
  if (out) check_out(*out, "images", images, dtype);
  return dtype;
}

}  // namespace rmcla
