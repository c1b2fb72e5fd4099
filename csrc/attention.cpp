// Variable-length bidirectional attention, forward and backward: see kernels/attention.py for the formula.
//
// A task is one head of one sequence, and nothing is shared between tasks: the result is the same bits on any number of threads. Keys and
// values are widened once into float32 scratch; queries go in blocks, so that the scores of a block stay in the cache. The
// backward makes the probabilities again from the saved log-sum-exp.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "philox.h"

namespace bertfast::BERTFAST_ISA {

namespace {

constexpr int kQueries = 64;  // rows of a block of queries
constexpr int kRows = 6;      // rows of a micro-kernel

// C[kM][kN * kWidth] (+)= A B; A is read one scalar at a time, so it may have any strides.
template <int kM, int kN>
inline void micro(int64_t inner, const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t ldb, float *c,
                  int64_t ldc, bool accumulate) {
  vec sums[kM][kN];
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) sums[i][j] = accumulate ? load(c + i * ldc + j * kWidth) : vec{};
  for (int64_t k = 0; k < inner; ++k) {
    vec row[kN];
    for (int j = 0; j < kN; ++j) row[j] = load(b + k * ldb + j * kWidth);
    for (int i = 0; i < kM; ++i) {
      const vec x = splat(a[i * a_row + k * a_col]);
      for (int j = 0; j < kN; ++j) sums[i][j] += x * row[j];
    }
  }
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) store(c + i * ldc + j * kWidth, sums[i][j]);
}

template <int kN>
inline void columns(int64_t rows, int64_t inner, const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t ldb,
                    float *c, int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    micro<kRows, kN>(inner, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i + 2 <= rows; i += 2) micro<2, kN>(inner, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i < rows; ++i) micro<1, kN>(inner, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
}

// C (rows x width) (+)= A (rows x inner) B (inner x width); width is a multiple of kWidth.
void product(int64_t rows, int64_t width, int64_t inner, const float *a, int64_t a_row, int64_t a_col, const float *b,
             int64_t ldb, float *c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + kColumns * kWidth <= width; j += kColumns * kWidth)
    columns<kColumns>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
  for (; j < width; j += kWidth) columns<1>(rows, inner, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
}

// Rows of one head to float32, times `scale`.
template <typename T>
void widen(const T *x, int64_t stride, int64_t rows, int64_t head_dim, float scale, float *out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < head_dim; ++d) out[i * head_dim + d] = to_float(x[i * stride + d]) * scale;
}

template <typename T>
void narrow(const float *x, int64_t rows, int64_t head_dim, float scale, T *out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < head_dim; ++d) from_float(x[i * head_dim + d] * scale, out[i * stride + d]);
}

// (rows, head_dim) to (head_dim, padded), zeros past the rows.
void transpose(const float *x, int64_t rows, int64_t head_dim, int64_t padded, float *out) {
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int64_t i = 0; i < rows; ++i) out[d * padded + i] = x[i * head_dim + d];
    for (int64_t i = rows; i < padded; ++i) out[d * padded + i] = 0;
  }
}

int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Zero where the score of (query row, head, key) is dropped, the survivors' scale elsewhere; `keep` holds up(n, 128) floats.
void keep_row(uint64_t seed, uint32_t query, uint32_t head, uint32_t threshold, int64_t n, float *keep) {
  constexpr int64_t step = kBlock * kLanes;
  const float scale = keep_scale(threshold);
  for (int64_t start = 0; start < n; start += step) {
    uint32_t words[4 * kBlock];
    philox_block(seed, start / kLanes, query, head, false, words);
    uint16_t lanes[step];
    std::memcpy(lanes, words, sizeof lanes);
    for (int64_t i = 0; i < step; ++i) keep[start + i] = lanes[i] >= threshold ? scale : 0.0f;
  }
}

// Float32 scratch of one thread, grown to the longest sequence it meets.
struct Scratch {
  std::vector<float> memory;
  float *next = nullptr;
  void start(int64_t floats) {
    if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
    next = memory.data();
  }
  float *take(int64_t floats) {
    float *taken = next;
    next += floats;
    return taken;
  }
};

template <typename T>
void zero_slack(T *x, int64_t from, int64_t to, int64_t row) {
  std::memset(static_cast<void *>(x + from * row), 0, (to - from) * row * sizeof(T));
}

template <typename T>
void forward_task(const AttentionForward<T> &p, int64_t sequence, int64_t head, Scratch &scratch) {
  const int64_t start = p.cu_seqlens[sequence], n = p.cu_seqlens[sequence + 1] - start, d = p.head_dim;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries);
  scratch.start(2 * n * d + d * padded + block * (2 * d + padded) + up(n, 128));
  float *k = scratch.take(n * d), *v = scratch.take(n * d), *kt = scratch.take(d * padded);
  float *q = scratch.take(block * d), *o = scratch.take(block * d), *s = scratch.take(block * padded);
  float *keep = scratch.take(up(n, 128));
  widen(p.k + start * p.k_stride[0] + head * p.k_stride[1], p.k_stride[0], n, d, 1, k);
  widen(p.v + start * p.v_stride[0] + head * p.v_stride[1], p.v_stride[0], n, d, 1, v);
  transpose(k, n, d, padded, kt);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    widen(p.q + row0 * p.q_stride[0] + head * p.q_stride[1], p.q_stride[0], rows, d, p.scale, q);
    product(rows, padded, d, q, d, 1, kt, padded, s, padded, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded;
      for (int64_t j = n; j < padded; ++j) x[j] = -std::numeric_limits<float>::infinity();
      vec largest = load(x);
      for (int64_t j = kWidth; j < padded; j += kWidth) {
        vec y = load(x + j);
        largest = y > largest ? y : largest;
      }
      const float top = max(largest);
      vec total = {};
      for (int64_t j = 0; j < padded; j += kWidth) {
        vec e = exp(load(x + j) - top);
        total += e;
        store(x + j, e);
      }
      const float denominator = sum(total), inverse = 1 / denominator;
      p.lse[head * p.tokens + row0 + i] = top + std::log(denominator);
      if (p.threshold) {
        keep_row(p.seed, row0 + i, head, p.threshold, n, keep);
        for (int64_t j = 0; j < n; ++j) x[j] *= inverse * keep[j];
      } else {
        for (int64_t j = 0; j < n; ++j) x[j] *= inverse;
      }
    }
    product(rows, d, n, s, padded, 1, v, d, o, d, false);
    narrow(o, rows, d, 1, p.out + (row0 * p.heads + head) * d, p.heads * d);
  }
}

