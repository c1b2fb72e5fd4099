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

// Zero where the score of (query row, head, key) is dropped, the survivors' scale elsewhere, for keys `from` to `to`; `keep` holds
// up(n, 128) floats.
void keep_row(uint64_t seed, uint32_t query, uint32_t head, uint32_t threshold, int64_t from, int64_t to, float *keep) {
  constexpr int64_t step = kBlock * kLanes;
  const float scale = keep_scale(threshold);
  for (int64_t start = from / step * step; start < to; start += step) {
    uint32_t words[4 * kBlock];
    philox_block(seed, start / kLanes, query, head, false, words);
    uint16_t lanes[step];
    std::memcpy(lanes, words, sizeof lanes);
    for (int64_t i = 0; i < step; ++i) keep[start + i] = lanes[i] >= threshold ? scale : 0.0f;
  }
}

// Scratch of one thread, grown to the longest sequence it meets.
struct Scratch {
  std::vector<float> memory;
  std::vector<int32_t> bucket_of;
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

// Keys `from` to `to` of a sequence.
struct Keys {
  int64_t from, to;
};

// The keys that some query of a block sees; `from` is a multiple of kWidth.
Keys seen_by_block(int64_t window, int64_t first, int64_t rows, int64_t n) {
  if (window < 0) return {0, n};
  return {std::max<int64_t>(first - window, 0) / kWidth * kWidth, std::min(first + rows + window, n)};
}

// -inf to the scores of the keys that query i does not see; x[0] is the score of key `from`, and there are `width`.
void hide_unseen(int64_t window, int64_t i, int64_t n, int64_t from, int64_t width, float *x) {
  const float hidden = -std::numeric_limits<float>::infinity();
  const int64_t begin = window < 0 ? 0 : std::max<int64_t>(i - window - from, 0);
  const int64_t end = (window < 0 ? n : std::min(i + window + 1, n)) - from;
  for (int64_t j = 0; j < begin; ++j) x[j] = hidden;
  for (int64_t j = end; j < width; ++j) x[j] = hidden;
}

// The positions of one task. What depends on the distance alone is laid out by key - query, at key - query + n - 1, so that the keys of
// a query are adjacent.
template <typename T>
struct TaskPositions {
  const Positions<T> &p;
  const int64_t start, n, head;  // the sequence's first token and length
  const int32_t *bucket_of;
  float *bias;

  static int64_t floats(const Positions<T> &p, int64_t n) { return p.bias ? 2 * n : 0; }

  TaskPositions(const Positions<T> &positions, int64_t start, int64_t n, int64_t head, Scratch &scratch)
      : p(positions), start(start), n(n), head(head), bucket_of(nullptr), bias(nullptr) {
    if (!p.bucket_of) return;
    const int64_t distances = 2 * n - 1;
    if (static_cast<int64_t>(scratch.bucket_of.size()) < distances) scratch.bucket_of.resize(distances);
    for (int64_t e = 0; e < distances; ++e) scratch.bucket_of[e] = p.bucket_of[p.max_seqlen - 1 + n - 1 - e];
    bucket_of = scratch.bucket_of.data();
    if (!p.bias) return;
    bias = scratch.take(floats(p, n));
    for (int64_t e = 0; e < distances; ++e) bias[e] = to_float(p.bias[head * p.buckets + bucket_of[e]]);
  }

  // Adds the terms of query i to its scores x of the keys.
  void add(int64_t i, Keys keys, float *x) const {
    if (!bucket_of) return;
    const int64_t line = n - 1 - i + keys.from, count = keys.to - keys.from;
    const int32_t *bucket = bucket_of + line;
    if (p.bias)
      for (int64_t j = 0; j < count; ++j) x[j] += bias[line + j];
    if (p.query_scores) {
      const T *scores = p.query_scores + (start + i) * p.query_stride[0] + head * p.query_stride[1];
      for (int64_t j = 0; j < count; ++j) x[j] += to_float(scores[bucket[j]]);
    }
    if (p.key_scores) {
      const T *scores = p.key_scores + (start + keys.from) * p.key_stride[0] + head * p.key_stride[1];
      for (int64_t j = 0; j < count; ++j) x[j] += to_float(scores[j * p.key_stride[0] + bucket[j]]);
    }
  }
};

// The gradients of the tables from one task: nothing else writes its rows of them, and of `dbias` it makes a part of its own.
template <typename T>
struct TaskPositionGradients {
  const AttentionBackward<T> &p;
  const TaskPositions<T> &task;
  float *by_distance, *of_query, *of_keys;

  static int64_t floats(const AttentionBackward<T> &p, int64_t n) {
    const int64_t buckets = p.forward.positions.buckets;
    return (p.dbias ? 2 * n : 0) + (p.dquery_scores ? buckets : 0) + (p.dkey_scores ? n * buckets : 0);
  }

