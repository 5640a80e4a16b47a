// How a batch of rows is cut for the GPU: a warp a row for few classes, a block a row for many. The row is held in
// registers up to 1,024 classes, in shared memory as far as that reaches (21,841 classes in any dtype on sm_90), else
// it is read again. `Operator` is the row's arithmetic: row(group, row, r) and logits(r), classes, rows, packed.
#pragma once

#include <cuda_runtime.h>

#include "cuda/groups.cuh"
#include "cuda/types.cuh"

namespace rmcla {

constexpr int kRowsPerBlock = 4;  // of a warp each
constexpr int kMediumThreads = 256;
constexpr int kLongThreads = 512;

template <typename T, int kItems, class Operator>
__global__ void __launch_bounds__(kRowsPerBlock* kWarp, 1) warp_rows(Operator operator_) {
  const int64_t r = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (r >= operator_.rows) return;
  Warp group;
  const RegisterRow<T, kItems, kWarp> row(operator_.logits(r), operator_.classes, group.rank(), operator_.packed);
  operator_.row(group, row, r);
}

template <typename T>
using MediumRow = RegisterRow<T, 4, kMediumThreads>;

template <typename T, class Operator>
__global__ void __launch_bounds__(kMediumThreads, 1) block_rows(Operator operator_) {
  __shared__ typename Block<kMediumThreads>::Shared shared;
  Block<kMediumThreads> group(shared);
  const int64_t r = blockIdx.x;
  const MediumRow<T> row(operator_.logits(r), operator_.classes, group.rank(), operator_.packed);
  operator_.row(group, row, r);
}

// Two blocks a multiprocessor hide one another's barriers; float64 needs the registers.
template <typename T, bool kStaged, class Operator>
__global__ void __launch_bounds__(kLongThreads, sizeof(T) < sizeof(double) ? 2 : 1) long_rows(Operator operator_) {
  extern __shared__ uint4 staging[];
  __shared__ typename Block<kLongThreads>::Shared shared;
  Block<kLongThreads> group(shared);
  const int64_t r = blockIdx.x;
  MemoryRow<T, kLongThreads> row(operator_.logits(r), operator_.classes, group.rank(), operator_.packed);
  if (kStaged) row.move_to(reinterpret_cast<T*>(staging));
  operator_.row(group, row, r);
}

// Whether long_rows can hold a row of `bytes` in the shared memory of the current device, which is then allowed to.
template <class Kernel>
bool allow_staging(Kernel* kernel, int64_t bytes) {
  int device = 0, limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return false;
  if (bytes + int64_t(sizeof(typename Block<kLongThreads>::Shared)) > limit) return false;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)) == cudaSuccess;
}

template <typename T, class Operator>
void launch_rows(const Operator& operator_, cudaStream_t stream) {
  const int classes = operator_.classes;
  const unsigned rows = unsigned(operator_.rows);
  const unsigned blocks = unsigned(ceil_div(operator_.rows, kRowsPerBlock));
  const int64_t bytes = ceil_div(int64_t(classes) * sizeof(T), sizeof(uint4)) * sizeof(uint4);
  if (classes <= kWarp) {
    warp_rows<T, 1><<<blocks, kRowsPerBlock * kWarp, 0, stream>>>(operator_);
  } else if (classes <= 4 * kWarp) {
    warp_rows<T, 4><<<blocks, kRowsPerBlock * kWarp, 0, stream>>>(operator_);
  } else if (classes <= MediumRow<T>::kCapacity) {
    block_rows<T><<<rows, kMediumThreads, 0, stream>>>(operator_);
  } else if (allow_staging(long_rows<T, true, Operator>, bytes)) {
    long_rows<T, true><<<rows, kLongThreads, bytes, stream>>>(operator_);
  } else {
    long_rows<T, false><<<rows, kLongThreads, 0, stream>>>(operator_);
  }
}

}  // namespace rmcla
