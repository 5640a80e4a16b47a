// What Python calls in the library of the CUDA kernels.
#include "common/registration.h"

RMCLA_LIBRARY("CUDA")
