// The dtypes of tensors that the operators know, and a C++ type as an argument.
#pragma once

namespace rmcla {

// Stands for T where a function is called with a type that was chosen at run time.
template <typename T>
struct Type {
  using type = T;
};

enum class DType { kFloat, kDouble, kHalf, kBFloat16, kByte, kBool, kLong, kOther };

constexpr bool is_float(DType dtype) { return dtype <= DType::kBFloat16; }

// The dtype of the arithmetic on values of `dtype`.
constexpr DType arithmetic_of(DType dtype) { return dtype == DType::kDouble ? DType::kDouble : DType::kFloat; }

}  // namespace rmcla
