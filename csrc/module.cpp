// The Python module rmcla_fast._C. Importing it loads the library, whose kernels register themselves with PyTorch's
// dispatcher. build_config() returns the versions that it was built with, and the GPU architectures.
#include <pybind11/pybind11.h>
#include <torch/version.h>

PYBIND11_MODULE(_C, m) {
  m.def("build_config", [] {
    pybind11::dict config;
    config["torch"] = TORCH_VERSION;
    config["compiler"] = __VERSION__;
#ifdef RMCLA_WITH_CUDA
    config["cuda"] = RMCLA_CUDA_ARCHITECTURES;
#else
    config["cuda"] = "";
#endif
    return config;
  });
}