  TaskPositionGradients(const AttentionBackward<T> &p, const TaskPositions<T> &task, Scratch &scratch) : p(p), task(task) {
    const int64_t buckets = task.p.buckets, n = task.n;
    by_distance = scratch.take(p.dbias ? 2 * n : 0);
    of_query = scratch.take(p.dquery_scores ? buckets : 0);
    of_keys = scratch.take(p.dkey_scores ? n * buckets : 0);
    if (p.dbias) std::fill_n(by_distance, 2 * n, 0.0f);
    if (p.dkey_scores) std::fill_n(of_keys, n * buckets, 0.0f);
  }

  // Adds the gradient y of query i's scores of the keys.
  void add(int64_t i, Keys keys, const float *y) {
    if (!task.bucket_of) return;
    const int64_t line = task.n - 1 - i + keys.from, count = keys.to - keys.from, buckets = task.p.buckets;
    const int32_t *bucket = task.bucket_of + line;
    if (p.dbias)
      for (int64_t j = 0; j < count; ++j) by_distance[line + j] += y[j];
    if (p.dquery_scores) {
      std::fill_n(of_query, buckets, 0.0f);
      for (int64_t j = 0; j < count; ++j) of_query[bucket[j]] += y[j];
      narrow(of_query, 1, buckets, 1, p.dquery_scores + ((task.start + i) * p.forward.heads + task.head) * buckets, 0);
    }
    if (p.dkey_scores)
      for (int64_t j = 0; j < count; ++j) of_keys[(keys.from + j) * buckets + bucket[j]] += y[j];
  }

  // `part` is (buckets,) zeros.
  void finish(float *part) {
    const int64_t buckets = task.p.buckets, heads = p.forward.heads;
    if (p.dbias)
      for (int64_t e = 0; e < 2 * task.n - 1; ++e) part[task.bucket_of[e]] += by_distance[e];
    if (p.dkey_scores)
      narrow(of_keys, task.n, buckets, 1, p.dkey_scores + (task.start * heads + task.head) * buckets, heads * buckets);
  }
};

template <typename T>
void forward_task(const AttentionForward<T> &p, int64_t sequence, int64_t head, Scratch &scratch) {
  const int64_t start = p.cu_seqlens[sequence], n = p.cu_seqlens[sequence + 1] - start, d = p.head_dim;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries);
  scratch.start(2 * n * d + d * padded + block * (2 * d + padded) + up(n, 128) + TaskPositions<T>::floats(p.positions, n));
  float *k = scratch.take(n * d), *v = scratch.take(n * d), *kt = scratch.take(d * padded);
  float *q = scratch.take(block * d), *o = scratch.take(block * d), *s = scratch.take(block * padded);
  float *keep = scratch.take(up(n, 128));
  const TaskPositions<T> positions(p.positions, start, n, head, scratch);
  widen(p.k + start * p.k_stride[0] + head * p.k_stride[1], p.k_stride[0], n, d, 1, k);
  widen(p.v + start * p.v_stride[0] + head * p.v_stride[1], p.v_stride[0], n, d, 1, v);
  transpose(k, n, d, padded, kt);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    const Keys keys = seen_by_block(p.window, first, rows, n);
    const int64_t seen = keys.to - keys.from, width = up(seen, kWidth);
    widen(p.q + row0 * p.q_stride[0] + head * p.q_stride[1], p.q_stride[0], rows, d, p.scale, q);
    product(rows, width, d, q, d, 1, kt + keys.from, padded, s, padded, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded;  // of key keys.from and on
      positions.add(first + i, keys, x);
      hide_unseen(p.window, first + i, n, keys.from, width, x);
      vec largest = load(x);
      for (int64_t j = kWidth; j < width; j += kWidth) {
        vec y = load(x + j);
        largest = y > largest ? y : largest;
      }
      const float top = max(largest);
      vec total = {};
      for (int64_t j = 0; j < width; j += kWidth) {
        vec e = exp(load(x + j) - top);
        total += e;
        store(x + j, e);
      }
      const float denominator = sum(total), inverse = 1 / denominator;
      p.lse[head * p.tokens + row0 + i] = top + std::log(denominator);
      if (p.threshold) {
        keep_row(p.seed, row0 + i, head, p.threshold, keys.from, keys.to, keep);
        for (int64_t j = 0; j < seen; ++j) x[j] *= inverse * keep[keys.from + j];
      } else {
        for (int64_t j = 0; j < seen; ++j) x[j] *= inverse;
      }
    }
    product(rows, d, seen, s, padded, 1, v + keys.from * d, d, o, d, false);
    narrow(o, rows, d, 1, p.out + (row0 * p.heads + head) * d, p.heads * d);
  }
}