template <typename T>
void backward_task(const AttentionBackward<T> &p, int64_t sequence, int64_t head, Scratch &scratch) {
  const AttentionForward<T> &f = p.forward;
  const int64_t start = f.cu_seqlens[sequence], n = f.cu_seqlens[sequence + 1] - start, d = f.head_dim;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries), out_stride = f.heads * d;
  scratch.start(4 * n * d + 2 * d * padded + block * (4 * d + 2 * padded) + up(n, 128));
  float *k = scratch.take(n * d), *v = scratch.take(n * d), *dk = scratch.take(n * d), *dv = scratch.take(n * d);
  float *kt = scratch.take(d * padded), *vt = scratch.take(d * padded);
  float *q = scratch.take(block * d), *dq = scratch.take(block * d);
  float *dout = scratch.take(block * d), *out = scratch.take(block * d);
  float *s = scratch.take(block * padded), *dp = scratch.take(block * padded), *keep = scratch.take(up(n, 128));
  widen(f.k + start * f.k_stride[0] + head * f.k_stride[1], f.k_stride[0], n, d, 1, k);
  widen(f.v + start * f.v_stride[0] + head * f.v_stride[1], f.v_stride[0], n, d, 1, v);
  transpose(k, n, d, padded, kt);
  transpose(v, n, d, padded, vt);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    const int64_t flat = (row0 * f.heads + head) * d;
    widen(f.q + row0 * f.q_stride[0] + head * f.q_stride[1], f.q_stride[0], rows, d, f.scale, q);
    widen(p.dout + flat, out_stride, rows, d, 1, dout);
    widen(f.out + flat, out_stride, rows, d, 1, out);
    product(rows, padded, d, q, d, 1, kt, padded, s, padded, false);
    product(rows, padded, d, dout, d, 1, vt, padded, dp, padded, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded, *y = dp + i * padded;
      const float l = f.lse[head * f.tokens + row0 + i];
      float delta = 0;
      for (int64_t e = 0; e < d; ++e) delta += dout[i * d + e] * out[i * d + e];
      for (int64_t j = 0; j < padded; j += kWidth) store(x + j, exp(load(x + j) - l));
      // x becomes the dropped probabilities that multiply V, y the gradient of the scores.
      if (f.threshold) {
        keep_row(f.seed, row0 + i, head, f.threshold, n, keep);
        for (int64_t j = 0; j < n; ++j) {
          y[j] = x[j] * (y[j] * keep[j] - delta);
          x[j] *= keep[j];
        }
      } else {
        for (int64_t j = 0; j < n; ++j) y[j] = x[j] * (y[j] - delta);
      }
    }
    product(n, d, rows, s, 1, padded, dout, d, dv, d, first > 0);
    product(n, d, rows, dp, 1, padded, q, d, dk, d, first > 0);  // q carries the scale
    product(rows, d, n, dp, padded, 1, k, d, dq, d, false);
    narrow(dq, rows, d, f.scale, p.dq + row0 * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  }
  narrow(dk, n, d, 1, p.dk + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  narrow(dv, n, d, 1, p.dv + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
}

}  // namespace

template <typename T>
void attention_forward(const AttentionForward<T> &p) {
  const int64_t used = p.cu_seqlens[p.sequences], tasks = p.sequences * p.heads;
  zero_slack(p.out, used, p.tokens, p.heads * p.head_dim);
  for (int64_t head = 0; head < p.heads; ++head) zero_slack(p.lse + head * p.tokens, used, p.tokens, 1);
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) forward_task(p, task / p.heads, task % p.heads, scratch);
  }
}

template <typename T>
void attention_backward(const AttentionBackward<T> &p) {
  const AttentionForward<T> &f = p.forward;
  const int64_t used = f.cu_seqlens[f.sequences], tasks = f.sequences * f.heads;
  for (T *gradient : {p.dq, p.dk, p.dv})
    for (int64_t token = used; token < f.tokens; ++token)
      for (int64_t head = 0; head < f.heads; ++head)
        zero_slack(gradient + token * p.d_stride[0] + head * p.d_stride[1], 0, 1, f.head_dim);
#pragma omp parallel num_threads(f.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) backward_task(p, task / f.heads, task % f.heads, scratch);
  }
}

template void attention_forward(const AttentionForward<float> &);
template void attention_forward(const AttentionForward<bf16> &);
template void attention_backward(const AttentionBackward<float> &);
template void attention_backward(const AttentionBackward<bf16> &);

}  // namespace bertfast::BERTFAST_ISA
