// The kernels for AVX-512.
#include "cpu/standard_headers.h"

#if defined(RMCLA_INSTRUCTION_SETS)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "cpu/kernels_of_a_set.h"

namespace rmcla {
Kernels avx512_kernels() { return kernels_of_a_set<64>(); }
}  // namespace rmcla
#endif
