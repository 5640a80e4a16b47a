// How the rows of a batch are distributed over the GPU. A row of up to 1,024 classes is held in registers: by a warp,
// which needs no barrier, or by a block if there are so few rows that much of the GPU would be idle. A longer row is
// held in shared memory if it fits (21,841 classes do, in any dtype, on sm_90); otherwise each pass reads it again. A
// block computes it or, on sm_90, a cluster of blocks if the GPU has room for them. `Operator` has the arithmetic of a
// row, row(group, row, r), and the logits.
#pragma once

#include "cuda/groups.cuh"
#include "cuda/host.h"
#include "cuda/rows.cuh"

namespace rmcla {

// Whether every row can be read in packs of kPack elements.
inline bool rows_pack(const Tensor& matrix) {
  return matrix.size(1) % kPack == 0 && matrix.stride(0) % kPack == 0 && vectors_align(matrix, kPack);
}

// The logits of a batch, whose rows are dense. `packed` says whether they, and all that is read and written beside
// them, can be accessed in packs.
template <typename T>
struct Logits {
  const T* data;
  int64_t stride, rows;
  int classes;
  bool packed;

  Logits(const Tensor& logits, bool others_pack)
      : data(read<T>(logits)),
        stride(logits.stride(0)),
        rows(logits.size(0)),
        classes(int(logits.size(1))),
        packed(others_pack && rows_pack(logits)) {}

