// All headers of others that the kernels include: they stand before the pragma of an instruction set.
#pragma once

// GCC: its pragma chooses the sets. Other compilers build the baseline alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RMCLA_INSTRUCTION_SETS
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
