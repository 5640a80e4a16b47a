// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random numbers as a function
// of a key and a counter.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace rmcla {

enum Stream : uint32_t { kRandomStart = 0, kAugmentation = 1, kRandomTargets = 2 };

struct PhiloxBlock {
  uint32_t word[4];
};

RMCLA_SHARED PhiloxBlock philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t next0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    const uint32_t next2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c0 = next0;
    c1 = uint32_t(product1);
    c2 = next2;
    c3 = uint32_t(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Block j of the stream, for rng = (seed, step). The key is (low, high word of seed), and the counter (low, high word
// of j, low word of step, stream).
RMCLA_SHARED PhiloxBlock philox_block(int64_t seed, int64_t step, uint64_t j, Stream stream) {
  return philox4x32(uint32_t(j), uint32_t(j >> 32), uint32_t(uint64_t(step)), stream, uint32_t(uint64_t(seed)),
                    uint32_t(uint64_t(seed) >> 32));
}

// A float in [0, 1) from the upper 24 bits of a word; a multiple of 2^-24.
RMCLA_SHARED float unit_uniform(uint32_t word) { return float(word >> 8) * 5.9604644775390625e-8f; }

}  // namespace rmcla
