// The kernels for the instructions that every processor has.
#include "cpu/kernels_of_a_set.h"

namespace rmcla {
Kernels baseline_kernels() { return kernels_of_a_set<16>(); }
}  // namespace rmcla
