// Philox-4x32-10 (Salmon et al., SC 2011), the bits that kernels/philox.py defines.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

constexpr int kLanes = 8;           // 16-bit lanes of one counter
constexpr int kBlock = 16;          // counters made at a time
constexpr float kLaneRange = 65536.0f;

// The lanes of counters (first ... first + kBlock - 1, c1, c2, 0), or, when `flat`, of (low, high word of the counter, 0, 0).
// Written as 32-bit words in order, which on a little-endian machine is the order of the lanes.
inline void philox_block(uint64_t seed, uint64_t first, uint32_t c1, uint32_t c2, bool flat, uint32_t *words) {
  uint32_t x0[kBlock], x1[kBlock], x2[kBlock], x3[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    x0[i] = static_cast<uint32_t>(first + i);
    x1[i] = flat ? static_cast<uint32_t>((first + i) >> 32) : c1;
    x2[i] = flat ? 0 : c2;
    x3[i] = 0;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      uint64_t p0 = static_cast<uint64_t>(x0[i]) * 0xD2511F53u;
      uint64_t p1 = static_cast<uint64_t>(x2[i]) * 0xCD9E8D57u;
      x0[i] = static_cast<uint32_t>(p1 >> 32) ^ x1[i] ^ key0;
      x1[i] = static_cast<uint32_t>(p1);
      x2[i] = static_cast<uint32_t>(p0 >> 32) ^ x3[i] ^ key1;
      x3[i] = static_cast<uint32_t>(p0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kBlock; ++i) {
    words[4 * i] = x0[i];
    words[4 * i + 1] = x1[i];
    words[4 * i + 2] = x2[i];
    words[4 * i + 3] = x3[i];
  }
}

inline float keep_scale(uint32_t threshold) { return kLaneRange / (kLaneRange - static_cast<float>(threshold)); }

}  // namespace bertfast::BERTFAST_ISA
