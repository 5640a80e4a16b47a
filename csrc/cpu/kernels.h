// The kernels that are compiled once for each instruction set. The choice at run time makes one binary portable.
#pragma once

#include "cpu/standard_headers.h"

namespace rmcla {

template <typename T>
struct JointRows;
template <typename T>
struct LossRows;
template <typename T>
struct StepRun;
struct CroppedImage;

// The variants of a kernel without a mask, with one of shares, and with a bool mask.
template <typename F>
struct ForMasks {
  F unmasked, with_shares, with_bools;
};

template <typename T>
struct ArithmeticKernels {
  void (*joint_rows)(const JointRows<T>&);
  void (*joint_short_rows)(const JointRows<T>&);
  void (*loss_rows)(const LossRows<T>&);
  void (*loss_short_rows)(const LossRows<T>&);
  ForMasks<void (*)(const StepRun<T>&)> step_elements;
  ForMasks<void (*)(const T* image, const float* uniform, float radius, T lower, T upper, bool clip, T* out,
                    int64_t count, const void* mask)>
      add_scaled;
};

struct Kernels {
  ArithmeticKernels<float> float32;
  ArithmeticKernels<double> float64;
  // Numbers in [0, 1) for elements 4 * block, ..., 4 * (block + blocks) - 1 of memory; `blocks` is a multiple of 16.
  void (*uniforms)(int64_t seed, int64_t step, int64_t block, int64_t blocks, float* to);
  void (*crop_lines)(const CroppedImage& image, uint8_t* to);
  void (*widen_half)(const uint16_t* from, float* to, int64_t count);
  void (*narrow_half)(const float* from, uint16_t* to, int64_t count);
  void (*widen_bfloat)(const uint16_t* from, float* to, int64_t count);
  void (*narrow_bfloat)(const float* from, uint16_t* to, int64_t count);
  void (*widen_bytes)(const uint8_t* from, float* to, int64_t count);
  void (*widen_bytes_double)(const uint8_t* from, double* to, int64_t count);
  void (*float_to_double)(const float* from, double* to, int64_t count);
  void (*double_to_float)(const double* from, float* to, int64_t count);
  void (*double_signs)(const double* from, float* to, int64_t count);
};

Kernels baseline_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();

// The kernels for the instruction set that PyTorch uses on this machine; ATEN_CPU_CAPABILITY changes both.
const Kernels& kernels();

template <typename T>
const ArithmeticKernels<T>& kernels_of() {
  if constexpr (sizeof(T) == 8) {
    return kernels().float64;
  } else {
    return kernels().float32;
  }
}

}  // namespace rmcla
