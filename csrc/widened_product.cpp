// C (+)= A B + bias where the processor does not multiply the factors' type: panels are widened to float32, multiplied, rounded once.
// Where a dimension is short, few_rows.h does it.
//
// Some of A's rows and of B's columns are widened at a time, in groups of as many as a tile of the product has. Each is laid out in the
// order that the tile reads it. All threads widen them, then share out the tiles. A tile of C is one task's, its inner index in order: the
// result is the same bits on any number of threads.
#include "few_rows.h"
#include "kernels.h"

namespace bertfast::BERTFAST_ISA {

namespace {

constexpr int64_t kInner = 512;  // at a time: a tile's factors then stay in the first cache; float32 sums go on from one to the next
constexpr int64_t kRows = 1536, kMostColumns = 1024;  // at a time
constexpr int64_t kBlock = 48;                         // rows of a task
constexpr int64_t kNarrow = kColumns * kWidth;         // columns of a panel

// Rows to columns: blocks of one lane change places, then of two, and so on.
inline void transpose_square(vec (&rows)[kWidth]) {
#if defined(__clang__)
  float from[kWidth * kWidth];
  for (int i = 0; i < kWidth; ++i) store(from + i * kWidth, rows[i]);
  for (int i = 0; i < kWidth; ++i)
    for (int j = 0; j < kWidth; ++j) rows[i][j] = from[j * kWidth + i];
#else
#pragma GCC unroll 4
  for (int size = 1; size < kWidth; size *= 2) {
    ivec first, second;
#pragma GCC unroll 16
    for (int lane = 0; lane < kWidth; ++lane) {
      first[lane] = lane & size ? kWidth + lane - size : lane;
      second[lane] = lane & size ? kWidth + lane : lane + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i & size) continue;
      const vec above = rows[i], below = rows[i + size];
      rows[i] = __builtin_shuffle(above, below, first);
      rows[i + size] = __builtin_shuffle(above, below, second);
    }
  }
#endif
}

// A group of A's rows as (inner, size), and less than a vector past them. `rows` are left from the group's first one on.
template <typename T>
void widen_group(const Matrix &a, int64_t row0, int64_t rows, int64_t size, int64_t k0, int64_t inner, float *out) {
  as_typed<T>(a, [&](const auto *x) {
    x += row0 * a.stride[0] + k0 * a.stride[1];
    if (a.stride[1] != 1) {
      for (int64_t k = 0; k < inner; ++k) store(out + k * size, load_some(x + k * a.stride[1], rows));
      return;
    }
    for (int64_t k = 0; k < inner; k += kWidth) {
      vec square[kWidth];
      const int64_t left = inner - k;
      for (int64_t i = 0; i < kWidth; ++i) square[i] = i < std::min(rows, size) ? load_some(x + i * a.stride[0] + k, left) : vec{};
      transpose_square(square);
      for (int64_t i = 0; i < std::min<int64_t>(left, kWidth); ++i) store(out + (k + i) * size, square[i]);
    }
  });
}

// A panel of B's columns, `columns` of them, as (inner, width), zeros past the columns.
template <typename T>
void widen_panel(const Matrix &b, int64_t column0, int64_t columns, int64_t width, int64_t k0, int64_t inner, float *out) {
  as_typed<T>(b, [&](const auto *x) {
    x += k0 * b.stride[0] + column0 * b.stride[1];
    if (b.stride[1] == 1) {
      if (columns == kNarrow) {
        for (int64_t k = 0; k < inner; ++k)
          for (int64_t j = 0; j < kNarrow; j += kWidth) store(out + k * kNarrow + j, load(x + k * b.stride[0] + j));
        return;
      }
      for (int64_t k = 0; k < inner; ++k)
        for (int64_t j = 0; j < width; j += kWidth)
          store(out + k * width + j, j < columns ? load_some(x + k * b.stride[0] + j, columns - j) : vec{});
      return;
    }
    for (int64_t j = 0; j < width; j += kWidth)
      for (int64_t k = 0; k < inner; k += kWidth) {
        vec square[kWidth];
        const int64_t left = inner - k;
        for (int64_t i = 0; i < kWidth; ++i) square[i] = j + i < columns ? load_some(x + (j + i) * b.stride[1] + k, left) : vec{};
        transpose_square(square);
        for (int64_t i = 0; i < std::min<int64_t>(left, kWidth); ++i) store(out + (k + i) * width + j, square[i]);
      }
  });
}

}  // namespace

