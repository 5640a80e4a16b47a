// How functions are declared that host and device share, and those that must be inlined on the host, since their callers
// are compiled for different instruction sets.
#pragma once

#if defined(__CUDACC__)
#define RMCLA_SHARED __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define RMCLA_SHARED __forceinline
#define RMCLA_INLINE [[msvc::forceinline]]
#else
#define RMCLA_SHARED inline __attribute__((always_inline))
#define RMCLA_INLINE __attribute__((always_inline))  // after the parameters of a lambda
#endif
