// The part of CUDA that this project's kernels need, emulated on a CPU. Clusters run one after another; a launch
// without clusters has clusters of one block. Threads are fibers that take turns, in random order, at every barrier and
// shuffle, so that tests fail if a barrier is missing. The emulation is slow and exact. If some threads of a block
// never reach a barrier, it stops with a message where a GPU would hang.
#pragma once

#include <setjmp.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

constexpr int kWarp = 32;
constexpr int kMostBlocks = 8;  // in a cluster
constexpr int kSharedMemory = 227 << 10;
constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t entry;
  jmp_buf paused;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started, done;
};

struct Barrier {
  int arrived;
  uint64_t generation;
};

inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warp_barriers;
inline std::vector<unsigned> lane_words;
inline Barrier block_barriers[kMostBlocks], cluster_barrier;
inline std::vector<uint4> dynamic_shared;
inline char* shared;         // of the cluster's first block; the others' follow
inline size_t shared_bytes;  // of each block
inline std::function<void()> body;
inline jmp_buf finished;
inline int multiprocessors = 132;
inline int last_launch[4];  // blocks, threads of each, blocks of a cluster, bytes of dynamic shared memory
inline int count, threads, current, alive;  // count: threads of a cluster; threads: threads of a block
inline unsigned first_block;
inline uint64_t progress;

inline int block() { return current / threads; }  // within its cluster

// The current block's copy of its kernel's shared memory.
template <class Shared>
Shared& own(Shared (&copies)[kMostBlocks]) {
  shared = reinterpret_cast<char*>(copies);
  shared_bytes = sizeof(Shared);
  return copies[block()];
}

inline uint4* staging() { return dynamic_shared.data() + dynamic_shared.size() / (count / threads) * block(); }

[[noreturn]] inline void resume(int fiber) {
  current = fiber;
  threadIdx.x = fiber % threads;
  blockIdx.x = first_block + block();
  Fiber& f = fibers[fiber];
  if (f.started) _longjmp(f.paused, 1);
  f.started = true;
  setcontext(&f.entry);
  abort();
}

inline unsigned draw() {  // xorshift, Marsaglia 2003
  static uint64_t state = 88172645463325252u;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return unsigned(state >> 32);
}

// The thread that runs next: mostly another lane of the same warp, so that shuffles end soon, and sometimes any thread.
inline int next_alive() {
  const int warp = current / kWarp * kWarp, lanes = count - warp < kWarp ? count - warp : kWarp;
  if (draw() % 256) {
    int lane = current - warp;
    do lane = (lane + 1) % lanes;
    while (fibers[warp + lane].done && warp + lane != current);
    if (warp + lane != current) return warp + lane;
  }
  int next = draw() % count;
  while (fibers[next].done) next = (next + 1) % count;  // ends, since this is not called after the last thread is done
  return next;
}

__attribute__((noinline)) inline void yield() {
  const int next = next_alive();
  if (next != current && _setjmp(fibers[current].paused) == 0) resume(next);
}

inline void run_fiber() {
  body();
  fibers[current].done = true;
  ++progress;
  if (--alive == 0) _longjmp(finished, 1);
  resume(next_alive());
}

inline void wait(Barrier& barrier, int members) {
  constexpr int kPatience = 3000000;  // turns without any thread reaching a barrier
  static uint64_t before;
  static int idle;
  const uint64_t generation = barrier.generation;
  ++progress;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) {
    idle = progress == before ? idle + 1 : 0;
    before = progress;
    yield();
    if (idle > kPatience) {
      fprintf(stderr, "emulator: some threads of block %u never reach a barrier; a GPU would hang\n", blockIdx.x);
      abort();
    }
  }
}

inline int members(int warp) { return count - warp * kWarp < kWarp ? count - warp * kWarp : kWarp; }