template <typename T>
void widened_product(const WidenedProduct<T> &p) {
  if (p.rows == 0 || p.columns == 0) return;
  int64_t rows = p.rows, columns = p.columns;
  const int64_t inner = p.inner;
  Matrix a{p.a, p.a_elements, {p.a_stride[0], p.a_stride[1]}}, b{p.b, p.b_elements, {p.b_stride[0], p.b_stride[1]}};
  static thread_local std::vector<float> bias;
  if (p.bias) {
    bias.resize(columns);
    widen_rows<T>({p.bias, p.bias_elements, {columns, 1}}, 1, columns, columns, bias.data());
  }
  Result c{p.c, p.c_elements, {p.c_stride[0], p.c_stride[1]}, p.bias ? bias.data() : nullptr, {0, 1}, p.accumulate};
  const auto turn = [&] {  // C is made as Bᵀ Aᵀ
    std::swap(a, b), std::swap(rows, columns);
    std::swap(a.stride[0], a.stride[1]), std::swap(b.stride[0], b.stride[1]);
    std::swap(c.stride[0], c.stride[1]), std::swap(c.bias_stride[0], c.bias_stride[1]);
  };
  const int threads = rows * columns * inner < (1 << 17) ? 1 : p.threads;
  if (std::min(rows, columns) <= kFew) {
    if (columns < rows) turn();
    return few_rows<T>(a, b, c, rows, inner, columns, threads);
  }
  if (inner <= kFew) {
    if (c.stride[1] != 1) turn();
    return few_inner<T>(a, b, c, rows, inner, columns, threads);
  }
  // Turned where that brings fewer values to the other order: panels want B's rows contiguous, and the outcome is C's columns.
  const int64_t plain = b.stride[1] == 1 ? 0 : inner * columns, turned = (a.stride[0] == 1 ? 0 : rows * inner) + 3 * rows * columns;
  if (turned < plain) turn();
  const int64_t depth = std::clamp<int64_t>(inner, 1, kInner), most_rows = std::min(rows, kRows);
  const int64_t most_columns = std::min(up(columns, kNarrow), kMostColumns);
  // As many rows as a tile has (see `columns` in products.h), which is higher where C has but a few columns.
  const int64_t size = std::min<int64_t>(kWidth, columns > kNarrow - kWidth ? 6 : 8);
  const bool split = inner > depth;
  const int64_t apart = size * depth + kWidth;        // groups
  const int64_t sums_apart = most_columns + kWidth;  // rows, or all would share a set of the first cache
  const int64_t of_a = up(most_rows, size) / size * apart, of_b = most_columns * depth;
  float *groups = scratch(of_a + of_b + (split ? most_rows * sums_apart : 0)), *panels = groups + of_a, *sums = panels + of_b;
#pragma omp parallel num_threads(threads)
  for (int64_t row0 = 0; row0 < rows; row0 += kRows)
    for (int64_t column0 = 0; column0 < columns; column0 += kMostColumns)
      for (int64_t k0 = 0; k0 == 0 || k0 < inner; k0 += depth) {
        const int64_t height = std::min(kRows, rows - row0), width = std::min(kMostColumns, columns - column0);
        const int64_t those = std::min(depth, inner - k0);
        const int64_t group_count = (height + size - 1) / size, panel_count = (width + kNarrow - 1) / kNarrow;
        const auto panel_width = [&](int64_t n) { return std::min(kNarrow, up(width - n * kNarrow, kWidth)); };
#pragma omp for schedule(static) nowait
        for (int64_t g = 0; g < group_count; ++g)
          widen_group<T>(a, row0 + g * size, rows - row0 - g * size, size, k0, those, groups + g * apart);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < panel_count; ++n)
          widen_panel<T>(b, column0 + n * kNarrow, std::min(kNarrow, width - n * kNarrow), panel_width(n), k0, those,
                         panels + n * depth * kNarrow);
        const int64_t in_block = kBlock / size, blocks = (group_count + in_block - 1) / in_block;
        const int64_t parts = std::clamp<int64_t>(4 * threads / blocks, 1, panel_count), in_part = (panel_count + parts - 1) / parts;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < blocks * parts; ++task) {
          const int64_t first = task / parts * in_block, last = std::min(first + in_block, group_count);
          const int64_t from = task % parts * in_part, to = std::min(from + in_part, panel_count);
          float tile[8 * kNarrow];
          for (int64_t n = from; n < to; ++n)
            for (int64_t g = first; g < last; ++g) {
              const int64_t tall = std::min(size, height - g * size), wide = panel_width(n);
              float *to = split ? sums + g * size * sums_apart + n * kNarrow : tile;
              const int64_t ld = split ? sums_apart : kNarrow;
              product(tall, wide, those, groups + g * apart, 1, size, panels + n * depth * kNarrow, wide, to, ld, k0 > 0);
              if (k0 + depth >= inner)
                put<T>(c, row0 + g * size, column0 + n * kNarrow, to, ld, tall, std::min(kNarrow, width - n * kNarrow));
            }
        }
      }
}

template void widened_product(const WidenedProduct<float> &);
template void widened_product(const WidenedProduct<bf16> &);
template void widened_product(const WidenedProduct<f16> &);

}  // namespace bertfast::BERTFAST_ISA
