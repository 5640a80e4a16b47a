// One binary for every processor: the loops are compiled for AVX-512, AVX2 and the baseline, and the processor chooses.
// The choice is by feature, since a name of an architecture would leave out other makers' processors. GCC's
// target_clones would need the list of sets at each loop, has no set of both AVX2 and fused multiply-add, and does not
// look at ATEN_CPU_CAPABILITY.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RMCLA_X86_SETS 1
#endif

namespace rmcla {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The processor's set, or the lower one that ATEN_CPU_CAPABILITY names, which has the same meaning in PyTorch.
inline InstructionSet instruction_set() {
  static const InstructionSet chosen = [] {
    InstructionSet best = InstructionSet::kBaseline;
#if RMCLA_X86_SETS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = InstructionSet::kAvx2;
    if (best == InstructionSet::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = InstructionSet::kAvx512;
    const char* const wanted = std::getenv("ATEN_CPU_CAPABILITY");
    if (wanted && !std::strcmp(wanted, "default")) best = InstructionSet::kBaseline;
    if (wanted && !std::strcmp(wanted, "avx2") && best == InstructionSet::kAvx512) best = InstructionSet::kAvx2;
#endif
    return best;
  }();
  return chosen;
}

// Whether the instruction set of a loop has a fused multiply-add.
using Fused = std::true_type;
using NotFused = std::false_type;

#if RMCLA_X86_SETS
template <class Loop>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void with_avx512(const Loop& loop) {
  loop(Fused());
}
template <class Loop>
__attribute__((target("avx2,fma"))) void with_avx2(const Loop& loop) {
  loop(Fused());
}
#endif

// Calls `loop`, an inlined lambda whose argument is Fused or NotFused, compiled for this processor.
template <class Loop>
void on_this_processor(const Loop& loop) {
#if RMCLA_X86_SETS
  if (instruction_set() == InstructionSet::kAvx512) return with_avx512(loop);
  if (instruction_set() == InstructionSet::kAvx2) return with_avx2(loop);
#endif
  loop(NotFused());
}

}  // namespace rmcla
