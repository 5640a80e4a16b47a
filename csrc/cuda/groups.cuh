// The lanes that share a row: a warp, a block, or a cluster of blocks.
#pragma once

#include <cstdint>
#include <cstring>

namespace rmcla {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

template <typename V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) % sizeof(unsigned) == 0);
  unsigned words[sizeof(V) / sizeof(unsigned)];
  memcpy(words, &value, sizeof value);
#pragma unroll
  for (unsigned& word : words) word = __shfl_xor_sync(kFullWarp, word, mask);
  memcpy(&value, words, sizeof value);
  return value;
}

// A butterfly reduction over groups of `kWidth` lanes. All lanes get the same bits, since merge(a, b) equals merge(b,
// a). The exception is a maximum or minimum of zeros, whose sign may differ.
template <int kWidth, typename V, class Merge>
__device__ __forceinline__ V butterfly(V value, Merge merge) {
#pragma unroll
  for (int mask = kWidth / 2; mask > 0; mask /= 2) value = merge(value, shuffle_xor(value, mask));
  return value;
}

__device__ __forceinline__ uint32_t warp_sum(uint32_t value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kFullWarp, value);
#else
  return butterfly<kWarp>(value, [](uint32_t a, uint32_t b) { return a + b; });
#endif
}

// A group of the lanes of one warp.
class Warp {
 public:
  static constexpr int kLanes = kWarp;

  __device__ int rank() const { return threadIdx.x % kWarp; }

  template <typename V, class Merge>
  __device__ __forceinline__ V reduce(V value, Merge merge) {
    return butterfly<kWarp>(value, merge);
  }

  __device__ __forceinline__ uint32_t sum(uint32_t value) { return warp_sum(value); }
};

// A group of the threads of one block. A reduction needs only one barrier: it writes to the half of the shared memory
// that the previous reduction did not use. Before a thread writes to the same half again, it has passed the barrier of
// the reduction in between, which every thread reaches only after it has read that half.
template <int kThreads>
class Block {
 public:
  static constexpr int kLanes = kThreads;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kSlot = 32;  // bytes, the largest value that is reduced
  static_assert((kWarps & (kWarps - 1)) == 0 && kWarps <= kWarp);

  struct Shared {
    alignas(16) unsigned char slots[2][kWarps * kSlot];
  };

  __device__ explicit Block(Shared& shared) : shared_(shared) {}

  __device__ int rank() const { return threadIdx.x; }

  __device__ int half() const { return half_; }  // that the next reduction uses

  template <typename V, class Merge>
  __device__ __forceinline__ V reduce(V value, Merge merge) {
    static_assert(sizeof(V) <= kSlot);
    return across_warps(butterfly<kWarp>(value, merge), merge);
  }

  __device__ __forceinline__ uint32_t sum(uint32_t value) {
    return across_warps(warp_sum(value), [](uint32_t a, uint32_t b) { return a + b; });
  }

 private:
  template <typename V, class Merge>
  __device__ __forceinline__ V across_warps(V value, Merge merge) {
    V* slots = reinterpret_cast<V*>(shared_.slots[half_]);
    half_ ^= 1;
    if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = value;
    __syncthreads();
    return butterfly<kWarps>(slots[threadIdx.x % kWarps], merge);
  }

  Shared& shared_;
  int half_ = 0;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define RMCLA_CLUSTERS 1
#else
#define RMCLA_CLUSTERS 0
#endif

// A group of neighbouring blocks that share a row and can access each other's shared memory: a thread block cluster,
// which sm_90 has. On other GPUs it is one block. A reduction first reduces within each block, as Block does. Each
// block then writes its result to the shared memory of all blocks, to the half that the previous reduction did not use,
// and one barrier of the cluster orders these writes as in Block. No block writes to another one after the last
// barrier, so that a block may exit before the others.
template <int kThreads>
class Cluster {
 public:
  static constexpr int kMostBlocks = 8;  // every GPU with clusters supports this many
  static constexpr int kSlot = Block<kThreads>::kSlot;

  struct Shared {
    typename Block<kThreads>::Shared block;
    alignas(16) unsigned char slots[2][kMostBlocks * kSlot];
  };

  __device__ Cluster(Shared& shared, int blocks) : shared_(shared), block_(shared.block), blocks_(blocks) {
    if (blocks_ > 1) barrier();  // a block must have begun before another one writes to it
  }

  __device__ int block() const { return blockIdx.x % blocks_; }

  __device__ int rank() const { return block() * kThreads + threadIdx.x; }

  template <typename V, class Merge>
  __device__ __forceinline__ V reduce(V value, Merge merge) {
    return across_blocks(block_.reduce(value, merge), merge);
  }

  __device__ __forceinline__ uint32_t sum(uint32_t value) {
    return across_blocks(block_.sum(value), [](uint32_t a, uint32_t b) { return a + b; });
  }

 private:
  static __device__ __forceinline__ void barrier() {
#if RMCLA_CLUSTERS
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
  }

  // All blocks merge in the same order, so that they get the same bits.
  template <typename V, class Merge>
  __device__ __forceinline__ V across_blocks(V value, Merge merge) {
#if RMCLA_CLUSTERS
    if (blocks_ == 1) return value;
    V* slots = reinterpret_cast<V*>(shared_.slots[block_.half()]);
    if (threadIdx.x < unsigned(blocks_)) {
      *static_cast<V*>(__cluster_map_shared_rank(slots + block(), threadIdx.x)) = value;
    }
    barrier();
    value = slots[0];
    for (int i = 1; i < blocks_; ++i) value = merge(value, slots[i]);
#endif
    return value;
  }

  Shared& shared_;
  Block<kThreads> block_;
  int blocks_;
};

}  // namespace rmcla
