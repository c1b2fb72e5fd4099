// Philox-4x32 (Salmon et al., SC 2011), the bits that kernels/philox.py defines.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

constexpr int kLanes = 8;           // 16-bit lanes of one counter
constexpr int kBlock = 16;          // counters made at a time
constexpr int kBlockLanes = kBlock * kLanes;
constexpr float kLaneRange = 65536.0f;
constexpr int kRounds = 10, kAttentionRounds = 7;
constexpr float kAttentionLaneRange = 256.0f;

// Counters, and then the words that each gives: a counter in each 64-bit lane, of which only the low half counts.
struct PhiloxBlock {
  static constexpr int kPerVector = kWidth / 2;
  wide c0[kBlock / kPerVector], c1[kBlock / kPerVector], c2[kBlock / kPerVector], c3[kBlock / kPerVector];

  static uint32_t word(const wide *c, int i) { return static_cast<uint32_t>(c[i / kPerVector][i % kPerVector]); }
};

inline void philox_rounds(uint64_t seed, int rounds, PhiloxBlock &x) {
  const wide m0 = wide{} + 0xD2511F53u, m1 = wide{} + 0xCD9E8D57u;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < rounds; ++round) {
    for (int v = 0; v < kBlock / PhiloxBlock::kPerVector; ++v) {
      const wide p0 = multiply_low_halves(x.c0[v], m0), p1 = multiply_low_halves(x.c2[v], m1);
      x.c0[v] = (p1 >> 32) ^ x.c1[v] ^ (wide{} + key0);
      x.c1[v] = p1;
      x.c2[v] = (p0 >> 32) ^ x.c3[v] ^ (wide{} + key1);
      x.c3[v] = p0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The words of each counter in order, which on a little-endian machine is the order of the lanes.
inline void words_in_order(const PhiloxBlock &x, uint32_t *words) {
  constexpr int counters = PhiloxBlock::kPerVector;
  for (int v = 0; v < kBlock / counters; ++v) {
    const wide front = (x.c0[v] & 0xffffffffu) | (x.c1[v] << 32), back = (x.c2[v] & 0xffffffffu) | (x.c3[v] << 32);
    for (int i = 0; i < counters; ++i) {
      const uint64_t two[2] = {front[i], back[i]};
      std::memcpy(words + 4 * (v * counters + i), two, sizeof two);
    }
  }
}

// The lanes of `count` flat elements from `first` on; `buffer` has room for count + 2 * kBlockLanes of them.
inline const uint16_t *flat_lanes(uint64_t seed, uint64_t first, int64_t count, uint16_t *buffer) {
  const int64_t skipped = first % kLanes;
  for (int64_t made = 0; made < skipped + count; made += kBlockLanes) {
    PhiloxBlock x;
    for (int v = 0; v < kBlock / PhiloxBlock::kPerVector; ++v) {
      for (int i = 0; i < PhiloxBlock::kPerVector; ++i)
        x.c0[v][i] = (first + made) / kLanes + v * PhiloxBlock::kPerVector + i;
      x.c1[v] = x.c0[v] >> 32;
      x.c2[v] = x.c3[v] = wide{};
    }
    philox_rounds(seed, kRounds, x);
    uint32_t words[4 * kBlock];
    words_in_order(x, words);
    std::memcpy(buffer + made, words, sizeof words);
  }
  return buffer + skipped;
}

inline float keep_scale(uint32_t threshold, float range = kLaneRange) { return range / (range - static_cast<float>(threshold)); }

// v where the lane, of 8 or 16 bits, is kept, scaled up; zero where it is dropped.
template <typename Lane>
inline vec keep(vec v, const Lane *lanes, uint32_t threshold, float scale) {
  typedef Lane lane_vec __attribute__((vector_size(kWidth * sizeof(Lane))));
  lane_vec narrow;
  std::memcpy(&narrow, lanes, sizeof narrow);
  const ivec kept = __builtin_convertvector(narrow, ivec) >= static_cast<int32_t>(threshold);
  return kept ? v * scale : vec{};
}

}  // namespace bertfast::BERTFAST_ISA
