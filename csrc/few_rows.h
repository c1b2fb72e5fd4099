// C (+)= A B + bias in float32 where A has a few rows, or a few columns. The larger matrix is read once, as it lies, and widened in
// registers. What a product of many rows gains from bringing its factors to another order, one of a few never earns back.
//
// Each element of C is one task's, its inner index in order: the result is the same bits on any number of threads.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "products.h"

namespace bertfast::BERTFAST_ISA {

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A factor as a matrix whose rows or columns are contiguous.
struct Matrix {
  const void *data;
  Elements elements;
  int64_t stride[2];
};

template <typename T, typename Use>
void as_typed(const Matrix &x, Use use) {
  if (x.elements == Elements::kWide)
    use(static_cast<const float *>(x.data));
  else
    use(static_cast<const T *>(x.data));
}

// C, and what is added to the product: the bias, of which one stride is 0, and with `accumulate` what C holds.
struct Result {
  void *data;
  Elements elements;
  int64_t stride[2];
  const float *bias;  // or null
  int64_t bias_stride[2];
  bool accumulate;
};

template <typename O>
void put_typed(const Result &c, int64_t row, int64_t column, const float *sums, int64_t ld, int64_t rows, int64_t columns) {
  O *out = static_cast<O *>(c.data) + row * c.stride[0] + column * c.stride[1];
  const float *bias = c.bias ? c.bias + row * c.bias_stride[0] + column * c.bias_stride[1] : nullptr;
  if (c.stride[1] != 1) {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) {
        O &place = out[i * c.stride[0] + j * c.stride[1]];
        float value = sums[i * ld + j];
        if (bias) value += bias[i * c.bias_stride[0] + j * c.bias_stride[1]];
        if (c.accumulate) value += to_float(place);
        from_float(value, place);
      }
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    each_vector(columns, [&](int64_t j, int64_t left) {
      vec value = load_some(sums + i * ld + j, left);
      if (bias) value += c.bias_stride[1] ? load_some(bias + j, left) : splat(bias[i]);
      O *place = out + i * c.stride[0] + j;
      if (c.accumulate) value += load_some(place, left);
      store_some(place, value, left);
    });
}

// A tile of sums to C's rows from `row` and columns from `column`.
template <typename T>
void put(const Result &c, int64_t row, int64_t column, const float *sums, int64_t ld, int64_t rows, int64_t columns) {
  if (c.elements == Elements::kWide)
    put_typed<float>(c, row, column, sums, ld, rows, columns);
  else
    put_typed<T>(c, row, column, sums, ld, rows, columns);
}

constexpr int64_t kFew = 16;      // rows
constexpr int kTall = 6;          // rows of a tile of dot products
constexpr int kLone = 8;          // columns of a tile of one row
constexpr int64_t kDots = 16;     // columns of a task of dot products
constexpr int kDeep = kWidth == 16 ? 8 : 4, kAcross = 2;  // rows, and vectors of each, of B that are in registers at a time
constexpr int64_t kSums = 4096;   // floats that stay in the first cache

// A few rows, (rows, columns), as contiguous float32 ones, `apart` from one another, with zeros between.
template <typename T>
void widen_rows(const Matrix &x, int64_t rows, int64_t columns, int64_t apart, float *out) {
  as_typed<T>(x, [&](const auto *from) {
    for (int64_t i = 0; i < rows; ++i) {
      float *to = out + i * apart;
      if (x.stride[1] == 1)
        each_vector(columns, [&](int64_t j, int64_t left) { store_some(to + j, load_some(from + i * x.stride[0] + j, left), left); });
      else
        for (int64_t j = 0; j < columns; ++j) to[j] = to_float(from[i * x.stride[0] + j * x.stride[1]]);
      std::fill(to + columns, to + apart, 0.0f);
    }
  });
}

// use(n) with n as a constant from 1 to kMost.
template <int kMost, typename Use>
inline void with_constant(int64_t n, Use use) {
  if (n == kMost) return use(std::integral_constant<int, kMost>{});
  if constexpr (kMost > 1) with_constant<kMost - 1>(n, use);
}

// C[kM][kN] = A B of B's columns, each contiguous; a row of A goes on to a whole vector.
template <int kM, int kN, typename T>
inline void dots(int64_t inner, const float *a, int64_t a_apart, const T *b, int64_t b_apart, float *c, int64_t ldc) {
  vec sums[kM][kN] = {};
  each_vector(inner, [&](int64_t k, int64_t left) {
    vec column[kN];
    for (int j = 0; j < kN; ++j) column[j] = load_some(b + j * b_apart + k, left);
    for (int i = 0; i < kM; ++i) {
      const vec row = load(a + i * a_apart + k);
      for (int j = 0; j < kN; ++j) sums[i][j] += row * column[j];
    }
  });
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) c[i * ldc + j] = sum(sums[i][j]);
}

