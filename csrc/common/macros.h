// The macro for functions that host and device share. On the host they must be inlined, since their callers are
// compiled for different instruction sets.
#pragma once

#if defined(__CUDACC__)
#define RMCLA_SHARED __host__ __device__ __forceinline__
#else
#define RMCLA_SHARED inline __attribute__((always_inline))
#endif
