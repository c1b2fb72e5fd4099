// Philox-4x32-10 (Salmon et al., SC 2011), the bits that kernels/philox.py defines.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

constexpr int kLanes = 8;           // 16-bit lanes of one counter
constexpr int kBlock = 16;          // counters made at a time
constexpr int kBlockLanes = kBlock * kLanes;
constexpr float kLaneRange = 65536.0f;

// The lanes of counters (first ... first + kBlock - 1, c1, c2, 0), or, when `flat`, of (low, high word of the counter, 0, 0).
// Written as 32-bit words in order, which on a little-endian machine is the order of the lanes.
inline void philox_block(uint64_t seed, uint64_t first, uint32_t c1, uint32_t c2, bool flat, uint32_t *words) {
  constexpr int counters = kWidth / 2, groups = kBlock / counters;  // a vector of 64-bit lanes, a counter in each
  // Only the low half of a lane counts until the end: the products ignore what stands above it.
  wide x0[groups], x1[groups], x2[groups], x3[groups];
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < counters; ++i) {
      const uint64_t counter = first + g * counters + i;
      x0[g][i] = counter;
      x1[g][i] = flat ? counter >> 32 : c1;
      x2[g][i] = flat ? 0 : c2;
      x3[g][i] = 0;
    }
  const wide m0 = wide{} + 0xD2511F53u, m1 = wide{} + 0xCD9E8D57u;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < groups; ++g) {
      const wide p0 = multiply_low_halves(x0[g], m0), p1 = multiply_low_halves(x2[g], m1);
      x0[g] = (p1 >> 32) ^ x1[g] ^ (wide{} + key0);
      x1[g] = p1;
      x2[g] = (p0 >> 32) ^ x3[g] ^ (wide{} + key1);
      x3[g] = p0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int g = 0; g < groups; ++g) {
    const wide front = (x0[g] & 0xffffffffu) | (x1[g] << 32), back = (x2[g] & 0xffffffffu) | (x3[g] << 32);
    for (int i = 0; i < counters; ++i) {
      const uint64_t pair[2] = {front[i], back[i]};
      std::memcpy(words + 4 * (g * counters + i), pair, sizeof pair);
    }
  }
}

// The lanes of `count` flat elements from `first` on; `buffer` has room for count + 2 * kBlockLanes of them.
inline const uint16_t *flat_lanes(uint64_t seed, uint64_t first, int64_t count, uint16_t *buffer) {
  const int64_t skipped = first % kLanes;
  for (int64_t made = 0; made < skipped + count; made += kBlockLanes) {
    uint32_t words[4 * kBlock];
    philox_block(seed, (first + made) / kLanes, 0, 0, true, words);
    std::memcpy(buffer + made, words, sizeof words);
  }
  return buffer + skipped;
}

inline float keep_scale(uint32_t threshold) { return kLaneRange / (kLaneRange - static_cast<float>(threshold)); }

// v where the lane is kept, scaled up; zero where it is dropped.
inline vec keep(vec v, const uint16_t *lanes, uint32_t threshold, float scale) {
  hvec half;
  std::memcpy(&half, lanes, sizeof half);
  const ivec kept = __builtin_convertvector(half, ivec) >= static_cast<int32_t>(threshold);
  return kept ? v * scale : vec{};
}

}  // namespace bertfast::BERTFAST_ISA
