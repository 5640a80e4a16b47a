// C functions through which the tests call the kernels' shared arithmetic and control the emulator.
#include "common/philox.h"
#include "cuda/elements.cuh"

extern "C" void probe_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words) {
  const auto block = rmcla::philox4x32(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  for (int i = 0; i < 4; ++i) words[i] = block.word[i];
}

extern "C" void probe_bytes(float* singles, double* doubles) {
  for (int byte = 0; byte < 256; ++byte) {
    singles[byte] = rmcla::unit_from_byte<float>(uint8_t(byte));
    doubles[byte] = rmcla::unit_from_byte<double>(uint8_t(byte));
  }
}

// Sets the number of multiprocessors of the emulated GPU. Few of them are filled by a small batch.
extern "C" void emulate_multiprocessors(int count) { emulator::multiprocessors = count; }

extern "C" void probe_last_launch(int* launch) {
  for (int i = 0; i < 4; ++i) launch[i] = emulator::last_launch[i];
}
