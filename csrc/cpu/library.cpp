// What Python calls in the library of the CPU kernels.
#include "common/registration.h"

RMCLA_LIBRARY("CPU")
