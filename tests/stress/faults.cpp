// Faults that the sanitizers must report. sanitize.py compiles this file into its build of the extension.
#include <cstdint>

typedef int32_t FourLanes __attribute__((vector_size(16)));

#pragma GCC visibility push(default)
extern "C" {

void write_float(float* memory, int64_t index) { memory[index] = 1; }

int32_t next_integer(int32_t value) { return value + 1; }

int32_t next_lane(int32_t value) {
  const FourLanes lanes = FourLanes{value, value, value, value} + FourLanes{1, 1, 1, 1};
  return lanes[3];
}
}
