// What this library tells Python about its kernels.
#include "common/registration.h"

RMCLA_EXPORT_OPERATOR_TYPES()
