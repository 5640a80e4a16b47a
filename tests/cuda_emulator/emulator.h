// Enough of CUDA to run this project's kernels on a CPU, one block after another: the threads of a block are fibers
// that take turns at every barrier and shuffle. Slow and exact; a block whose threads part at a barrier stops with a
// message, where a GPU would hang.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <setjmp.h>
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
inline Barrier block_barrier;
inline std::vector<uint4> dynamic_shared;
inline std::function<void()> body;
inline jmp_buf finished;
inline int count, current, alive;
inline uint64_t progress;

[[noreturn]] inline void resume(int fiber) {
  current = fiber;
  threadIdx.x = fiber;
  Fiber& f = fibers[fiber];
  if (f.started) _longjmp(f.paused, 1);
  f.started = true;
  setcontext(&f.entry);
  abort();
}

inline int next_alive() {
  int next = current;
  do next = (next + 1) % count;
  while (fibers[next].done && next != current);
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
  const uint64_t generation = barrier.generation;
  ++progress;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) {
    const uint64_t before = progress;
    yield();
    if (barrier.generation == generation && progress == before) {
      fprintf(stderr, "emulator: the threads of block %u parted at a barrier; a GPU would hang\n", blockIdx.x);
      abort();
    }
  }
}

inline int members(int warp) { return count - warp * kWarp < kWarp ? count - warp * kWarp : kWarp; }

// Every lane of the warp shows its word; `look` sees all of them.
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

inline void launch(unsigned blocks, int threads, size_t shared_bytes, std::function<void()> kernel) {
  body = std::move(kernel);
  count = threads;
  if (fibers.size() < size_t(threads)) fibers = std::vector<Fiber>(threads);
  dynamic_shared.assign((shared_bytes + 15) / 16, uint4{~0u, ~0u, ~0u, ~0u});  // NaN
  lane_words.assign(threads, 0);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    warp_barriers.assign((threads + kWarp - 1) / kWarp, Barrier{});
    block_barrier = Barrier{};
    alive = threads;
    for (int i = 0; i < threads; ++i) {
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

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block_barrier, emulator::count); }

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
inline double __dadd_rn(double a, double b) { return a + b; }

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
inline float __half2float(__half value) { return float(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaAttribute { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaAttribute, int) { return *value = 227 << 10, cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaAttribute, int) {
  return cudaSuccess;
}

#include <c10/core/Device.h>
namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }
}  // namespace c10::cuda
#define C10_CUDA_KERNEL_LAUNCH_CHECK()
