// All headers from outside this project that the kernels include. They come before the pragma of an instruction set.
#pragma once

// Only GCC's pragma can choose an instruction set. Other compilers build only the baseline.
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
