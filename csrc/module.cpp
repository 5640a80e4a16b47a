// The Python module rmcla_fast._C. build_config() returns what the kernels were built with: the version of torch, the
// compiler, and the GPU architectures ("" without CUDA kernels). The kernels are in files that know no Python.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#ifdef _MSC_VER
#define RMCLA_TEXT(value) #value
#define RMCLA_TEXT_OF(value) RMCLA_TEXT(value)
#define __VERSION__ "MSVC " RMCLA_TEXT_OF(_MSC_FULL_VER)
#endif

PYBIND11_MODULE(_C, m) {
  m.def("build_config", [] {
    pybind11::dict config;
    config["torch"] = TORCH_VERSION;
    config["compiler"] = __VERSION__;
    config["cuda"] = RMCLA_CUDA_ARCHITECTURES;
    return config;
  });
}