template <typename T>
void dots(int64_t rows, int64_t columns, int64_t inner, const float *a, int64_t a_apart, const T *b, int64_t b_apart, float *c,
          int64_t ldc) {
  int64_t j = 0;
  // One row's sums would wait for one another unless more columns are under way.
  if (rows == 1)
    for (; j + kLone <= columns; j += kLone) dots<1, kLone>(inner, a, a_apart, b + j * b_apart, b_apart, c + j, ldc);
  const int64_t tiles = (rows + kTall - 1) / kTall;
  while (j < columns) {
    const bool wide = j + kColumns <= columns;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = tile * rows / tiles, tall = (tile + 1) * rows / tiles - i;
      with_constant<kTall>(tall, [&](auto m) {
        if (wide)
          dots<m.value, kColumns>(inner, a + i * a_apart, a_apart, b + j * b_apart, b_apart, c + i * ldc + j, ldc);
        else
          dots<m.value, 1>(inner, a + i * a_apart, a_apart, b + j * b_apart, b_apart, c + i * ldc + j, ldc);
      });
    }
    j += wide ? kColumns : 1;
  }
}

// C += A B of kD rows of B, each contiguous; C's rows go on to whole tiles of kAcross vectors.
template <int kD, typename T>
inline void add_rows(int64_t rows, int64_t columns, const float *a, int64_t a_apart, const T *b, int64_t b_apart, float *c,
                     int64_t ldc) {
  for (int64_t j = 0; j < columns; j += kAcross * kWidth) {
    vec row[kD][kAcross];
    if (j + kAcross * kWidth <= columns) {
      for (int k = 0; k < kD; ++k)
        for (int v = 0; v < kAcross; ++v) row[k][v] = load(b + k * b_apart + j + v * kWidth);
    } else {
      for (int k = 0; k < kD; ++k)
        for (int v = 0; v < kAcross; ++v) {
          const int64_t place = j + v * kWidth;
          row[k][v] = place < columns ? load_some(b + k * b_apart + place, columns - place) : vec{};
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
      vec sums[kAcross];
      for (int v = 0; v < kAcross; ++v) sums[v] = load(c + i * ldc + j + v * kWidth);
      for (int k = 0; k < kD; ++k)
        for (int v = 0; v < kAcross; ++v) sums[v] += splat(a[i * a_apart + k]) * row[k][v];
      for (int v = 0; v < kAcross; ++v) store(c + i * ldc + j + v * kWidth, sums[v]);
    }
  }
}

// Memory of this thread's that grows to what is asked for.
inline float *scratch(size_t size) {
  static thread_local std::vector<float> kept;
  if (kept.size() < size) kept.resize(size);
  return kept.data();
}

// `rows` are kFew at most.
template <typename T>
void few_rows(const Matrix &a, const Matrix &b, const Result &c, int64_t rows, int64_t inner, int64_t columns, int threads) {
  const int64_t apart = up(inner, kWidth) + kWidth;
  float *wide = scratch(rows * apart);
  widen_rows<T>(a, rows, inner, apart, wide);
  if (b.stride[1] != 1 || (columns == 1 && b.stride[0] == 1)) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t j = 0; j < columns; j += kDots) {
      float sums[kFew * kDots];
      const int64_t width = std::min(kDots, columns - j);
      as_typed<T>(b, [&](const auto *x) {
        dots(rows, width, inner, wide, apart, x + j * b.stride[1], b.stride[1], sums, kDots);
      });
      put<T>(c, 0, j, sums, kDots, rows, width);
    }
    return;
  }
  constexpr int64_t kTile = kAcross * kWidth;
  const int64_t of_thread = up((columns + threads - 1) / threads, kTile), step = std::min(kSums / rows / kTile * kTile, of_thread);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j = 0; j < columns; j += step) {
    float sums[kSums] = {};
    const int64_t width = std::min(step, columns - j);
    as_typed<T>(b, [&](const auto *x) {
      x += j * b.stride[1];
      int64_t k = 0;
      for (; k + kDeep <= inner; k += kDeep) add_rows<kDeep>(rows, width, wide + k, apart, x + k * b.stride[0], b.stride[0], sums, step);
      for (; k < inner; ++k) add_rows<1>(rows, width, wide + k, apart, x + k * b.stride[0], b.stride[0], sums, step);
    });
    put<T>(c, 0, j, sums, step, rows, width);
  }
}

// `inner` is kFew at most: A has few columns and B few rows.
template <typename T>
void few_inner(const Matrix &a, const Matrix &b, const Result &c, int64_t rows, int64_t inner, int64_t columns, int threads) {
  constexpr int64_t kTile = kColumns * kWidth;
  const int64_t apart = up(columns, kWidth) + kWidth;
  float *wide = scratch(inner * apart);
  widen_rows<T>(b, inner, columns, apart, wide);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; i += kTall) {
    float few[kTall * kFew], sums[kTall * kTile];
    const int64_t tall = std::min<int64_t>(kTall, rows - i);
    as_typed<T>(a, [&](const auto *x) {
      for (int64_t row = 0; row < tall; ++row)
        for (int64_t k = 0; k < inner; ++k) few[row * kFew + k] = to_float(x[(i + row) * a.stride[0] + k * a.stride[1]]);
    });
    for (int64_t j = 0; j < columns; j += kTile) {
      const int64_t width = std::min(kTile, columns - j);
      product(tall, up(width, kWidth), inner, few, kFew, 1, wide + j, apart, sums, kTile, false);
      put<T>(c, i, j, sums, kTile, tall, width);
    }
  }
}

}  // namespace bertfast::BERTFAST_ISA
