// Vectors of the width that this translation unit is compiled for, and the few operations the kernels need on them.
// GCC's and Clang's vector extensions say them once for every instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "ops.h"

namespace bertfast::BERTFAST_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr int kColumns = 4;  // vectors of a micro-kernel's row: 6 x 4 accumulators in 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kColumns = 2;  // 6 x 2 accumulators in 16 registers
#else
constexpr int kWidth = 4;
constexpr int kColumns = 2;
#endif

typedef float vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t ivec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t hvec __attribute__((vector_size(kWidth * 2)));
typedef uint64_t wide __attribute__((vector_size(kWidth * 4)));

inline vec load(const float *p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }

inline vec splat(float x) { return x - vec{}; }

// Of a vector's lanes, halves with halves.
inline float sum(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const __m256 x = reinterpret_cast<__m256>(v);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float x[kWidth];
  store(x, v);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
#endif
}

inline float max(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float x[kWidth];
  store(x, v);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = x[i + half] > x[i] ? x[i + half] : x[i];
  return x[0];
#endif
}

// exp for x <= 88, to about two units in the last place; NaN stays NaN and what would be subnormal is zero.
// x = n ln 2 + r with ln 2 in two parts (Cody and Waite), then a polynomial in r.
inline vec exp(vec x) {
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const vec floor = splat(-87.3f);
  const ivec too_small = x < floor;
  vec t = too_small ? floor : x;
  vec shifted = t * 1.44269504088896341f + magic;
  vec n = shifted - magic;
  vec r = t - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the low bits of `shifted` are n; the shift drops the rest
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return too_small ? vec{} : p * power;
}

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Exponent and fraction in a float's places, times 2^112: subnormals come out right, infinities and NaNs do not.
  uint32_t bits = (x.bits & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  std::memcpy(&bits, &value, sizeof bits);
  if ((x.bits & 0x7c00u) == 0x7c00u) bits = 0x7f800000u | (x.bits & 0x3ffu) << 13;
  bits |= (x.bits & 0x8000u) << 16;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

inline void from_float(float value, float &out) { out = value; }

// Round to nearest, ties to even; a NaN stays one.
inline void from_float(float value, bf16 &out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

// Round to nearest, ties to even; beyond the largest is infinity, and a NaN stays one.
inline void from_float(float value, f16 &out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    bits = 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // 65520, which rounds to 2^16
    bits = 0x7c00u;
  } else if (bits < 0x38800000u) {  // 2^-14: a subnormal's unit is that of the floats from 0.5 on
    float shifted;
    std::memcpy(&shifted, &bits, sizeof shifted);
    shifted += 0.5f;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits -= 0x3f000000u;
  } else {
    bits = (bits + 0xfffu + (bits >> 13 & 1) - 0x38000000u) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | bits);
#endif
}

template <typename V, typename T>
inline V bits_of(const T &x) {
  static_assert(sizeof(V) == sizeof(T));
  V v;
  std::memcpy(&v, &x, sizeof v);
  return v;
}

inline vec load(const bf16 *p) {
  hvec half;
  std::memcpy(&half, p, sizeof half);
  return bits_of<vec>(__builtin_convertvector(half, ivec) << 16);
}

inline void store(bf16 *p, vec v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &half, sizeof half);
#else
  const ivec bits = bits_of<ivec>(v);
  ivec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = v != v ? ivec{} + 0x7fc0 : rounded;
  const hvec half = __builtin_convertvector(rounded, hvec);
  std::memcpy(p, &half, sizeof half);
#endif
}

inline vec load(const f16 *p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
#elif defined(__F16C__)
  return reinterpret_cast<vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#else
  vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store(f16 *p, vec v) {
#if defined(__AVX512F__)
  const __m256i half = _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &half, sizeof half);
#elif defined(__F16C__)
  const __m128i half = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &half, sizeof half);
#else
  for (int i = 0; i < kWidth; ++i) from_float(v[i], p[i]);
#endif
}

// A whole vector where `left` elements or more remain; otherwise those that remain, and zeros.
template <typename T>
inline vec load_some(const T *p, int64_t left) {
  if (left >= kWidth) return load(p);
  T part[kWidth] = {};
  std::memcpy(part, p, left * sizeof(T));
  return load(part);
}

template <typename T>
inline void store_some(T *p, vec v, int64_t left) {
  if (left >= kWidth) return store(p, v);
  T part[kWidth];
  store(part, v);
  std::memcpy(p, part, left * sizeof(T));
}

// body(j, left) for each vector's first column j of n; `left` is a constant for whole vectors, so that load_some and store_some cost nothing.
template <typename Body>
inline __attribute__((always_inline)) void each_vector(int64_t n, Body body) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) body(j, int64_t{kWidth});
  if (j < n) body(j, n - j);
}

// The sum over n columns of term(j, left); four partial sums, so that one addition need not wait for another.
template <typename Term>
inline __attribute__((always_inline)) float sum_vectors(int64_t n, Term term) {
  vec totals[4] = {};
  int64_t j = 0;
  for (; j + 4 * kWidth <= n; j += 4 * kWidth)
    for (int i = 0; i < 4; ++i) totals[i] += term(j + i * kWidth, int64_t{kWidth});
  for (; j + kWidth <= n; j += kWidth) totals[0] += term(j, int64_t{kWidth});
  if (j < n) totals[1] += term(j, n - j);
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

// v with the lanes from `left` on zeroed.
inline vec first_lanes(vec v, int64_t left) {
  if (left >= kWidth) return v;
  for (int i = 0; i < kWidth; ++i)
    if (i >= left) v[i] = 0;
  return v;
}

// The 64-bit products of the low halves of each lane.
inline wide multiply_low_halves(wide a, wide b) {
#if defined(__AVX512F__)
  return reinterpret_cast<wide>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<wide>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<wide>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

}  // namespace bertfast::BERTFAST_ISA