// Every lane of the warp writes its word; `look` computes a lane's result from all of them.
template <class Look>
unsigned exchange(unsigned mask, unsigned word, Look look) {
  if (mask != 0xffffffffu) abort();
  const int thread = current, warp = thread / kWarp;
  lane_words[thread] = word;
  wait(warp_barriers[warp], members(warp));
  const unsigned result = look(&lane_words[warp * kWarp], thread % kWarp);
  wait(warp_barriers[warp], members(warp));
  return result;
}

__attribute__((noinline)) inline void run_block() {
  if (_setjmp(finished) == 0) resume(0);
}

inline void launch_clusters(unsigned blocks, int threads_, size_t bytes, int cluster, std::function<void()> kernel) {
  body = std::move(kernel);
  threads = threads_;
  count = threads * cluster;
  last_launch[0] = int(blocks), last_launch[1] = threads, last_launch[2] = cluster, last_launch[3] = int(bytes);
  if (cluster > kMostBlocks || blocks % cluster || (cluster > 1 && threads % kWarp)) abort();
  if (fibers.size() < size_t(count)) fibers = std::vector<Fiber>(count);
  dynamic_shared.assign((bytes + 15) / 16 * cluster, uint4{~0u, ~0u, ~0u, ~0u});  // NaN
  lane_words.assign(count, 0);
  for (first_block = 0; first_block < blocks; first_block += cluster) {
    warp_barriers.assign((count + kWarp - 1) / kWarp, Barrier{});
    for (Barrier& barrier : block_barriers) barrier = Barrier{};
    cluster_barrier = Barrier{};
    alive = count;
    for (int i = 0; i < count; ++i) {
      Fiber& f = fibers[i];
      getcontext(&f.entry);
      f.entry.uc_stack.ss_sp = f.stack.get();
      f.entry.uc_stack.ss_size = kStack;
      f.entry.uc_link = nullptr;
      makecontext(&f.entry, run_fiber, 0);
      f.started = f.done = false;
    }
    run_block();
  }
}

inline void launch(unsigned blocks, int threads, size_t bytes, std::function<void()> kernel) {
  launch_clusters(blocks, threads, bytes, 1, std::move(kernel));
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block_barriers[emulator::block()], emulator::threads); }

inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait() { emulator::wait(emulator::cluster_barrier, emulator::count); }

inline void* __cluster_map_shared_rank(void* own, unsigned block) {
  return static_cast<char*>(own) + (int(block) - emulator::block()) * ptrdiff_t(emulator::shared_bytes);
}

inline unsigned __shfl_xor_sync(unsigned mask, unsigned word, int lane_mask) {
  return emulator::exchange(mask, word, [=](const unsigned* words, int lane) { return words[lane ^ lane_mask]; });
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned word) {
  return emulator::exchange(mask, word, [](const unsigned* words, int) {
    unsigned sum = 0;
    for (int i = 0; i < emulator::kWarp; ++i) sum += words[i];
    return sum;
  });
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
inline float __half2float(__half value) { return float(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrClusterLaunch,
  cudaFuncAttributeMaxDynamicSharedMemorySize
};
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulator::kSharedMemory
           : attribute == cudaDevAttrMultiProcessorCount        ? emulator::multiprocessors
                                                                : 1;
  return cudaSuccess;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  return attributes->ptxVersion = 90, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaDeviceAttr, int bytes) {
  return bytes <= emulator::kSharedMemory ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct Extent {
  unsigned x = 1, y = 1, z = 1;
  Extent() = default;
  Extent(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
enum { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  int id;
  struct {
    Extent clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  Extent gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const int cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  emulator::launch_clusters(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, cluster,
                            [&] { kernel(arguments...); });
  return cudaSuccess;
}

// PyTorch's functions that the host code calls and a build of torch without CUDA does not have.
extern "C" {
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) { return *guard = nullptr, 0; }
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool, char** message) {
  return *message = nullptr, 0;
}
void torch_c10_cuda_free_error_msg(char*) {}
}
