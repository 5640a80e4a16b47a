// The kernels for AVX2.
#include "cpu/standard_headers.h"

#if defined(RMCLA_INSTRUCTION_SETS)
#pragma GCC target("avx2,fma")
#include "cpu/kernels_of_a_set.h"

namespace rmcla {
Kernels avx2_kernels() { return kernels_of_a_set<32>(); }
}  // namespace rmcla
#endif