  __device__ __forceinline__ const T* row(int64_t r) const { return data + r * stride; }
};

constexpr int kMediumThreads = 256;
constexpr int kLongThreads = 512;

// Rows per block, where each row has a warp. Blocks for wide rows are small, so that a few hundred rows reach every
// multiprocessor.
template <int kItems>
constexpr int kRowsPerBlock = kItems > 4 ? 2 : 4;

// The blocks that should run on a multiprocessor at once. Eight blocks are sixteen rows with 32 elements per lane. That
// leaves 128 registers per thread, which are too few for float64.
template <typename T, int kItems>
constexpr int kWarpBlocks = kItems > 4 && sizeof(T) < sizeof(double) ? 8 : 1;

template <typename T, int kItems, bool kPacked, class Operator>
__global__ void __launch_bounds__(kRowsPerBlock<kItems>* kWarp, kWarpBlocks<T, kItems>) warp_rows(Operator operator_) {
  const int64_t r = int64_t(blockIdx.x) * kRowsPerBlock<kItems> + threadIdx.x / kWarp;
  if (r >= operator_.logits.rows) return;
  Warp group;
  const RegisterRow<T, kItems, kWarp, kPacked> row(operator_.logits.row(r), operator_.logits.classes, group.rank());
  operator_.row(group, row, r);
}

template <typename T, bool kPacked>
using MediumRow = RegisterRow<T, 4, kMediumThreads, kPacked>;

template <typename T, bool kPacked, class Operator>
__global__ void __launch_bounds__(kMediumThreads, 1) block_rows(Operator operator_) {
  __shared__ typename Block<kMediumThreads>::Shared shared;
  Block<kMediumThreads> group(shared);
  const int64_t r = blockIdx.x;
  const MediumRow<T, kPacked> row(operator_.logits.row(r), operator_.logits.classes, group.rank());
  operator_.row(group, row, r);
}

// Blocks per multiprocessor for long rows. While one of two blocks waits at a barrier, the other can work. float64
// needs the registers of both.
template <typename T>
constexpr int kLongBlocks = sizeof(T) < sizeof(double) ? 2 : 1;

// The number of elements of a row that one of `blocks` blocks holds, which is a multiple of kPack.
RMCLA_SHARED constexpr int piece_of(int classes, int blocks) {
  return (classes + blocks * kPack - 1) / (blocks * kPack) * kPack;
}

template <typename T, bool kStaged, class Operator>
__global__ void __launch_bounds__(kLongThreads, kLongBlocks<T>) long_rows(Operator operator_, int blocks) {
  extern __shared__ uint4 staging[];
  __shared__ typename Cluster<kLongThreads>::Shared shared;
  Cluster<kLongThreads> group(shared, blocks);
  const int64_t r = blockIdx.x / unsigned(blocks);
  const int classes = operator_.logits.classes;
  const int piece = piece_of(classes, blocks);
  const int begin = group.block() * piece;
  const int end = begin + piece < classes ? begin + piece : classes;
  MemoryRow<T, kLongThreads> row(operator_.logits.row(r), classes, begin, end, threadIdx.x, operator_.logits.packed);
  if (kStaged) row.move_to(reinterpret_cast<T*>(staging));
  operator_.row(group, row, r);
}

// An attribute of the current device; 0 if it cannot be read.
inline int attribute_of(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Whether long_rows can hold `bytes` of a row in the shared memory of the current device. The kernel is allowed all of
// that memory and not only `bytes`, since another thread may launch it for another row size in between.
template <class Kernel>
bool allow_staging(Kernel* kernel, int64_t bytes) {
  const int most =
      attribute_of(cudaDevAttrMaxSharedMemoryPerBlockOptin) - int(sizeof(typename Cluster<kLongThreads>::Shared));
  if (bytes > most) return false;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess) return true;
  cudaGetLastError();  // clears the error, which the check after the next launch would report
  return false;
}

// Whether the current device has clusters, and `kernel` was compiled for such a device.
template <class Kernel>
bool takes_clusters(Kernel* kernel) {
  cudaFuncAttributes attributes;
  return attribute_of(cudaDevAttrClusterLaunch) && cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.ptxVersion >= 90;
}

// How many blocks share a long row: as large a power of two as possible, while all blocks run on the device at once and
// every thread has at least four elements.
template <typename T>
int blocks_of_row(int64_t rows, int classes) {
  const int64_t room = int64_t(attribute_of(cudaDevAttrMultiProcessorCount)) * kLongBlocks<T>;
  int blocks = 1;
  while (2 * blocks <= Cluster<kLongThreads>::kMostBlocks && rows * 2 * blocks <= room &&
         classes >= 2 * blocks * kLongThreads * kPack) {
    blocks *= 2;
  }
  return blocks;
}

template <typename T, bool kStaged, class Operator>
void launch_long_rows(const Operator& operator_, int blocks, int64_t bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(operator_.logits.rows) * blocks;
  config.blockDim = kLongThreads;
  config.dynamicSmemBytes = size_t(bytes);
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(blocks), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  cudaLaunchKernelEx(&config, long_rows<T, kStaged, Operator>, operator_, blocks);
}

template <typename T, bool kPacked, class Operator>
void launch_register_rows(const Operator& operator_, cudaStream_t stream) {
  const int classes = operator_.logits.classes;
  const int64_t rows = operator_.logits.rows;
  const auto blocks = [=](int rows_per_block) { return unsigned(ceil_div(rows, rows_per_block)); };
  if (classes <= 4 * kWarp) {
    warp_rows<T, 4, kPacked><<<blocks(kRowsPerBlock<4>), kRowsPerBlock<4> * kWarp, 0, stream>>>(operator_);
  } else if (rows <= 2 * attribute_of(cudaDevAttrMultiProcessorCount)) {
    block_rows<T, kPacked><<<unsigned(rows), kMediumThreads, 0, stream>>>(operator_);
  } else {
    warp_rows<T, 32, kPacked><<<blocks(kRowsPerBlock<32>), kRowsPerBlock<32> * kWarp, 0, stream>>>(operator_);
  }
}

template <typename T, class Operator>
void launch_rows(const Operator& operator_, cudaStream_t stream) {
  const int classes = operator_.logits.classes;
  if (classes <= kWarp) {
    const unsigned blocks = unsigned(ceil_div(operator_.logits.rows, kRowsPerBlock<1>));
    warp_rows<T, 1, false><<<blocks, kRowsPerBlock<1> * kWarp, 0, stream>>>(operator_);
  } else if (classes <= MediumRow<T, true>::kCapacity) {
    if (operator_.logits.packed) {
      launch_register_rows<T, true>(operator_, stream);
    } else {
      launch_register_rows<T, false>(operator_, stream);
    }
  } else {
    auto* const staged = long_rows<T, true, Operator>;
    const int blocks = takes_clusters(staged) ? blocks_of_row<T>(operator_.logits.rows, classes) : 1;
    const int64_t bytes = ceil_div(int64_t(piece_of(classes, blocks)) * sizeof(T), sizeof(uint4)) * sizeof(uint4);
    if (allow_staging(staged, bytes)) {
      launch_long_rows<T, true>(operator_, blocks, bytes, stream);
    } else {
      launch_long_rows<T, false>(operator_, blocks, 0, stream);
    }
  }
}

}  // namespace rmcla
