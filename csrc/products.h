// Small matrix products, C (+)= A B in float32, and the forms that their factors are brought to.
//
// A factor is made of elements of 32 bits: a float, or a pair of bfloat16 that are neighbours along the inner dimension. The pair is for
// processors that multiply bfloat16 (AVX512-BF16). `kPack` is how many inner indices an element holds; an odd one out is paired with zero.
#pragma once

#include "simd.h"

namespace bertfast::BERTFAST_ISA {


typedef uint32_t pair;

template <typename T>
struct Factor {
  typedef float Element;
  static constexpr int kPack = 1;
};

inline vec multiply_add(vec sum, float a, const float *b) { return sum + splat(a) * load(b); }

#if defined(__AVX512BF16__)
template <>
struct Factor<bf16> {
  typedef pair Element;
  static constexpr int kPack = 2;
};

inline vec multiply_add(vec sum, pair a, const pair *b) {
  return reinterpret_cast<vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                                                reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))));
}
#endif

// C[kM][kN * kWidth] (+)= A B; A is read one element at a time, so it may have any strides.
template <int kM, int kN, typename E>
inline void micro(int64_t inner, const E *a, int64_t a_row, int64_t a_col, const E *b, int64_t ldb, float *c, int64_t ldc,
                  bool accumulate) {
  vec sums[kM][kN] = {};
  // What C holds is added at the end, when it has come near.
  if (accumulate)
    for (int i = 0; i < kM; ++i)
      for (int j = 0; j < kN; ++j) __builtin_prefetch(c + i * ldc + j * kWidth);
  for (int64_t k = 0; k < inner; ++k)
    for (int i = 0; i < kM; ++i)
      for (int j = 0; j < kN; ++j) sums[i][j] = multiply_add(sums[i][j], a[i * a_row + k * a_col], b + k * ldb + j * kWidth);
  if (accumulate)
    for (int i = 0; i < kM; ++i)
      for (int j = 0; j < kN; ++j) sums[i][j] += load(c + i * ldc + j * kWidth);
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) store(c + i * ldc + j * kWidth, sums[i][j]);
}

// The widest tile has 6 rows, a narrower one 8: enough sums are under way then that none waits for the one before.
template <int kN, int kM = kN == kColumns ? 6 : 8, typename E>
inline void columns(int64_t rows, int64_t inner, const E *a, int64_t a_row, int64_t a_col, const E *b, int64_t ldb, float *c,
                    int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + kM <= rows; i += kM)
    micro<kM, kN>(inner, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  if constexpr (kM > 1) {
    constexpr int kLess = kM > 4 ? 4 : kM / 2;
    if (i < rows) columns<kN, kLess>(rows - i, inner, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  }
}

// C (rows x width) (+)= A (rows x inner) B (inner x width), `inner` counted in elements; width is a multiple of kWidth.
template <typename E>
void product(int64_t rows, int64_t width, int64_t inner, const E *a, int64_t a_row, int64_t a_col, const E *b, int64_t ldb,
             float *c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + kColumns * kWidth <= width; j += kColumns * kWidth)
    columns<kColumns>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
  const int64_t left = (width - j) / kWidth;
  if (kColumns > 3 && left == 3) return columns<3>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
  if (kColumns > 2 && left == 2) return columns<2>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
  if (left) columns<1>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
}

// Rows to float32, times `scale`. Behind a row of a head lies that of the next head, whose task comes next: it is brought near on the way.
template <typename T>
void widen(const T *x, int64_t stride, int64_t rows, int64_t n, float scale, float *out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += kWidth) {
      __builtin_prefetch(x + i * stride + n + j, 0, 2);
      store_some(out + i * n + j, load_some(x + i * stride + j, n - j) * scale, n - j);
    }
}

template <typename T>
void narrow(const float *x, int64_t rows, int64_t n, float scale, T *out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += kWidth) store_some(out + i * stride + j, load_some(x + i * n + j, n - j) * scale, n - j);
}

// (rows, n) elements to (n, padded), zeros past the rows.
template <typename E>
void transpose(const E *x, int64_t rows, int64_t n, int64_t padded, E *out) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < rows; ++i) out[j * padded + i] = x[i * n + j];
    for (int64_t i = rows; i < padded; ++i) out[j * padded + i] = 0;
  }
}

// Rows of n values, n even, as a factor whose inner dimension runs along them; the scale is a float's alone.
template <typename T>
void along(const T *x, int64_t stride, int64_t rows, int64_t n, float scale, float *out) {
  widen(x, stride, rows, n, scale, out);
}

inline void along(const bf16 *x, int64_t stride, int64_t rows, int64_t n, float, pair *out) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * n / 2, x + i * stride, n * sizeof(bf16));
}

// Rows of n values, a multiple of kWidth, as a factor whose inner dimension runs across them.
template <typename T>
void across(const T *x, int64_t stride, int64_t rows, int64_t n, float *out) {
  widen(x, stride, rows, n, 1, out);
}

inline void across(const bf16 *x, int64_t stride, int64_t rows, int64_t n, pair *out) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < n; j += kWidth) {
      const vec low = load(x + i * stride + j), high = i + 1 < rows ? load(x + (i + 1) * stride + j) : vec{};
      const ivec both = ((bits_of<ivec>(low) >> 16) & 0xffff) | bits_of<ivec>(high);
      std::memcpy(out + i / 2 * n + j, &both, sizeof both);
    }
}

// Bits of the values rounded to bfloat16, in the upper half of each lane.
inline ivec upper_bits(vec v) {
  const ivec bits = bits_of<ivec>(v);
  const ivec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff;
  return v != v ? ivec{} + 0x7fc00000 : rounded;
}

// float32 rows, as the two forms.
inline void along(const float *x, int64_t stride, int64_t rows, int64_t n, float, pair *out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += kWidth) store(reinterpret_cast<bf16 *>(out + i * (stride / 2)) + j, load(x + i * stride + j));
}

inline void across(const float *x, int64_t stride, int64_t rows, int64_t n, pair *out) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < n; j += kWidth) {
      const ivec low = upper_bits(load(x + i * stride + j));
      const ivec high = i + 1 < rows ? upper_bits(load(x + (i + 1) * stride + j)) : ivec{};
      const ivec both = ((low >> 16) & 0xffff) | high;
      std::memcpy(out + i / 2 * stride + j, &both, sizeof both);
    }
}

}  // namespace bertfast::BERTFAST_ISA
