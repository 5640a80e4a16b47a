// The types of elements in memory and in arithmetic, elements that move together, and the conversion of a dtype known
// at run time to a C++ type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dtype.h"

namespace rmcla {

// The type in which arithmetic on the storage type T is done, and the correctly rounded conversions to it and back.
template <typename T>
struct Storage {
  using Wide = T;
  static __device__ __forceinline__ T widen(T value) { return value; }
  static __device__ __forceinline__ T narrow(T value) { return value; }
};

template <>
struct Storage<__half> {
  using Wide = float;
  static __device__ __forceinline__ float widen(__half value) { return __half2float(value); }
  static __device__ __forceinline__ __half narrow(float value) { return __float2half_rn(value); }
};

template <>
struct Storage<__nv_bfloat16> {
  using Wide = float;
  static __device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
  static __device__ __forceinline__ __nv_bfloat16 narrow(float value) { return __float2bfloat16_rn(value); }
};

// N elements that are loaded and stored together, 16 bytes at a time.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T item[N];
};

template <int N, typename E>
__device__ __forceinline__ Pack<E, N>& pack_at(E* data, int64_t i) {
  return *reinterpret_cast<Pack<E, N>*>(data + i);
}

template <int N, typename E>
__device__ __forceinline__ const Pack<E, N>& pack_at(const E* data, int64_t i) {
  return *reinterpret_cast<const Pack<E, N>*>(data + i);
}

// Calls visit(Type<T>()) with the type T of the float dtype.
template <class Visit>
void visit_float(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kDouble:
      return visit(Type<double>());
    case DType::kHalf:
      return visit(Type<__half>());
    case DType::kBFloat16:
      return visit(Type<__nv_bfloat16>());
    default:
      return visit(Type<float>());
  }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace rmcla
