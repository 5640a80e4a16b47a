// The choice of the kernels for the processor's instruction set.
#include "cpu/kernels.h"

#include <ATen/Version.h>

#include <string>

namespace rmcla {

const Kernels& kernels() {
  static const Kernels best = [] {
#if defined(RMCLA_INSTRUCTION_SETS)
    const std::string name = at::get_cpu_capability();
    if (name.rfind("AVX512", 0) == 0) return avx512_kernels();
    if (name.rfind("AVX2", 0) == 0) return avx2_kernels();
#endif
    return baseline_kernels();
  }();
  return best;
}

}  // namespace rmcla
