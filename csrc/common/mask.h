// The mask of perturb_step and random_start: its checks, and its place in memory beside the images.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace rmcla {

// `mask`, if given, must be bool or float, broadcast to the shape of the images, and be on their device.
inline void check_mask(const std::optional<at::Tensor>& mask, const at::Tensor& images) {
  if (!mask) return;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool || at::isFloatingType(mask->scalar_type()),
                   "mask must be bool or float; got ", mask->scalar_type());
  const int64_t missing = images.dim() - mask->dim();
  bool fits = missing >= 0;
  for (int64_t d = 0; fits && d < mask->dim(); ++d)
    fits = mask->size(d) == 1 || mask->size(d) == images.size(missing + d);
  TORCH_CHECK_VALUE(fits, "mask must broadcast to shape ", images.sizes(), "; got ", mask->sizes());
  TORCH_CHECK_VALUE(mask->device() == images.device(), "mask must be on ", images.device(), "; got ", mask->device());
}

// The mask in the memory order of the dense `images`: element i of their memory has value i % n of the result, which
// has n elements. A mask that repeats itself in this order is not repeated in memory, so that it stays in the caches. A
// bool mask stays bool, and any other becomes `arithmetic`. A mask that is of this form already is not copied. The
// images have at least one element.
inline std::optional<at::Tensor> mask_beside(const at::Tensor& images, const std::optional<at::Tensor>& given,
                                             at::ScalarType arithmetic) {
  if (!given) return {};
  const at::Tensor& mask = *given;
  const int64_t missing = images.dim() - mask.dim();
  at::Tensor period = images;
  for (int64_t d = 0; d < images.dim() && (d < missing || mask.size(d - missing) == 1); ++d) {
    const at::Tensor part = period.narrow(d, 0, 1);
    // The kernels need whole vectors, and are slow on short pieces.
    if (part.numel() < 64 || part.numel() % 16 || !part.is_non_overlapping_and_dense()) break;
    period = part;
  }
  const at::Tensor values = mask.expand(period.sizes());
  const auto dtype = mask.scalar_type() == at::kBool ? at::kBool : arithmetic;
  if (values.scalar_type() == dtype && values.strides() == period.strides()) return values;
  return at::empty_like(period, period.options().dtype(dtype)).copy_(values);
}

}  // namespace rmcla
