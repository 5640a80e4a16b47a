// Checks of the operators' arguments. Python's checks come first and explain more; these protect callers from C++, who
// call the registered operators. std::invalid_argument is a ValueError in Python.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/tensors.h"

namespace rmcla {

inline std::ostream& operator<<(std::ostream& to, DType dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16",
                                    "uint8",   "bool",    "int64",   "another dtype"};
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

inline void check_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  RMCLA_CHECK(on_one_device(tensor, other), name, " must be on the device of ", other_name);
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

}  // namespace rmcla
