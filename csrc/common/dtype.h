// The dtypes of tensors that the operators know.
#pragma once

namespace rmcla {

enum class DType { kFloat, kDouble, kHalf, kBFloat16, kByte, kBool, kLong, kOther };

constexpr bool is_float(DType dtype) { return dtype <= DType::kBFloat16; }

// The dtype of the arithmetic on values of `dtype`.
constexpr DType arithmetic_of(DType dtype) { return dtype == DType::kDouble ? DType::kDouble : DType::kFloat; }

}  // namespace rmcla
