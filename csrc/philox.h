// Philox-4x32-10 (Salmon et al., SC 2011), the bits that kernels/philox.py defines.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

constexpr int kLanes = 8;           // 16-bit lanes of one counter
constexpr int kBlock = 16;          // counters made at a time
constexpr float kLaneRange = 65536.0f;

struct PhiloxBlock {
  uint32_t c0[kBlock], c1[kBlock], c2[kBlock], c3[kBlock];  // of each counter, and then the words it gives
};

// The words of each counter, in its place.
inline void philox_rounds(uint64_t seed, PhiloxBlock &x) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      uint64_t p0 = static_cast<uint64_t>(x.c0[i]) * 0xD2511F53u;
      uint64_t p1 = static_cast<uint64_t>(x.c2[i]) * 0xCD9E8D57u;
      x.c0[i] = static_cast<uint32_t>(p1 >> 32) ^ x.c1[i] ^ key0;
      x.c1[i] = static_cast<uint32_t>(p1);
      x.c2[i] = static_cast<uint32_t>(p0 >> 32) ^ x.c3[i] ^ key1;
      x.c3[i] = static_cast<uint32_t>(p0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The lanes of counters (first ... first + kBlock - 1, c1, c2, 0), or, when `flat`, of (low, high word of the counter, 0, 0).
// Written as 32-bit words in order, which on a little-endian machine is the order of the lanes.
inline void philox_block(uint64_t seed, uint64_t first, uint32_t c1, uint32_t c2, bool flat, uint32_t *words) {
  PhiloxBlock x;
  for (int i = 0; i < kBlock; ++i) {
    x.c0[i] = static_cast<uint32_t>(first + i);
    x.c1[i] = flat ? static_cast<uint32_t>((first + i) >> 32) : c1;
    x.c2[i] = flat ? 0 : c2;
    x.c3[i] = 0;
  }
  philox_rounds(seed, x);
  for (int i = 0; i < kBlock; ++i) {
    words[4 * i] = x.c0[i];
    words[4 * i + 1] = x.c1[i];
    words[4 * i + 2] = x.c2[i];
    words[4 * i + 3] = x.c3[i];
  }
}

inline float keep_scale(uint32_t threshold) { return kLaneRange / (kLaneRange - static_cast<float>(threshold)); }

}  // namespace bertfast::BERTFAST_ISA
