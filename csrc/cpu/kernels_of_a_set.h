// All kernels, for vector registers of `Bytes`. One file for each instruction set includes this header. The file's
// pragma must come before the definitions of the templates, since GCC splits vectors that the baseline lacks before it
// inlines. The linker keeps only one copy of a function, which must not be the one compiled for AVX-512. Therefore
// every function of this project in here is inlined or a template on Bytes, and other headers come before the pragma.
#pragma once

#include "cpu/augment_lines.h"
#include "cpu/convert_elements.h"
#include "cpu/joint_gradient_rows.h"
#include "cpu/joint_gradient_short.h"
#include "cpu/kernels.h"
#include "cpu/noise_elements.h"
#include "cpu/perturb_step_elements.h"
#include "cpu/soft_cross_entropy_rows.h"

namespace rmcla {

template <int Bytes, typename T>
RMCLA_SHARED ArithmeticKernels<T> arithmetic_kernels() {
  return {joint_rows<Bytes, T>,
          joint_short_rows<Bytes, T>,
          loss_rows<Bytes, T>,
          loss_short_rows<Bytes, T>,
          {step_elements<Bytes, T, void>, step_elements<Bytes, T, T>, step_elements<Bytes, T, uint8_t>},
          {add_scaled<Bytes, T, void>, add_scaled<Bytes, T, float>, add_scaled<Bytes, T, uint8_t>}};
}

template <int Bytes>
RMCLA_SHARED Kernels kernels_of_a_set() {
  return {arithmetic_kernels<Bytes, float>(),
          arithmetic_kernels<Bytes, double>(),
          uniforms<Bytes>,
          crop_lines<Bytes>,
          widen_half<Bytes>,
          narrow_half<Bytes>,
          widen_bfloat<Bytes>,
          narrow_bfloat<Bytes>,
          widen_bytes<Bytes>,
          widen_bytes_double<Bytes>,
          float_to_double<Bytes>,
          double_to_float<Bytes>,
          double_signs<Bytes>};
}

}  // namespace rmcla
