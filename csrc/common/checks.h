// Checks of the operators' arguments. Python's checks come first and explain more; these protect callers from C++, who
// call the registered operators. std::invalid_argument is a ValueError in Python.
#pragma once

#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/joint_gradient.h"
#include "common/tensors.h"

namespace rmcla {

inline std::ostream& operator<<(std::ostream& to, DType dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "float16",       "bfloat16",
                                    "uint8",   "bool",    "int64 indices", "another dtype"};
  return to << kNames[int(dtype)];
}

inline std::string text_of(Sizes sizes) {
  std::ostringstream text;
  for (size_t d = 0; d < sizes.size(); ++d) text << (d ? ", " : "(") << sizes[d];
  text << (sizes.size() == 0 ? "()" : sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// The parts of the message are computed only if the check fails.
#define RMCLA_CHECK(condition, ...) \
  if (!(condition)) ::rmcla::fail(__VA_ARGS__)

inline Target parse_target(const std::string& word) {
  if (word == "mc") return Target::kMostConfusing;
  if (word == "ll") return Target::kLeastLikely;
  if (word == "untargeted") return Target::kUntargeted;
  if (word == "margin") return Target::kMargin;
  RMCLA_CHECK(word == "given", "target must be 'mc', 'll', 'untargeted', 'margin' or 'given'; got '", word, "'");
  return Target::kGiven;
}

inline LabelScheme parse_label_scheme(const std::string& word) {
  if (word == "main") return LabelScheme::kMain;
  if (word == "sup") return LabelScheme::kSup;
  RMCLA_CHECK(word == "none", "label_scheme must be 'main', 'sup' or 'none'; got '", word, "'");
  return LabelScheme::kNone;
}

inline void check_logits(const Tensor& logits) {
  RMCLA_CHECK(is_float(dtype_of(logits)), "logits must be float; got ", dtype_of(logits));
  RMCLA_CHECK(logits.dim() == 2 && logits.size(1) >= 2, "logits must have shape (B, C), C >= 2; got ",
              text_of(logits.sizes()));
  RMCLA_CHECK(logits.size(1) < INT32_MAX - 1024, "logits must have fewer than 2**31 - 1025 classes; got ",
              logits.size(1));
}

inline void check_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  RMCLA_CHECK(on_one_device(tensor, other), name, " must be on the device of ", other_name);
}

// Class indices must be int64 (B,) on the device of the logits.
inline void check_classes(const char* name, const Tensor& labels, const Tensor& logits) {
  RMCLA_CHECK(dtype_of(labels) == DType::kLong, name, " must be int64; got ", dtype_of(labels));
  RMCLA_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0), name, " must have shape (", logits.size(0),
              ",); got ", text_of(labels.sizes()));
  check_device(name, labels, "logits", logits);
}

inline void check_rule(double beta, double gamma, std::optional<int64_t> top_k) {
  RMCLA_CHECK(beta > 0 && std::isfinite(beta), "beta must be positive and finite; got ", beta);
  RMCLA_CHECK(gamma > 0 && std::isfinite(gamma), "gamma must be positive and finite; got ", gamma);
  RMCLA_CHECK(!top_k || *top_k >= 1, "top_k must be at least 1; got ", *top_k);
}

// Label smoothing must lie in [0, 1). NaN does not.
inline void check_label_smoothing(double smoothing) {
  RMCLA_CHECK(smoothing >= 0 && smoothing < 1, "label_smoothing must lie in [0, 1); got ", smoothing);
}

// `tensor` must have the shape and device of `like`.
inline void check_like(const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  RMCLA_CHECK(tensor.sizes().equals(like.sizes()), name, " must have shape ", text_of(like.sizes()), "; got ",
              text_of(tensor.sizes()));
  check_device(name, tensor, like_name, like);
}

// No two elements of a tensor that is written may be the same memory.
inline void check_out(const Tensor& out, const char* like_name, const Tensor& like, DType dtype) {
  check_like("out", out, like_name, like);
  RMCLA_CHECK(dtype_of(out) == dtype, "out must be ", dtype, "; got ", dtype_of(out));
  const Sizes sizes = out.sizes(), strides = out.strides();
  for (size_t d = 0; d < sizes.size(); ++d)
    RMCLA_CHECK(sizes[d] < 2 || strides[d] != 0 || out.numel() == 0,
                "out must not share memory between its elements; got strides ", text_of(strides));
}

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

}  // namespace rmcla