template <typename T>
void backward_task(const AttentionBackward<T> &p, int64_t sequence, int64_t head, float *dbias_part, Scratch &scratch) {
  const AttentionForward<T> &f = p.forward;
  const int64_t start = f.cu_seqlens[sequence], n = f.cu_seqlens[sequence + 1] - start, d = f.head_dim;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries), out_stride = f.heads * d;
  scratch.start(4 * n * d + 2 * d * padded + block * (4 * d + 2 * padded) + up(n, 128) +
                TaskPositions<T>::floats(f.positions, n) + TaskPositionGradients<T>::floats(p, n));
  float *k = scratch.take(n * d), *v = scratch.take(n * d), *dk = scratch.take(n * d), *dv = scratch.take(n * d);
  float *kt = scratch.take(d * padded), *vt = scratch.take(d * padded);
  float *q = scratch.take(block * d), *dq = scratch.take(block * d);
  float *dout = scratch.take(block * d), *out = scratch.take(block * d);
  float *s = scratch.take(block * padded), *dp = scratch.take(block * padded), *keep = scratch.take(up(n, 128));
  const TaskPositions<T> positions(f.positions, start, n, head, scratch);
  TaskPositionGradients<T> position_gradients(p, positions, scratch);
  widen(f.k + start * f.k_stride[0] + head * f.k_stride[1], f.k_stride[0], n, d, 1, k);
  widen(f.v + start * f.v_stride[0] + head * f.v_stride[1], f.v_stride[0], n, d, 1, v);
  transpose(k, n, d, padded, kt);
  transpose(v, n, d, padded, vt);
  // With a window no block reaches all keys, so that their gradients start from zeros and not from the first block's.
  if (f.window >= 0) std::fill_n(dk, n * d, 0.0f), std::fill_n(dv, n * d, 0.0f);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    const Keys keys = seen_by_block(f.window, first, rows, n);
    const int64_t seen = keys.to - keys.from, width = up(seen, kWidth);
    const bool accumulate = first > 0 || f.window >= 0;
    const int64_t flat = (row0 * f.heads + head) * d;
    widen(f.q + row0 * f.q_stride[0] + head * f.q_stride[1], f.q_stride[0], rows, d, f.scale, q);
    widen(p.dout + flat, out_stride, rows, d, 1, dout);
    widen(f.out + flat, out_stride, rows, d, 1, out);
    product(rows, width, d, q, d, 1, kt + keys.from, padded, s, padded, false);
    product(rows, width, d, dout, d, 1, vt + keys.from, padded, dp, padded, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded, *y = dp + i * padded;  // of key keys.from and on
      positions.add(first + i, keys, x);
      hide_unseen(f.window, first + i, n, keys.from, width, x);
      const float l = f.lse[head * f.tokens + row0 + i];
      float delta = 0;
      for (int64_t e = 0; e < d; ++e) delta += dout[i * d + e] * out[i * d + e];
      for (int64_t j = 0; j < width; j += kWidth) store(x + j, exp(load(x + j) - l));
      // x becomes the dropped probabilities that multiply V, y the gradient of the scores.
      if (f.threshold) {
        keep_row(f.seed, row0 + i, head, f.threshold, keys.from, keys.to, keep);
        for (int64_t j = 0; j < seen; ++j) {
          y[j] = x[j] * (y[j] * keep[keys.from + j] - delta);
          x[j] *= keep[keys.from + j];
        }
      } else {
        for (int64_t j = 0; j < seen; ++j) y[j] = x[j] * (y[j] - delta);
      }
      position_gradients.add(first + i, keys, y);
    }
    product(seen, d, rows, s, 1, padded, dout, d, dv + keys.from * d, d, accumulate);
    product(seen, d, rows, dp, 1, padded, q, d, dk + keys.from * d, d, accumulate);  // q carries the scale
    product(rows, d, seen, dp, padded, 1, k + keys.from * d, d, dq, d, false);
    narrow(dq, rows, d, f.scale, p.dq + row0 * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  }
  narrow(dk, n, d, 1, p.dk + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  narrow(dv, n, d, 1, p.dv + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  position_gradients.finish(dbias_part);
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
  const int64_t buckets = f.positions.buckets;
  for (T *gradient : {p.dquery_scores, p.dkey_scores})
    if (gradient) zero_slack(gradient, used, f.tokens, f.heads * buckets);
  std::vector<float> dbias_parts(p.dbias ? tasks * buckets : 0);
#pragma omp parallel num_threads(f.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task)
      backward_task(p, task / f.heads, task % f.heads, p.dbias ? &dbias_parts[task * buckets] : nullptr, scratch);
#pragma omp for
    for (int64_t i = 0; i < (p.dbias ? f.heads * buckets : 0); ++i) {
      float total = 0;
      for (int64_t sequence = 0; sequence < f.sequences; ++sequence) total += dbias_parts[sequence * f.heads * buckets + i];
      from_float(total, p.dbias[i]);
    }
  }
}

template void attention_forward(const AttentionForward<float> &);
template void attention_forward(const AttentionForward<bf16> &);
template void attention_backward(const AttentionBackward<float> &);
template void attention_backward(const AttentionBackward<bf16> &);

}  // namespace bertfast::BERTFAST_ISA
