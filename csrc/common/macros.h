// Functions that host and device share. On the host they must be inlined into callers compiled for a wider instruction
// set.
#pragma once

#if defined(__CUDACC__)
#define RMCLA_SHARED __host__ __device__ __forceinline__
#else
#define RMCLA_SHARED inline __attribute__((always_inline))
#endif
